"""SmolLM2 135M and Gemma 3 270M, as `make models` brings them. `make test-real` runs these."""

from __future__ import annotations

import filecmp
from pathlib import Path

import pytest
import torch

from tokensurgeon.pipeline import run
from tokensurgeon.recipe.load import build_recipe, load_recipe

ROOT = Path(__file__).parents[2]
GEMMA = ROOT / "build" / "models" / "gemma3"
SMOLLM = ROOT / "build" / "models" / "smollm2"

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not GEMMA.is_dir() or not SMOLLM.is_dir(), reason="`make models` brings the real models"
    ),
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo's output and report, made once; its texts are not scored."""
    place = tmp_path_factory.mktemp("demo") / "out"
    paths = [f"base={GEMMA}", f"donor={SMOLLM}", f"output={place}", "report.texts=[]"]
    recipe = load_recipe(ROOT / "configs" / "demo.yaml", paths)
    return run(recipe)


def test_the_demo_matches_at_least_46100_tokens_and_none_falsely(demo):
    assert demo.report.matching.byte_equal >= 46_100
    assert demo.report.matching.false_matches == 0
    assert demo.report.passed


def test_matches_agree_with_the_tokenizers_own_decoders():
    from tokensurgeon.vocab.match import match_vocabularies
    from tokensurgeon.vocab.vocabulary import load_vocabulary

    match = match_vocabularies(load_vocabulary(SMOLLM), load_vocabulary(GEMMA))
    compared = 0
    for index, twin in match.byte_equal.items():
        ours = match.target.tokenizer.decoder.decode(["x", match.target.tokens[index].content])
        theirs = match.base.tokenizer.decoder.decode(["x", match.base.tokens[twin].content])
        if "\ufffd" not in ours + theirs:
            compared += 1
            assert ours == theirs
    assert compared > 45_000


def likely_next(directory):
    """The five most likely words after a prompt that opens with BOS."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    prompt = tokenizer("The capital of France is", add_special_tokens=False)["input_ids"]
    scores = model(torch.tensor([[tokenizer.bos_token_id, *prompt]])).logits[0, -1]
    return [tokenizer.decode([index]) for index in scores.topk(5).indices.tolist()]


def test_the_output_goes_on_as_the_base_would(demo):
    words = likely_next(demo.output)
    assert words == likely_next(GEMMA)
    assert " Paris" in words


def test_gemma_given_its_own_tokenizer_is_bit_identical(tmp_path):
    document = {"base": str(GEMMA), "donor": str(GEMMA), "output": str(tmp_path / "out")}
    report = run(build_recipe(document)).report
    assert report.passed
    assert filecmp.cmp(GEMMA / "model.safetensors", tmp_path / "out" / "model.safetensors", shallow=False)


def test_smollm_takes_gemmas_tokenizer_by_pieces(tmp_path):
    document = {
        "base": str(SMOLLM),
        "target": str(GEMMA),
        "output": str(tmp_path / "out"),
        "method": "pieces",
    }
    report = run(build_recipe(document)).report
    assert report.passed
    assert report.vocabulary.rows == 262_144
    assert report.matching.byte_equal >= 46_100
