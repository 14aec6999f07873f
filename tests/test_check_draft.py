"""``check-draft`` and ``--match-vocab-of``: verdicts, exit codes, and drafts made to pass."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def served(make_model, sentencepiece):
    """The model to make drafts for: more rows than tokens, as many models have."""
    return make_model("llama", sentencepiece, vocab_size=640)


@pytest.fixture(scope="module")
def small(make_model, byte_level):
    return make_model("llama-tied", byte_level, seed=1)


def test_a_model_passes_as_its_own_draft(call, served):
    code, out, _ = call("check-draft", served, served)
    assert code == 0
    rows = [line.split("│") for line in out.splitlines() if line.count("│") == 2]
    verdicts = {
        cells[0].strip(): cells[1].strip() for cells in rows if cells[1].strip() in {"passes", "not checked"}
    }
    assert verdicts.pop("tensorrt-llm") == "not checked"
    assert set(verdicts) == {"every draft", "vllm", "sglang", "llamacpp", "mlc"}
    assert "Acceptance" not in out


def test_a_model_of_another_vocabulary_fails_with_the_first_difference_and_what_to_do(call, served, small):
    code, out, err = call("check-draft", served, small)
    assert code == 5
    assert "vocab_size is 640 in the target, 420 in the draft" in err
    assert f"next: tokensurgeon transplant DRAFT {served} OUT --match-vocab-of {served}" in err
    assert "fails" in out


def test_json_is_exactly_one_document_whether_the_draft_passes_or_not(call, served, small):
    for draft, expected in ((served, 0), (small, 5)):
        code, out, _ = call("check-draft", served, draft, "--json")
        document = json.loads(out)
        assert (code, document["exit_code"], document["ok"]) == (expected, expected, expected == 0)
        assert document["target"]["vocab_size"] == 640
        assert document["target"]["BOS"] == "2 '<bos>' (added)"
        assert [verdict["rule"] for verdict in document["verdicts"]][:2] == ["every draft", "vllm"]
        assert document["acceptance"] == []


def test_only_engines_that_were_asked_for_are_judged_and_each_must_pass(call, served, tmp_path):
    draft = Path(shutil.copytree(served, tmp_path / "draft"))
    for path in draft.glob("*.safetensors"):
        path.unlink()
    config = json.loads((draft / "config.json").read_text())
    (draft / "config.json").write_text(json.dumps({**config, "vocab_size": 640 + 128}))
    assert call("check-draft", served, draft, "--engine", "llamacpp")[0] == 0
    assert call("check-draft", served, draft, "--engine", "llamacpp", "--engine", "vllm")[0] == 5
    code, _, err = call("check-draft", served, served, "--engine", "tensorrt-llm")
    assert code == 5
    assert "tensorrt-llm: not checked" in err
    assert call("check-draft", served, served, "--engine", "vllmm")[0] == 2


def test_what_cannot_be_read_is_bad_input(call, served, sentencepiece, tmp_path):
    assert call("check-draft", served, tmp_path / "nowhere")[0] == 3
    code, out, _ = call("check-draft", sentencepiece, served, "--json")
    assert (code, json.loads(out)["error"]["type"]) == (3, "InputError")


def test_token_text_is_printed_as_it_is(call, served, tmp_path):
    draft = Path(shutil.copytree(served, tmp_path / "draft"))
    text = (draft / "tokenizer.json").read_text().replace("<start_of_turn>", "[/INST]")
    (draft / "tokenizer.json").write_text(text)
    code, out, err = call("check-draft", served, draft)
    assert code == 5
    assert "token 4 is '<start_of_turn>' in the target, '[/INST]' in the draft" in err
    assert "[/INST]" in out


def test_acceptance_is_measured_on_prompts_where_the_draft_passes(call, served, small, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("The quick brown fox\n\ndef add(first\n")
    code, out, _ = call(
        "check-draft", served, served, "--prompts", prompts, "--acceptance", 8, "--engine", "vllm", "--json"
    )
    greedy, sampled = json.loads(out)["acceptance"]
    assert code == 0
    assert (greedy["sampled"], greedy["accepted_share"]) == (False, 1.0)
    assert (sampled["sampled"], sampled["passes"] > 0) == (True, True)
    code, out, _ = call("check-draft", served, served, "--prompts", prompts, "--acceptance", 8)
    assert code == 0
    assert "100.0%" in out
    assert call("check-draft", served, served, "--acceptance", 8)[0] == 2
    code, out, _ = call("check-draft", served, small, "--prompts", prompts, "--acceptance", 8, "--json")
    assert (code, json.loads(out)["acceptance"]) == (5, [])
    prompts.write_text(" \n\n")
    assert call("check-draft", served, served, "--prompts", prompts, "--acceptance", 8)[0] == 3


def test_transplant_makes_a_draft_that_every_engine_takes(call, served, small, tmp_path):
    output = tmp_path / "draft"
    code, _, err = call("transplant", small, served, output, "--match-vocab-of", served, "--method", "pieces")
    assert code == 0
    assert f"As a draft of {served}: every draft passes, vllm passes, sglang passes" in err
    assert json.loads((output / "config.json").read_text())["vocab_size"] == 640
    assert call("check-draft", served, output)[0] == 0
    draft = json.loads((output / "report.json").read_text())["draft"]
    assert (draft["model"], draft["asked"]) == (str(served), True)
    assert {verdict["result"] for verdict in draft["verdicts"]} == {"passes", "not checked"}
    assert "speculative-decoding" in (output / "README.md").read_text()


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_what_writes_no_text_is_not_judged_as_a_draft(call, make_model, wordpiece, served, tmp_path, kind):
    base = make_model(kind, wordpiece)
    assert call("transplant", base, served, tmp_path / "out", "--method", "pieces")[0] == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["draft"] is None


def test_a_recipe_without_a_target_takes_that_of_the_model_to_match(call, served, small, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"base: {small}\noutput: {tmp_path / 'out'}\nmethod: pieces\nmatch_vocab_of: {served}\n"
    )
    code, out, _ = call("plan", recipe, "--json")
    plan = json.loads(out)["plan"]
    assert (code, plan["target"], plan["rows_after"]) == (0, str(served), 640)


def test_a_target_with_the_same_tokenizer_still_gets_the_rows_of_the_model(
    call, served, small, sentencepiece, tmp_path
):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"base: {small}\ntarget: {sentencepiece}\noutput: {tmp_path / 'out'}\nmethod: pieces\n")
    assert json.loads(call("run", recipe, "--dry-run", "--json")[1])["plan"]["rows_after"] < 640
    code, out, _ = call("run", recipe, "--match-vocab-of", served, "--dry-run", "--json")
    assert (code, json.loads(out)["plan"]["rows_after"]) == (0, 640)


def test_a_target_that_is_not_the_models_is_refused_before_anything_is_made(call, served, small, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"base: {small}\ntarget: {small}\noutput: {tmp_path / 'out'}\nmethod: pieces\n")
    code, _, err = call("plan", recipe)
    assert code == 0, err
    code, _, err = call("run", recipe, "--match-vocab-of", served)
    assert code == 5
    assert "every draft: fails: token 0 is '<pad>' in the target, '<|endoftext|>' in the draft" in err
    assert sorted(tmp_path.iterdir()) == [recipe]


def test_rows_of_ones_own_contradict_the_model_to_match(call, served, small, tmp_path):
    code, _, err = call(
        "transplant", small, served, tmp_path / "out", "--match-vocab-of", served, "--rows", 700
    )
    assert code == 2
    assert "match_vocab_of: " in err


def test_a_model_with_tokens_past_its_rows_cannot_be_matched(call, served, small, tmp_path):
    odd = Path(shutil.copytree(served, tmp_path / "odd"))
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps({**config, "vocab_size": 500}))
    code, _, err = call(
        "transplant", small, odd, tmp_path / "out", "--match-vocab-of", odd, "--method", "pieces"
    )
    assert code == 3
    assert "vocab_size 500, and a token with id" in err
