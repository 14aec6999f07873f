"""A directory under check, and what the checks found."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from tokensurgeon.checkpoint.expectation import Expectation, token_rows
from tokensurgeon.checkpoint.index import CheckpointIndex
from tokensurgeon.checkpoint.layout import Layout
from tokensurgeon.checkpoint.reader import map_tensor
from tokensurgeon.notices import Notice
from tokensurgeon.vocab.vocabulary import Vocabulary


@dataclass(frozen=True)
class CheckResult:
    """One check.

    Attributes:
        name: What was checked.
        passed: Whether it held.
        detail: What was seen.
    """

    name: str
    passed: bool
    detail: str


@dataclass
class Verification:
    """What was checked, and what a user should know besides.

    Attributes:
        checks: All checks in order.
        notices: Warnings.
    """

    checks: list[CheckResult] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every check held."""
        return all(check.passed for check in self.checks)

    def add(self, name: str, problems: list[str], detail: str) -> None:
        """Record a check; problems make it fail and take the place of the detail."""
        self.checks.append(CheckResult(name, not problems, "; ".join(problems[:5]) if problems else detail))


@dataclass(frozen=True)
class Subject:
    """The directory under check.

    Attributes:
        directory: Where it is.
        index: Its tensors.
        config: Its ``config.json``.
        layout: Its vocabulary tensors.
        vocabulary: Its tokenizer.
        expected: What it must be, if it is an output of this tool.
    """

    directory: Path
    index: CheckpointIndex
    config: dict[str, Any]
    layout: Layout
    vocabulary: Vocabulary
    expected: Expectation | None

    def rows(self, name: str) -> Tensor:
        """A vocabulary tensor as ``(rows, width)``."""
        tensor = next(t for t in self.layout.tensors if t.name == name)
        return token_rows(map_tensor(tensor.ref), tensor.axis)
