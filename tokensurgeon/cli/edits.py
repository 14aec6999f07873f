"""What the verbs that edit a tokenizer have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tokensurgeon import console
from tokensurgeon.cli.run import execute
from tokensurgeon.recipe.load import build_recipe

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
    *,
    text: list[str] | None = None,
    more: dict[str, Any] | None = None,
    tokenizer_only: bool = False,
    overrides: list[str] | None = None,
    dry_run: bool = False,
    as_json: bool = False,
    force: bool = False,
) -> None:
    """Run a recipe with one edit, or write its tokenizer alone.

    Args:
        base: The model.
        output: Where to.
        edit: The edit; entries that are None or empty stand for its defaults.
        text: Files to score.
        more: Further keys of the recipe.
        tokenizer_only: Write a tokenizer and no model.
        overrides: Entries of ``--set``.
        dry_run: Only plan.
        as_json: Print one JSON document.
        force: Replace an existing output.
    """
    if tokenizer_only:
        write_edited_tokenizer(base, output, edit, as_json, force)
        return
    document = {**_document(base, output, edit), **(more or {})}
    if text:
        document["report"] = {"texts": text}
    execute(build_recipe(document, overrides or (), "command line"), dry_run, as_json, force)


def write_edited_tokenizer(base: str, output: str, edit: dict[str, Any], as_json: bool, force: bool) -> None:
    """Edit a tokenizer and write it alone, ready to be the ``target`` of a recipe.

    Args:
        base: Directory, or hub id, with a tokenizer.
        output: A new directory.
        edit: The edit; entries that are None or empty stand for its defaults.
        as_json: Print one JSON document.
        force: Replace an existing output.
    """
    from tokensurgeon.pipeline import write_tokenizer_only

    recipe = build_recipe(_document(base, output, edit), (), "command line")
    edited = write_tokenizer_only(recipe, force=force)
    facts = {
        "tokens_before": len(edited.before),
        "tokens_after": len(edited.after),
        "kept": len(edited.origins),
        **{key: value for step in edited.steps for key, value in step.facts.items()},
    }
    if as_json:
        document = {"schema_version": 1, "ok": True, "exit_code": 0, "error": None}
        console.print_json({**document, "output": output, "facts": facts})
        return
    console.print_table(
        "Tokenizer written", ["", ""], [[key.replace("_", " "), str(value)] for key, value in facts.items()]
    )
    console.print_result(f"tokenizer: {Path(output)}")


def _document(base: str, output: str, edit: dict[str, Any]) -> dict[str, Any]:
    given = {key: value for key, value in edit.items() if value not in (None, [], False)}
    return {"base": base, "output": output, "edits": [given]}
