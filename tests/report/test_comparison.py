"""Tables, CSV and the page of a document that ``eval`` made."""

import copy
import csv
import io
import re
from html.parser import HTMLParser

import pytest

from tokensurgeon.report.comparison import make_tables, to_csv, to_html

NASTY = ["<script>alert(1)</script>", "[/INST]", "\u202eabc\x07", "=1+1"]


def text(name, bits, first):
    part = {"script": "Latin", "words": 2, "tokens": 4, "bytes": 10, "fertility": 2.0, "bytes_per_token": 2.5}
    blank = {
        "script": "Whitespace",
        "words": 0,
        "tokens": 1,
        "bytes": 1,
        "fertility": None,
        "bytes_per_token": 1.0,
    }
    return {
        "text": name,
        "bits": bits * 11,
        "bytes": 11,
        "tokens": 5,
        "bits_per_byte": bits,
        "difference": bits - first,
        "relative_difference": (bits - first) / first if first else None,
        "bytes_per_token": 2.2,
        "words": 2,
        "fertility": 2.5,
        "types": 1,
        "renyi_efficiency": None,
        "by_script": [part, blank],
    }


def sample(prompt):
    return {"prompt": prompt, "text": prompt * 3, "repeated": 0.25}


@pytest.fixture
def document():
    models = []
    for place, name in enumerate(["a/base", "b/out", "c/out"]):
        bits = 1.0 + place / 4
        models.append(
            {
                "model": name,
                "bos": None if place else "<s>",
                "texts": [text("one.txt", bits, 1.0), text("two.txt", bits, 0.0)],
                "samples": {
                    "mean_repeated": 0.25,
                    "loop_rate": 0.0,
                    "continuations": [sample(nasty) for nasty in NASTY],
                },
                "tasks": [
                    {"task": "t", "metric": "acc", "value": bits / 2, "stderr": None, "items": 4}
                    | {"difference": place / 8}
                ],
            }
        )
    return {"schema_version": 1, "settings": {}, "models": models}


def test_models_of_one_name_are_told_apart_and_compared_with_the_first(document):
    table = make_tables(document)[0]
    assert table.heads == ["text", "base", "b/out", "b/out - base", "c/out", "c/out - base"]
    assert table.rows[0] == ["one.txt", "1.0000", "1.2500", "+0.2500 (+25.0%)", "1.5000", "+0.5000 (+50.0%)"]
    assert table.rows[1][3] == "+1.2500"  # of nothing there is no share


def test_a_figure_that_there_is_not_is_a_dash(document):
    tables = {table.title: table for table in make_tables(document)}
    assert tables["Rényi efficiency of the tokens (α = 2.5)"].rows[0] == ["one.txt", "-", "-", "-"]
    assert ["", "Whitespace", "1.00", "1.00", "1.00"] in tables["Bytes per token"].rows
    assert [row[1] for row in tables["Tokens per word"].rows] == ["all", "Latin", "all", "Latin"]
    assert tables["Every window opens with"].rows[1] == ["b/out", "none: first character not scored"]


def test_tables_without_rows_are_left_out(document):
    for model in document["models"]:
        model["texts"] = []
        del model["samples"]
    assert [table.title for table in make_tables(document)] == ["Tasks"]


def test_every_number_of_the_document_is_a_line_of_the_csv(document):
    rows = list(csv.DictReader(io.StringIO(to_csv(document))))
    assert len({(row["model"], row["text"], row["measure"]) for row in rows}) == len(rows)
    lines = {(row["model"], row["text"], row["measure"]): row["value"] for row in rows}
    assert lines["b/out", "one.txt", "by_script.Latin.fertility"] == "2.0"
    assert lines["c/out", "", "tasks.t acc.value"] == "0.75"
    assert lines["a/base", "", "samples.loop_rate"] == "0.0"
    numbers = re.findall(r"(?<=: )-?\d[\d.]*(?=[,}\]])", str(document["models"]))
    assert len(rows) == len(numbers)


class Page(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.words = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words += data


def test_the_page_needs_nothing_else_and_takes_text_for_text(document):
    html = to_html(document)
    page = Page(html)
    assert html == to_html(copy.deepcopy(document))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe"}
    assert not any({"src", "href", "onerror"} & attributes.keys() for _, attributes in page.tags)
    assert "<script>alert(1)</script>" in page.words
    assert "[/INST]" in page.words
    assert "\u202e" not in html
    assert "\\u202eabc\\x07" in page.words
