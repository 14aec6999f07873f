"""Coordinates on the donor's principal components are rotated onto the base's."""

import dataclasses

import numpy as np
import pytest
import torch

from tokensurgeon.methods.landmark_pca import LandmarkPca, principal_axes
from tokensurgeon.methods.params import LandmarkPcaParams


def run(told, **params):
    return LandmarkPca(LandmarkPcaParams(**params))(told).rows


def transcribe(told, count, scale):
    """The definition, by singular values."""
    donor, base = told.donor_rows[:30].double().numpy(), told.base_rows[10:].double().numpy()
    a, b = donor - donor.mean(axis=0), base - base.mean(axis=0)
    p, q = np.linalg.svd(a)[2][:count].T, np.linalg.svd(b)[2][:count].T
    left, _, right = np.linalg.svd((a @ p).T @ (b @ q))
    turned = a @ p @ left @ right
    factor = np.sum(turned * (b @ q)) / np.sum(turned**2) if scale else 1
    wanted = told.donor_rows[told.wanted].double().numpy() - donor.mean(axis=0)
    return torch.tensor(factor * wanted @ p @ left @ right @ q.T + base.mean(axis=0)).float()


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("components", [1, 3, 12, None])
def test_rows_follow_the_definition(context, components, scale):
    told = context()
    made = run(told, components=components, scale=scale)
    torch.testing.assert_close(made, transcribe(told, components or 12, scale), rtol=1e-3, atol=1e-3)


def test_a_turned_space_is_turned_and_not_turned_back(context, tools):
    donor, turn = tools.random(2, 50, 12) + 1, torch.linalg.qr(tools.random(3, 12, 12)).Q
    base = torch.cat([tools.random(4, 10, 12), donor[:30] @ turn + 5])
    made = run(context(donor_rows=donor, base_rows=base))
    torch.testing.assert_close(made, donor[30:] @ turn + 5, rtol=1e-3, atol=1e-3)
    made = run(context(donor_rows=20 * donor, base_rows=base))
    torch.testing.assert_close(made, donor[30:] @ turn + 5, rtol=1e-3, atol=1e-3)


def test_rows_lie_in_as_many_directions_as_there_are_components(context):
    for components in (1, 4):
        made = run(context(), components=components)
        values = torch.linalg.svdvals(made - context().base_rows[10:].mean(dim=0))
        assert values[components - 1] > 0.1
        assert values[components] < 1e-4


def test_more_components_than_there_are_change_nothing(context):
    torch.testing.assert_close(run(context(), components=500), run(context()))


def test_the_first_axis_is_that_of_most_variance(tools):
    rows = tools.random(1, 100, 3) * torch.tensor([0.1, 5, 1])
    axes = principal_axes(rows - rows.mean(dim=0))
    torch.testing.assert_close(axes.abs()[[1, 2, 0], [0, 1, 2]], torch.ones(3), rtol=0, atol=0.02)


def test_directions_without_variance_are_no_axes(tools):
    rows = tools.random(3, 50, 2) @ tools.random(4, 2, 20)
    assert principal_axes(rows - rows.mean(dim=0)).shape == (20, 2)


@pytest.mark.parametrize("anchors", [1, 2, 30])
@pytest.mark.parametrize("rank", [1, 2, 20])
def test_degenerate_anchors_give_finite_rows(context, tools, anchors, rank):
    told = context(
        donor_rows=tools.random(3, 50, rank) @ tools.random(4, rank, 20),
        anchor_targets=torch.arange(anchors),
        anchor_bases=torch.arange(anchors) + 10,
    )
    made = run(told)
    assert torch.isfinite(made).all()
    if anchors == 1:
        torch.testing.assert_close(made, told.base_rows[10].expand(20, -1))


@pytest.mark.parametrize("batch_size", [1, 7])
def test_rows_do_not_depend_on_the_batch_size_or_the_seed(context, batch_size):
    told = context()
    torch.testing.assert_close(run(dataclasses.replace(told, batch_size=batch_size)), run(told))
    assert run(context(generator=torch.Generator().manual_seed(1))).equal(run(told))


def test_all_tokens_are_served_unless_there_is_no_anchor(context):
    none = torch.zeros(0, dtype=torch.int64)
    assert LandmarkPca(LandmarkPcaParams())(context()).served.all()
    assert not LandmarkPca(LandmarkPcaParams())(context(anchor_targets=none, anchor_bases=none)).served.any()
