"""The command line in this process; what it reads back, in forks of a process that has the libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tokensurgeon.checkpoint import as_read
from tokensurgeon.cli.app import main

ROOT = Path(__file__).parent.parent.parent
FORK_SERVER = Path(__file__).parent / "forkserver.py"


class ForkServer:
    """Asks ``forkserver.py``."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, FORK_SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1", "PYTHONPATH": str(ROOT)},
        )

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def run(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Stand in for ``subprocess.run`` where tokensurgeon reads an output back."""
        assert command[-1] == "tokensurgeon.checkpoint.probe"
        answer = self.ask({"probe": options["input"]})
        return subprocess.CompletedProcess(command, answer["returncode"], answer["stdout"], answer["stderr"])

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def read_in_forks(fork_server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> ForkServer:
    """Outputs are read back in forks of one process, which takes a tenth of the time."""
    monkeypatch.setattr(as_read, "subprocess", SimpleNamespace(run=fork_server.run))
    return fork_server


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in sorted(folder.rglob("*")):
        stat = path.lstat()
        found[str(path)] = (stat.st_size, stat.st_mtime_ns)
    return found


@pytest.fixture
def command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tally: Callable[..., None]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command; an exception that is no exit is a traceback that a user would see."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tokensurgeon", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        except BaseException:
            tally("tracebacks")
            raise
        captured = capsys.readouterr()
        assert isinstance(code, int)
        assert "Traceback" not in captured.err
        assert "\x1b" not in captured.out + captured.err
        assert "\r" not in captured.out + captured.err
        return code, captured.out, captured.err

    return run


@pytest.fixture
def refuses(
    command_line: Callable[..., tuple[int, str, str]], tally: Callable[..., None], tmp_path: Path
) -> Callable[..., str]:
    """Run a command that has to be refused: one message, the exit code, and not a file more or less."""

    def check(codes: int | tuple[int, ...], *arguments: object) -> str:
        before = snapshot(tmp_path)
        code, out, err = command_line(*arguments)
        assert code in (codes if isinstance(codes, tuple) else (codes,)), err
        assert err.count("error TE") == 1
        assert out == ""
        assert snapshot(tmp_path) == before
        tally("inputs refused with one message")
        return err

    return check
