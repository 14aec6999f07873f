"""``tokensurgeon run``: do what a recipe says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokensurgeon import console
from tokensurgeon.cli.complete import complete_warning
from tokensurgeon.recipe.load import load_recipe

if TYPE_CHECKING:
    from tokensurgeon.pipeline import Outcome
    from tokensurgeon.recipe.schema import Recipe

DONE: dict[str, Any] = {"schema_version": 1, "ok": True, "exit_code": 0, "error": None}
"""How the document of a verb begins that did what it was asked to."""

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
FailOn = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-on",
        metavar="CODE[,CODE]",
        autocompletion=complete_warning,
        help="Write nothing, and exit 5, with a warning of this code; repeatable.",
    ),
]
MaxBpbIncrease = Annotated[
    float | None,
    typer.Option(
        "--max-bpb-increase",
        metavar="BITS",
        help="Write nothing, and exit 5, where a scored text takes so many more bits per byte.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON document.")]
Force = Annotated[
    bool, typer.Option("--force", help="Replace an existing output once the new one is verified.")
]


class IfUnchanged(StrEnum):
    """What to do where the output is there and nothing it was made from has changed."""

    RUN = "run"
    SKIP = "skip"


Unchanged = Annotated[
    IfUnchanged,
    typer.Option(
        "--if-unchanged", help="skip: exit 0 at once if the output was made from the same inputs and recipe."
    ),
]


@dataclass(frozen=True)
class Mode:
    """How a verb that writes an output goes about it.

    Attributes:
        dry_run: Only plan.
        as_json: Print one JSON document.
        force: Replace an existing output.
        if_unchanged: Whether an output that is as it would be made again is left as it is.
    """

    dry_run: bool = False
    as_json: bool = False
    force: bool = False
    if_unchanged: IfUnchanged = IfUnchanged.RUN


def run_recipe(
    recipe: Annotated[Path, typer.Argument(help="A recipe file; `tokensurgeon recipes` has examples.")],
    overrides: Overrides = None,
    work_dir: WorkDir = None,
    match_vocab_of: MatchVocabOf = None,
    fail_on: FailOn = None,
    max_bpb_increase: MaxBpbIncrease = None,
    if_unchanged: Unchanged = IfUnchanged.RUN,
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
      tokensurgeon run recipe.yaml --if-unchanged skip --fail-on TS001,TS019 --max-bpb-increase 0.15
    """  # noqa: D301 - click wants the character, not its name
    options = with_options(
        overrides,
        work_dir=work_dir,
        match_vocab_of=match_vocab_of,
        fail_on=fail_on,
        max_bpb_increase=max_bpb_increase,
    )
    execute(load_recipe(recipe, options), Mode(dry_run, as_json, force, if_unchanged))


def text_and_device(text: list[str] | None, device: str | None = None) -> dict[str, Any]:
    """Keys of a recipe that two options of most verbs stand for; none for one that was not given.

    Args:
        text: Files to score in the report, or None.
        device: Where to compute, or None.

    Returns:
        A part of a recipe's document.
    """
    found: dict[str, Any] = {"report": {"texts": text}} if text else {}
    return found if device is None else {**found, "runtime": {"device": device}}


def with_options(
    overrides: list[str] | None,
    *,
    work_dir: Path | None = None,
    match_vocab_of: str | None = None,
    fail_on: list[str] | None = None,
    max_bpb_increase: float | None = None,
) -> list[str]:
    """Overrides of a recipe with options that have a key of it as more of them.

    Args:
        overrides: Entries of ``--set``.
        work_dir: The folder, or None.
        match_vocab_of: The model that is served, or None.
        fail_on: Codes of warnings, or None.
        max_bpb_increase: In bits per byte, or None.

    Returns:
        All overrides.
    """
    options = {
        "runtime.work_dir": None if work_dir is None else str(work_dir),
        "match_vocab_of": match_vocab_of,
        "verify.fail_on": fail_on or None,
        "verify.max_bpb_increase": max_bpb_increase,
    }
    given = [f"{key}={json.dumps(value)}" for key, value in options.items() if value is not None]
    return [*(overrides or []), *given]


def execute(recipe: Recipe, mode: Mode) -> None:
    """Run a recipe, or show its plan, and print the result.

    Args:
        recipe: What to do.
        mode: How.
    """
    if may_skip(recipe, mode):
        print_skipped(recipe, mode)
        return
    if mode.dry_run:
        from tokensurgeon.cli.plan import print_plan

        print_plan(recipe, mode.as_json, mode.force)
        return
    from tokensurgeon.pipeline import run

    outcome = run(recipe, force=mode.force)
    if mode.as_json:
        console.print_json(_document(outcome))
        return
    from tokensurgeon.report.summary import summary_rows

    console.print_table("Done and verified", ["", ""], [list(row) for row in summary_rows(outcome.report)])
    for warning in outcome.report.warnings:
        console.print_result(f"warning {warning.code}: {warning.text}")
    console.print_result(f"checkpoint: {outcome.output}")
    console.print_result(f"report:     {outcome.output / 'report.html'}")


def may_skip(recipe: Recipe, mode: Mode, *, tokenizer_only: bool = False) -> bool:
    """Whether the output is there already, and nothing it was made from has changed.

    Args:
        recipe: What to do.
        mode: Whether to look.
        tokenizer_only: Whether no model is written.

    Returns:
        False where ``--if-unchanged`` does not ask.
    """
    if mode.if_unchanged is not IfUnchanged.SKIP:
        return False
    from tokensurgeon.record import is_unchanged

    return is_unchanged(recipe, tokenizer_only=tokenizer_only)


def print_skipped(recipe: Recipe, mode: Mode) -> None:
    """Say that there was nothing to do.

    Args:
        recipe: What would have been done.
        mode: How to say it.
    """
    if mode.as_json:
        console.print_json({**DONE, "unchanged": True, "output": str(Path(recipe.output).expanduser())})
    else:
        console.print_result(f"unchanged: {Path(recipe.output).expanduser()}")


def _document(outcome: Outcome) -> dict[str, Any]:
    return {
        **DONE,
        "unchanged": False,
        "output": str(outcome.output),
        "report": outcome.report.model_dump(mode="json"),
    }
