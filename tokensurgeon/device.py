"""Where to compute, and with how much memory."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from tokensurgeon.errors import RecipeError


def find_device(name: str) -> torch.device:
    """Turn a device name into a device that is there.

    Args:
        name: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; auto takes CUDA where there is one, each process
            of a run its own device.

    Returns:
        The device.

    Raises:
        RecipeError: The name means nothing, or there is no such device.
    """
    if name == "auto":
        here = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device("cuda", here) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RecipeError(f"device {name!r}", "auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RecipeError(f"device {name!r}", f"one of {torch.cuda.device_count()} CUDA devices", "use auto")
    return device


def available_memory(table: Path = Path("/proc/meminfo")) -> int | None:
    """Main memory that a new program can use without swapping.

    Args:
        table: Where Linux says so.

    Returns:
        Bytes, or None where the system does not say.
    """
    try:
        lines = table.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else None
