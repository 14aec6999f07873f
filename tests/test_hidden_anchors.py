"""Shared tokens are hidden whole: nothing that makes their rows has met them."""

import json
from dataclasses import replace

import pytest
import torch

from tokensurgeon.batches import Batches
from tokensurgeon.checkpoint.reader import map_tensor
from tokensurgeon.errors import InputError
from tokensurgeon.hidden_anchors import hide_anchors, make_hidden, put_back, row_errors
from tokensurgeon.lexicon import make_lexicon
from tokensurgeon.methods.params import MeanParams, NearestParams, OmpParams, PiecesParams
from tokensurgeon.parallel import Processes
from tokensurgeon.pipeline import find_resources
from tokensurgeon.plan import make_plan
from tokensurgeon.recipe.load import build_recipe


@pytest.fixture(scope="module", params=["llama", "llama-tied"])
def plan(request, make_model, sentencepiece, byte_level):
    document = {
        "base": str(make_model(request.param, sentencepiece)),
        "donor": str(make_model("llama", byte_level, seed=1)),
        "output": "nowhere",
        "anchors": {"minimum": 8},
        "method": "omp",
    }
    return make_plan(build_recipe(document))


@pytest.fixture(scope="module")
def hidden(plan):
    return hide_anchors(plan, share=0.3, seed=0)


def make(hidden, method):
    return make_hidden(hidden, method, find_resources(hidden.plan), Batches(Processes()))


def test_hidden_tokens_are_neither_anchors_nor_in_the_base(plan, hidden):
    lexicon = make_lexicon(hidden.plan.match, plan.inputs.layout.rows)
    assert hidden.plan.wanted == hidden.ids
    assert [plan.anchors[index] for index in hidden.ids] == hidden.twins
    assert not set(hidden.ids) & (hidden.plan.anchors.keys() | lexicon.base_of.keys())
    assert not set(hidden.twins) & (set(lexicon.base) | hidden.plan.match.base.tokens.keys())
    assert not any(set(hidden.twins) & {*parts} for parts in lexicon.base_parts.values())
    assert not any(set(hidden.twins) & {*pieces.ids} for pieces in hidden.plan.pieces)


def test_what_is_chosen_on_the_transplant_is_not_chosen_on_hidden_tokens(plan, hidden):
    rules = plan.recipe.new_rows.model_copy(update={"head_scale": "auto", "head_fit": 0.5})
    recipe = plan.recipe.model_copy(update={"new_rows": rules})
    plain = make(hidden, MeanParams())
    asked = make(replace(hidden, plan=replace(hidden.plan, recipe=recipe)), MeanParams())
    for new, other in zip(plain, asked, strict=True):
        assert new.data[hidden.ids].equal(other.data[hidden.ids])
        assert not other.note


def test_other_anchors_stay_what_they_were(plan, hidden):
    assert {**hidden.plan.anchors, **dict(zip(hidden.ids, hidden.twins, strict=True))} == plan.anchors


def test_low_and_high_ids_are_hidden_alike_and_the_seed_says_which(plan, hidden):
    parts = make_lexicon(plan.match, plan.inputs.layout.rows).base_parts
    able = [index for index, twin in plan.anchors.items() if twin in parts]
    assert len(hidden.ids) == pytest.approx(0.3 * len(able), abs=2)
    low = sum(index in set(able[: len(able) // 2]) for index in hidden.ids)
    assert low == pytest.approx(len(hidden.ids) / 2, abs=4)
    assert hide_anchors(plan, seed=0).ids == hidden.ids
    assert hide_anchors(plan, seed=1).ids != hidden.ids
    assert len(hide_anchors(plan, share=0.1).ids) < len(hidden.ids) / 2


def test_weights_bring_a_quarter_of_the_hidden_tokens_between_the_missing_ones_quartiles(hidden):
    assert len(hidden.edges) == 3
    present = hidden.bins.unique().tolist()
    sums = [float(hidden.weights[hidden.bins == number].sum()) for number in present]
    capped = [bool((hidden.weights[hidden.bins == number] == 10).all()) for number in present]
    for total, at_most in zip(sums, capped, strict=True):
        assert at_most or total == pytest.approx(len(hidden.ids) / 4)


def test_the_mean_row_has_error_one_and_the_true_row_none(plan, hidden):
    new = make(hidden, MeanParams())[0]
    errors = row_errors(hidden, new)
    # The mean row is that of the tokens that are left.
    assert errors.weighted == pytest.approx(1, abs=0.01)
    assert all(part is None or part == pytest.approx(1, abs=0.01) for part in errors.by_similarity)
    true = new.data.clone()
    true[torch.tensor(hidden.ids)] = map_tensor(new.tensor.ref)[torch.tensor(hidden.twins)]
    assert row_errors(hidden, replace(new, data=true)).weighted == 0


@pytest.mark.parametrize("method", [OmpParams(k=4), NearestParams(k=4), PiecesParams()])
def test_rows_of_hidden_tokens_alone_are_made(hidden, method):
    new = make(hidden, method)[0]
    assert new.made.ids == hidden.ids
    assert method.name in new.made.methods


def test_rows_are_put_back_where_they_are_asked_for_and_taken_away_again(plan, hidden):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(plan.inputs.base)
    reads, writes = model.get_input_embeddings(), model.get_output_embeddings()
    before = reads.weight, writes.weight
    tensors = make(hidden, MeanParams())
    for ends, changed in (("embedding", (True, False)), ("lm_head", (False, True)), ("both", (True, True))):
        with put_back(model, hidden, tensors, ends):
            for module, old, is_new in zip((reads, writes), before, changed, strict=True):
                rows = (module.weight != old).any(dim=1).nonzero()[:, 0].tolist()
                assert rows == (sorted(hidden.twins) if is_new else [])
        assert reads.weight is before[0]
        assert writes.weight is before[1]


def test_without_a_donor_all_hidden_tokens_count_alike(make_model, sentencepiece, byte_level):
    document = {"base": str(make_model("llama", sentencepiece)), "target": str(byte_level), "output": "out"}
    document |= {"method": "unks_everywhere", "anchors": {"minimum": 8}}
    hidden = hide_anchors(make_plan(build_recipe(document)))
    assert hidden.similarity is None
    assert hidden.weights.unique().tolist() == [1]


def test_too_few_anchors_to_hide_are_refused(plan):
    with pytest.raises(InputError, match="enough to hide 30% of them"):
        hide_anchors(replace(plan, anchors={}))


def test_the_command_compares_methods(make_model, sentencepiece, byte_level, tmp_path, monkeypatch, capsys):
    import sys

    from tokensurgeon.cli.app import main

    recipe = tmp_path / "recipe.yaml"
    base, donor = make_model("llama", sentencepiece), make_model("llama", byte_level, seed=1)
    recipe.write_text(
        f"base: {base}\ndonor: {donor}\noutput: out\nmethod: {{k: 4}}\nanchors: {{minimum: 8}}\n"
    )
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 3)
    command = ["tokensurgeon", "calibrate", str(recipe), "--method", "affknn", "--text", str(text)]
    for extra in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", [*command, *extra])
        with pytest.raises(SystemExit, match=r"^0$"):
            main()
        out = capsys.readouterr().out
        if extra:
            document = json.loads(out)
            names = [row["method"] for row in document["methods"]]
            assert names == ["omp", "pieces", "affknn", "omp"]
            assert document["methods"][3]["parameters"]["k"] == 64
            assert set(document["methods"][0]["errors"]) == {"model.embed_tokens.weight", "lm_head.weight"}
            bits = document["methods"][2]["bits_per_byte"]
            assert set(bits) == {"embedding", "lm_head", "both"}
            assert bits["both"]["text.txt"] != document["base"]["text.txt"]
        else:
            assert "affknn" in out
            assert "(true rows)" in out
