import json

import pytest

from tokensurgeon.errors import InputError
from tokensurgeon.report.model import load_report


def test_a_dumped_report_reads_back_equal(report, tmp_path):
    (tmp_path / "report.json").write_text(report.dump(), encoding="utf-8")
    assert load_report(tmp_path) == report


def test_a_directory_without_a_report_is_bad_input(tmp_path):
    with pytest.raises(InputError, match=r"no report\.json"):
        load_report(tmp_path)


def test_a_report_of_another_schema_is_bad_input(report, tmp_path):
    document = json.loads(report.dump())
    document["surprise"] = document.pop("vocabulary")
    (tmp_path / "report.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(InputError, match=r"not a report of schema 1 \(2 errors\)"):
        load_report(tmp_path)


def test_a_report_of_before_there_was_an_anatomy_is_read(report, tmp_path):
    document = json.loads(report.dump())
    for score in document["scores"]:
        del score["anatomy"]
    (tmp_path / "report.json").write_text(json.dumps(document), encoding="utf-8")
    assert load_report(tmp_path).scores[0].anatomy is None


def test_what_older_reports_do_not_have_is_left_open(report, tmp_path):
    document = json.loads(report.dump())
    for part in ("hidden", "draft", "architectures"):
        del document[part]
    for model in document["inputs"]:
        del model["card"], model["from_hub"]
    for tensor in document["tensors"]:
        del tensor["rows"]
    (tmp_path / "report.json").write_text(json.dumps(document), encoding="utf-8")
    read = load_report(tmp_path)
    assert (read.draft, read.architectures, read.inputs[0].card, read.tensors[0].rows) == (None, [], {}, None)


def test_a_column_of_a_report_is_one_line_of_json(report):
    lines = report.dump().splitlines()
    ids = json.dumps(report.tensors[0].rows.ids)
    assert sum(line.strip() == f'"ids": {ids},' for line in lines) == 2
    assert json.loads(report.dump()) == report.model_dump(mode="json")


def test_one_failed_check_fails_the_report(report):
    assert report.passed
    checks = [*report.checks, report.checks[0].model_copy(update={"passed": False})]
    assert not report.model_copy(update={"checks": checks}).passed
