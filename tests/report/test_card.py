import re

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from tokensurgeon.report.card import render_card


def _front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def _html(card):
    """As a Markdown renderer with tables and raw HTML shows it, without the front matter."""
    return MarkdownIt("commonmark").enable("table").render(card.split("---\n", 2)[2])


def test_the_front_matter_names_the_base_for_the_hub(report):
    assert _front_matter(render_card(report)) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "org/base-1b",
        "base_model_relation": "finetune",
        "tags": ["tokensurgeon", "tokenizer-transplantation"],
    }


def test_what_the_bases_own_card_says_is_carried_over(report):
    told = {
        "license": "other",
        "license_name": "gemma",
        "language": ["en", "fr"],
        "pipeline_tag": "fill-mask",
    }
    base = report.inputs[0].model_copy(update={"card": told})
    head = _front_matter(render_card(report.model_copy(update={"inputs": [base, *report.inputs[1:]]})))
    assert {key: head[key] for key in told} == told
    assert "license" not in _front_matter(render_card(report))


def test_a_base_that_is_a_folder_by_a_name_of_the_hub_stays_out_too(report):
    base = report.inputs[0].model_copy(update={"from_hub": False})
    card = render_card(report.model_copy(update={"inputs": [base, *report.inputs[1:]]}))
    assert "base_model" not in _front_matter(card)


def test_the_hubs_own_reader_understands_the_card(report):
    data = ModelCard(render_card(report)).data
    assert (data.base_model, data.library_name, data.pipeline_tag) == (
        "org/base-1b",
        "transformers",
        "text-generation",
    )


@pytest.mark.parametrize(
    ("architecture", "loader", "task"),
    [
        ("GPT2LMHeadModel", "AutoModelForCausalLM", "text-generation"),
        ("BertForMaskedLM", "AutoModelForMaskedLM", "fill-mask"),
        ("T5ForConditionalGeneration", "T5ForConditionalGeneration", None),
        ("import os; x", "AutoModel", None),
    ],
)
def test_a_model_is_loaded_and_listed_by_its_kind(report, architecture, loader, task):
    card = render_card(report.model_copy(update={"architectures": [architecture]}))
    assert f"model = {loader}.from_pretrained" in card
    assert _front_matter(card).get("pipeline_tag") == task
    assert "import os" not in card


def test_a_draft_that_was_asked_for_is_tagged_and_judged(report):
    assert "speculative-decoding" not in render_card(report)
    asked = report.draft.model_copy(update={"asked": True})
    card = render_card(report.model_copy(update={"draft": asked}))
    assert "speculative-decoding" in _front_matter(card)["tags"]
    assert "[/INST]&lt;b&gt;" in _html(card)


@pytest.mark.parametrize("path", ["/data/models/base", "./base", "../base", "~/base", "a/b/c", "base"])
def test_a_base_that_is_a_path_stays_out_of_the_front_matter(report, path):
    base = report.inputs[0].model_copy(update={"source": path})
    card = render_card(report.model_copy(update={"inputs": [base, *report.inputs[1:]]}))
    assert "base_model" not in _front_matter(card)


def test_every_table_row_has_as_many_cells_as_its_head(report):
    html = _html(render_card(report))
    tables = re.findall(r"<table>.*?</table>", html, flags=re.DOTALL)
    assert len(tables) == 5
    for table in tables:
        rows = re.findall(r"<tr>.*?</tr>", table, flags=re.DOTALL)
        assert len({row.count("<th") + row.count("<td") for row in rows}) == 1


@pytest.mark.parametrize(
    "shown",
    ["&lt;script&gt;alert(1)&lt;/script&gt;", "[/INST]", "a|b", "`", "⏎", "\\u202etxt", "$x$", "␣the"],
)
def test_a_token_is_shown_as_it_is(report, shown):
    assert f"<code>{shown}</code>" in _html(render_card(report))


def test_no_token_is_read_as_markup(report):
    html = _html(render_card(report))
    assert "<script" not in html
    assert "<no>" not in html
    assert "<em>" not in html
    assert "\u202e" not in html


def test_the_recipe_reads_back_though_it_holds_a_code_fence(report):
    block = re.search(r"^(`{4,})yaml\n(.*)^\1\n", render_card(report), flags=re.DOTALL | re.MULTILINE)
    assert block is not None
    assert yaml.safe_load(block[2]) == report.recipe


def test_warnings_stand_before_the_snippet_that_loads_the_model(report):
    card = render_card(report)
    assert card.index("TS001") < card.index("AutoModelForCausalLM")


def test_scores_are_left_out_when_there_are_none(report):
    assert "| 1.000 | 1.100 | +10.0 % |" in render_card(report)
    assert "Bits per byte" not in render_card(report.model_copy(update={"scores": []}))
