"""``tokensurgeon methods``: every way to initialise a row."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from tokensurgeon import console
from tokensurgeon.cli.complete import complete_method
from tokensurgeon.methods.registry import EXTRAS, METHODS, NEEDS, MethodInfo, find_method

_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{5})")


def list_methods(
    name: Annotated[
        str | None, typer.Argument(autocompletion=complete_method, help="Tell all about one method.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print exactly one JSON document.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of the README.")] = False,
) -> None:
    """List the methods and what they need, or one method with its parameters.

    \b
    Examples:
      tokensurgeon methods
      tokensurgeon methods omp
      tokensurgeon methods --json
    """  # noqa: D301 - click wants the character, not its name
    chosen = list(METHODS.values()) if name is None else [find_method(name)]
    if as_json:
        console.print_json({"schema_version": 1, "methods": [_describe(info) for info in chosen]})
    elif markdown:
        lines = ["| name | what a missing token's row is | needs |", "|---|---|---|"]
        console.print_result("\n".join([*lines, *map(_markdown, chosen)]))
    elif name is None:
        rows = [[info.name, info.title, _needs(info), info.paper] for info in chosen]
        console.print_table("Methods", ["name", "what a row is", "needs", "paper"], rows)
    else:
        _tell_all(chosen[0])


def _tell_all(info: MethodInfo) -> None:
    facts = [["what a row is", info.title], ["needs", _needs(info)], ["paper", info.paper]]
    keys = [NEEDS[option] for need in info.needs for option in need.split(" or ") if NEEDS[option]]
    if keys:
        facts.append(["keys of the recipe", ", ".join(keys)])
    if info.extra:
        facts.append(["package", f"{EXTRAS[info.extra]}: pip install 'tokensurgeon[{info.extra}]'"])
    console.print_table(info.name, ["", ""], facts)
    parameters = _parameters(info)
    if parameters:
        rows = [[key, str(value["default"]), value["about"] or ""] for key, value in parameters.items()]
        console.print_result("")
        console.print_table("Parameters", ["name", "default", "what it is"], rows)


def _describe(info: MethodInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "title": info.title,
        "needs": list(info.needs),
        "anchors": info.anchors,
        "extra": info.extra or None,
        "parameters": _parameters(info),
        "paper": info.paper,
    }


def _parameters(info: MethodInfo) -> dict[str, dict[str, Any]]:
    return {
        name: {"default": field.default, "about": field.description}
        for name, field in info.params.model_fields.items()
        if name != "name"
    }


def _needs(info: MethodInfo) -> str:
    return ", ".join(info.needs) or ("anchors" if info.anchors else "base only")


def _markdown(info: MethodInfo) -> str:
    paper = _ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", info.paper)
    source = "" if paper == "none" else f" ({paper})"
    return f"| `{info.name}` | {info.title}{source} | {_needs(info)} |"
