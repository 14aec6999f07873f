"""What the verbs that edit a tokenizer have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokensurgeon import console
from tokensurgeon.cli.run import DONE, Mode, execute, may_skip, print_skipped, text_and_device
from tokensurgeon.errors import RecipeError
from tokensurgeon.recipe.load import build_recipe

if TYPE_CHECKING:
    from tokensurgeon.recipe.schema import Recipe

Base = Annotated[str, typer.Argument(metavar="BASE", help="The model to edit: a directory or a hub id.")]
Output = Annotated[str, typer.Argument(metavar="OUT", help="A new directory.")]
Corpus = Annotated[
    list[str] | None, typer.Option("--corpus", metavar="FILE", help="A UTF-8 text; repeatable.")
]
Text = Annotated[
    list[str] | None,
    typer.Option("--text", metavar="FILE", help="Score this file in the report; repeatable."),
]
TokenizerOnly = Annotated[
    bool, typer.Option("--tokenizer-only", help="Write a tokenizer and no model; BASE needs no weights.")
]


def run_edit(
    base: str,
    output: str,
    edit: dict[str, Any],
    mode: Mode,
    *,
    text: list[str] | None = None,
    more: dict[str, Any] | None = None,
    overrides: list[str] | None = None,
    tokenizer_only: bool = False,
) -> None:
    """Run a recipe with one edit, or write its tokenizer alone, ready to be the ``target`` of a recipe.

    Args:
        base: The model.
        output: Where to.
        edit: The edit; entries that were not given stand for its defaults.
        mode: How.
        text: Files to score.
        more: Further keys of the recipe.
        overrides: Entries of ``--set``.
        tokenizer_only: Write a tokenizer and no model.

    Raises:
        RecipeError: A tokenizer is asked for with what only a model has.
    """
    # An option that was not given is None, or False for a switch; 0 is what was asked for, and refused.
    given = {key: value for key, value in edit.items() if value is not None and value is not False}
    document: dict[str, Any] = {"base": base, "output": output, "edits": [given], **(more or {})}
    document |= text_and_device(text)
    recipe = build_recipe(document, overrides or (), "command line")
    if not tokenizer_only:
        execute(recipe, mode)
        return
    _refuse_rows(recipe)
    if may_skip(recipe, mode, tokenizer_only=True):
        print_skipped(recipe, mode)
    else:
        _edit_tokenizer_only(recipe, mode)


def _refuse_rows(recipe: Recipe) -> None:
    """Refuse what a tokenizer alone has no use for, rather than drop it silently."""
    plain = build_recipe(
        {"base": recipe.base, "output": recipe.output, "edits": recipe.edits}, (), "command line"
    )
    idle = [name for name in type(recipe).model_fields if getattr(recipe, name) != getattr(plain, name)]
    if idle:
        raise RecipeError(
            f"--tokenizer-only with {', '.join(idle)}",
            "an edit alone: a tokenizer has no rows and no report",
            "leave that out, or --tokenizer-only",
        )


def _edit_tokenizer_only(recipe: Recipe, mode: Mode) -> None:
    from tokensurgeon.pipeline import edit_tokenizer_only

    edited = edit_tokenizer_only(recipe, force=mode.force, dry_run=mode.dry_run)
    facts = {
        "tokens_before": len(edited.before),
        "tokens_after": len(edited.after),
        "kept": len(edited.origins),
        **{key: value for step in edited.steps for key, value in step.facts.items()},
    }
    if mode.as_json:
        told = {"unchanged": False, "dry_run": mode.dry_run, "output": recipe.output, "facts": facts}
        console.print_json({**DONE, **told})
        return
    title = "Tokenizer planned" if mode.dry_run else "Tokenizer written"
    rows = [[key.replace("_", " "), str(value)] for key, value in facts.items()]
    console.print_table(title, ["", ""], rows)
    if not mode.dry_run:
        console.print_result(f"tokenizer: {Path(recipe.output)}")
