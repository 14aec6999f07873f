"""Progress: bars on a terminal, few whole lines elsewhere, a child's counted as the parent's."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import threading

import pytest
from rich.console import Console

from tokensurgeon import console


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    now = [0.0]
    monkeypatch.setattr("tokensurgeon.console.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def lines(monkeypatch):
    """What is written to a stderr that is no terminal."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    console.setup_logging()
    return stream


def test_a_log_gets_a_line_with_rate_and_time_left_every_half_minute(lines, clock):
    with console.progress("copying [/INST]", 400, "bytes") as advance:
        for second in range(1, 101):
            clock[0] = float(second)
            advance(2)
    assert lines.getvalue().splitlines() == [
        "copying [/INST]: 60 bytes of 400 bytes, 2 bytes/s, 0:02:50 left",
        "copying [/INST]: 120 bytes of 400 bytes, 2 bytes/s, 0:02:20 left",
        "copying [/INST]: 180 bytes of 400 bytes, 2 bytes/s, 0:01:50 left",
    ]


def test_slow_steps_are_told_by_the_minute(lines, clock):
    with console.progress("healing", 10) as advance:
        clock[0] = 60.0
        advance(2)
    assert lines.getvalue() == "healing: 2 of 10 steps, 2.0 steps/min, 0:04:00 left\n"


def test_a_short_step_writes_no_line(lines):
    assert list(console.track([1, 2, 3], "counting")) == [1, 2, 3]
    assert lines.getvalue() == ""


def test_no_advance_is_lost_between_threads(lines):
    with console.progress("hashing", 10**9) as advance:
        threads = [threading.Thread(target=lambda: [advance() for _ in range(5000)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert advance._done == 20000


def show_steps(monkeypatch, terminal) -> str:
    monkeypatch.setattr(sys, "stderr", terminal)
    console.setup_logging()
    with console.progress("outer [/INST]", 2, "methods") as outer:
        for number in range(2):
            for _ in console.track(range(3), "inner", unit="tokens"):
                pass
            console.logger.info("a line [/INST] %d", number)
            outer()
    return terminal.getvalue()


def test_steps_within_a_step_share_one_display_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    seen = show_steps(monkeypatch, Terminal())
    assert "outer [/INST]" in seen
    assert "a line [/INST] 1" in re.sub(r"\x1b\[[0-9;]*m", "", seen)
    assert "\x1b[" in seen
    assert console._screen._bars is None


@pytest.mark.parametrize(("name", "value"), [("CI", "1"), ("TERM", "dumb")])
def test_no_escapes_under_ci_or_on_a_dumb_terminal(monkeypatch, name, value):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(name, value)
    seen = show_steps(monkeypatch, Terminal())
    assert seen == "a line [/INST] 0\na line [/INST] 1\n"


def test_quiet_shows_no_progress(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    console.setup_logging(quiet=True)
    with console.progress("copying", 3) as advance:
        assert advance is console.no_progress


def test_the_progress_of_a_child_counts_as_the_parents(lines):
    heard = []
    code = (
        "from tokensurgeon import console\nconsole.setup_logging(quiet=True)\n"
        "with console.progress('scoring', 10) as advance:\n    advance(3)\n    advance(7)\n"
    )
    with console.hear_child(heard.append) as hearing:
        subprocess.run([sys.executable, "-c", code], check=True, **hearing)
    assert heard == [3, 7]


def test_a_child_that_tells_nothing_is_not_waited_for(lines):
    heard = []
    with console.hear_child(heard.append) as hearing:
        subprocess.run([sys.executable, "-c", "pass"], check=True, **hearing)
    assert heard == []


def test_a_rate_is_shown_in_the_units_of_its_step(monkeypatch):
    from rich.progress import Progress

    bars = Progress(console._Rate(), console=Console(file=io.StringIO()))
    bars.add_task("x", total=100, unit="bytes")
    [task] = bars.tasks
    task.finished_speed = 2_500_000.0
    assert console._Rate().render(task).plain == "2.5 MB/s"
