"""``tokensurgeon methods``: every way to initialise a row."""

from __future__ import annotations

from typing import Annotated

import typer

from tokensurgeon import console
from tokensurgeon.methods.registry import METHODS


def list_methods(
    as_json: Annotated[bool, typer.Option("--json", help="Print exactly one JSON document.")] = False,
) -> None:
    """List the methods, what they need, their parameters and papers.

    \b
    Examples:
      tokensurgeon methods
      tokensurgeon methods --json
    """  # noqa: D301 - click wants the character, not its name
    found = [
        {
            "name": info.name,
            "title": info.title,
            "needs": list(info.needs),
            "parameters": {
                name: {"default": field.default, "about": field.description}
                for name, field in info.params.model_fields.items()
                if name != "name"
            },
            "paper": info.paper,
        }
        for info in METHODS.values()
    ]
    if as_json:
        console.print_json({"schema_version": 1, "methods": found})
        return
    rows = [
        [
            info.name,
            info.title,
            ", ".join(info.needs) or "base only",
            ", ".join(
                f"{name}={field.default}"
                for name, field in info.params.model_fields.items()
                if name != "name"
            ),
            info.paper,
        ]
        for info in METHODS.values()
    ]
    console.print_table("Methods", ["name", "what it does", "needs", "parameters", "paper"], rows)
