"""The recipes that come with the tool."""

from __future__ import annotations

import difflib
from pathlib import Path

from tokensurgeon.errors import RecipeError


def recipe_folder() -> Path:
    """Where the shipped recipes lie: in the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def shipped_recipes() -> dict[str, Path]:
    """Shipped recipes by name."""
    return {path.stem: path for path in sorted(recipe_folder().rglob("*.yaml"))}


def find_shipped(name: str) -> Path:
    """Look a shipped recipe up.

    Args:
        name: Its name without ``.yaml``.

    Returns:
        The recipe file.

    Raises:
        RecipeError: There is none of that name.
    """
    recipes = shipped_recipes()
    if name not in recipes:
        near = difflib.get_close_matches(name, recipes, n=1)
        raise RecipeError(
            f"no shipped recipe {name!r}",
            f"one of {', '.join(recipes)}",
            f"did you mean {near[0]!r}?" if near else "",
        )
    return recipes[name]


def describe(path: Path) -> str:
    """The first comment line of a recipe, which says what it is for."""
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.lstrip("# ").strip()
