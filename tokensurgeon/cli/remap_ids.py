"""``tokensurgeon remap-ids``: tokenised data for an edited vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokensurgeon import console
from tokensurgeon.cli.run import Json


def remap_ids(
    edited: Annotated[Path, typer.Argument(metavar="DIR", help="An output with an id_map.json.")],
    source: Annotated[Path, typer.Argument(metavar="DATA", help="Integers in a .npy, or lists in a .jsonl.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="A new file of the same kind.")],
    key: Annotated[str, typer.Option(help="Of the lists in a .jsonl.")] = "input_ids",
    fill: Annotated[
        int | None, typer.Option(help="New id for tokens that are gone; without it they are an error.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Rewrite the token ids of tokenised data by the id map of an edited model.

    \b
    Examples:
      tokensurgeon remap-ids out/ train.npy train-trimmed.npy
    """  # noqa: D301 - click wants the character, not its name
    from tokensurgeon.edits.chain import read_id_map
    from tokensurgeon.edits.remap import remap_file

    count = remap_file(source, target, read_id_map(edited), key=key, fill=fill)
    if as_json:
        document = {"schema_version": 1, "ok": True, "exit_code": 0, "error": None}
        console.print_json({**document, "output": str(target), "ids": count})
        return
    console.print_result(f"{count:,} ids written to {target}")
