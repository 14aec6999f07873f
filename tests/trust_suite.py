"""The trust suite: which tests it is made of, what they tried, and the table that says so at its end.

``trust/cases.yaml`` maps every case of the pitfalls to the tests that guard it, and the acceptance tests to
theirs; those are marked ``trust`` here, so that ``pytest -m trust`` runs them with the suite's own tests.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

CASES = Path(__file__).parent / "trust" / "cases.yaml"
_KEY = "trust"
MODEL_TYPE = "model type"
"""The property that tells what became of a model type with a kind of tokenizer."""

# Line of the table -> what is counted; the last lines have to stay zero.
LINES = (
    "model types tried",
    "model types that cannot be made tiny",
    "outputs loaded by AutoTokenizer and AutoModel, ids and logits equal",
    "known-bad readers refused (exit 5)",
    "classes that count positions from the padding id refused (exit 5)",
    "classes that cannot run the base either refused (exit 5)",
    "layouts that names do not tell refused by name (exit 3, 4)",
    "faults injected",
    "inputs refused with one message",
    "odd inputs done right",
    "programs of others that agree with transformers on an output",
    "random transplants confirmed by a script of its own",
    "inputs or old outputs lost",
    "outputs that load and are wrong",
    "tracebacks",
)


def load_cases() -> dict[str, Any]:
    """The map of cases and acceptance tests to tests."""
    document: dict[str, Any] = yaml.safe_load(CASES.read_text(encoding="utf-8"))
    return document


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that stand for an acceptance test."""
    chosen = {name for entry in load_cases()["acceptance"].values() for name in entry["tests"]}
    for item in items:
        file = item.path.relative_to(Path(__file__).parent).as_posix()
        if f"{file}::{getattr(item, 'originalname', item.name)}" in chosen:
            item.add_marker(pytest.mark.trust)


Tally = Callable[..., None]


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Tally:
    """Count what a test tries, under a line of the table."""

    def count(line: str, number: int = 1) -> None:
        assert line in LINES
        record_property(_KEY, [line, number])

    return count


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the figures of a run go."""
    parser.addoption("--trust-json", type=Path, help="write what the trust suite counted into this file")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table after a run of the suite, and write it where that is asked for."""
    if terminalreporter.config.getoption("markexpr") != _KEY:
        return
    found = _gather(terminalreporter.stats)
    terminalreporter.section("trust")
    terminalreporter.write_line("| what | count |")
    terminalreporter.write_line("|---|---:|")
    for line, number in [*found["tests"].items(), *found["counts"].items()]:
        terminalreporter.write_line(f"| {line} | {number:,} |")
    place = terminalreporter.config.getoption("trust_json")
    if place is not None:
        place.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _gather(stats: dict[str, list[Any]]) -> dict[str, Any]:
    """Counts by line, what became of every model type, and how many tests ended how."""
    counts: Counter[str] = Counter()
    types: dict[str, dict[str, str]] = {}
    for outcome in ("passed", "failed"):
        for report in stats.get(outcome, ()):
            for key, value in report.user_properties:
                if key == _KEY:
                    counts[value[0]] += value[1]
                elif key == MODEL_TYPE:
                    model_type, kind, told = value
                    types.setdefault(model_type, {})[kind] = told
    ended = {f"tests {outcome}": len(stats.get(outcome, ())) for outcome in ("passed", "failed", "skipped")}
    return {
        "transformers": version("transformers"),
        "tests": ended,
        "counts": {line: counts[line] for line in LINES},
        "model_types": dict(sorted(types.items())),
    }
