"""The only module that writes to the terminal: logging, messages, progress and results.

stdout carries results and nothing else; everything a person reads while waiting goes to stderr.
When stderr is no terminal, or ``CI`` is set, neither carriage returns nor escape codes are written.
Text is never parsed as rich markup: tokens such as ``[/INST]`` are data.
Of several processes of one run only the main one is heard.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

logger = logging.getLogger("tokensurgeon")

_SECONDS_BETWEEN_LINES = 30.0


def _is_silent() -> bool:
    return os.environ.get("RANK", "0") != "0"


def _is_live() -> bool:
    return sys.stderr.isatty() and not os.environ.get("CI")


def _console(stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    if _is_silent():
        return Console(quiet=True)
    plain = not stream.isatty() or bool(os.environ.get("CI"))
    return Console(
        file=stream,
        markup=False,
        highlight=False,
        emoji=False,
        no_color=True if plain else None,
        force_terminal=False if plain else None,
        width=120 if plain else None,
    )


def setup_logging(quiet: bool = False) -> None:
    """Send the package's log to stderr.

    Args:
        quiet: Show warnings only.
    """
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    if _is_silent():
        logger.setLevel(logging.CRITICAL + 1)
        handler: logging.Handler = logging.NullHandler()
    elif _is_live():
        handler = RichHandler(console=_console(stderr=True), markup=False, show_path=False, show_level=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)


def print_error(code: str, text: str) -> None:
    """Write an error for a person to stderr.

    Args:
        code: What to look it up by.
        text: What it says.
    """
    _console(stderr=True).print(Text(f"error {code}: ", style="bold red") + Text(text), soft_wrap=True)


def print_result(text: str) -> None:
    """Write one result to stdout, as it is."""
    if not _is_silent():
        sys.stdout.write(text + "\n")


def print_json(document: Any) -> None:  # noqa: ANN401 - any JSON value
    """Write exactly one JSON document to stdout."""
    print_result(json.dumps(document, indent=2, ensure_ascii=True))


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Write a table of plain text to stdout.

    Args:
        title: Line above the table.
        columns: Column heads; those after the first are right-aligned when all their cells are numbers.
        rows: One list of cells a row.
    """
    table = Table(title=Text(title), title_justify="left", show_edge=False, pad_edge=False)
    for index, name in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[index]) for row in rows)
        table.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*[Text(cell) for cell in row])
    _console(stderr=False).print(table)


def _is_number(cell: str) -> bool:
    return (
        bool(cell)
        and cell.replace(",", "")
        .replace(".", "")
        .replace("-", "")
        .replace("+", "")
        .replace("%", "")
        .isdigit()
    )


class Advance(Protocol):
    """What a long step calls to say how far it is."""

    def __call__(self, amount: int = 1) -> None:
        """Move the progress on by ``amount`` units."""


def no_progress(amount: int = 1) -> None:
    """Ignore progress; the default where nobody watches."""


@contextmanager
def progress(title: str, total: int) -> Iterator[Advance]:
    """Show a long step: a bar on a terminal, else a line at most every 30 seconds.

    Args:
        title: What is being done.
        total: Units in all.

    Yields:
        A function that moves the progress on.
    """
    if logger.getEffectiveLevel() > logging.INFO:
        yield no_progress
    elif _is_live():
        with Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=_console(stderr=True),
            transient=True,
        ) as bar:
            task = bar.add_task(title, total=total)
            yield lambda amount=1: bar.advance(task, amount)
    else:
        yield _LineProgress(title, total)


class _LineProgress:
    """Progress as whole lines, for logs."""

    def __init__(self, title: str, total: int) -> None:
        self._title = title
        self._total = total
        self._done = 0
        self._last = time.monotonic()

    def __call__(self, amount: int = 1) -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_LINES and self._done < self._total:
            self._last = now
            logger.info("%s: %d of %d", self._title, self._done, self._total)
