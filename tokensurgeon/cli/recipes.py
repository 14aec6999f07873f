"""``tokensurgeon recipes``: the recipes that come with the tool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokensurgeon import console
from tokensurgeon.cli.complete import complete_recipe
from tokensurgeon.cli.run import DONE, Json
from tokensurgeon.errors import PolicyError
from tokensurgeon.recipe.shipped import describe, find_shipped, shipped_recipes


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(autocompletion=complete_recipe, help="Recipe to copy; none lists them."),
    ] = None,
    destination: Annotated[Path | None, typer.Argument(help="File to write; default NAME.yaml here.")] = None,
    as_json: Json = False,
) -> None:
    """List the shipped recipes, or copy one to edit it.

    \b
    Examples:
      tokensurgeon recipes
      tokensurgeon recipes demo my-recipe.yaml
    """  # noqa: D301 - click wants the character, not its name
    if name is None:
        told = {found: describe(path) for found, path in shipped_recipes().items()}
        if as_json:
            rows = [{"name": found, "about": about} for found, about in told.items()]
            console.print_json({**DONE, "recipes": rows})
        else:
            console.print_table("Recipes", ["name", "what it does"], [list(row) for row in told.items()])
        return
    source = find_shipped(name)
    place = destination or Path(f"{name}.yaml")
    if place.exists():
        raise PolicyError(f"{place} exists", "a new file", "name another one")
    place.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    if as_json:
        console.print_json({**DONE, "output": str(place)})
    else:
        console.print_result(str(place))
