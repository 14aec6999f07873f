"""The base writes as it pleases, in each writing system that rows are made for, and programs."""

from dataclasses import replace

import pytest

from tokensurgeon import lessons
from tokensurgeon.lessons import find_scripts, judging_texts, lesson_texts, limit_of, main_script, may_hold
from tokensurgeon.pipeline import find_resources
from tokensurgeon.plan import make_plan
from tokensurgeon.recipe.load import build_recipe
from tokensurgeon.vocab.scripts import script_of, script_of_text


@pytest.fixture(scope="module")
def plan(make_model, sentencepiece, byte_level):
    document = {"base": str(make_model("llama", sentencepiece)), "target": str(byte_level)}
    return make_plan(
        build_recipe({**document, "output": "nowhere", "method": "mean", "new_rows": {"head_texts": 9}})
    )


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(lessons, "JUDGES", 6)
    monkeypatch.setattr(lessons, "_LEAST_SPOKEN", 3)
    monkeypatch.setattr(lessons, "_LEAST_KNOWN", 3)


def test_a_system_needs_tokens_to_write_with_on_both_sides(plan, monkeypatch):
    base, target = plan.match.base.tokens.values(), plan.match.target.tokens.values()
    assert find_scripts(base, target) == ["Latin", "Cyrillic"]
    assert find_scripts(base, []) == find_scripts([], target) == []
    assert not {"Digits", "Symbols", "Special", "Bytes", "Whitespace"} & {*find_scripts(base, target)}
    monkeypatch.setattr(lessons, "_LEAST_KNOWN", 100)
    assert find_scripts(base, target) == ["Latin"]
    monkeypatch.setattr(lessons, "_MOST_SCRIPTS", 0)
    assert find_scripts(base, target) == []


def test_texts_of_a_system_hold_its_letters_only(plan, small):
    texts = judging_texts(plan, find_resources(plan))
    free = [text for name, text in texts.items() if name.startswith("sample")]
    cyrillic = [text for name, text in texts.items() if name.startswith("Cyrillic")]
    assert (len(free), len(cyrillic)) == (6, 2)
    for text in cyrillic:
        assert {script_of_text(char) for char in text} <= {"Cyrillic", "Symbols", "Whitespace"}
        assert script_of_text(text) == "Cyrillic"


def test_a_limited_text_holds_what_it_may_hold_in_either_vocabulary(plan, small):
    texts = judging_texts(plan, find_resources(plan))
    cyrillic = [text for name, text in texts.items() if limit_of(name) == "Cyrillic"]
    assert len(cyrillic) == 2
    for vocabulary in (plan.match.base, plan.match.target):
        kept = [token for token in vocabulary.tokens.values() if may_hold("Cyrillic", token)]
        assert len(kept) < len(vocabulary.tokens)
        for text in cyrillic:
            ids = vocabulary.tokenizer.encode(text, add_special_tokens=False).ids
            held = [vocabulary.tokens[index] for index in ids]
            # But for letters in pieces, which may belong to any system.
            assert not [token for token in held if token not in kept and script_of(token) != "Bytes"]


def test_programs_and_free_texts_may_hold_anything(plan, small):
    names = judging_texts(plan, find_resources(plan))
    assert {limit_of(name) for name in names} == {"", "Latin", "Cyrillic"}
    assert {limit_of(name) for name in names if name.startswith(("sample", "program"))} == {""}


def programs(plan):
    texts = judging_texts(plan, find_resources(plan))
    return [text for name, text in texts.items() if name.startswith("program")]


def test_programs_open_as_programs_do_and_go_on_as_the_base_pleases(plan, small):
    written = programs(plan)
    assert len(written) == 2
    # Of such tokens the base has these.
    assert all(text.startswith(("#", "{", "def")) for text in written)
    assert {script_of_text(char) for text in written for char in text} > {"Latin", "Cyrillic"}


def test_a_base_without_a_token_that_opens_them_writes_none(plan, small):
    base = plan.match.base
    tokens = {i: token for i, token in base.tokens.items() if token.data not in {b"#", b"{", b"def"}}
    assert not programs(replace(plan, match=replace(plan.match, base=replace(base, tokens=tokens))))


def test_the_main_system_is_that_of_most_letters_of_free_texts():
    texts = {
        "sample 1": "abc где 12 ... !!",
        "sample 2": "ж",
        "Cyrillic sample 1": "далеко",
        "Greek sample 1": "",
    }
    assert main_script(texts) == "Cyrillic"
    assert main_script({**texts, "sample 2": "d"}) == "Latin"
    assert main_script({"sample 1": "12 + 3", "Greek sample 1": "α"}) == ""


def test_lessons_are_other_texts_than_those_that_judge_and_both_are_written_once(plan, small, monkeypatch):
    resources = find_resources(plan)
    judges, learnt = judging_texts(plan, resources), lesson_texts(plan, resources)
    assert not {*judges.values()} & {*learnt.values()}
    assert len(learnt) > len(judges)
    monkeypatch.setattr("tokensurgeon.evaluation.sampling.sample_texts", None)
    assert judging_texts(plan, resources) == judges
    assert lesson_texts(plan, resources) == learnt
