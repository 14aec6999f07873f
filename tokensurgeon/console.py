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
import re
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from threading import Lock, Thread
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.filesize import decimal
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from tokensurgeon.child import child_environment

logger = logging.getLogger("tokensurgeon")

_SECONDS_BETWEEN_LINES = 30.0
_PARENT = "TOKENSURGEON_PROGRESS_TO"
"""Where a process that another one waits for tells how far it is: the number of an open pipe."""

_Thing = TypeVar("_Thing")
# What a terminal would obey instead of showing it, in either set of controls; and what turns text around.
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def _harmless(text: str) -> str:
    """Text with controls as escapes: tokens, file names and messages of libraries are data of others."""
    return _OBEYED.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class _Plain(logging.Formatter):
    """A message and nothing else."""

    def format(self, record: logging.LogRecord) -> str:
        """The message, harmless."""
        return _harmless(super().format(record))


def _is_silent() -> bool:
    return os.environ.get("RANK", "0") != "0"


def _is_live() -> bool:
    return sys.stderr.isatty() and not os.environ.get("CI") and os.environ.get("TERM") != "dumb"


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


def claim_stdout() -> None:
    """Keep stdout for results: what libraries print below Python, as tokenizers does, goes to stderr."""
    given, told = sys.__stdout__, sys.stderr
    if given is None or told is None or given is not sys.stdout:
        return
    given.flush()
    own = os.dup(given.fileno())
    os.dup2(told.fileno(), given.fileno())
    sys.stdout = os.fdopen(own, "w", encoding=given.encoding, errors=given.errors)


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
        _screen.console = _console(stderr=True)
        handler = RichHandler(console=_screen.console, markup=False, show_path=False, show_level=False)
        handler.setFormatter(_Plain("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Plain("%(message)s"))
    logger.addHandler(handler)


def print_error(code: str, text: str) -> None:
    """Write an error for a person to stderr.

    Args:
        code: What to look it up by.
        text: What it says.
    """
    told = Text(f"error {code}: ", style="bold red") + Text(_harmless(text))
    _console(stderr=True).print(told, soft_wrap=True)


def print_result(text: str) -> None:
    """Write one result to stdout, as it is but for controls."""
    if not _is_silent():
        sys.stdout.write(_harmless(text) + "\n")


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
    table = Table(show_edge=False, pad_edge=False)
    for index, name in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[index]) for row in rows)
        table.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*[Text(_harmless(cell)) for cell in row])
    screen = _console(stderr=False)
    screen.print(Text(_harmless(title), style="italic"), soft_wrap=True)  # of a table, it would be as narrow
    screen.print(table)


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


class _Rate(ProgressColumn):
    """How fast a step is, in its own units."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(_tell_rate(speed, task.fields["unit"]) if speed else "", style="progress.data.speed")


class _Screen:
    """The bars on a terminal: steps within a step share one display, and log lines go above it."""

    def __init__(self) -> None:
        self.console: Console | None = None
        self._bars: Progress | None = None

    @contextmanager
    def show(self, title: str, total: int, unit: str) -> Iterator[Advance]:
        with ExitStack() as closing:
            if self._bars is None:
                columns = (BarColumn(), TaskProgressColumn(), _Rate(), TimeRemainingColumn(compact=True))
                title_column = TextColumn("{task.description}", markup=False)
                console = self.console or _console(stderr=True)
                self._bars = closing.enter_context(
                    Progress(title_column, *columns, console=console, transient=True)
                )
                closing.callback(self._forget)
            bars = self._bars
            task = bars.add_task(title, total=total, unit=unit)
            closing.callback(bars.remove_task, task)
            yield lambda amount=1: bars.advance(task, amount)

    def _forget(self) -> None:
        self._bars = None


_screen = _Screen()


@contextmanager
def progress(title: str, total: int, unit: str = "steps") -> Iterator[Advance]:
    """Show a long step with its rate and the time left: a bar on a terminal, else a line every 30 seconds.

    Args:
        title: What is being done.
        total: Units in all.
        unit: Their name in the plural; ``bytes`` are told in kB, MB and GB.

    Yields:
        A function that moves the progress on; any thread may call it.
    """
    parent = os.environ.get(_PARENT)
    if parent is not None:
        yield _Report(int(parent))
    elif logger.getEffectiveLevel() > logging.INFO:
        yield no_progress
    elif _is_live():
        with _screen.show(title, total, unit) as advance:
            yield advance
    else:
        yield _LineProgress(title, total, unit)


def track(things: Collection[_Thing], title: str, unit: str = "steps") -> Iterator[_Thing]:
    """Go through things and show how far it is.

    Args:
        things: What to go through.
        title: What is being done.
        unit: Their name in the plural.

    Yields:
        Each of them.
    """
    with progress(title, len(things), unit) as advance:
        for thing in things:
            yield thing
            advance()


@contextmanager
def hear_child(advance: Advance) -> Iterator[dict[str, Any]]:
    """Let the progress of a process that is waited for count as this one's.

    Args:
        advance: Called with what the child's progress moves on by; the child may show one at a time.

    Yields:
        Arguments of ``subprocess.run`` for the child.
    """
    read, write = os.pipe()

    def listen() -> None:
        with os.fdopen(read, encoding="ascii") as lines:
            for line in lines:
                advance(int(line))

    thread = Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield {"pass_fds": (write,), "env": {**child_environment(), _PARENT: str(write)}}
    finally:
        os.close(write)
        thread.join()


class _Report:
    """Progress told to the process that waits for this one."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def __call__(self, amount: int = 1) -> None:
        os.write(self._pipe, f"{amount}\n".encode("ascii"))


class _LineProgress:
    """Progress as whole lines, for logs."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self._title = title
        self._total = total
        self._unit = unit
        self._done = 0
        self._started = self._last = time.monotonic()
        self._lock = Lock()

    def __call__(self, amount: int = 1) -> None:
        with self._lock:
            self._done += amount
            now = time.monotonic()
            if now - self._last < _SECONDS_BETWEEN_LINES or not 0 < self._done < self._total:
                return
            self._last = now
            rate = self._done / (now - self._started)
            left = timedelta(seconds=round((self._total - self._done) / rate))
        done, total = f"{self._done:,}", f"{self._total:,} {self._unit}"
        if self._unit == "bytes":
            done, total = decimal(self._done), decimal(self._total)
        logger.info("%s: %s of %s, %s, %s left", self._title, done, total, _tell_rate(rate, self._unit), left)


def _tell_rate(speed: float, unit: str) -> str:
    """Units a second, or a minute where there are few."""
    if unit == "bytes":
        return f"{decimal(int(speed))}/s"
    return f"{speed:,.1f} {unit}/s" if speed >= 1 else f"{60 * speed:,.1f} {unit}/min"
