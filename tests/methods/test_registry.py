"""Every method is listed once, builds with its defaults, and costs no torch to list."""

import subprocess
import sys
from typing import get_args

import pytest
import torch

from tokensurgeon.errors import RecipeError
from tokensurgeon.methods.params import AnyMethod
from tokensurgeon.methods.registry import METHODS, find_method

INFOS = list(METHODS.values())
each = pytest.mark.parametrize("info", INFOS, ids=list(METHODS))


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
    assert set(info.needs) <= {"donor", "corpus", "vectors"}


@each
def test_every_method_makes_finite_rows_with_its_defaults(info, context):
    told = context(donor_rows=None) if "donor" not in info.needs else context()
    made = info.build(info.params())(told)
    assert made.rows.shape == (20, 12)
    assert made.rows.dtype is torch.float32
    assert torch.isfinite(made.rows).all()


@each
def test_every_method_works_on_a_base_with_fewer_rows_than_dimensions(info, context, tools):
    told = context(
        base_rows=tools.random(1, 5, 12),
        base_ids=torch.arange(5),
        pieces=[(index % 5,) for index in range(20)],
        anchor_targets=torch.arange(5),
        anchor_bases=torch.arange(5),
    )
    made = info.build(info.params())(told)
    assert made.rows.shape == (20, 12)
    assert torch.isfinite(made.rows).all()


@each
def test_a_method_that_makes_distinct_rows_does(info, context):
    rows = info.build(info.params())(context()).rows
    if info.distinct:
        assert len(torch.unique(rows, dim=0)) == 20
    else:
        told = context(pieces=[(3, 4)] * 20)
        assert len(torch.unique(info.build(info.params())(told).rows, dim=0)) == 1


@each
def test_a_method_that_needs_a_donor_refuses_to_run_without(info, context):
    method = info.build(info.params())
    told = context(donor_rows=None)
    if "donor" in info.needs:
        with pytest.raises(RuntimeError, match="no donor rows"):
            method(told)
    else:
        assert len(method(told).rows) == 20


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(RecipeError, match=r"method 'gausian'\n.*\n.*did you mean 'gaussian'\?"):
        find_method("gausian")


def test_an_unknown_name_far_from_all_gets_the_list():
    with pytest.raises(RecipeError, match="one of omp, pieces, mean, gaussian, zero") as caught:
        find_method("xyzzy")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    "module", ["tokensurgeon.methods.registry", "tokensurgeon.methods.params", "tokensurgeon.recipe.load"]
)
def test_listing_methods_and_reading_recipes_imports_no_torch(module):
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
