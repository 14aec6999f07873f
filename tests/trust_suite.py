"""The trust suite: which tests it is made of, what they tried, and the table that says so at its end.

``trust/cases.yaml`` maps every case of the pitfalls to the tests that guard it, and the acceptance tests to
theirs; those are marked ``trust`` here, so that ``pytest -m trust`` runs them with the suite's own tests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

CASES = Path(__file__).parent / "trust" / "cases.yaml"
_KEY = "trust"

# Line of the table -> what is counted; the last lines have to stay zero.
LINES = (
    "model types tried",
    "model types that cannot be made tiny",
    "outputs loaded by AutoTokenizer and AutoModel, ids and logits equal",
    "known-bad readers refused (exit 5)",
    "outputs that their class cannot run as the base ran refused (exit 5)",
    "layouts that names do not tell refused by name (exit 3, 4)",
    "faults injected",
    "inputs refused with one message",
    "odd inputs done right",
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


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table after a run of the suite."""
    if terminalreporter.config.getoption("markexpr") != _KEY:
        return
    counts: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.stats.get(outcome, ()):
            outcomes[outcome] += 1
            for key, value in report.user_properties:
                if key == _KEY:
                    counts[value[0]] += value[1]
    terminalreporter.section("trust")
    rows = [("tests passed", outcomes["passed"]), ("tests failed", outcomes["failed"])]
    rows += [("tests skipped", outcomes["skipped"])] * bool(outcomes["skipped"])
    rows += [(line, counts[line]) for line in LINES]
    terminalreporter.write_line("| what | count |")
    terminalreporter.write_line("|---|---:|")
    for line, number in rows:
        terminalreporter.write_line(f"| {line} | {number:,} |")
