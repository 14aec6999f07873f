"""Texts to measure on, read from files."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tokensurgeon.errors import InputError


def read_texts(paths: Sequence[Path], max_bytes: int | None = None) -> dict[str, str]:
    """Read text files.

    Args:
        paths: UTF-8 files; one given twice is read once.
        max_bytes: Cut each text there, or before the character that crosses it. None reads all.

    Returns:
        Text by file name; files of the same name get their folder's name too, or the full path.

    Raises:
        InputError: A file cannot be read, is not UTF-8, or has no text.
    """
    files = list(dict.fromkeys(path.resolve() for path in paths))
    names = [[path.name, f"{path.parent.name}/{path.name}", str(path)] for path in files]
    seen = Counter(name for options in names for name in options)
    return {
        next(name for name in options if seen[name] == 1): _read_text(path, max_bytes)
        for path, options in zip(files, names, strict=True)
    }


def read_prompts(path: Path) -> list[str]:
    """Read prompts, one a line.

    Args:
        path: A UTF-8 file.

    Returns:
        Its lines but for blank ones.

    Raises:
        InputError: It cannot be read, or has blank lines only.
    """
    [text] = read_texts([path]).values()
    prompts = [line for line in text.splitlines() if line.strip()]
    if not prompts:
        raise InputError(f"{path}: blank lines only", "a prompt a line")
    return prompts


def head_of(text: str, size: int) -> str:
    """The beginning of a text.

    Args:
        text: Any text.
        size: Bytes, more than a character has.

    Returns:
        No more than that, cut between characters.
    """
    return text.encode()[:size].decode(errors="ignore")


def _read_text(path: Path, max_bytes: int | None) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(-1 if max_bytes is None else max_bytes)
            complete = not file.read(1)
        # A decoder that waits for more holds back the character that was cut.
        text = codecs.getincrementaldecoder("utf-8")().decode(data, final=complete)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte {error.start} is not UTF-8", "a UTF-8 text file", f"iconv -t UTF-8 {path}"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "a readable text file") from error
    if not text:
        raise InputError(f"{path}: empty text", "at least one character")
    return text
