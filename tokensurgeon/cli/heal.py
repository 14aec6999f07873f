"""``tokensurgeon heal``: minutes of training for what ``transplant`` wrote, by the same pipeline."""

from __future__ import annotations

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
from tokensurgeon.recipe.load import build_recipe


def heal(
    transplant: Annotated[str, typer.Argument(metavar="TRANSPLANT", help="An output of tokensurgeon.")],
    base: Annotated[
        str, typer.Argument(help="The model it was made of, with its own tokenizer: the teacher.")
    ],
    output: Annotated[str, typer.Argument(metavar="OUT", help="A new directory.")],
    objective: Annotated[
        str | None, typer.Option(help="chunk_likelihood, token_distillation or ntp.")
    ] = None,
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            "--corpus", metavar="FILE", help="Text, .jsonl or .parquet; else BASE writes. Repeatable."
        ),
    ] = None,
    train: Annotated[str | None, typer.Option(help="new or vocabulary.")] = None,
    steps: Annotated[int | None, typer.Option(help="At most so many.")] = None,
    minutes: Annotated[float | None, typer.Option(help="At most so long.")] = None,
    lora: Annotated[
        int | None, typer.Option(metavar="RANK", help="Train changes of the body of this rank, too.")
    ] = None,
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
    """Train the rows that were made in TRANSPLANT, and write the result to OUT.

    The body stays as it is, unless --lora (heal.lora in a recipe) trains changes of low rank there, which are
    merged into its weights.

    \b
    Examples:
      tokensurgeon heal out/ gemma-3-270m healed/ --corpus english.txt --minutes 10
      tokensurgeon heal out/ gemma-3-270m healed/ --corpus english.txt --train vocabulary --lora 16
      tokensurgeon heal out/ gemma-3-270m healed/ --objective ntp --set heal.batch_tokens=8192
    """  # noqa: D301 - click wants the character, not its name
    asked = {"objective": objective, "corpus": corpus, "train": train, "steps": steps, "minutes": minutes}
    rules: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
    rules |= {} if lora is None else {"lora": {"rank": lora}}
    # No row is missing: the method makes none, and needs no donor.
    document: dict[str, Any] = {
        "base": transplant,
        "target": transplant,
        "output": output,
        "method": "pieces",
    }
    document |= {"heal": {**rules, "teacher": base}, "trust_remote_code": trust_remote_code}
    document |= text_and_device(text, device)
    options = with_options(overrides, work_dir=work_dir, fail_on=fail_on, max_bpb_increase=max_bpb_increase)
    mode = Mode(dry_run, as_json, force, if_unchanged)
    execute(build_recipe(document, options, "command line"), mode)
