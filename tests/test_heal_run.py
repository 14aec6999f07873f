"""A run that heals: what moves, what may not, and what the output and its report say of it."""

import filecmp
import json

import pytest
import torch
from safetensors.torch import load_file

from tokensurgeon.errors import InputError, RecipeError
from tokensurgeon.pipeline import run
from tokensurgeon.recipe.load import build_recipe
from tokensurgeon.report.summary import summary_rows

TEXT = "The quick brown fox jumps over the lazy dog; the dog sleeps under the old oak tree.\n"
QUICK = {"steps": 4, "batch_tokens": 256, "held_out": 0.3}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "text.jsonl"
    lines = [json.dumps({"text": TEXT[place:] + TEXT[:place]}) for place in range(0, 80, 4)]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def transplant(make_model, sentencepiece, byte_level, tmp_path, corpus):
    def transplant(name, kind="llama-tied", heal=None, **changes):
        base = str(make_model(kind, sentencepiece, initializer_range=0.3))
        document = {"base": base, "target": str(byte_level), "method": "mean", "output": str(tmp_path / name)}
        document |= {"verify": {"forward": False}, **changes}
        if heal is not None:
            document["heal"] = {**QUICK, "corpus": [str(corpus)], **heal}
        return run(build_recipe(document))

    return transplant


@pytest.mark.parametrize("kind", ["llama-tied", "llama", "gpt2", "phi"])
def test_x(transplant, kind):
    plain = transplant("plain", kind)
    healed = transplant("healed", kind, {})
    print(healed.report.heal)
