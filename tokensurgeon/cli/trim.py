"""``tokensurgeon trim``: leave out tokens that are not needed."""

from __future__ import annotations

from typing import Annotated

import typer

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


def trim(
    base: Base,
    output: Output,
    corpus: Corpus = None,
    script: Annotated[
        list[str] | None,
        typer.Option("--script", metavar="NAME", help="Keep the tokens of a script, such as Latin."),
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option("--keep", metavar="FILE", help="Tokens to keep, one a line.")
    ] = None,
    least: Annotated[int | None, typer.Option(help="Uses in the corpus that keep a token.")] = None,
    size: Annotated[int | None, typer.Option(help="Tokens to keep at most.")] = None,
    exact_size: Annotated[bool, typer.Option("--exact-size", help="Keep no fewer either.")] = False,
    multiple_of: Annotated[int | None, typer.Option(help="Keep a multiple of so many tokens.")] = None,
    allow_unreachable: Annotated[
        bool, typer.Option("--allow-unreachable", help="Do not keep what kept tokens are made of.")
    ] = False,
    drop_reserved: Annotated[
        bool, typer.Option("--drop-reserved", help="Special tokens such as <unused7> may go.")
    ] = False,
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
    """Write BASE without the tokens that a corpus, a script or a list does not need.

    A text whose tokens are all kept is cut and read as before. id_map.json in OUT tells the old id of each
    new one; `tokensurgeon remap-ids` rewrites tokenised data by it.

    \b
    Examples:
      tokensurgeon trim gemma-3-270m out/ --corpus english.txt
      tokensurgeon trim gemma-3-270m out/ --script Latin --size 64000 --multiple-of 64
    """  # noqa: D301 - click wants the character, not its name
    edit = {
        "operation": "trim",
        "corpus": corpus,
        "scripts": script,
        "keep": keep,
        "least": least,
        "size": size,
        "exact_size": exact_size,
        "multiple_of": multiple_of,
        "allow_unreachable": allow_unreachable,
        "drop_reserved": drop_reserved,
    }
    options = with_options(overrides, fail_on=fail_on, max_bpb_increase=max_bpb_increase)
    mode = Mode(dry_run, as_json, force, if_unchanged)
    run_edit(base, output, edit, mode, text=text, overrides=options, tokenizer_only=tokenizer_only)
