"""Donor rows are rotated into the base's space."""

import dataclasses

import numpy as np
import pytest
import torch

from tokensurgeon.methods.params import ProcrustesParams
from tokensurgeon.methods.procrustes import Procrustes


def run(told, **params):
    return Procrustes(ProcrustesParams(**params))(told).rows


def turned(context, tools, factor=1.0):
    """A base that is the donor's space, turned, stretched and moved; and what its missing rows should be."""
    donor, turn = tools.random(2, 50, 12) + 1, torch.linalg.qr(tools.random(3, 12, 12)).Q
    base = torch.cat([tools.random(4, 10, 12), factor * donor[:30] @ turn + 5])
    return context(donor_rows=donor, base_rows=base), factor * donor[30:] @ turn + 5


@pytest.mark.parametrize("scale", [True, False])
def test_rows_follow_the_definition(context, scale):
    told = context()
    donor, base = told.donor_rows[:30].double().numpy(), told.base_rows[10:].double().numpy()
    a, b = donor - donor.mean(axis=0), base - base.mean(axis=0)
    left, _, right = np.linalg.svd(a.T @ b, full_matrices=False)
    turn = left @ right
    factor = np.sum(a @ turn * b) / np.sum((a @ turn) ** 2) if scale else 1.0
    expected = factor * (told.donor_rows[30:].numpy() - donor.mean(axis=0)) @ turn + base.mean(axis=0)
    torch.testing.assert_close(run(told, scale=scale), torch.tensor(expected).float(), rtol=1e-4, atol=1e-4)


def test_a_turned_space_is_turned_back(context, tools):
    told, expected = turned(context, tools)
    torch.testing.assert_close(run(told, scale=False), expected, rtol=1e-4, atol=1e-4)


def test_a_stretched_space_needs_the_factor(context, tools):
    told, expected = turned(context, tools, factor=0.05)
    torch.testing.assert_close(run(told, scale=True), expected, rtol=1e-4, atol=1e-4)
    assert (run(told, scale=False) - expected).norm() > 10 * (expected - expected.mean(dim=0)).norm()


def test_without_the_factor_distances_of_equally_wide_spaces_are_kept(context, tools):
    told = context(donor_rows=tools.random(2, 50, 12))
    made = run(told, scale=False)
    torch.testing.assert_close(torch.cdist(made, made), torch.cdist(*[told.donor_rows[30:]] * 2))


@pytest.mark.parametrize("width", [1, 7, 30])
@pytest.mark.parametrize("anchors", [1, 3, 30])
def test_other_widths_and_few_anchors_give_finite_rows(context, tools, width, anchors):
    chosen = {"anchor_targets": torch.arange(anchors), "anchor_bases": torch.arange(anchors) + 10}
    made = run(context(donor_rows=tools.random(2, 50, width), **chosen))
    assert made.shape == (20, 12)
    assert torch.isfinite(made).all()


def test_a_donor_of_one_row_gives_the_mean_anchor(context):
    told = context(donor_rows=torch.ones(50, 20))
    torch.testing.assert_close(run(told), told.base_rows[10:].mean(dim=0).expand(20, -1))


@pytest.mark.parametrize("batch_size", [1, 7])
def test_rows_do_not_depend_on_the_batch_size_or_the_seed(context, batch_size):
    told = context()
    torch.testing.assert_close(run(dataclasses.replace(told, batch_size=batch_size)), run(told))
    assert run(context(generator=torch.Generator().manual_seed(1))).equal(run(told))


def test_all_tokens_are_served_unless_there_is_no_anchor(context):
    none = torch.zeros(0, dtype=torch.int64)
    assert Procrustes(ProcrustesParams())(context()).served.all()
    assert not Procrustes(ProcrustesParams())(context(anchor_targets=none, anchor_bases=none)).served.any()
