"""What an output directory must be, written down so that any later reader can check it without the inputs.

Kept as ``provenance.json`` in the output: the base row behind every output row, hashes of the body, of the
copied rows and of the tokenizer files, and the ids that the raw tokenizer gives for the probe texts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from tokensurgeon.checkpoint.layout import TensorRole
from tokensurgeon.checkpoint.reader import raw_bytes
from tokensurgeon.errors import InputError

FILE_NAME = "provenance.json"
MADE = -1
PADDING = -2


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BodyTensor(_Part):
    """A tensor that must be as it was written: as in the base, or as training left it.

    Attributes:
        dtype: Stored dtype.
        shape: Shape.
        sha256: Of its bytes.
    """

    dtype: str
    shape: list[int]
    sha256: str


class VocabRows(_Part):
    """A vocabulary tensor of the output.

    Attributes:
        role: A ``TensorRole``.
        dtype: Stored dtype.
        shape: Shape.
        axis: The axis that counts tokens.
        equal_to: A tensor it must equal, or None.
        source: For every row the base row it is a copy of, ``MADE`` (or trained) or ``PADDING``.
        copied_sha256: Of the copied rows' bytes, in row order, as they are in the base.
        may_repeat: Rows that may equal another row by design (methods that make equal rows).
        may_vanish: Whether made rows may be zero by design.
        mapped: Rows that no method made: the user spelt them out in base tokens.
    """

    role: str
    dtype: str
    shape: list[int]
    axis: int
    equal_to: str | None
    source: list[int]
    copied_sha256: str
    may_repeat: list[int]
    may_vanish: bool
    mapped: list[int] = []


class Expectation(_Part):
    """What must hold for an output directory.

    Attributes:
        schema_version: Of this file.
        rows: Rows of the vocabulary tensors.
        bound: Highest token id plus one.
        body: All body tensors by name.
        vocab: Vocabulary tensors by name.
        files: SHA-256 of tokenizer files, by name; they are the target's but for those rewritten.
        probe: Texts and the ids that the raw tokenizer gives for them.
        chat: The fixed conversation by the target's template, and its ids; None without a template.
        untied: Whether the lm_head was tied in the base and is not any more.
        rewritten: Names of the tokenizer files that differ from the target's.
        base_pad: The base's padding id, from which some classes count positions; None where it has none.
        trained: Names of body tensors that training changed; those in ``body`` are as it left them.
    """

    schema_version: int = 1
    rows: int
    bound: int
    body: dict[str, BodyTensor]
    vocab: dict[str, VocabRows]
    files: dict[str, str]
    probe: list[tuple[str, list[int]]]
    chat: tuple[str, list[int]] | None
    untied: bool = False
    rewritten: list[str] = []
    base_pad: int | None = None
    trained: list[str] = []

    @property
    def made(self) -> frozenset[int]:
        """Token ids whose row, of one tensor or another, is a copy of no base row: a method made it."""
        return frozenset(
            index
            for rows in self.vocab.values()
            if rows.role != TensorRole.BIAS
            for index, origin in enumerate(rows.source)
            if origin == MADE
        )

    def save(self, directory: Path) -> None:
        """Write it into an output directory."""
        document: dict[str, Any] = self.model_dump(mode="json")
        (directory / FILE_NAME).write_text(
            json.dumps(document, separators=(",", ":")) + "\n", encoding="utf-8"
        )


def load_expectation(directory: Path) -> Expectation | None:
    """Read what an output directory must be.

    Args:
        directory: Any checkpoint directory.

    Returns:
        The expectation, or None where there is none: the directory is not an output of this tool.

    Raises:
        InputError: The file is damaged.
    """
    path = directory / FILE_NAME
    if not path.is_file():
        return None
    try:
        return Expectation.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(f"{path}: {error.error_count()} errors", "a file this version can read") from error


def token_rows(tensor: Tensor, axis: int) -> Tensor:
    """A vocabulary tensor as ``(rows, width)``: a bias of shape ``(V,)`` or ``(1, V)`` has width 1.

    Args:
        tensor: The tensor.
        axis: The axis that counts tokens.

    Returns:
        A view where that is possible.
    """
    return tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1)


def hash_rows(rows: Tensor, ids: list[int], chunk: int = 8192) -> str:
    """SHA-256 of chosen rows' bytes in the order of ``ids``.

    Args:
        rows: ``(V, width)`` in its stored dtype.
        ids: Rows to hash.
        chunk: Rows gathered at a time.

    Returns:
        The digest in hexadecimal.
    """
    digest = hashlib.sha256()
    for part in torch.tensor(ids, dtype=torch.int64).split(chunk):
        digest.update(raw_bytes(rows[part]))
    return digest.hexdigest()


def row_digests(rows: Tensor, ids: list[int], chunk: int = 8192) -> Iterator[bytes]:
    """Short digests of rows' bytes; equal rows have equal ones.

    Args:
        rows: ``(V, width)`` in its stored dtype.
        ids: Rows to look at.
        chunk: Rows gathered at a time.

    Yields:
        16 bytes for each id, in the order of ``ids``.
    """
    for part in torch.tensor(ids, dtype=torch.int64).split(chunk):
        data = raw_bytes(rows[part])
        width = len(data) // len(part) if len(part) else 0
        for start in range(0, len(data), max(width, 1)):
            yield hashlib.blake2b(data[start : start + width], digest_size=16).digest()
