"""Safetensors files made by hand, right and wrong ones."""

from __future__ import annotations

import json
from pathlib import Path

from tokensurgeon.checkpoint.index import CheckpointIndex, Shard, TensorRef

SIZES = {"F32": 4, "BF16": 2, "F16": 2, "I8": 1, "U8": 1, "I32": 4, "F8_E4M3": 1}


def write_raw(path: Path, header: object, data: bytes = b"") -> Path:
    """A safetensors file with any header, be it text or a JSON document."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def entry(shape: list[int], start: int, end: int, dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def write_index(directory: Path, weight_map: dict[str, str], **extra: object) -> Path:
    path = directory / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map, **extra}))
    return path


def headers(shapes: dict[str, tuple[int, ...]], **dtypes: str) -> CheckpointIndex:
    """What ``read_index`` would say of a checkpoint with these tensors; there are no files."""
    path = Path("model.safetensors")
    refs = []
    for name, shape in shapes.items():
        dtype = dtypes.get(name.replace(".", "_"), "BF16")
        refs.append(TensorRef(name, dtype, shape, path, 0, 0))
    return CheckpointIndex(Path(), (Shard(path, tuple(refs), {}, tuple(shapes)),), None)
