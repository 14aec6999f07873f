"""``tokensurgeon eval``: bits per byte of models on text."""

from __future__ import annotations

from collections import Counter
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
    from tokensurgeon.evaluation.bits_per_byte import ModelScores, TextScore

    Anatomies = dict[tuple[int, str], Anatomy]


class Dtype(StrEnum):
    """What weights are converted to for scoring."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    AUTO = "auto"


def eval_models(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Directories or hub ids of causal models.")
    ],
    text: Annotated[list[Path], typer.Option(metavar="FILE", help="UTF-8 text; may be repeated.")],
    max_bytes: Annotated[int | None, typer.Option(min=1, help="Cut each text there.")] = None,
    stride_bytes: Annotated[int, typer.Option(min=1, help="Bytes of text a window scores.")] = 2048,
    context_bytes: Annotated[int, typer.Option(min=0, help="Bytes it sees before those.")] = 1024,
    dtype: Annotated[Dtype, typer.Option(help="auto keeps the checkpoint's.")] = Dtype.FLOAT32,
    device: Annotated[str, typer.Option(help="auto takes CUDA where there is one.")] = "auto",
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code")] = False,
    anatomy: Annotated[
        bool, typer.Option("--anatomy", help="Where the others lose against the first, the base.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure bits per byte of models on text.

    Lower is better. Unlike a loss per token it compares models with different tokenizers: every model
    sees the same bytes, in the same windows, each opened by one BOS.

    With --anatomy the first model is the base, and the difference of every other is split: by how its
    tokenizer cuts the text, by script, and by new rows where its provenance.json tells them.

    \b
    Examples:
      tokensurgeon eval base/ donor/ out/ --text english.txt --text math.txt
      tokensurgeon eval out/ --text english.txt --max-bytes 50000 --json
      tokensurgeon eval base/ out/ --text english.txt --anatomy
    """  # noqa: D301 - click wants the character, not its name
    if anatomy and len(models) < 2:
        raise RecipeError("--anatomy with one model", "the base first, then the models to compare with it")

    from tokensurgeon.evaluation.bits_per_byte import evaluate, read_texts

    # Read first: a damaged file should not cost the time of scoring.
    made = [_made_rows(model) for model in models[1:]] if anatomy else []
    texts = read_texts(text, max_bytes)
    size = sum(len(content.encode()) for content in texts.values())
    results = []
    with console.progress("scoring", size * len(models), "bytes") as advance:
        for model in models:
            scores = evaluate(
                model,
                texts,
                stride_bytes=stride_bytes,
                context_bytes=context_bytes,
                device=device,
                trust_remote_code=trust_remote_code,
                dtype=dtype.value,
                keep_losses=anatomy,
                advance=advance,
            )
            results.append(scores)
    anatomies = _find_anatomies(results, texts, made) if anatomy else {}
    if as_json:
        settings = {
            "stride_bytes": stride_bytes,
            "context_bytes": context_bytes,
            "max_bytes": max_bytes,
            "dtype": dtype.value,
        }
        console.print_json(_document(results, settings, anatomies))
    else:
        _print_tables(results, anatomies)


def _made_rows(model: str) -> Set[int] | None:
    """Ids whose rows a method made, if the model is an output of tokensurgeon that says so."""
    from tokensurgeon.checkpoint.expectation import load_expectation

    expectation = load_expectation(Path(model))
    return None if expectation is None else expectation.made


def _find_anatomies(
    results: list[ModelScores], texts: dict[str, str], made: list[Set[int] | None]
) -> Anatomies:
    """Anatomy by place of the model and name of the text, for all models but the base."""
    from tokensurgeon.evaluation.anatomy import find_anatomy

    base, *others = results
    return {
        (place, score.text): find_anatomy(texts[score.text], before, score, rows)
        for place, (other, rows) in enumerate(zip(others, made, strict=True), start=1)
        for before, score in zip(base.scores, other.scores, strict=True)
    }


def _document(results: list[ModelScores], settings: dict[str, Any], anatomies: Anatomies) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "settings": settings,
        "models": [
            {
                "model": result.model,
                "bos": result.bos,
                "texts": [_entry(score, anatomies.get((place, score.text))) for score in result.scores],
            }
            for place, result in enumerate(results)
        ],
    }


def _entry(score: TextScore, anatomy: Anatomy | None) -> dict[str, Any]:
    entry = {
        "text": score.text,
        "bits": score.bits,
        "bytes": score.bytes,
        "tokens": score.tokens,
        "bits_per_byte": score.bits_per_byte,
        "bytes_per_token": score.bytes_per_token,
    }
    return entry if anatomy is None else {**entry, "anatomy": asdict(anatomy)}


def _print_tables(results: list[ModelScores], anatomies: Anatomies) -> None:
    short = [Path(result.model).name or result.model for result in results]
    seen = Counter(short)
    heads = [name if seen[name] == 1 else result.model for name, result in zip(short, results, strict=True)]
    by_text = list(zip(*(result.scores for result in results), strict=True))
    rows = [[row[0].text, *(f"{score.bits_per_byte:.4f}" for score in row)] for row in by_text]
    console.print_table("Bits per byte (lower is better)", ["text", *heads], rows)
    console.print_result("")
    rows = [[row[0].text, *(f"{score.bytes_per_token:.2f}" for score in row)] for row in by_text]
    console.print_table("Bytes per token", ["text", *heads], rows)
    console.print_result("")
    rows = [
        [head, result.bos or "none: first character not scored"]
        for head, result in zip(heads, results, strict=True)
    ]
    console.print_table("Every window opens with", ["model", "token"], rows)
    for (place, text), anatomy in anatomies.items():
        console.print_result("")
        _print_anatomy(f"Where {heads[place]} loses on {text}", anatomy)


def _print_anatomy(title: str, anatomy: Anatomy) -> None:
    splits = {"cut": anatomy.by_cut, "script": anatomy.by_script, "new rows": anatomy.by_new_rows or []}
    rows = [
        [
            split,
            part.name,
            f"{part.chunks:,}",
            f"{100 * part.byte_share:.1f}%",
            f"{part.base:.4f}",
            f"{part.output:.4f}",
            f"{part.excess:+z.4f}",
        ]
        for split, parts in splits.items()
        for part in parts
        if part.chunks
    ]
    heads = ["by", "chunk", "chunks", "bytes", "base", "output", "excess"]
    console.print_table(f"{title}: {anatomy.excess:+z.4f} bits per byte", heads, rows)
