"""A tied base may leave with an lm_head of its own: nothing else changes, and each end has its rows."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from test_transplant import same_bits, tensors

from tokensurgeon import adjust
from tokensurgeon.batches import Batches
from tokensurgeon.checkpoint import probe
from tokensurgeon.checkpoint.verify import verify_checkpoint
from tokensurgeon.errors import InputError, RecipeError
from tokensurgeon.evaluation.loading import load_model, load_tokenizer
from tokensurgeon.lessons import judging_texts
from tokensurgeon.parallel import Processes
from tokensurgeon.pipeline import find_resources, run
from tokensurgeon.plan import make_plan
from tokensurgeon.reading import group_by_limit, score_written
from tokensurgeon.recipe.load import build_recipe
from tokensurgeon.surgery import operate

HEADS = {
    "llama-tied": "lm_head.weight",
    "gemma3": "lm_head.weight",
    "gpt2": "lm_head.weight",
    "bart": "lm_head.weight",
    "bert": "cls.predictions.decoder.weight",
}
ENDS = {"embedding": "pieces", "lm_head": {"name": "gaussian"}}


def recipe(base, target, output, **changes):
    document = {"base": str(base), "target": str(target), "output": str(output), "method": "pieces"}
    return build_recipe({**document, "untie": True, "verify": {"forward": False}, **changes})


def logits(directory, ids=(5, 6, 7), head_row=None):
    import transformers

    config = json.loads((directory / "config.json").read_text())
    loader = getattr(transformers, config["architectures"][0])
    model, info = loader.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values())
    if head_row is not None:
        model.get_output_embeddings().weight.data[head_row] += 1.0
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids]))["logits"]


@pytest.fixture
def tokenizer_of(sentencepiece, wordpiece):
    return lambda kind: wordpiece if kind == "bert" else sentencepiece


@pytest.mark.parametrize("kind", HEADS)
def test_a_base_given_its_own_tokenizer_and_a_head_computes_the_same(
    kind, make_model, tokenizer_of, tmp_path
):
    base = make_model(kind, tokenizer_of(kind))
    out = tmp_path / "out"
    report = run(recipe(base, base, out, verify={})).report
    old, new = tensors(base), tensors(out)
    assert HEADS[kind] in new.keys() - old.keys()
    assert all(same_bits(new[name], old[name]) for name in old)
    assert torch.equal(logits(out), logits(base))
    changed = [c for c in report.config_changes if c.file == "config.json"]
    assert [(c.field, c.new) for c in changed] == [("tie_word_embeddings", False)]
    assert "untied" in {check.name for check in report.checks}


@pytest.mark.parametrize("kind", HEADS)
def test_both_ends_have_the_bases_rows_and_made_rows_of_their_own_methods(
    kind, make_model, tokenizer_of, byte_level, tmp_path
):
    base = make_model(kind, tokenizer_of(kind))
    report = run(recipe(base, byte_level, tmp_path / "out", method=ENDS)).report
    old, new = tensors(base), tensors(tmp_path / "out")
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    embedding = report.tensors[0].name
    quality = {tensor.name: tensor for tensor in report.tensors}
    for name, method in ((embedding, "pieces"), (HEADS[kind], "gaussian")):
        assert method in quality[name].made_by
        assert not quality[name].made_by.keys() & ({"pieces", "gaussian"} - {method})
        source = provenance["vocab"][name]["source"]
        copied = [row for row, origin in enumerate(source) if origin >= 0]
        assert copied
        assert same_bits(new[name][copied], old[embedding][[source[row] for row in copied]])
    made = provenance["vocab"][embedding]["source"].index(-1)
    assert not torch.equal(new[embedding][made], new[HEADS[kind]][made])
    assert not quality[HEADS[kind]].tied
    assert quality[HEADS[kind]].old_shape == []


def test_a_text_model_inside_another_is_untied_at_both_levels(sentencepiece, tmp_path):
    """Gemma 3 is asked at the outer level by transformers, at the inner one by others."""
    import transformers

    vocab = json.loads((sentencepiece / "tokenizer.json").read_text())["model"]["vocab"]
    text = {"hidden_size": 40, "intermediate_size": 48, "num_hidden_layers": 1, "head_dim": 8}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": max(vocab.values()) + 1}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=9,
        boi_token_index=8,
        eoi_token_index=7,
    )
    base, out = tmp_path / "base", tmp_path / "out"
    transformers.Gemma3ForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(base)
    for path in sentencepiece.iterdir():
        shutil.copy(path, base)
    assert run(recipe(base, base, out, verify={})).report.passed
    written = json.loads((out / "config.json").read_text())
    assert written["tie_word_embeddings"] is written["text_config"]["tie_word_embeddings"] is False
    assert torch.equal(logits(out), logits(base))


def test_a_row_of_the_head_moves_its_own_logit_and_no_other(make_model, sentencepiece, byte_level, tmp_path):
    run(recipe(make_model("gemma3", sentencepiece), byte_level, tmp_path / "out"))
    before, after = logits(tmp_path / "out"), logits(tmp_path / "out", head_row=9)
    moved = (before != after).any(dim=1)[0].nonzero()[:, 0]
    assert moved.tolist() == [9]


def test_the_head_is_scaled_and_the_embedding_is_not(make_model, sentencepiece, byte_level, tmp_path):
    base = make_model("llama-tied", sentencepiece)
    plain, louder = tmp_path / "plain", tmp_path / "louder"
    run(recipe(base, byte_level, plain))
    run(recipe(base, byte_level, louder, new_rows={"head_scale": 1.3}))
    one, other = tensors(plain), tensors(louder)
    assert same_bits(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    assert not same_bits(one["lm_head.weight"], other["lm_head.weight"])


def test_a_scale_is_chosen_with_both_ends_as_they_will_be(make_model, sentencepiece, byte_level, monkeypatch):
    measured = {}

    def walk(measure):
        measured.update({scale: measure(scale) for scale in (1.0, 1.4)})
        return 1.4, measured

    monkeypatch.setattr(adjust, "climb", walk)
    base = str(make_model("llama-tied", sentencepiece))
    plan = make_plan(recipe(base, byte_level, "out", method=ENDS, new_rows={"head_scale": "auto"}))
    embedding, head = operate(plan, Batches(Processes()), find_resources(plan))
    model, _ = load_model(base, device="cpu")
    texts = judging_texts(plan, find_resources(plan))
    model.get_input_embeddings().weight = torch.nn.Parameter(embedding.data.float())
    model.get_output_embeddings().weight = torch.nn.Parameter(head.data.float())
    tokenizer = load_tokenizer(str(byte_level))
    written = group_by_limit(tokenizer, texts, plan.match.target.tokens)
    bits = score_written(model, tokenizer, written)
    assert measured[1.4] == pytest.approx(bits, rel=1e-6)
    assert measured[1.0] != pytest.approx(bits, rel=1e-6)


def test_a_sharded_base_has_its_head_in_the_index(make_model, sentencepiece, byte_level, tmp_path):
    base = make_model("gemma3", sentencepiece, shard="12KB")
    out = tmp_path / "out"
    run(recipe(base, byte_level, out))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    written = tensors(out)
    assert index["weight_map"].keys() == written.keys()
    assert index["weight_map"]["lm_head.weight"] == index["weight_map"]["model.embed_tokens.weight"]
    sizes = [tensor.numel() for tensor in written.values()]
    assert index["metadata"]["total_size"] == 2 * sum(sizes)
    assert index["metadata"]["total_parameters"] == sum(sizes)
    assert verify_checkpoint(out, forward=False).passed


def test_plan_and_report_say_what_it_costs(make_model, sentencepiece, byte_level, tmp_path):
    base = make_model("gemma3", sentencepiece)
    tied = make_plan(recipe(base, byte_level, tmp_path / "out", untie=False))
    plan = make_plan(recipe(base, byte_level, tmp_path / "out"))
    table = plan.rows * 40
    assert plan.added_bytes == plan.bytes_to_write - tied.bytes_to_write == 2 * table
    assert plan.parameters_after - tied.parameters_after == table
    assert plan.parameters_before == tied.parameters_before
    assert plan.memory_bytes - tied.memory_bytes >= 2 * table
    report = run(plan.recipe).report
    written = tensors(tmp_path / "out").values()
    assert report.vocabulary.parameters_after == sum(tensor.numel() for tensor in written)
    assert report.vocabulary.parameters_before == sum(t.numel() for t in tensors(base).values())
    (warning,) = [warning.text for warning in report.warnings if warning.code == "TS020"]
    assert f"lm_head.weight: {table:,} parameters and {2 * table:,} bytes" in warning


@pytest.fixture(scope="module")
def untied_gemma(make_model, sentencepiece, tmp_path_factory):
    base, out = make_model("gemma3", sentencepiece), tmp_path_factory.mktemp("untied") / "out"
    run(recipe(base, base, out))
    return out


def failed_checks(directory):
    return {check.name for check in verify_checkpoint(directory).checks if not check.passed}


def test_a_lost_head_is_noticed_by_verify(untied_gemma, tmp_path):
    out = shutil.copytree(untied_gemma, tmp_path / "out")
    kept = {name: tensor for name, tensor in tensors(out).items() if name != "lm_head.weight"}
    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert {"body", "copied rows", "untied"} <= failed_checks(out)


def test_a_config_that_ties_again_is_noticed_by_verify(untied_gemma, tmp_path):
    """Where the rows are equal transformers ties what the config says is tied, whatever is stored."""
    out = shutil.copytree(untied_gemma, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert failed_checks(out) == {"untied"}


class ScalesWhenTied(torch.nn.Module):
    """Like Switch Transformers: hidden states are scaled if the config says tied."""

    def __init__(self, scale):
        super().__init__()
        self.config = SimpleNamespace(tie_word_embeddings=False)
        self.ends = torch.nn.Embedding(3, 2), torch.nn.Linear(2, 3, bias=False)
        self.scale = scale

    def get_input_embeddings(self):
        return self.ends[0]

    def get_output_embeddings(self):
        return self.ends[1]

    def forward(self, input_ids):
        hidden = self.ends[0](input_ids)
        return {"logits": self.ends[1](hidden * (self.scale if self.config.tie_word_embeddings else 1.0))}


@pytest.mark.parametrize(("scale", "alike"), [(1.0, True), (0.5, False)])
def test_a_class_that_scales_when_tied_is_noticed(scale, alike):
    model = ScalesWhenTied(scale)
    seen = probe._untied_alike(model, lambda _: {"input_ids": [0, 1]}, {"prompts": ["one"]})
    assert seen is alike
    assert model.config.tie_word_embeddings is False


def test_a_base_that_is_not_tied_stays_as_it_would_be(make_model, sentencepiece, byte_level, tmp_path):
    base = make_model("llama", sentencepiece)
    report = run(recipe(base, byte_level, tmp_path / "out")).report
    run(recipe(base, byte_level, tmp_path / "plain", untie=False))
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    (warning,) = [warning.text for warning in report.warnings if warning.code == "TS021"]
    assert "untie changes nothing: the base has an lm_head of its own, lm_head.weight" in warning


def test_a_tied_base_that_stores_its_head_twice_is_untied_without_another(
    make_model, sentencepiece, byte_level, tmp_path
):
    base = make_model("llama-tied", sentencepiece)
    stored = tensors(base)
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"].clone()
    save_file(stored, base / "model.safetensors", metadata={"format": "pt"})
    report = run(recipe(base, byte_level, tmp_path / "out", method=ENDS)).report
    new = tensors(tmp_path / "out")
    assert not torch.equal(new["lm_head.weight"], new["model.embed_tokens.weight"])
    assert new.keys() == stored.keys()
    assert "no bytes more" in next(w.text for w in report.warnings if w.code == "TS020")


@pytest.mark.parametrize(("kind", "reason"), [("t5", "is always tied")])
def test_a_class_that_cannot_be_untied_is_refused(kind, reason, make_model, sentencepiece, tmp_path):
    base = make_model(kind, sentencepiece)
    with pytest.raises(InputError, match=f"untie: T5ForConditionalGeneration {reason}"):
        make_plan(recipe(base, base, tmp_path / "out"))


def test_a_base_without_an_lm_head_is_refused(make_model, sentencepiece, tmp_path):
    base = make_model("gpt2", sentencepiece)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2Model"]}))
    with pytest.raises(InputError, match="stores no lm_head, and GPT2Model ties none"):
        make_plan(recipe(base, base, tmp_path / "out"))


def test_keeping_a_head_and_dropping_it_contradict_each_other(tmp_path):
    with pytest.raises(RecipeError, match="untie keeps an lm_head, tie_policy: drop-head loses it"):
        recipe(tmp_path, tmp_path, tmp_path / "out", tie_policy="drop-head")
