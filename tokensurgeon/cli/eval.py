"""``tokensurgeon eval``: bits per byte of models on text."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokensurgeon import console

if TYPE_CHECKING:
    from tokensurgeon.evaluation.bits_per_byte import ModelScores


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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure bits per byte of models on text.

    Lower is better. Unlike a loss per token it compares models with different tokenizers: every model
    sees the same bytes, in the same windows, each opened by one BOS.

    \b
    Examples:
      tokensurgeon eval base/ donor/ out/ --text english.txt --text math.txt
      tokensurgeon eval out/ --text english.txt --max-bytes 50000 --json
    """  # noqa: D301 - click wants the character, not its name
    from tokensurgeon.evaluation.bits_per_byte import evaluate, read_texts

    texts = read_texts(text, max_bytes)
    size = sum(len(content.encode()) for content in texts.values())
    results = []
    with console.progress("scoring", size * len(models)) as advance:
        for model in models:
            scores = evaluate(
                model,
                texts,
                stride_bytes=stride_bytes,
                context_bytes=context_bytes,
                device=device,
                trust_remote_code=trust_remote_code,
                dtype=dtype.value,
                advance=advance,
            )
            results.append(scores)
    if as_json:
        settings = {
            "stride_bytes": stride_bytes,
            "context_bytes": context_bytes,
            "max_bytes": max_bytes,
            "dtype": dtype.value,
        }
        console.print_json(_document(results, settings))
    else:
        _print_tables(results)


def _document(results: list[ModelScores], settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "settings": settings,
        "models": [
            {
                "model": result.model,
                "bos": result.bos,
                "texts": [
                    {
                        "text": score.text,
                        "bits": score.bits,
                        "bytes": score.bytes,
                        "tokens": score.tokens,
                        "bits_per_byte": score.bits_per_byte,
                        "bytes_per_token": score.bytes_per_token,
                    }
                    for score in result.scores
                ],
            }
            for result in results
        ],
    }


def _print_tables(results: list[ModelScores]) -> None:
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
