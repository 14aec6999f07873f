"""What a checkpoint holds, from headers alone.

A safetensors file is a little-endian 64-bit header length, a JSON header and the tensors' bytes
(https://github.com/huggingface/safetensors, "Format"). The header is read here rather than through
the library because the writer copies bytes by offset.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokensurgeon.errors import InputError, PolicyError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

_MAX_HEADER = 100_000_000
_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16,
    "I16": 16, "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I8": 8, "U8": 8, "BOOL": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip


@dataclass(frozen=True)
class TensorRef:
    """Where one tensor lies.

    Attributes:
        name: Its name in the checkpoint.
        dtype: As in the header, such as ``BF16``.
        shape: Its shape.
        path: The file.
        start: Offset of its first byte in the file.
        end: Offset past its last byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.end - self.start


@dataclass(frozen=True)
class Shard:
    """One safetensors file.

    Attributes:
        path: The file.
        tensors: Its tensors in the order of their bytes.
        metadata: ``__metadata__`` of the header.
        header_order: Names in the order of the header's JSON.
    """

    path: Path
    tensors: tuple[TensorRef, ...]
    metadata: dict[str, str]
    header_order: tuple[str, ...]


@dataclass(frozen=True)
class CheckpointIndex:
    """All tensors of a checkpoint directory.

    Attributes:
        path: The directory.
        shards: Its files in name order.
        index: The parsed shard index, or None for a single file.
    """

    path: Path
    shards: tuple[Shard, ...]
    index: dict[str, Any] | None = field(repr=False)

    @property
    def tensors(self) -> dict[str, TensorRef]:
        """Tensor by name."""
        return {tensor.name: tensor for shard in self.shards for tensor in shard.tensors}

    def with_copies(self, copies: Sequence[TensorRef]) -> CheckpointIndex:
        """The checkpoint as if it stored some tensors once more, each in the file of the original.

        Args:
            copies: Tensors of this checkpoint under other names.

        Returns:
            An index whose copies lie at the same bytes as their originals.
        """
        shards = []
        for shard in self.shards:
            more = tuple(ref for ref in copies if ref.path == shard.path)
            names = (*shard.header_order, *(ref.name for ref in more))
            shards.append(replace(shard, tensors=(*shard.tensors, *more), header_order=names))
        if self.index is None:
            return replace(self, shards=tuple(shards))
        files = {**self.index["weight_map"], **{ref.name: ref.path.name for ref in copies}}
        metadata = dict(self.index.get("metadata", {}))
        if "total_parameters" in metadata:
            metadata["total_parameters"] += sum(math.prod(ref.shape) for ref in copies)
        return replace(
            self, shards=tuple(shards), index={**self.index, "metadata": metadata, "weight_map": files}
        )


def find_weights(directory: Path) -> tuple[list[str], dict[str, Any] | None]:
    """Name the weight files of a checkpoint directory without opening them.

    Args:
        directory: The checkpoint.

    Returns:
        File names in order, and the parsed index when the checkpoint is sharded.

    Raises:
        InputError: There are no weights, or the index is damaged.
        PolicyError: The weights are pickles.
    """
    index_path = directory / INDEX_NAME
    if index_path.is_file():
        try:
            index = json.loads(index_path.read_text(encoding="utf-8"))
            names = sorted(set(index["weight_map"].values()))
            if not all(isinstance(name, str) for name in names):
                raise TypeError("shard names are no strings")
            if not isinstance(index.get("metadata", {}), dict):
                raise TypeError("metadata is no object")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise InputError(f"{index_path}: {error!r}", "a shard index with a weight_map") from error
        except OSError as error:
            raise InputError(f"{index_path}: {error.strerror}", "a file that can be read") from error
        for name in names:
            if Path(name).name != name:
                raise InputError(f"{index_path}: shard {name!r}", "file names without a directory")
        return names, index
    if (directory / SINGLE_NAME).is_file():
        return [SINGLE_NAME], None
    _refuse_other_formats(directory)
    raise InputError(
        f"{directory}: no {SINGLE_NAME} and no {INDEX_NAME}",
        "a checkpoint with safetensors weights",
        "methods that need no donor weights (pieces, mean, gaussian, zero) accept a tokenizer on its own",
    )


def _refuse_other_formats(directory: Path) -> None:
    if (directory / "adapter_config.json").is_file():
        raise InputError(
            f"{directory}: an adapter, not a model",
            "a full checkpoint",
            "merge the adapter into its model first",
        )
    names = {path.name for path in directory.glob("*") if path.is_file()}
    if (
        any(name.startswith(("zero_pp_rank", "mp_rank")) for name in names)
        or (directory / "latest").is_file()
    ):
        raise InputError(
            f"{directory}: a DeepSpeed checkpoint",
            "gathered safetensors weights",
            "run its zero_to_fp32.py with safetensors output first",
        )
    pickles = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
    if pickles:
        raise PolicyError(
            f"{directory}: only pickled weights ({', '.join(pickles[:3])})",
            "safetensors; loading a pickle can run code",
            "convert it where you trust it: from_pretrained(...).save_pretrained(...)",
        )


def read_index(directory: Path, names: list[str] | None = None) -> CheckpointIndex:
    """Read all headers of a checkpoint and check them against each other.

    Args:
        directory: The checkpoint.
        names: Only these files; the shard index is then not checked for completeness.

    Returns:
        Every tensor with its place.

    Raises:
        InputError: A shard is missing or truncated, a header is damaged, a tensor is in the index and not
            in its file or in two files.
        PolicyError: The weights are pickles.
    """
    found, index = find_weights(directory)
    shards = tuple(read_shard(directory / name) for name in (names or found))
    seen: dict[str, Path] = {}
    for shard in shards:
        for tensor in shard.tensors:
            if tensor.name in seen:
                raise InputError(
                    f"{shard.path}: tensor {tensor.name} is also in {seen[tensor.name].name}",
                    "each tensor in one shard",
                )
            seen[tensor.name] = shard.path
    if index is not None and names is None:
        for name, file in index["weight_map"].items():
            if name not in seen or seen[name].name != file:
                raise InputError(
                    f"{directory / file}: no tensor {name}", f"it in this file, as {INDEX_NAME} says"
                )
    return CheckpointIndex(directory, shards, index)


def read_shard(path: Path) -> Shard:
    """Read the header of one safetensors file.

    Args:
        path: The file.

    Returns:
        Its tensors; offsets are those of the file.

    Raises:
        InputError: The file is missing, truncated, or its header is damaged.
    """
    if not _is_file(path):
        raise InputError(
            f"{path}: missing shard", "every file the shard index names", "fetch the checkpoint again"
        )
    try:
        size, file = path.stat().st_size, path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "a file that can be read") from error
    with file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise InputError(
                f"{path}: the header is {length} bytes long, the file {size}",
                "a whole safetensors file",
                "fetch the file again",
            )
        raw = file.read(length)
    try:
        header = json.loads(raw.decode(), object_pairs_hook=_without_repeats)
        metadata = header.pop("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise TypeError("__metadata__ holds more than strings")
        tensors = [_read_entry(path, name, entry, 8 + length) for name, entry in header.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: damaged header ({error})", "a safetensors header") from error
    ordered = tuple(sorted(tensors, key=lambda tensor: (tensor.start, tensor.end)))
    position = 8 + length
    for tensor in ordered:
        if tensor.start != position:
            raise InputError(
                f"{path}: {tensor.name} starts at byte {tensor.start}",
                f"byte {position}, after its neighbour",
            )
        position = tensor.end
    if position != size:
        raise InputError(
            f"{path}: {size} bytes", f"{position} bytes, as its header says", "fetch the file again"
        )
    return Shard(path, ordered, dict(metadata), tuple(header))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have, a folder that may not be entered
        return False


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} twice")
    return found


def _whole(value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} where a whole number belongs")
    return value


def _read_entry(path: Path, name: str, entry: dict[str, Any], base: int) -> TensorRef:
    shape = tuple(_whole(size) for size in entry["shape"])
    start, end = (_whole(offset) for offset in entry["data_offsets"])
    dtype = str(entry["dtype"])
    if dtype not in _BITS:
        raise InputError(f"{path}: {name} has dtype {dtype}", "a dtype that safetensors defines")
    if min(shape, default=0) < 0 or (end - start) * 8 != math.prod(shape) * _BITS[dtype]:
        raise InputError(
            f"{path}: {name} has {end - start} bytes",
            f"the bytes of {dtype} {list(shape)}",
        )
    return TensorRef(name, dtype, shape, path, base + start, base + end)
