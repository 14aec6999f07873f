"""Every method is listed once, builds with its defaults, and costs no torch to list."""

import subprocess
import sys
from typing import get_args

import pytest
import torch

from tokensurgeon.batches import Batches
from tokensurgeon.errors import RecipeError
from tokensurgeon.methods.params import AnyMethod
from tokensurgeon.methods.registry import EXTRAS, METHODS, NEEDS, find_method
from tokensurgeon.parallel import Processes

INFOS = list(METHODS.values())
each = pytest.mark.parametrize("info", INFOS, ids=list(METHODS))
# Smaller than the defaults where those are made for real corpora.
SMALL = {
    "cw2v": {"steps": 3},
    "focus": {"min_count": 2, "dim": 8},
    "hyperofa": {"steps": 3, "hidden": 8, "dim": 8},
    "ofa": {"dim": 8, "epochs": 1},
    "ramen": {"dim": 8, "epochs": 1},
    "tokalign": {"dim": 8, "epochs": 2},
    "unibridge": {"dim": 8},
    "wechsel": {"dim": 8, "epochs": 1},
    "zett": {"steps": 2, "warmup": 2, "hidden": 16, "layers": 1, "sampled_tokens": 64},
}


def build(info, **changes):
    return info.build(info.params(**SMALL.get(info.name, {}), **changes))


def embed(texts):
    """Unit vectors that depend on the text alone."""
    seeds = [sum(text.encode()) for text in texts]
    vectors = [torch.randn(6, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.nn.functional.normalize(torch.stack(vectors), dim=1)


@pytest.fixture(scope="session")
def body():
    """A causal language model of 40 tokens and width 12."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=40,
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=1,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def everything(context, tools, body):
    """A context that brings whatever a method may need."""

    def everything(**changes):
        resources = tools.resources(
            embed_texts=embed,
            load_body=lambda: body,
            load_hypernetwork=lambda: None,
            save_hypernetwork=lambda weights: None,
        )
        # The first rows of the body are those of the base.
        told = {"resources": resources, "base_rows": body.get_input_embeddings().weight.detach().clone()}
        return context(**told | changes)

    return everything


def test_recipes_and_registry_know_the_same_methods():
    assert [info.params for info in INFOS] == list(get_args(get_args(AnyMethod)[0]))


@each
def test_parameters_carry_the_registrys_name(info):
    assert info.params().name == info.name
    assert METHODS[info.name] is info is find_method(info.name)


@each
def test_every_method_says_what_it_is_and_where_it_is_from(info):
    assert info.title
    assert info.paper
    assert {option for need in info.needs for option in need.split(" or ")} <= NEEDS.keys()
    assert info.extra in {"", *EXTRAS}


@each
def test_every_parameter_has_a_default_and_says_what_it_is_unless_its_name_does(info):
    plain = {"epochs", "batch", "window", "negatives", "layers", "hidden", "neighbours", "temperature"}
    plain |= {"name", "steps", "learning_rate"}
    for name, field in info.params.model_fields.items():
        assert not field.is_required()
        assert field.description or name in plain


@each
def test_every_method_makes_finite_rows(info, everything):
    told = everything(donor_rows=None) if "donor" not in info.needs else everything()
    made = build(info)(told)
    assert made.rows.shape == (20, 12)
    assert made.rows.dtype is torch.float32
    assert torch.isfinite(made.rows).all()
    if made.served is not None:
        assert made.served.shape == (20,)
        assert made.rows[~made.served].equal(told.base_mean.expand(int((~made.served).sum()), -1))


@each
def test_every_method_works_on_a_base_with_fewer_rows_than_dimensions(info, everything, tools):
    letters = {index: letter.encode() for index, letter in enumerate("abcde")}
    told = everything(
        base_rows=tools.random(1, 5, 12),
        base_ids=torch.arange(5),
        pieces=[(index % 5,) for index in range(20)],
        anchor_targets=torch.arange(5),
        anchor_bases=torch.arange(5),
        lexicon=tools.lexicon(
            base=letters,
            base_parts={},
            base_of={index: index for index in range(5)},
            segment_base=lambda text: tools.segment(text, letters),
        ),
    )
    made = build(info)(told)
    assert made.rows.shape == (20, 12)
    assert torch.isfinite(made.rows).all()


@each
def test_every_method_takes_half_precision_tables(info, everything):
    told = everything()
    half = everything(base_rows=told.base_rows.bfloat16(), donor_rows=told.donor_rows.bfloat16())
    made = build(info)(half)
    assert made.rows.dtype is torch.float32
    assert torch.isfinite(made.rows).all()


@each
@pytest.mark.parametrize("batch_size", [1, 7])
def test_every_method_makes_the_same_rows_for_any_batch_split(info, batch_size, everything):
    whole, split = (build(info)(everything(batch_size=size)) for size in (512, batch_size))
    torch.testing.assert_close(split.rows, whole.rows, rtol=1e-4, atol=1e-5)
    if whole.served is not None:
        assert split.served.equal(whole.served)


@each
def test_every_method_lets_its_batches_be_kept_and_shared(info, everything, tmp_path):
    runner = Batches(Processes(), tmp_path).runner(info.params(), everything(batch_size=6))
    kept = [build(info)(everything(batch_size=6, runner=runner)) for _ in range(2)]
    plain = build(info)(everything(batch_size=6))
    assert kept[0].rows.equal(kept[1].rows)
    assert kept[0].rows.equal(plain.rows)


@each
def test_every_method_makes_the_same_rows_again(info, everything):
    assert build(info)(everything()).rows.equal(build(info)(everything()).rows)


@each
@pytest.mark.parametrize("side", ["embedding", "lm_head", "tied"])
def test_every_method_serves_every_end(info, side, everything):
    assert torch.isfinite(build(info)(everything(side=side)).rows).all()


@each
def test_a_method_that_makes_distinct_rows_does(info, everything):
    made = build(info)(everything())
    if info.distinct:
        assert len(torch.unique(made.rows, dim=0)) == 20


@each
def test_a_method_that_needs_a_donor_refuses_to_run_without(info, everything):
    told = everything(donor_rows=None)
    if "donor" in info.needs:
        with pytest.raises(RuntimeError, match="no donor rows"):
            build(info)(told)
    else:
        assert len(build(info)(told).rows) == 20


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(RecipeError, match=r"method 'gausian'\n.*\n.*did you mean 'gaussian'\?"):
        find_method("gausian")


def test_an_unknown_name_far_from_all_gets_the_list():
    with pytest.raises(RecipeError, match=r"one of omp, nearest, .*, zett") as caught:
        find_method("xyzzy")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    "module", ["tokensurgeon.methods.registry", "tokensurgeon.methods.params", "tokensurgeon.recipe.load"]
)
def test_listing_methods_and_reading_recipes_imports_no_torch(module):
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
