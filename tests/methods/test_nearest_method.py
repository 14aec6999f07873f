"""The nearest anchors of the donor's space are interpolated in the base's."""

import dataclasses
from itertools import product

import numpy as np
import pytest
import torch

from tokensurgeon.methods.nearest import Nearest, least_norm
from tokensurgeon.methods.params import NearestParams

METRICS = ["euclidean", "cosine"]
WEIGHTINGS = ["distance", "barycentric", "least_squares"]
every = pytest.mark.parametrize(("metric", "weighting"), list(product(METRICS, WEIGHTINGS)))


def run(told, **params):
    return Nearest(NearestParams(**params))(told)


def expected_row(told, target, k, metric, weighting):
    """One row, by the definition."""
    x = told.donor_rows[target].double().numpy()
    anchors = told.donor_rows[told.anchor_targets].double().numpy()
    distances = [np.sqrt(((x - a) ** 2).sum()) for a in anchors]
    cosines = [x @ a / np.sqrt(x @ x) / np.sqrt(a @ a) for a in anchors]
    if metric == "euclidean":
        near = sorted(range(len(anchors)), key=lambda j: distances[j])[:k]
    else:
        near = sorted(range(len(anchors)), key=lambda j: -cosines[j])[:k]
    points = anchors[near]
    if weighting == "distance":
        raw = [1 / max(distances[j], 1e-6) if metric == "euclidean" else max(cosines[j], 0) for j in near]
        weights = np.array(raw) / sum(raw)
    elif weighting == "least_squares":
        weights = np.linalg.pinv(points.T) @ x
    else:
        system = np.block([[points @ points.T, np.ones((k, 1))], [np.ones((1, k)), np.zeros((1, 1))]])
        weights = (np.linalg.pinv(system, rcond=1e-12) @ np.append(points @ x, 1))[:k]
    return torch.tensor(weights @ told.base_rows[told.anchor_bases[near]].double().numpy()).float()


@every
@pytest.mark.parametrize("k", [1, 5, 30])
def test_rows_follow_the_definition(context, metric, weighting, k):
    told = context()
    made = run(told, k=k, metric=metric, weighting=weighting)
    rows = torch.stack([expected_row(told, t, k, metric, weighting) for t in told.wanted.tolist()])
    torch.testing.assert_close(made.rows, rows, rtol=1e-4, atol=1e-4)
    assert made.served.all()


def test_euclidean_and_cosine_choose_different_anchors(context):
    told = context()
    # The nearest direction is far away.
    told.donor_rows[4] = 50 * told.donor_rows[30]
    assert run(told, k=1, metric="cosine").sources[0].tolist() == [14]
    assert run(told, k=1, metric="euclidean").sources[0].tolist() != [14]


def test_barycentric_weights_add_up_to_one_and_least_squares_fit_better(context):
    told = context()
    sides = {w: run(told, k=6, weighting=w) for w in WEIGHTINGS}

    def missed(made):
        fitted = (made.coefs[:, :, None] * told.donor_rows[made.sources - 10]).sum(dim=1)
        return (told.donor_rows[told.wanted] - fitted).norm(dim=1)

    for name in ("distance", "barycentric"):
        torch.testing.assert_close(sides[name].coefs.sum(dim=1), torch.ones(20))
    assert (missed(sides["least_squares"]) < missed(sides["barycentric"])).all()
    assert (missed(sides["barycentric"]) < missed(sides["distance"])).all()


@every
def test_a_donor_row_that_equals_an_anchors_gets_its_base_row(context, metric, weighting):
    told = context()
    told.donor_rows[33] = told.donor_rows[7]
    made = run(told, k=30, metric=metric, weighting=weighting)
    torch.testing.assert_close(made.rows[3], told.base_rows[17])


def test_anchors_that_float32_products_cannot_tell_apart_are_told_apart(context):
    told = context()
    told.donor_rows[3:9] = told.donor_rows[20] * (1 + 2e-6 * torch.arange(6)[:, None])
    told.donor_rows[30] = told.donor_rows[8]
    assert run(told, k=1).sources[0].tolist() == [18]


def test_near_anchors_far_from_the_origin_are_told_apart(context, tools):
    far = tools.random(2, 50, 20) + 2000
    far[30] = far[4] + 0.01
    assert run(context(donor_rows=far), k=1).sources[0].tolist() == [14]


def test_negative_cosines_have_no_weight_and_none_above_zero_means_equal_ones(context, tools):
    donor = tools.random(2, 50, 20).abs()
    donor[31:] *= -1
    donor[:3] *= -1
    made = run(context(donor_rows=donor), k=30, metric="cosine")
    assert (made.coefs[0] > 0).sum() == 27
    assert (made.coefs >= 0).all()
    donor[:3] *= -1
    made = run(context(donor_rows=donor), k=4, metric="cosine")
    torch.testing.assert_close(made.coefs[1:], torch.full((19, 4), 0.25))


@every
@pytest.mark.parametrize("donor", ["rank two", "one row", "zero"])
@pytest.mark.parametrize("anchors", [1, 30])
def test_degenerate_donors_give_finite_rows(context, tools, metric, weighting, donor, anchors):
    rows = {
        "rank two": tools.random(3, 50, 2) @ tools.random(4, 2, 20),
        "one row": torch.ones(50, 20),
        "zero": torch.zeros(50, 20),
    }[donor]
    told = context(
        donor_rows=rows, anchor_targets=torch.arange(anchors), anchor_bases=torch.arange(anchors) + 10
    )
    made = run(told, k=64, metric=metric, weighting=weighting)
    assert made.sources.shape == (20, anchors)
    assert torch.isfinite(made.rows).all()
    assert made.rows.abs().max() < 20


def test_a_zero_combination_says_nothing_and_is_not_served(context):
    told = context()
    told.donor_rows[35] = 0
    made = run(told, k=5, weighting="least_squares")
    assert made.served.tolist() == [True] * 5 + [False] + [True] * 14
    torch.testing.assert_close(made.rows[5], told.base_mean)
    assert made.sources[5].tolist() == [-1] * 5


def test_coefficients_of_least_norm_share_between_equal_atoms(tools):
    atoms = tools.random(1, 1, 4, 6)
    atoms[0, 3] = atoms[0, 0]
    torch.testing.assert_close(least_norm(atoms, 2 * atoms[:, 0])[0], torch.tensor([1.0, 0, 0, 1]))


@every
@pytest.mark.parametrize("batch_size", [1, 7])
def test_rows_do_not_depend_on_the_batch_size_and_runs_agree(context, metric, weighting, batch_size):
    told = context()
    whole = run(told, metric=metric, weighting=weighting)
    split = run(dataclasses.replace(told, batch_size=batch_size), metric=metric, weighting=weighting)
    torch.testing.assert_close(split.rows, whole.rows)
    assert run(told, metric=metric, weighting=weighting).rows.equal(whole.rows)


def test_its_cost_grows_with_k():
    small, large = (NearestParams(k=k).cost(1000, 46_000, 640, "cpu") for k in (8, 64))
    assert small.bytes_per_token < large.bytes_per_token
    assert small.operations < large.operations
