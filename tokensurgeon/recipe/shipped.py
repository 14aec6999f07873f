"""The recipes that come with the tool."""

from __future__ import annotations

import difflib
from pathlib import Path

from tokensurgeon.errors import RecipeError

_NO_RECIPES = {"eval"}


def recipe_folder() -> Path:
    """Where the shipped recipes lie: in the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def shipped_recipes() -> dict[str, Path]:
    """Shipped recipes by name; the folder also holds files that are none."""
    paths = sorted(recipe_folder().rglob("*.yaml"))
    return {path.stem: path for path in paths if path.parent.name not in _NO_RECIPES}


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
