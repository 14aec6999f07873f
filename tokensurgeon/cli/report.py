"""``tokensurgeon report``: what an output's report says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokensurgeon import console


def show_report(
    directory: Annotated[Path, typer.Argument(help="An output of tokensurgeon.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json, checked.")] = False,
) -> None:
    """Print the summary of a finished run, and where its full report is.

    \b
    Examples:
      tokensurgeon report out/
      tokensurgeon report out/ --json
    """  # noqa: D301 - click wants the character, not its name
    from tokensurgeon.report.model import load_report
    from tokensurgeon.report.summary import summary_rows

    report = load_report(directory)
    if as_json:
        console.print_json(report.model_dump(mode="json"))
        return
    console.print_table(str(directory), ["", ""], [list(row) for row in summary_rows(report)])
    for warning in report.warnings:
        console.print_result(f"warning {warning.code}: {warning.text}")
    console.print_result(f"report: {directory / 'report.html'}")
