"""Reports of several runs side by side."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tokensurgeon.report.model import Report
from tokensurgeon.report.summary import show_token, signed, summary_rows

NOTHING = "–"


@dataclass(frozen=True)
class Line:
    """One fact of every run.

    Attributes:
        label: What it is.
        cells: One a run, in their order.
    """

    label: str
    cells: list[str]

    @property
    def differs(self) -> bool:
        """Whether the runs do not agree on it."""
        return len(set(self.cells)) > 1


@dataclass(frozen=True)
class Comparison:
    """What runs have in common and what not.

    Attributes:
        names: Of the runs.
        summary: The lines that each run prints at its end.
        losses: Bits per byte lost against each run's own base by how texts are cut, as far as that is known.
        recipe: Fields of the recipes on which they differ, by dotted path.
    """

    names: list[str]
    summary: list[Line]
    losses: list[Line]
    recipe: list[Line]


def compare_reports(reports: dict[str, Report]) -> Comparison:
    """Put reports side by side.

    Args:
        reports: By the name of the run; at least one.

    Returns:
        Lines with a cell a run.
    """
    recipes = [dict(_flatten(report.recipe)) for report in reports.values()]
    shown = [{field: _value(value) for field, value in recipe.items()} for recipe in recipes]
    return Comparison(
        names=list(reports),
        summary=_align([dict(summary_rows(report)) for report in reports.values()]),
        losses=_align([dict(_losses(report)) for report in reports.values()]),
        recipe=[line for line in _align(shown) if line.differs],
    )


def _align(runs: list[dict[str, str]]) -> list[Line]:
    """Every label of any run once. One that a run adds stands behind the label that it follows there."""
    labels: list[str] = []
    for run in runs:
        place = 0
        for label in run:
            if label in labels:
                place = labels.index(label) + 1
            else:
                labels.insert(place, label)
                place += 1
    return [Line(label, [run.get(label, NOTHING) for run in runs]) for label in labels]


def _losses(report: Report) -> Iterable[tuple[str, str]]:
    for score in report.scores:
        if score.anatomy is not None:
            for part in score.anatomy.by_cut:
                if part.chunks:
                    yield f"{show_token(score.text)}: {part.name}", signed(part.excess)


def _flatten(value: Any, path: str = "") -> Iterable[tuple[str, Any]]:  # noqa: ANN401 - any JSON value
    """Leaves by dotted path; a list is one. What is empty is left out, for so are keys of later versions."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flatten(part, f"{path}.{key}" if path else str(key))
    elif value not in (None, []):
        yield path, value


def _value(value: Any) -> str:  # noqa: ANN401 - any JSON value
    return show_token(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
