"""``tokensurgeon calibrate``: what methods are worth on a pair, by hidden anchors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokensurgeon import console
from tokensurgeon.cli.complete import complete_method
from tokensurgeon.cli.run import Overrides
from tokensurgeon.recipe.load import load_recipe

if TYPE_CHECKING:
    from tokensurgeon.calibration import Calibration


def calibrate(
    recipe: Annotated[Path, typer.Argument(help="A recipe file; its output is not written.")],
    method: Annotated[
        list[str] | None,
        typer.Option(
            autocompletion=complete_method, help="Measure this one as well; repeatable. See `methods`."
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Score it under the base with the made rows; repeatable."),
    ] = None,
    max_bytes: Annotated[int, typer.Option(min=1, help="Cut each text there.")] = 16384,
    share: Annotated[float, typer.Option(min=0.001, max=0.9, help="Of the anchors, hidden.")] = 0.3,
    seed: Annotated[int, typer.Option(min=0, help="Which anchors are hidden.")] = 0,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print exactly one JSON document.")] = False,
) -> None:
    """Hide shared tokens, make their rows again with each method, and compare.

    Errors are squared distances to the true rows, 1 for the mean row, weighted so that hidden tokens are as
    far from all anchors as the missing ones. With texts, the base reads them under its own tokenizer with
    the made rows put back: as embedding, as lm_head, as both.

    \b
    Examples:
      tokensurgeon calibrate configs/demo.yaml
      tokensurgeon calibrate recipe.yaml --method affknn --method pieces --text english.txt
    """  # noqa: D301 - click wants the character, not its name
    from tokensurgeon.calibration import calibrate as measure
    from tokensurgeon.evaluation.texts import read_texts

    texts = read_texts(text, max_bytes) if text else {}
    found = measure(load_recipe(recipe, overrides or []), method or [], texts, share=share, seed=seed)
    if as_json:
        console.print_json(_document(found))
    else:
        _print_tables(found)


def _document(found: Calibration) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "seed": found.seed,
        "share": found.share,
        "hidden": found.hidden,
        "similarity_edges": found.edges,
        "base": found.base_bits,
        "methods": [
            {
                "method": method.name,
                "parameters": method.parameters,
                "errors": {
                    tensor: {"weighted": errors.weighted, "by_similarity": errors.by_similarity}
                    for tensor, errors in method.errors.items()
                },
                "bits_per_byte": method.bits,
            }
            for method in found.methods
        ],
    }


def _print_tables(found: Calibration) -> None:
    bounds = [f"< {edge:.2f}" for edge in found.edges]
    heads = [*bounds, f"> {found.edges[-1]:.2f}"] if found.edges else ["all"]
    rows = []
    for method in found.methods:
        for tensor, errors in method.errors.items():
            parts = ["-" if part is None else f"{part:.3f}" for part in errors.by_similarity]
            rows.append([method.name, tensor, f"{errors.weighted:.3f}", *parts])
    console.print_table(
        f"Errors of {found.hidden:,} hidden tokens, by cosine to the nearest anchor",
        ["method", "tensor", "weighted", *heads],
        rows,
    )
    if found.base_bits:
        console.print_result("")
        rows = [["(true rows)", "", *(f"{bits:.4f}" for bits in found.base_bits.values())]]
        for method in found.methods:
            for ends, bits in method.bits.items():
                rows.append([method.name, ends, *(f"{value:.4f}" for value in bits.values())])
        console.print_table(
            "Bits per byte of the base with the made rows", ["method", "used as", *found.base_bits], rows
        )
