"""``tokensurgeon apply-to-finetune``: what was made for a base, given to a fine-tune of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

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
    WorkDir,
    execute,
    text_and_device,
    with_options,
)
from tokensurgeon.console import logger
from tokensurgeon.errors import InputError
from tokensurgeon.recipe.load import build_recipe


def apply_to_finetune(
    transplant: Annotated[
        Path, typer.Argument(metavar="TRANSPLANT", help="An output of tokensurgeon, healed or not.")
    ],
    finetune: Annotated[str, typer.Argument(help="A fine-tune of the base that it was made of.")],
    output: Annotated[str, typer.Argument(metavar="OUT", help="A new directory.")],
    text: Annotated[list[str] | None, typer.Option(help="Score this file in the report; repeatable.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, ...")] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code")] = False,
    overrides: Overrides = None,
    work_dir: WorkDir = None,
    fail_on: FailOn = None,
    max_bpb_increase: MaxBpbIncrease = None,
    if_unchanged: Unchanged = IfUnchanged.RUN,
    dry_run: DryRun = False,
    as_json: Json = False,
    force: Force = False,
) -> None:
    """Give FINETUNE the vocabulary of TRANSPLANT, with the rows made (and healed) there, and train nothing.

    Rows of tokens that the fine-tune has stay its own; the others move as those rows moved in the fine-tune.
    What `heal.train: vocabulary` changed in rows that were copied is not carried over, nor what `heal.lora`
    changed in the body.

    \b
    Examples:
      tokensurgeon apply-to-finetune healed/ gemma-3-270m-it/ out/
      tokensurgeon apply-to-finetune healed/ my-finetune/ out/ --text english.txt
    """  # noqa: D301 - click wants the character, not its name
    from tokensurgeon.checkpoint.expectation import FILE_NAME, load_expectation

    expected = load_expectation(transplant)
    if expected is None:
        raise InputError(f"{transplant}: no {FILE_NAME}", "an output of tokensurgeon")
    if expected.trained:
        logger.warning(
            "%s: heal.lora changed %d tensors of its body, which the fine-tune does not get",
            transplant,
            len(expected.trained),
        )
    document: dict[str, Any] = {"base": finetune, "donor": str(transplant), "output": output}
    document |= {"method": "carry", "trust_remote_code": trust_remote_code}
    # Rows that were scaled, mixed and fitted already stay as they are.
    document["new_rows"] = {"head_scale": 1.0, "head_fit": 0.0, "last_piece": {}}
    document |= text_and_device(text, device)
    options = with_options(overrides, work_dir=work_dir, fail_on=fail_on, max_bpb_increase=max_bpb_increase)
    mode = Mode(dry_run, as_json, force, if_unchanged)
    execute(build_recipe(document, options, "command line"), mode)
