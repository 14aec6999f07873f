"""Tokenised data in the ids of an edited tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tokensurgeon.errors import InputError, PolicyError

IGNORED = -100
"""Label that PyTorch's losses pass over; no id, so it stays."""
_BLOCK = 1 << 22


def remap_ids(ids: ArrayLike, origins: Mapping[int, int], fill: int | None = None) -> NDArray[Any]:
    """Put new ids in the place of old ones.

    Args:
        ids: Old ids, integers of any shape.
        origins: New id to old id, as `Edited` has them.
        fill: New id for what has no counterpart; None makes that an error.

    Returns:
        New ids in the same shape, and in the same type unless a new id does not fit it.

    Raises:
        InputError: Ids without a counterpart and no ``fill``, or no integers.
    """
    return _make_remap(origins, fill)(np.asarray(ids))


def remap_npy(source: Path, target: Path, origins: Mapping[int, int], fill: int | None = None) -> int:
    """Rewrite the ids of a ``.npy`` file, a block at a time.

    Args:
        source: Integers of any shape.
        target: Where to write; not there unless all went well.
        origins: New id to old id.
        fill: As in `remap_ids`.

    Returns:
        How many ids there are.

    Raises:
        InputError: As `remap_ids`.
    """
    remap = _make_remap(origins, fill)
    old = np.load(source, mmap_mode="r", allow_pickle=False)
    order: Any = "F" if np.isfortran(old) else "C"
    before = old.reshape(-1, order=order)
    with _placed(target) as partial, _located(f"{source}"):
        kind = remap(before[:1]).dtype
        new = np.lib.format.open_memmap(
            partial, mode="w+", dtype=kind, shape=old.shape, fortran_order=order == "F"
        )
        after = new.reshape(-1, order=order)
        for start in range(0, old.size, _BLOCK):
            after[start : start + _BLOCK] = remap(before[start : start + _BLOCK])
        new.flush()
    return int(old.size)


def remap_jsonl(
    source: Path, target: Path, key: str, origins: Mapping[int, int], fill: int | None = None
) -> int:
    """Rewrite the ids that the objects of a JSONL file have under a key; all else stays.

    Args:
        source: One JSON object a line.
        target: Where to write; not there unless all went well.
        key: Of a list of ids, such as ``input_ids``.
        origins: New id to old id.
        fill: As in `remap_ids`.

    Returns:
        How many ids there are.

    Raises:
        InputError: As `remap_ids`, or a line without such a list.
    """
    remap = _make_remap(origins, fill)
    total = 0
    with (
        _placed(target) as partial,
        source.open(encoding="utf-8", newline="\n") as lines,
        partial.open("w", encoding="utf-8", newline="\n") as written,
    ):
        for number, line in enumerate(lines, 1):
            with _located(f"{source}, line {number}"):
                try:
                    record = json.loads(line)
                    ids = np.asarray(record[key])
                except (ValueError, KeyError, TypeError) as error:
                    raise InputError("no ids", f"a JSON object with a list under {key!r}") from error
                record[key] = remap(ids).tolist()
            written.write(json.dumps(record, ensure_ascii=False) + "\n")
            total += ids.size
    return total


def remap_file(
    source: Path, target: Path, origins: Mapping[int, int], *, key: str, fill: int | None = None
) -> int:
    """Rewrite the ids of a ``.npy`` or ``.jsonl`` file.

    Args:
        source: The file.
        target: A new one.
        origins: New id to old id.
        key: Of the lists in a ``.jsonl``.
        fill: As in `remap_ids`.

    Returns:
        How many ids there are.

    Raises:
        InputError: As `remap_ids`, or a file that is not there or of another kind.
        PolicyError: The target exists.
    """
    if not source.is_file():
        raise InputError(f"{source}: no such file", "a .npy or .jsonl file")
    if target.exists():
        raise PolicyError(f"{target} exists", "a new file")
    if source.suffix == ".npy":
        return remap_npy(source, target, origins, fill)
    if source.suffix in (".jsonl", ".json"):
        return remap_jsonl(source, target, key, origins, fill)
    raise InputError(f"{source}: {source.suffix or 'no suffix'}", "integers in a .npy, or lists in a .jsonl")


def _make_remap(origins: Mapping[int, int], fill: int | None) -> Callable[[NDArray[Any]], NDArray[Any]]:
    table = np.full(max(origins.values(), default=0) + 1, -1, dtype=np.int64)
    table[list(origins.values())] = list(origins)
    highest = max(*origins, fill or 0, 0)

    def remap(old: NDArray[Any]) -> NDArray[Any]:
        if old.size and not np.issubdtype(old.dtype, np.integer):
            raise InputError(f"token ids of type {old.dtype}", "integers")
        kind = old.dtype if old.size else np.dtype(np.int64)
        known = (old >= 0) & (old < len(table))
        new = np.where(old == IGNORED, IGNORED, -1).astype(np.int64)
        new[known] = table[old[known].astype(np.int64)]
        lost = new == -1
        if lost.any():
            if fill is None:
                names = ", ".join(map(str, np.unique(old[lost])[:5].tolist()))
                raise InputError(
                    f"{int(lost.sum())} of {old.size} token ids have no counterpart, such as {names}",
                    "only tokens that were kept",
                    "give an id to put in their place, or keep these tokens",
                )
            new[lost] = fill
        fits = highest <= np.iinfo(kind).max
        return new.astype(kind if fits else np.promote_types(kind, np.min_scalar_type(highest)))

    return remap


@contextmanager
def _placed(target: Path) -> Iterator[Path]:
    """Somewhere to write, which becomes the target in the end."""
    partial = target.with_name(f"{target.name}.partial")
    try:
        yield partial
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _located(place: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error.found}", error.expected, error.next_step) from error
