"""What a shell offers for the values of arguments and options; nothing here loads torch."""

from __future__ import annotations

from collections.abc import Iterable

from tokensurgeon.codes import CODES
from tokensurgeon.methods.registry import METHODS
from tokensurgeon.recipe.shipped import shipped_recipes


def complete_code(incomplete: str) -> list[str]:
    """Codes of warnings and errors."""
    return _starting(incomplete.upper(), CODES)


def complete_warning(incomplete: str) -> list[str]:
    """Codes of warnings."""
    return _starting(incomplete.upper(), (code for code in CODES if code.startswith("TS")))


def complete_method(incomplete: str) -> list[str]:
    """Names of methods."""
    return _starting(incomplete, METHODS)


def complete_recipe(incomplete: str) -> list[str]:
    """Names of shipped recipes."""
    return _starting(incomplete, shipped_recipes())


def _starting(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
