"""Other processes of this program: which modules they find, and how much they may use."""

from __future__ import annotations

import os
import resource
import sys


def child_command(module: str) -> list[str]:
    """How to run a module in a process of its own.

    Args:
        module: Its dotted name.

    Returns:
        The command; it wants ``child_environment``.
    """
    return [sys.executable, "-P", "-m", module]


def child_environment() -> dict[str, str]:
    """The environment of a child: it imports what this process imports.

    Without it, Python would look for modules in the current folder first, where a model that others made
    may lie, with a ``json.py`` of its own.

    Returns:
        All variables.
    """
    found = os.pathsep.join(path for path in sys.path if path)
    return {**os.environ, "PYTHONPATH": found, "PYTHONUTF8": "1"}


def limit_self(memory: int | None, seconds: int) -> None:
    """Have the system refuse this process more memory (``MemoryError``), and end it after a time.

    Args:
        memory: Bytes it may hold; None for any number.
        seconds: Of processor time, which a busy machine does not shorten; then comes ``SIGXCPU``.
    """
    for kind, most in ((resource.RLIMIT_DATA, memory), (resource.RLIMIT_CPU, seconds)):
        _, hard = resource.getrlimit(kind)
        if most is not None and (hard == resource.RLIM_INFINITY or most < hard):
            resource.setrlimit(kind, (most, hard))
