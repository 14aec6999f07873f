"""The map of cases is whole, and every test that it names exists."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from trust_suite import load_cases

TESTS = Path(__file__).parent.parent
CASES = load_cases()

pytestmark = pytest.mark.trust


def functions(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_case_and_every_acceptance_test_is_there():
    assert list(CASES["acceptance"]) == list(range(1, 21))
    assert list(CASES["cases"]) == list(range(1, 95))
    assert all(entry["tests"] for entry in CASES["acceptance"].values())
    assert all(entry["tests"] or entry["note"] for entry in CASES["cases"].values())


def test_every_test_that_is_named_exists():
    named = {test for part in CASES.values() for entry in part.values() for test in entry["tests"]}
    known = {name.partition("::")[0] for name in named}
    found = {file: functions(TESTS / file) for file in known if (TESTS / file).is_file()}
    stale = [name for name in sorted(named) if name.split("::")[1] not in found.get(name.split("::")[0], ())]
    assert not stale
