"""Texts to train on, from files, a piece at a time: no file is ever in memory as a whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokensurgeon.errors import InputError, RecipeError

PIECE = 2048


def check_corpus(paths: Sequence[Path]) -> None:
    """Read the beginning of every file, so that a run does not fail after an hour.

    Args:
        paths: Files.

    Raises:
        InputError: One cannot be read, or has no text.
        RecipeError: One needs a package that is not installed.
    """
    for path in paths:
        if next(_read_pieces(path, PIECE), None) is None:
            raise InputError(f"{path}: no text", "at least one character that is no blank")


def read_pieces(paths: Sequence[Path], size: int = PIECE) -> Iterator[str]:
    """Read texts in pieces, one from each file in turn, so that no file is left to the end.

    Args:
        paths: UTF-8 text, ``.jsonl`` with a ``text`` field, or ``.parquet`` with a ``text`` column.
        size: Most characters of a piece; it ends after a line, or else after a word, where there is one.

    Yields:
        Pieces that are not blank.

    Raises:
        InputError: A file cannot be read, or is not what its name says.
        RecipeError: One needs a package that is not installed.
    """
    files = [_read_pieces(path, size) for path in paths]
    while files:
        for file in list(files):
            piece = next(file, None)
            if piece is None:
                files.remove(file)
            else:
                yield piece


def _read_pieces(path: Path, size: int) -> Iterator[str]:
    read = {".jsonl": _read_jsonl, ".parquet": _read_parquet}.get(path.suffix, _read_text)
    try:
        yield from (piece for piece in read(path, size) if piece.strip())
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not UTF-8 ({error.reason})", "a UTF-8 text file", f"iconv -t UTF-8 {path}"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "a readable file of texts") from error


def _read_text(path: Path, size: int) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from _cut(file, size)


def _read_jsonl(path: Path, size: int) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield from _cut([_text_of(line, f"{path}: line {number}")], size)


def _text_of(line: str, where: str) -> str:
    try:
        text: Any = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{where}: {line.strip()[:60]}", 'an object with a "text" on every line') from error
    if not isinstance(text, str):
        raise InputError(f"{where}: text is {type(text).__name__}", "a string")
    return text


def _read_parquet(path: Path, size: int) -> Iterator[str]:
    if find_spec("pyarrow") is None:
        raise RecipeError(f"{path} needs pyarrow, which is not installed", next_step="pip install pyarrow")
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(columns=["text"]):
            for text in batch.column("text").to_pylist():
                yield from _cut([text or ""], size)
    except (pyarrow.ArrowException, KeyError) as error:
        raise InputError(f"{path}: {error}", "a parquet file with a `text` column") from error


def _cut(lines: Iterable[str], size: int) -> Iterator[str]:
    """Whole lines together as long as they fit; a longer one in parts."""
    piece = ""
    for line in lines:
        if len(piece) + len(line) > size and piece:
            yield piece
            piece = ""
        piece += line
        while len(piece) > size:
            end = max(piece.rfind("\n", 0, size), piece.rfind(" ", 0, size)) + 1
            yield piece[: end or size]
            piece = piece[end or size :]
    if piece:
        yield piece
