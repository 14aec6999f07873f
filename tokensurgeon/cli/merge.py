"""``tokensurgeon merge``: one vocabulary of two."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tokensurgeon.cli.complete import complete_method
from tokensurgeon.cli.edits import Base, Output, Text, run_edit
from tokensurgeon.cli.run import (
    DryRun,
    FailOn,
    Force,
    IfUnchanged,
    Json,
    MaxBpbIncrease,
    Mode,
    Overrides,
    Unchanged,
    with_options,
)


def merge(
    base: Base,
    other: Annotated[str, typer.Argument(metavar="OTHER", help="The model whose tokens are added.")],
    output: Output,
    method: Annotated[
        str | None,
        typer.Option(autocompletion=complete_method, help="For the new rows; see `tokensurgeon methods`."),
    ] = None,
    text: Text = None,
    overrides: Overrides = None,
    fail_on: FailOn = None,
    max_bpb_increase: MaxBpbIncrease = None,
    if_unchanged: Unchanged = IfUnchanged.RUN,
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
    edit = {"operation": "union", "tokenizer": other}
    options = with_options(overrides, fail_on=fail_on, max_bpb_increase=max_bpb_increase)
    mode = Mode(dry_run, as_json, force, if_unchanged)
    run_edit(base, output, edit, mode, text=text, more=more, overrides=options)
