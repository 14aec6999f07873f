"""``tokensurgeon run``: do what a recipe says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokensurgeon import console
from tokensurgeon.recipe.load import load_recipe

if TYPE_CHECKING:
    from tokensurgeon.pipeline import Outcome
    from tokensurgeon.recipe.schema import Recipe

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one field, such as method.k=32; repeatable."),
]
WorkDir = Annotated[
    Path | None,
    typer.Option("--work-dir", metavar="DIR", help="Keep finished batches there; a killed run goes on."),
]
MatchVocabOf = Annotated[
    str | None,
    typer.Option("--match-vocab-of", metavar="PATH", help="Make a draft for this model, of its vocabulary."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON document.")]
Force = Annotated[
    bool, typer.Option("--force", help="Replace an existing output once the new one is verified.")
]


def run_recipe(
    recipe: Annotated[Path, typer.Argument(help="A recipe file; `tokensurgeon recipes` has examples.")],
    overrides: Overrides = None,
    work_dir: WorkDir = None,
    match_vocab_of: MatchVocabOf = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    force: Force = False,
) -> None:
    """Do what a recipe says: write the checkpoint, verify it, report.

    \b
    Examples:
      tokensurgeon run configs/demo.yaml
      tokensurgeon run recipe.yaml --set method.k=32 --set output=out-k32
      tokensurgeon run recipe.yaml --match-vocab-of gemma-3-27b/
    """  # noqa: D301 - click wants the character, not its name
    execute(load_recipe(recipe, with_options(overrides, work_dir, match_vocab_of)), dry_run, as_json, force)


def with_options(
    overrides: list[str] | None, work_dir: Path | None, match_vocab_of: str | None = None
) -> list[str]:
    """Overrides of a recipe with ``--work-dir`` and ``--match-vocab-of`` as more of them.

    Args:
        overrides: Entries of ``--set``.
        work_dir: The folder, or None.
        match_vocab_of: The model that is served, or None.

    Returns:
        All overrides.
    """
    options = {"runtime.work_dir": work_dir, "match_vocab_of": match_vocab_of}
    given = [f"{key}={json.dumps(str(value))}" for key, value in options.items() if value is not None]
    return [*(overrides or []), *given]


def execute(recipe: Recipe, dry_run: bool, as_json: bool, force: bool) -> None:
    """Run a recipe, or show its plan, and print the result.

    Args:
        recipe: What to do.
        dry_run: Only plan.
        as_json: Print one JSON document.
        force: Replace an existing output.
    """
    if dry_run:
        from tokensurgeon.cli.plan import print_plan

        print_plan(recipe, as_json, force)
        return
    from tokensurgeon.pipeline import run

    outcome = run(recipe, force=force)
    if as_json:
        console.print_json(_document(outcome))
        return
    from tokensurgeon.report.summary import summary_rows

    console.print_table("Done and verified", ["", ""], [list(row) for row in summary_rows(outcome.report)])
    for warning in outcome.report.warnings:
        console.print_result(f"warning {warning.code}: {warning.text}")
    console.print_result(f"checkpoint: {outcome.output}")
    console.print_result(f"report:     {outcome.output / 'report.html'}")


def _document(outcome: Outcome) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "ok": True,
        "exit_code": 0,
        "error": None,
        "output": str(outcome.output),
        "report": outcome.report.model_dump(mode="json"),
    }
