"""``tokensurgeon report``: what an output's report says, or those of several outputs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokensurgeon import console
from tokensurgeon.errors import InputError

if TYPE_CHECKING:
    from tokensurgeon.report.compare import Comparison, Line
    from tokensurgeon.report.model import Report


def show_report(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Outputs of tokensurgeon.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print report.json, checked; of several, one document.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page, too; of several, one that compares.")
    ] = None,
) -> None:
    """Print the summary of a finished run, and where its full report is; of several, compare them.

    \b
    Examples:
      tokensurgeon report out/
      tokensurgeon report out/ --json
      tokensurgeon report out-omp/ out-affomp/ --html compared.html
    """  # noqa: D301 - click wants the character, not its name
    from tokensurgeon.report.compare import compare_reports
    from tokensurgeon.report.model import load_report

    # Equal paths are one run.
    reports = {str(directory): load_report(directory) for directory in directories}
    if html is not None:
        _write_page(html, reports)
    if len(reports) == 1:
        [(name, report)] = reports.items()
        _print_one(Path(name), report, as_json)
    elif as_json:
        _print_document(reports, compare_reports(reports))
    else:
        _print_comparison(compare_reports(reports))


def _write_page(path: Path, reports: dict[str, Report]) -> None:
    from tokensurgeon.report.html import render_comparison, render_html

    page = render_comparison(reports) if len(reports) > 1 else render_html(next(iter(reports.values())))
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "a file that can be written") from error


def _print_one(directory: Path, report: Report, as_json: bool) -> None:
    from tokensurgeon.report.summary import summary_rows

    if as_json:
        console.print_json(report.model_dump(mode="json"))
        return
    console.print_table(str(directory), ["", ""], [list(row) for row in summary_rows(report)])
    for warning in report.warnings:
        console.print_result(f"warning {warning.code}: {warning.text}")
    console.print_result(f"report: {directory / 'report.html'}")


def _print_document(reports: dict[str, Report], compared: Comparison) -> None:
    def lines(part: list[Line]) -> dict[str, list[str]]:
        return {line.label: line.cells for line in part}

    console.print_json(
        {
            "schema_version": 1,
            "runs": compared.names,
            "summary": lines(compared.summary),
            "losses": lines(compared.losses),
            "recipe": lines(compared.recipe),
            "reports": [report.model_dump(mode="json") for report in reports.values()],
        }
    )


def _print_comparison(compared: Comparison) -> None:
    for title, lines in (
        ("Runs side by side", compared.summary),
        ("Bits per byte lost, by how the text is cut", compared.losses),
        ("What the recipes differ in", compared.recipe),
    ):
        if lines:
            console.print_table(title, ["", *compared.names], [[line.label, *line.cells] for line in lines])
            console.print_result("")
    if not compared.recipe:
        console.print_result("The recipes differ in nothing but the output.")
