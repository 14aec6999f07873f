"""``tokensurgeon merge``: one vocabulary of two."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tokensurgeon.cli.edits import Base, Output, Text, run_edit
from tokensurgeon.cli.run import DryRun, Force, Json, Overrides


def merge(
    base: Base,
    other: Annotated[str, typer.Argument(metavar="OTHER", help="The model whose tokens are added.")],
    output: Output,
    method: Annotated[str | None, typer.Option(help="For the new rows; see `tokensurgeon methods`.")] = None,
    text: Text = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    force: Force = False,
) -> None:
    """Give BASE every token of OTHER besides its own; their rows are transplanted from OTHER's.

    \b
    Examples:
      tokensurgeon merge SmolLM2-135M gemma-3-270m out/ --method omp
    """  # noqa: D301 - click wants the character, not its name
    more: dict[str, Any] = {"target": base, "donor": other}
    if method is not None:
        more["method"] = method
    run_edit(
        base,
        output,
        {"operation": "union", "tokenizer": other},
        text=text,
        more=more,
        overrides=overrides,
        dry_run=dry_run,
        as_json=as_json,
        force=force,
    )
