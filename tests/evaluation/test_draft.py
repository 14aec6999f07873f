"""Pairs of a target and a draft, against the rule of each engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tokensurgeon.errors import InputError, VerificationError
from tokensurgeon.evaluation.acceptance import load_pair, measure_acceptance
from tokensurgeon.evaluation.draft import NEEDS, RULES, judge_draft, load_side, refuse_unfit

ENGINES = ["vllm", "sglang", "llamacpp", "mlc", "tensorrt-llm"]


@pytest.fixture
def make(sentencepiece, tmp_path):
    """Write a model of headers only: the tokenizer, edited, and a config."""

    def write(name: str, edit=lambda spec: None, vocab_size: int | None = None, **settings: object) -> Path:
        directory = Path(shutil.copytree(sentencepiece, tmp_path / name))
        spec = json.loads((directory / "tokenizer.json").read_text())
        edit(spec)
        (directory / "tokenizer.json").write_text(json.dumps(spec))
        config = json.loads((directory / "tokenizer_config.json").read_text()) | settings
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
        size = len(spec["model"]["vocab"]) if vocab_size is None else vocab_size
        (directory / "config.json").write_text(json.dumps({"vocab_size": size}))
        return directory

    return write


@pytest.fixture
def target(make):
    return make("target")


@pytest.fixture
def size(target):
    return json.loads((target / "config.json").read_text())["vocab_size"]


def judge(target, draft):
    verdicts = judge_draft(load_side(target), load_side(draft))
    return {verdict.rule: (str(verdict.result), verdict.reason) for verdict in verdicts}


def passing(target, draft):
    return {rule for rule, (result, _) in judge(target, draft).items() if result == "passes"}


def rename(old, new):
    def edit(spec):
        vocab = spec["model"]["vocab"]
        spec["model"]["vocab"] = {new if piece == old else piece: index for piece, index in vocab.items()}
        spec["model"]["merges"] = [m for m in spec["model"]["merges"] if old not in (*m, "".join(m))]

    return edit


def swap(one, other):
    def edit(spec):
        vocab = spec["model"]["vocab"]
        vocab[one], vocab[other] = vocab[other], vocab[one]
        for entry in spec["added_tokens"]:
            entry["id"] = vocab[entry["content"]]
        for entry in spec["post_processor"]["special_tokens"].values():
            entry["ids"] = [vocab[token] for token in entry["tokens"]]

    return edit


def test_every_engine_takes_a_draft_with_the_same_vocabulary_unless_its_rule_is_not_known(target, make):
    verdicts = judge(target, make("draft"))
    assert list(verdicts) == [NEEDS, *ENGINES] == list(RULES)
    assert {rule for rule, (result, _) in verdicts.items() if result != "passes"} == {"tensorrt-llm"}
    assert verdicts["tensorrt-llm"] == (
        "not checked",
        "no comparison of vocabularies was found in its source",
    )
    assert verdicts["vllm"][1] == "same vocab_size"


@pytest.mark.parametrize(("more", "takers"), [(128, {NEEDS, "llamacpp"}), (129, {NEEDS})])
def test_only_llamacpp_takes_rows_more_and_no_more_than_128(target, make, size, more, takers):
    larger = make("larger", vocab_size=size + more)
    assert passing(target, larger) == passing(larger, target) == takers


def test_a_size_that_differs_is_told_with_the_first_id_that_one_side_lacks(target, make, size):
    verdicts = judge(target, make("draft", vocab_size=size - 129))
    last = max(json.loads((target / "tokenizer.json").read_text())["model"]["vocab"].values())
    assert last == size - 1
    for engine in ("vllm", "sglang", "mlc"):
        assert f"vocab_size is {size} in the target, {size - 129} in the draft" in verdicts[engine][1]
        assert f"id {size - 129} is '" in verdicts[engine][1]
        assert "past the end in the draft" in verdicts[engine][1]
    assert "129 apart, 128 are allowed" in verdicts["llamacpp"][1]


def test_one_other_token_is_named_with_both_texts_and_engines_that_compare_sizes_do_not_see_it(target, make):
    vocab = json.loads((target / "tokenizer.json").read_text())["model"]["vocab"]
    verdicts = judge(target, make("draft", rename("▁the", "▁zzz")))
    told = f"token {vocab['▁the']} is '▁the' in the target, '▁zzz' in the draft"
    assert verdicts["sglang"] == verdicts["llamacpp"] == ("fails", told)
    assert verdicts[NEEDS][0] == "fails"
    assert "is ' the' in the target, ' zzz' in the draft, the first of 1 that differ" in verdicts[NEEDS][1]
    assert verdicts["vllm"][0] == verdicts["mlc"][0] == "passes"


def test_llamacpp_does_not_compare_the_first_five_tokens(target, make):
    draft = make("draft", rename("<pad>", "<nothing>"))
    (draft / "tokenizer_config.json").write_text("{}")
    spec = json.loads((draft / "tokenizer.json").read_text())
    spec["added_tokens"] = [entry for entry in spec["added_tokens"] if entry["content"] != "<pad>"]
    (draft / "tokenizer.json").write_text(json.dumps(spec))
    (draft / "config.json").write_text(
        json.dumps({"vocab_size": len(spec["model"]["vocab"]), "bos_token_id": 2})
    )
    verdicts = judge(target, draft)
    assert verdicts["llamacpp"][0] == "passes"
    assert verdicts["sglang"] == ("fails", "token 0 is '<pad>' in the target, '<nothing>' in the draft")
    assert verdicts[NEEDS][0] == "fails"


def test_another_bos_fails_where_it_is_added(target, make):
    draft = make("draft", swap("<bos>", "<unk>"))
    verdicts = judge(target, draft)
    assert verdicts["llamacpp"] == (
        "fails",
        "BOS is 2 '<bos>' (added) in the target, 3 '<bos>' (added) in the draft",
    )
    assert verdicts["sglang"][1] == "token 2 is '<bos>' in the target, '<unk>' in the draft"
    assert verdicts["vllm"][0] == "passes"


def test_a_bos_that_only_one_side_adds_fails_for_llamacpp(target, make):
    verdicts = judge(target, make("draft", add_bos_token=False))
    assert (
        verdicts["llamacpp"][1]
        == "BOS is 2 '<bos>' (added) in the target, 2 '<bos>' (not added) in the draft"
    )
    assert {rule for rule, (result, _) in verdicts.items() if result == "fails"} == {"llamacpp"}


def test_bos_does_not_matter_to_llamacpp_where_neither_adds_it(make):
    quiet = {"add_bos_token": False}
    verdicts = judge(make("one", **quiet), make("two", swap("<bos>", "<unk>"), **quiet))
    assert verdicts["llamacpp"][0] == "passes"


def test_another_eos_fails_where_it_is_added(make):
    loud = {"add_eos_token": True}
    verdicts = judge(make("one", **loud), make("two", **loud, eos_token="<end_of_turn>"))
    assert verdicts["llamacpp"][1] == (
        "EOS is 1 '<eos>' (added) in the target, 5 '<end_of_turn>' (added) in the draft"
    )


def test_another_kind_of_tokenizer_is_told_by_its_name(target, wordpiece, tmp_path):
    draft = Path(shutil.copytree(wordpiece, tmp_path / "draft"))
    (draft / "config.json").write_text('{"vocab_size": 300}')
    reason = judge(target, draft)["llamacpp"][1]
    assert reason == "the target's tokenizer is sentencepiece BPE, the draft's wordpiece WordPiece"


def test_the_same_tokens_with_other_merges_cut_a_text_otherwise(target, make):
    verdicts = judge(target, make("draft", lambda spec: spec["model"]["merges"].clear()))
    result, reason = verdicts[NEEDS]
    assert result == "fails"
    assert reason.startswith("'Hello world, this is a test.' is cut otherwise: its token ")
    assert verdicts["sglang"][0] == "passes"


def test_rows_stored_must_be_those_of_the_config(make_model, sentencepiece):
    target = make_model("llama", sentencepiece)
    draft = Path(shutil.copytree(target, target.parent / f"{target.name}-edited"))
    config = json.loads((draft / "config.json").read_text())
    rows = config["vocab_size"]
    (draft / "config.json").write_text(json.dumps({**config, "vocab_size": rows + 8}))
    assert judge(target, target)[NEEDS][0] == "passes"
    assert judge(target, draft)[NEEDS][1] == f"the draft stores {rows} rows, its config says {rows + 8}"


def test_rows_are_unknown_where_the_embedding_is_not_there(make_model, sentencepiece, tmp_path):
    model = Path(shutil.copytree(make_model("llama", sentencepiece, shard="12KB"), tmp_path / "model"))
    rows = load_side(model).rows
    assert rows == load_side(model).size
    weights = json.loads((model / "model.safetensors.index.json").read_text())["weight_map"]
    (model / weights["model.layers.0.self_attn.q_proj.weight"]).unlink()
    assert load_side(model).rows == rows  # the hub brings vocabulary shards only
    (model / weights["model.embed_tokens.weight"]).unlink()
    assert load_side(model).rows is None


def test_a_draft_that_fails_is_refused_and_one_not_checked_only_where_it_was_asked_for(target, make, size):
    fit = judge_draft(load_side(target), load_side(make("fit")))
    refuse_unfit(fit, target)
    with pytest.raises(VerificationError, match="tensorrt-llm: not checked"):
        refuse_unfit(fit, target, ["tensorrt-llm"])
    unfit = judge_draft(load_side(target), load_side(make("unfit", vocab_size=size + 1)), ["vllm"])
    assert [verdict.rule for verdict in unfit] == [NEEDS, "vllm"]
    with pytest.raises(VerificationError, match=r"(?s)vllm: fails.*--match-vocab-of"):
        refuse_unfit(unfit, target)


def test_a_tokenizer_on_its_own_has_no_size_to_compare(sentencepiece):
    with pytest.raises(InputError, match=r"no config\.json"):
        load_side(sentencepiece)


PROMPTS = ["The quick brown fox", "def add(first"]


def test_a_model_accepts_every_token_of_its_own(make_model, sentencepiece):
    model = str(make_model("llama", sentencepiece))
    pair = load_pair(model, model)
    counts = measure_acceptance(pair, PROMPTS, 18)
    assert (counts.share, counts.tokens, counts.passes) == (1.0, 36, 6)
    assert counts.tokens_per_pass == 6  # five proposed, and one of the target's own
    drawn = measure_acceptance(pair, PROMPTS, 18, sampled=True, seed=3)
    assert drawn.share == 1.0
    assert drawn == measure_acceptance(pair, PROMPTS, 18, sampled=True, seed=3)


def test_another_model_is_accepted_less_often(make_model, sentencepiece):
    target, draft = (str(make_model("llama", sentencepiece, seed=seed)) for seed in (0, 1))
    pair = load_pair(target, draft)
    counts = measure_acceptance(pair, PROMPTS, 12)
    assert counts.share < 0.5
    assert counts.proposed > counts.accepted
    assert 1 <= counts.tokens_per_pass < 3


def test_acceptance_is_not_measured_across_vocabularies_of_two_sizes(make_model, sentencepiece):
    one, two = make_model("llama", sentencepiece), make_model("llama", sentencepiece, vocab_size=700)
    with pytest.raises(InputError, match=r"vocab_size \d+; .*: 700"):
        load_pair(str(one), str(two))
