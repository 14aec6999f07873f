"""``tokensurgeon eval``: models measured on text, side by side."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokensurgeon import console
from tokensurgeon.errors import RecipeError

if TYPE_CHECKING:
    from tokensurgeon.evaluation.anatomy import Anatomy
    from tokensurgeon.evaluation.bits_per_byte import TextScore
    from tokensurgeon.evaluation.cuts import Share, TextCut
    from tokensurgeon.evaluation.exact import ExactScore
    from tokensurgeon.evaluation.measure import Measured

    Anatomies = dict[tuple[int, str], Anatomy]

_SHOWN = 160


class Dtype(StrEnum):
    """What weights are converted to for scoring."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    AUTO = "auto"


def eval_models(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Directories or hub ids of causal models.")
    ],
    text: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="UTF-8 text; may be repeated.")
    ] = None,
    max_bytes: Annotated[int | None, typer.Option(min=1, help="Cut each text there.")] = None,
    stride_bytes: Annotated[int, typer.Option(min=1, help="Bytes of text a window scores.")] = 2048,
    context_bytes: Annotated[int, typer.Option(min=0, help="Bytes it sees before those.")] = 1024,
    anatomy: Annotated[
        bool, typer.Option("--anatomy", help="Where the others lose against the first, the base.")
    ] = False,
    probes: Annotated[
        bool, typer.Option("--probes", help="Score and cut fixed texts of numbers and white space.")
    ] = False,
    samples: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Write N continuations, and tell how many loop.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Prompts for them, one a line; else parts of the texts."),
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=8, help="Tokens of each continuation.")] = 200,
    exact: Annotated[
        int | None,
        typer.Option(metavar="BYTES", min=4, help="Score so much of each text over all ways to cut it."),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A task of lm-evaluation-harness; may be repeated."),
    ] = None,
    task_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Take tasks from files in this folder, offline.")
    ] = None,
    task_limit: Annotated[int | None, typer.Option(min=1, help="Questions of each task.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="auto keeps the checkpoint's.")] = Dtype.FLOAT32,
    device: Annotated[str, typer.Option(help="auto takes CUDA where there is one.")] = "auto",
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code")] = False,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write every figure as a line.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the tables as one page.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure models on text, and how their tokenizers cut it.

    Bits per byte: lower is better. Unlike a loss per token it compares models with different tokenizers:
    every model sees the same bytes, in the same windows, each opened by one BOS. Differences are from the
    first model.

    With --anatomy the first model is the base, and the difference of every other is split: by how its
    tokenizer cuts the text, by script, by numbers and indentation, and by new rows where its
    provenance.json tells them.

    With --exact a text is scored over all the ways to cut it, not the tokenizer's own alone. There are too
    many beyond a dozen bytes, so the likeliest are walked, and the figures say between what bounds the exact
    one lies.

    \b
    Examples:
      tokensurgeon eval base/ donor/ out/ --text english.txt --text math.txt
      tokensurgeon eval out/ --text english.txt --max-bytes 50000 --json
      tokensurgeon eval base/ out/ --text english.txt --anatomy --probes --html eval.html
      tokensurgeon eval base/ out/ --samples 10 --prompts prompts.txt
      tokensurgeon eval base/ out/ --tasks everyday --task-dir configs/eval
    """  # noqa: D301 - click wants the character, not its name
    if anatomy and len(models) < 2:
        raise RecipeError("--anatomy with one model", "the base first, then the models to compare with it")
    if not (text or probes or tasks or (samples and prompts)):
        raise RecipeError(
            "nothing to measure", "--text FILE, --probes, --tasks NAME, or --samples N --prompts FILE"
        )
    if (anatomy or exact) and not text:
        raise RecipeError(f"{'--anatomy' if anatomy else '--exact'} without a text", "--text FILE")
    if prompts and not samples:
        raise RecipeError("--prompts without --samples", "--samples N, the number of continuations")
    if (task_dir or task_limit) and not tasks:
        raise RecipeError("--task-dir or --task-limit without --tasks", "--tasks NAME")

    from tokensurgeon.evaluation.harness import find_tasks
    from tokensurgeon.evaluation.measure import Asked, measure
    from tokensurgeon.evaluation.texts import read_texts

    # Read first: a damaged file should not cost the time of scoring.
    made = [_made_rows(model) for model in models[1:]] if anatomy else []
    texts = read_texts(text or [], max_bytes)
    asked = Asked(
        stride_bytes=stride_bytes,
        context_bytes=context_bytes,
        keep_losses=anatomy,
        probes=probes,
        prompts=_find_prompts(texts, prompts, samples) if samples else (),
        new_tokens=new_tokens,
        exact_bytes=exact or 0,
        tasks=find_tasks(tasks, task_dir) if tasks else (),
        task_limit=task_limit,
    )
    size = sum(len(content.encode()) for content in texts.values())
    with console.progress("scoring", size * len(models), "bytes") as advance:
        results = [
            measure(
                model,
                texts,
                asked,
                device=device,
                dtype=dtype.value,
                trust_remote_code=trust_remote_code,
                advance=advance,
            )
            for model in models
        ]
    anatomies = _find_anatomies(results, texts, made) if anatomy else {}
    settings = {
        "stride_bytes": stride_bytes,
        "context_bytes": context_bytes,
        "max_bytes": max_bytes,
        "dtype": dtype.value,
        "new_tokens": new_tokens if samples else None,
        "exact_bytes": exact,
        "task_limit": task_limit,
    }
    _publish(_document(results, settings, anatomies), csv, html, as_json)


def _find_prompts(texts: dict[str, str], prompts: Path | None, count: int) -> list[str]:
    from tokensurgeon.evaluation.loops import cut_prompts
    from tokensurgeon.evaluation.texts import read_prompts

    if prompts:
        return read_prompts(prompts)[:count]
    if not texts:
        raise RecipeError("--samples without a text", "--prompts FILE, or --text FILE to take prompts from")
    return cut_prompts("".join(texts.values()), count)


def _made_rows(model: str) -> Set[int] | None:
    """Ids whose rows a method made, if the model is an output of tokensurgeon that says so."""
    from tokensurgeon.checkpoint.expectation import load_expectation

    expectation = load_expectation(Path(model))
    return None if expectation is None else expectation.made


def _find_anatomies(results: list[Measured], texts: dict[str, str], made: list[Set[int] | None]) -> Anatomies:
    """Anatomy by place of the model and name of the text, for all models but the base."""
    from tokensurgeon.evaluation.anatomy import find_anatomy

    base, *others = (result.scores for result in results)
    return {
        (place, score.text): find_anatomy(texts[score.text], before, score, rows)
        for place, (other, rows) in enumerate(zip(others, made, strict=True), start=1)
        for before, score in zip(base.scores, other.scores, strict=True)
    }


def _document(results: list[Measured], settings: dict[str, Any], anatomies: Anatomies) -> dict[str, Any]:
    first = results[0]
    models = []
    for place, result in enumerate(results):
        texts = []
        for which, (score, cut) in enumerate(zip(result.scores.scores, result.cuts, strict=True)):
            entry = {
                **_score(score, first.scores.scores[which]),
                "bytes_per_token": score.bytes_per_token,
                **_cut(cut),
            }
            if (place, score.text) in anatomies:
                entry["anatomy"] = asdict(anatomies[place, score.text])
            if result.exact:
                entry["exact"] = _exact(result.exact[which])
            texts.append(entry)
        models.append(
            {"model": result.scores.model, "bos": result.scores.bos, "texts": texts, **_extras(result, first)}
        )
    return {"schema_version": 1, "settings": settings, "models": models}


def _score(score: TextScore, first: TextScore) -> dict[str, Any]:
    difference = score.bits_per_byte - first.bits_per_byte
    return {
        "text": score.text,
        "bits": score.bits,
        "bytes": score.bytes,
        "tokens": score.tokens,
        "bits_per_byte": score.bits_per_byte,
        "difference": difference,
        "relative_difference": difference / first.bits_per_byte if first.bits else None,
    }


def _cut(cut: TextCut) -> dict[str, Any]:
    return {
        "words": cut.words,
        "fertility": cut.fertility,
        "types": cut.types,
        "renyi_efficiency": cut.renyi_efficiency,
        "by_script": [_share(share) for share in cut.by_script],
    }


def _share(share: Share) -> dict[str, Any]:
    return {**asdict(share), "fertility": share.fertility, "bytes_per_token": share.bytes_per_token}


def _exact(score: ExactScore) -> dict[str, Any]:
    facts = asdict(score)
    del facts["text"]
    return {
        **facts,
        "bits_per_byte": score.bits_per_byte,
        "least_bits_per_byte": score.least_bits / score.bytes,
        "canonical_bits_per_byte": score.canonical_bits / score.bytes,
    }


def _extras(result: Measured, first: Measured) -> dict[str, Any]:
    """What was measured besides the texts."""
    from tokensurgeon.evaluation.loops import loop_rate

    found: dict[str, Any] = {}
    if result.probes:
        found["probes"] = {
            "scores": [_score(*scores) for scores in zip(result.probes, first.probes, strict=True)],
            "cuts": [{"text": text, "pieces": pieces} for text, pieces in result.probe_cuts.items()],
        }
    if result.continuations:
        ones = result.continuations
        found["samples"] = {
            "mean_repeated": sum(one.repeated for one in ones) / len(ones),
            "loop_rate": loop_rate(ones),
            "continuations": [asdict(one) for one in ones],
        }
    if result.tasks:
        found["tasks"] = [
            {**asdict(score), "difference": score.value - before.value}
            for score, before in zip(result.tasks, first.tasks, strict=True)
        ]
    return found


def _publish(document: dict[str, Any], csv: Path | None, html: Path | None, as_json: bool) -> None:
    from tokensurgeon.report.comparison import make_tables, to_csv, to_html

    for path, render in ((csv, to_csv), (html, to_html)):
        if path is not None:
            _write(path, render(document))
    if as_json:
        console.print_json(document)
        return
    for place, table in enumerate(make_tables(document)):
        if place:
            console.print_result("")
        rows = [[cell if len(cell) <= _SHOWN else f"{cell[:_SHOWN]}…" for cell in row] for row in table.rows]
        console.print_table(table.title, table.heads, rows)


def _write(path: Path, content: str) -> None:
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}", "a file that can be written") from error
    console.logger.info("Wrote %s", path)
