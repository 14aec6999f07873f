"""Where a row of a finished output came from, and what it is near to."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokensurgeon.checkpoint.expectation import (
    FILE_NAME,
    MADE,
    PADDING,
    VocabRows,
    load_expectation,
    token_rows,
)
from tokensurgeon.checkpoint.index import read_index
from tokensurgeon.checkpoint.layout import TensorRole
from tokensurgeon.checkpoint.reader import map_tensor
from tokensurgeon.errors import InputError

NEAREST = 8
_CHUNK = 8192


@dataclass(frozen=True)
class Ingredient:
    """A base token in a combination.

    Attributes:
        id: Its id in the base.
        token: Its text.
        weight: Its coefficient.
    """

    id: int
    token: str
    weight: float


@dataclass(frozen=True)
class RowTrace:
    """One row of one vocabulary tensor.

    Attributes:
        tensor: Its name.
        role: A ``TensorRole``.
        origin: ``copied``, ``moved`` if it was a base row until training or unigrams moved it, ``made`` or
            ``padding``.
        base_id: The base row it is a copy of; None for others.
        decided_by: Why that one, for special tokens, as the report says; else empty.
        method: What made it; None for others, and where the report does not tell.
        residual: Share of the donor's row that the combination misses; None if unknown.
        made_of: Base tokens with the largest coefficients; empty where the row is no combination of tokens.
        norm: Of the row as written.
        nearest: Other ids with the cosine of their rows as written, the most similar first.
        equal_to: A tensor with the same contents, whose rows are the nearest too; None without one.
        note: What the report says of all made and moved rows of the tensor.
    """

    tensor: str
    role: str
    origin: str
    base_id: int | None
    decided_by: str
    method: str | None
    residual: float | None
    made_of: list[Ingredient]
    norm: float
    nearest: list[tuple[int, float]] = field(default_factory=list)
    equal_to: str | None = None
    note: str = ""


def trace_row(directory: Path, index: int, nearest: int = NEAREST) -> list[RowTrace]:
    """Find out where the rows of a token came from; the body is never read.

    Args:
        directory: A finished output.
        index: Its token's id.
        nearest: Rows to compare with.

    Returns:
        A row for every vocabulary tensor but biases.

    Raises:
        InputError: The directory is no output, or lacks a tensor.
    """
    expectation = load_expectation(directory)
    if expectation is None:
        raise InputError(
            f"{directory}: no {FILE_NAME}, so nothing tells where its rows came from",
            "an output directory of tokensurgeon",
        )
    stored = read_index(directory).tensors
    told, decided = _read_report(directory)
    found = []
    for name, rows in expectation.vocab.items():
        if rows.role == TensorRole.BIAS:
            continue
        if name not in stored:
            raise InputError(f"{directory}: no tensor {name}", f"it, as {FILE_NAME} says")
        table = token_rows(map_tensor(stored[name]), rows.axis)
        if index >= min(len(table), len(rows.source)):
            continue  # per-layer embeddings may end before other modalities
        twin = rows.equal_to is not None
        trace = _trace(name, rows, table, index, told.get(name, {}), 0 if twin else nearest)
        found.append(replace(trace, decided_by=decided.get(index, "")) if trace.origin == "copied" else trace)
    return found


def nearest_rows(table: Tensor, index: int, count: int) -> list[tuple[int, float]]:
    """Rows with the largest cosine to one of them, read piece by piece.

    Args:
        table: ``(V, d)`` in any dtype; mapped into memory is enough.
        index: The row to compare with, not among the answers.
        count: How many.

    Returns:
        Ids and cosines, the largest first, of equal ones the lowest id; a zero row is 0 to everything.
    """
    wanted = torch.nn.functional.normalize(table[index].double(), dim=0)
    best: list[tuple[float, int]] = []
    for start in range(0, len(table), _CHUNK):
        part = torch.nn.functional.normalize(table[start : start + _CHUNK].double(), dim=1)
        values, places = (part @ wanted).topk(min(count + 1, len(part)))
        best += [
            (-value, start + place)
            for value, place in zip(values.tolist(), places.tolist(), strict=True)
            if start + place != index
        ]
        best = sorted(best)[:count]
    return [(place, -value) for value, place in best]


def _trace(
    name: str, rows: VocabRows, table: Tensor, index: int, told: dict[str, Any], count: int
) -> RowTrace:
    source = rows.source[index]
    made = told.get("rows") or {}
    ids = made.get("ids", [])
    place = ids.index(index) if source == MADE and index in ids else None
    method, residual, made_of = None, None, []
    origin = {MADE: "made", PADDING: "padding"}.get(source, "copied")
    if origin == "made" and place is None and told.get("healed") and rows.equal_to is None:
        origin = "moved"
    if place is not None:
        names = made["source_tokens"]
        method, residual = made["methods"][place], made["residuals"][place]
        made_of = [
            Ingredient(base_id, names[str(base_id)], weight)
            for base_id, weight in zip(made["sources"][place], made["weights"][place], strict=True)
        ]
    return RowTrace(
        tensor=name,
        role=rows.role,
        origin=origin,
        base_id=source if source >= 0 else None,
        decided_by="",
        method=method,
        residual=residual,
        made_of=made_of,
        norm=float(table[index].double().norm()),
        nearest=nearest_rows(table, index, count) if count else [],
        equal_to=rows.equal_to,
        note=told.get("note", "") if source == MADE else "",
    )


def _read_report(directory: Path) -> tuple[dict[str, dict[str, Any]], dict[int, str]]:
    """What the report says of each vocabulary tensor and special token; nothing where there is no report."""
    path = directory / "report.json"
    if not path.is_file():
        return {}, {}
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        specials = {token["id"]: token["decided_by"] for token in report["specials"]}
        return {tensor["name"]: tensor for tensor in report["tensors"]}, specials
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: {error!r}", "the report of a finished run") from error
