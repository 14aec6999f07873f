"""``tokensurgeon supertokens``: add tokens that span words."""

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


def supertokens(
    base: Base,
    output: Output,
    corpus: Corpus = None,
    count: Annotated[int | None, typer.Option(help="Tokens to add at most.")] = None,
    most_words: Annotated[int | None, typer.Option(help="Words a token may span.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="As many tokens as before: the least used make room.")
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
    """Let BASE read several words as one token; which ones, a corpus says.

    \b
    Examples:
      tokensurgeon supertokens SmolLM2-135M out/ --corpus english.txt --count 1000
    """  # noqa: D301 - click wants the character, not its name
    edit = {
        "operation": "supertokens",
        "corpus": corpus,
        "count": count,
        "most_words": most_words,
        "replace": replace,
    }
    options = with_options(overrides, fail_on=fail_on, max_bpb_increase=max_bpb_increase)
    mode = Mode(dry_run, as_json, force, if_unchanged)
    run_edit(base, output, edit, mode, text=text, overrides=options, tokenizer_only=tokenizer_only)
