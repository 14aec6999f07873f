"""``tokensurgeon transplant``: the one-liner; flags instead of a recipe, the same pipeline."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tokensurgeon.cli.complete import complete_method
from tokensurgeon.cli.run import (
    DryRun,
    FailOn,
    Force,
    IfUnchanged,
    Json,
    MatchVocabOf,
    MaxBpbIncrease,
    Mode,
    Overrides,
    Unchanged,
    WorkDir,
    execute,
    text_and_device,
    with_options,
)
from tokensurgeon.errors import RecipeError
from tokensurgeon.recipe.load import build_recipe

_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\r": "\r", r"\=": "="}


def transplant(
    base: Annotated[str, typer.Argument(help="The model to keep: a directory or a hub id.")],
    donor: Annotated[str, typer.Argument(help="The model, or tokenizer, whose vocabulary it shall speak.")],
    output: Annotated[str, typer.Argument(metavar="OUT", help="A new directory.")],
    method: Annotated[
        str | None, typer.Option(autocompletion=complete_method, help="See `tokensurgeon methods`.")
    ] = None,
    k: Annotated[int | None, typer.Option(help="Anchors a token, for methods that have a k.")] = None,
    rows: Annotated[str | None, typer.Option(help="target, exact, multiple:N or a number.")] = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="TARGET=BASE", help="A target token and the base text it continues."),
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="Score this file in the report; repeatable.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, ...")] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code")] = False,
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
    """Give BASE the tokenizer of DONOR and write the result to OUT.

    \b
    Examples:
      tokensurgeon transplant gemma-3-270m SmolLM2-135M out/
      tokensurgeon transplant draft/ target/ out/ --method pieces --map '<|eot|>=<eos>'
    """  # noqa: D301 - click wants the character, not its name
    document: dict[str, Any] = {"base": base, "donor": donor, "output": output}
    if method is not None or k is not None:
        document["method"] = {"name": method or "omp", **({} if k is None else {"k": k})}
    if rows is not None:
        document["rows"] = _rows(rows)
    if mapping:
        document["anchors"] = {"map": dict(_pair(entry) for entry in mapping)}
    document |= text_and_device(text, device)
    document["trust_remote_code"] = trust_remote_code
    options = with_options(
        overrides,
        work_dir=work_dir,
        match_vocab_of=match_vocab_of,
        fail_on=fail_on,
        max_bpb_increase=max_bpb_increase,
    )
    mode = Mode(dry_run, as_json, force, if_unchanged)
    execute(build_recipe(document, options, "command line"), mode)


def _rows(text: str) -> Any:  # noqa: ANN401 - checked by the recipe
    kind, colon, number = text.partition(":")
    if colon and kind == "multiple" and number.isdigit():
        return {"multiple": int(number)}
    return int(text) if text.isdigit() else text


def _pair(entry: str) -> tuple[str, str]:
    for escape, char in _ESCAPES.items():
        entry = entry.replace(escape, char if char != "=" else "\0")
    target, equals, base = entry.partition("=")
    if not equals or not target or not base:
        raise RecipeError(f"--map {entry}", "TARGET=BASE", r"write \= for an equals sign in the target token")
    return target.replace("\0", "="), base.replace("\0", "=")
