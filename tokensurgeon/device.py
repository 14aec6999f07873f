"""Where to compute."""

from __future__ import annotations

import torch

from tokensurgeon.errors import RecipeError


def find_device(name: str) -> torch.device:
    """Turn a device name into a device that is there.

    Args:
        name: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; auto takes CUDA where there is one.

    Returns:
        The device.

    Raises:
        RecipeError: The name means nothing, or there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RecipeError(f"device {name!r}", "auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RecipeError(f"device {name!r}", f"one of {torch.cuda.device_count()} CUDA devices", "use auto")
    return device
