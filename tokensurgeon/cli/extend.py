"""``tokensurgeon extend``: add tokens."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tokensurgeon.cli.complete import complete_method
from tokensurgeon.cli.edits import Base, Corpus, Output, Text, TokenizerOnly, run_edit
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


def extend(
    base: Base,
    output: Output,
    tokens: Annotated[
        list[str] | None, typer.Option("--tokens", metavar="FILE", help="Tokens to add, one a line.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="DIR", help="A tokenizer whose tokens are added.")
    ] = None,
    corpus: Corpus = None,
    count: Annotated[int | None, typer.Option(help="Tokens to add at most.")] = None,
    placed: Annotated[
        str | None, typer.Option("--as", metavar="vocab|added", help="Learnt by the model, or added tokens.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(autocompletion=complete_method, help="For the new rows; pieces by default.")
    ] = None,
    donor: Annotated[
        str | None, typer.Option(metavar="DIR", help="A model that knows the tokens, for methods with one.")
    ] = None,
    text: Text = None,
    tokenizer_only: TokenizerOnly = False,
    overrides: Overrides = None,
    fail_on: FailOn = None,
    max_bpb_increase: MaxBpbIncrease = None,
    if_unchanged: Unchanged = IfUnchanged.RUN,
    dry_run: DryRun = False,
    as_json: Json = False,
    force: Force = False,
) -> None:
    """Add tokens to BASE: listed, another tokenizer's, or learnt from a corpus. No old row changes.

    \b
    Examples:
      tokensurgeon extend SmolLM2-135M out/ --corpus french.txt --count 2000
      tokensurgeon extend SmolLM2-135M out/ --tokens chemistry.txt --as added
    """  # noqa: D301 - click wants the character, not its name
    edit = {
        "operation": "extend",
        "tokens": tokens,
        "tokenizer": tokenizer,
        "corpus": corpus,
        "count": count,
        "placed": placed,
    }
    more: dict[str, Any] = {} if donor is None else {"target": base, "donor": donor}
    if method is not None:
        more["method"] = method
    options = with_options(overrides, fail_on=fail_on, max_bpb_increase=max_bpb_increase)
    mode = Mode(dry_run, as_json, force, if_unchanged)
    run_edit(base, output, edit, mode, text=text, more=more, overrides=options, tokenizer_only=tokenizer_only)
