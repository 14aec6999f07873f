"""Every method, from its shipped recipe to new rows of a tiny base."""

import pytest
import torch

from tokensurgeon.batches import Batches
from tokensurgeon.methods.registry import METHODS
from tokensurgeon.parallel import Processes
from tokensurgeon.pipeline import find_resources
from tokensurgeon.plan import make_plan
from tokensurgeon.recipe.load import load_recipe
from tokensurgeon.recipe.shipped import find_shipped
from tokensurgeon.surgery import operate

# Serves donors of the base's own width only.
OF_ONE_WIDTH = {"carry"}
# A real corpus has more lines than a test.
SMALL = {
    "cw2v": ["steps=3"],
    "focus": ["min_count=1"],
    "hyperofa": ["steps=3"],
    "tokalign": ["min_count=1", "epochs=2"],
    "transtokenizer": ["min_count=1"],
    "zett": ["steps=2", "warmup=2", "hidden=16", "layers=1", "sampled_tokens=64"],
}
LINES = [
    "The quick brown fox jumps over the lazy dog; the dog sleeps under the old oak tree.",
    "It's the children's kettle, isn't it? She would have wanted the other one, they're sure.",
    "Le château de la rivière était très élevé, où l'été passait déjà.",
    "Привет, мир! Это проверка токенизатора. 日本語も少し。",
]


@pytest.fixture
def paths(make_model, sentencepiece, byte_level, wordpiece, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(LINES * 8), encoding="utf-8")
    donor = make_model("llama", byte_level, seed=1, hidden_size=24)
    return [
        f"base={make_model('llama', sentencepiece)}",
        f"target={donor}",
        f"donor={donor}",
        f"output={tmp_path / 'out'}",
        "report.texts=[]",
        "anchors.minimum=8",
        f"resources.corpus=[{corpus}]",
        f"resources.encoder={make_model('bert', wordpiece)}",
        "resources.hypernetwork=null",
    ]


@pytest.mark.parametrize("name", METHODS)
def test_a_shipped_recipe_makes_rows_for_both_ends(name, paths, make_model, byte_level):
    overrides = [*paths, *(f"method.{option}" for option in SMALL.get(name, ()))]
    if name in OF_ONE_WIDTH:
        overrides.append(f"donor={make_model('llama', byte_level, seed=1)}")
    plan = make_plan(load_recipe(find_shipped(name), overrides))
    tensors = operate(plan, Batches(Processes()), find_resources(plan))
    assert [new.tensor.name for new in tensors] == ["model.embed_tokens.weight", "lm_head.weight"]
    for new in tensors:
        assert name in new.made.methods
        assert torch.isfinite(new.data).all()
        assert new.data.dtype is torch.bfloat16
        made = new.data[new.made.ids]
        assert name == "zero" or bool(made.any(dim=1).all())
