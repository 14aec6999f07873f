"""Several reports side by side: on the terminal, as JSON and as a page."""

import json

import pytest

from tokensurgeon.report.compare import NOTHING, compare_reports
from tokensurgeon.report.html import render_comparison


@pytest.fixture
def other(report):
    """The same run with another method, without a text, a draft and an anatomy."""
    recipe = {**report.recipe, "anchors": {"map": {"`": "```"}, "minimum": 8}, "method": {"name": "[/INST]"}}
    return report.model_copy(update={"recipe": recipe, "scores": [report.scores[1]], "draft": None})


@pytest.fixture
def runs(report, other, tmp_path):
    for name, content in (("one", report), ("two", other)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(content.dump(), encoding="utf-8")
    return tmp_path / "one", tmp_path / "two"


def test_every_line_of_any_run_stands_once_and_in_its_place(report, other):
    compared = compare_reports({"two": other, "one": report})
    cells = {line.label: line.cells for line in compared.summary}
    assert len(cells) == len(compared.summary)
    assert cells["bits per byte, prose.txt"] == [NOTHING, "1.000 -> 1.100 (+10.0 %)"]
    assert cells["bits per byte, $co$de.py"] == ["0.500 -> 0.700 (+40.0 %)"] * 2
    labels = list(cells)
    # Only the second run has it, and there it follows the norms.
    assert labels.index("bits per byte, prose.txt") == labels.index("median norm, lm_head") + 1
    assert labels[-1] == "warnings"


def test_recipes_are_told_apart_by_field(report, other):
    compared = compare_reports({"one": report, "two": other})
    assert {line.label: line.cells for line in compared.recipe} == {
        "anchors.minimum": [NOTHING, "8"],
        "method.name": [NOTHING, "[/INST]"],
    }
    empty = report.model_copy(update={"recipe": {**report.recipe, "heal": None, "edits": [], "map": {}}})
    assert compare_reports({"one": report, "again": empty}).recipe == []


def test_losses_stand_side_by_side_where_they_are_known(report, other):
    lines = {line.label: line.cells for line in compare_reports({"one": report, "two": other}).losses}
    assert lines == {"prose.txt: same token": ["+0.000", NOTHING], "prose.txt: split": ["+0.100", NOTHING]}


def test_the_terminal_has_a_column_a_run_and_parses_no_markup(call, runs):
    code, out, err = call("report", *runs)
    assert code == 0, err
    assert "[/INST]" in out
    assert "anchors.minimum" in out
    assert out.count("1.000 -> 1.100") == 1
    code, out, _ = call("report", runs[0], runs[0])
    assert (code, "report: " in out) == (0, True)  # one run


def test_json_of_several_runs_is_one_document_with_all_reports(call, runs, report, other):
    code, out, _ = call("report", *runs, "--json")
    document = json.loads(out)
    assert code == 0
    assert document["runs"] == [str(run) for run in runs]
    assert document["recipe"]["method.name"] == [NOTHING, "[/INST]"]
    assert [one["scores"] for one in document["reports"]] == [
        one.model_dump(mode="json")["scores"] for one in (report, other)
    ]


def test_a_page_is_written_of_one_run_or_of_several(call, runs, tmp_path):
    page = tmp_path / "page.html"
    assert call("report", *runs, "--html", page)[0] == 0
    assert "2 runs" in page.read_text(encoding="utf-8")
    assert call("report", runs[0], "--html", page)[0] == 0
    assert page.read_text(encoding="utf-8").count("<b>+14.3 %</b>") == 1
    code, _, err = call("report", runs[0], "--html", tmp_path)
    assert (code, "a file that can be written" in err) == (3, True)


def test_a_directory_without_a_report_is_named(call, runs, tmp_path):
    code, out, err = call("report", *runs, tmp_path)
    assert (code, out) == (3, "")
    assert f"{tmp_path}: no report.json" in err


def test_a_page_of_several_marks_what_differs_and_shows_text_as_text(report, other):
    html = render_comparison({"<one>": report, "two": other})
    assert "&lt;one&gt;" in html
    assert "<one>" not in html
    assert html.count('<tr class="differs">') == 2
    assert "<script" not in html
