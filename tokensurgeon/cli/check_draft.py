"""``tokensurgeon check-draft``: whether engines take one model as the draft of another."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokensurgeon import console
from tokensurgeon.errors import RecipeError, VerificationError

if TYPE_CHECKING:
    from tokensurgeon.evaluation.acceptance import Acceptance
    from tokensurgeon.evaluation.draft import Side, Verdict


class Engine(StrEnum):
    """Engines that decode speculatively."""

    VLLM = "vllm"
    SGLANG = "sglang"
    LLAMACPP = "llamacpp"
    MLC = "mlc"
    TENSORRT_LLM = "tensorrt-llm"


def check_draft(
    target: Annotated[Path, typer.Argument(help="Directory of the model that is served.")],
    draft: Annotated[Path, typer.Argument(help="Directory of the small model that guesses its tokens.")],
    engine: Annotated[
        list[Engine] | None, typer.Option(help="Only this engine, which must then pass; repeatable.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Prompts, one a line, to measure acceptance on.")
    ] = None,
    acceptance: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Load both models, write N tokens a prompt.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of sampled tokens.")] = 0,
    device: Annotated[str, typer.Option(help="auto takes CUDA where there is one.")] = "auto",
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print exactly one JSON document.")] = False,
) -> None:
    """Check whether engines take DRAFT as a draft model of TARGET, each by its own rule.

    Reads tokenizers, configs and headers, and names the first difference. What every draft needs is
    checked too, for some engines look at sizes only. Exits 5 when a rule fails.

    With --prompts and --acceptance a pair that passes is loaded and writes, greedily and sampled: the
    share of the draft's tokens that the target accepts is what speculative decoding gains from.

    \b
    Examples:
      tokensurgeon check-draft gemma-3-27b/ draft/
      tokensurgeon check-draft target/ draft/ --engine vllm --json
      tokensurgeon check-draft target/ draft/ --prompts prompts.txt --acceptance 100
    """  # noqa: D301 - click wants the character, not its name
    if (prompts is None) != (acceptance is None):
        raise RecipeError("one of --prompts and --acceptance without the other", "both, or none")

    from tokensurgeon.evaluation.draft import judge_draft, load_side, refuse_unfit
    from tokensurgeon.evaluation.texts import read_prompts

    lines = read_prompts(prompts) if prompts else []
    sides = load_side(target), load_side(draft)
    asked = [name.value for name in engine or ()]
    verdicts = judge_draft(*sides, asked or None)
    unfit: VerificationError | None = None
    try:
        refuse_unfit(verdicts, target, asked)
    except VerificationError as error:
        unfit = error
    counts = []
    if acceptance and not unfit:
        counts = _measure(target, draft, lines, acceptance, seed, device, trust_remote_code)
    if as_json:
        console.print_json(_document(sides, verdicts, counts, unfit))
        if unfit:
            raise typer.Exit(VerificationError.exit_code)
        return
    _print_tables(sides, verdicts, counts)
    if unfit:
        raise unfit


def _measure(
    target: Path,
    draft: Path,
    prompts: list[str],
    new_tokens: int,
    seed: int,
    device: str,
    trust_remote_code: bool,
) -> list[Acceptance]:
    """Greedy and sampled acceptance."""
    from tokensurgeon.evaluation.acceptance import load_pair, measure_acceptance

    pair = load_pair(str(target), str(draft), device=device, trust_remote_code=trust_remote_code)
    with console.progress("writing", 2 * len(prompts), "texts") as advance:
        return [
            measure_acceptance(pair, prompts, new_tokens, sampled=sampled, seed=seed, advance=advance)
            for sampled in (False, True)
        ]


def _document(
    sides: tuple[Side, Side],
    verdicts: list[Verdict],
    counts: list[Acceptance],
    unfit: VerificationError | None,
) -> dict[str, Any]:
    target, draft = sides
    return {
        "schema_version": 1,
        "ok": unfit is None,
        "exit_code": unfit.exit_code if unfit else 0,
        "error": None,
        "target": target.facts,
        "draft": draft.facts,
        "verdicts": [{"rule": v.rule, "result": str(v.result), "reason": v.reason} for v in verdicts],
        "acceptance": [
            {**vars(count), "accepted_share": count.share, "tokens_per_target_pass": count.tokens_per_pass}
            for count in counts
        ],
    }


def _print_tables(sides: tuple[Side, Side], verdicts: list[Verdict], counts: list[Acceptance]) -> None:
    target, draft = (side.facts for side in sides)
    console.print_table(
        "Vocabularies",
        ["", "target", "draft"],
        [[key, _cell(target[key]), _cell(draft[key])] for key in target],
    )
    console.print_result("")
    console.print_table(
        "Speculative decoding",
        ["engine", "verdict", "reason"],
        [[verdict.rule, str(verdict.result), verdict.reason] for verdict in verdicts],
    )
    if not counts:
        return
    console.print_result("")
    console.print_table(
        "Acceptance",
        ["tokens", "proposed", "accepted", "share", "tokens a target pass"],
        [
            [
                "sampled" if count.sampled else "greedy",
                f"{count.proposed:,}",
                f"{count.accepted:,}",
                f"{count.share:.1%}",
                f"{count.tokens_per_pass:.2f}",
            ]
            for count in counts
        ],
    )


def _cell(value: object) -> str:
    return "unknown" if value is None else str(value)
