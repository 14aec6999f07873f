"""``tokensurgeon train-tokenizer``: a new target."""

from __future__ import annotations

from typing import Annotated

import typer

from tokensurgeon.cli.edits import Corpus, Output, run_edit
from tokensurgeon.cli.run import DryRun, Force, IfUnchanged, Json, Mode, Unchanged


def train_tokenizer(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Whose rules and special tokens are kept.")],
    output: Output,
    corpus: Corpus = None,
    size: Annotated[int | None, typer.Option(help="Tokens; by default searched for.")] = None,
    growth: Annotated[
        float | None, typer.Option(help="Without a size: stop where a step gains less than this share.")
    ] = None,
    if_unchanged: Unchanged = IfUnchanged.RUN,
    dry_run: DryRun = False,
    as_json: Json = False,
    force: Force = False,
) -> None:
    """Learn a tokenizer from a corpus, with the rules, digits and special tokens of BASE.

    The result is the `target` of a recipe, or the DONOR of `transplant` with a method that needs none.

    \b
    Examples:
      tokensurgeon train-tokenizer SmolLM2-135M french/ --corpus french.txt --size 16000
      tokensurgeon transplant SmolLM2-135M french/ out/ --method piece_regression
    """  # noqa: D301 - click wants the character, not its name
    edit = {"operation": "train", "corpus": corpus, "size": size, "growth": growth}
    run_edit(base, output, edit, Mode(dry_run, as_json, force, if_unchanged), tokenizer_only=True)
