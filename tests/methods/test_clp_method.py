"""Anchors are weighted by their cosines in the donor's space."""

import dataclasses

import numpy as np
import pytest
import torch

from tokensurgeon.methods.clp import Clp
from tokensurgeon.methods.params import ClpParams

WEIGHTINGS = ["proportional", "sparsemax"]
both = pytest.mark.parametrize("weighting", WEIGHTINGS)


def run(told, weighting="proportional"):
    return Clp(ClpParams(weighting=weighting))(told)


def transcribe(told, weighting):
    anchors = told.donor_rows[told.anchor_targets].double().numpy()
    base = told.base_rows[told.anchor_bases].double().numpy()
    rows = []
    for x in told.donor_rows[told.wanted].double().numpy():
        cosines = np.array([x @ a / np.linalg.norm(x) / np.linalg.norm(a) for a in anchors])
        if weighting == "proportional":
            weights = np.maximum(cosines, 0)
        else:
            # The threshold at which what is above it adds up to one, by bisection.
            low, high = cosines.min() - 1, cosines.max()
            for _ in range(100):
                middle = (low + high) / 2
                above = np.maximum(cosines - middle, 0).sum() > 1
                low, high = (middle, high) if above else (low, middle)
            weights = np.maximum(cosines - low, 0)
        rows.append(weights / weights.sum() @ base)
    return torch.tensor(np.stack(rows)).float()


def large(context, tools, anchors):
    """A context in which more anchors than fit the shortlist are about equally similar."""
    return context(
        base_rows=tools.random(1, anchors, 12),
        base_ids=torch.arange(anchors),
        donor_rows=tools.random(2, anchors + 20, 30),
        wanted=torch.arange(anchors, anchors + 20),
        anchor_targets=torch.arange(anchors),
        anchor_bases=torch.arange(anchors),
    )


@both
def test_rows_follow_the_definition(context, weighting):
    torch.testing.assert_close(run(context(), weighting).rows, transcribe(context(), weighting))


@both
def test_rows_follow_the_definition_with_many_anchors(context, tools, weighting):
    told = large(context, tools, 1000)
    torch.testing.assert_close(run(told, weighting).rows, transcribe(told, weighting), rtol=1e-4, atol=1e-5)


def test_sparsemax_takes_few_anchors_and_tells_which(context, tools):
    told = large(context, tools, 1000)
    made = run(told, "sparsemax")
    counts = (made.sources >= 0).sum(dim=1)
    assert counts.max() == made.sources.shape[1] < 40
    torch.testing.assert_close(made.coefs.sum(dim=1), torch.ones(20))
    torch.testing.assert_close(tools.rebuild(made, told.base_rows), made.rows)
    assert made.coefs[made.sources < 0].eq(0).all()


def test_proportional_rows_are_no_combination_of_few(context):
    assert run(context()).sources is None


@both
def test_only_the_direction_of_donor_rows_matters(context, weighting):
    told = context()
    told.donor_rows.mul_(torch.linspace(0.1, 30, 50)[:, None])
    torch.testing.assert_close(run(told, weighting).rows, run(context(), weighting).rows)


def test_opposite_anchors_have_no_weight(context, tools):
    donor = tools.random(2, 50, 20).abs()
    donor[1:30] *= -1
    told = context(donor_rows=donor)
    torch.testing.assert_close(run(told).rows, told.base_rows[10].expand(20, -1))


def test_a_token_opposite_to_all_anchors_is_served_by_sparsemax_only(context, tools):
    donor = tools.random(2, 50, 20).abs()
    donor[33] *= -1
    told = context(donor_rows=donor)
    made = run(told)
    assert made.served.tolist() == [True] * 3 + [False] + [True] * 16
    torch.testing.assert_close(made.rows[3], told.base_mean)
    assert run(told, "sparsemax").served.all()


@both
def test_a_zero_donor_row_is_not_served(context, weighting):
    told = context()
    told.donor_rows[35] = 0
    made = run(told, weighting)
    assert made.served.tolist() == [True] * 5 + [False] + [True] * 14
    torch.testing.assert_close(made.rows[5], told.base_mean)
    assert made.coefs is None or not made.coefs[5].any()


@both
@pytest.mark.parametrize("anchors", [0, 1, 30, 600])
def test_degenerate_donors_give_finite_rows(context, tools, weighting, anchors):
    told = large(context, tools, 600)
    chosen = torch.arange(anchors)
    line = tools.random(3, 620, 1) @ tools.random(4, 1, 20)
    for donor in (line, torch.ones(620, 20), torch.zeros(620, 20)):
        changed = dataclasses.replace(told, donor_rows=donor, anchor_targets=chosen, anchor_bases=chosen)
        made = run(changed, weighting)
        assert torch.isfinite(made.rows).all()
        assert made.rows.abs().max() < 10


@both
@pytest.mark.parametrize("batch_size", [1, 7])
def test_rows_do_not_depend_on_the_batch_size_and_runs_agree(context, tools, weighting, batch_size):
    told = large(context, tools, 300)
    whole, split = run(told, weighting), run(dataclasses.replace(told, batch_size=batch_size), weighting)
    torch.testing.assert_close(split.rows, whole.rows)
    assert run(told, weighting).rows.equal(whole.rows)
    if weighting == "sparsemax":
        assert split.sources.equal(whole.sources)


def test_its_cost_knows_the_weighting():
    dense, sparse = (ClpParams(weighting=w).cost(1000, 46_000, 640, "cpu") for w in WEIGHTINGS)
    assert dense.operations == 2 * sparse.operations
    assert dense.bytes_per_token < sparse.bytes_per_token
