"""A basis of the donor's space is rebuilt from the base's rows of the same anchors."""

import dataclasses

import numpy as np
import pytest
import torch

from tokensurgeon.methods.params import StbParams
from tokensurgeon.methods.stb import Stb


def run(told, **params):
    return Stb(StbParams(**params))(told).rows


def pursue(target, atoms, k):
    """Orthogonal matching pursuit as in a textbook."""
    taken, residual, coefs = [], target, np.zeros(0)
    for _ in range(k):
        scores = [abs(atom @ residual) / np.linalg.norm(atom) for atom in atoms]
        taken.append(max((j for j in range(len(atoms)) if j not in taken), key=lambda j: scores[j]))
        coefs = np.linalg.lstsq(atoms[taken].T, target, rcond=None)[0]
        residual = target - atoms[taken].T @ coefs
    return taken, coefs


def transcribe(told, k, components):
    donor, base = told.donor_rows[:30].double().numpy(), told.base_rows[10:].double().numpy()
    a, b = donor - donor.mean(axis=0), base - base.mean(axis=0)
    pairs = [pursue(vector, a, k) for vector in np.linalg.svd(a)[2][:components]]
    ours = np.stack([coefs @ a[taken] for taken, coefs in pairs])
    theirs = np.stack([coefs @ b[taken] for taken, coefs in pairs])
    rows = []
    for x in told.donor_rows[told.wanted].double().numpy():
        coordinates = np.linalg.lstsq(ours.T, x - donor.mean(axis=0), rcond=None)[0]
        rows.append(coordinates @ theirs + base.mean(axis=0))
    return torch.tensor(np.stack(rows)).float()


@pytest.mark.parametrize("k", [1, 3, 15])
@pytest.mark.parametrize("components", [2, 12])
def test_rows_follow_the_definition(context, k, components):
    made = run(context(), k=k, components=components)
    torch.testing.assert_close(made, transcribe(context(), k, components), rtol=1e-3, atol=2e-3)


def test_the_smaller_width_is_the_default_number_of_components(context):
    torch.testing.assert_close(run(context()), run(context(), components=12))
    assert not torch.allclose(run(context()), run(context(), components=11), atol=1e-2)


def test_an_affine_map_between_the_spaces_carries_over(context, tools):
    # With as many atoms as dimensions each basis vector is exact.
    donor, into_base = tools.random(2, 50, 8) + 1, tools.random(3, 8, 12)
    base = torch.cat([tools.random(5, 10, 12), donor[:30] @ into_base - 2])
    made = run(context(donor_rows=donor, base_rows=base))
    torch.testing.assert_close(made, donor[30:] @ into_base - 2, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("anchors", [1, 2, 30])
@pytest.mark.parametrize("rank", [0, 1, 2, 20])
def test_degenerate_anchors_give_finite_rows(context, tools, anchors, rank):
    told = context(
        donor_rows=tools.random(3, 50, rank) @ tools.random(4, rank, 20),
        anchor_targets=torch.arange(anchors),
        anchor_bases=torch.arange(anchors) + 10,
    )
    made = run(told)
    assert torch.isfinite(made).all()
    if anchors == 1 or rank == 0:
        torch.testing.assert_close(made, told.base_rows[10 : 10 + anchors].mean(dim=0).expand(20, -1))


def test_a_direction_that_the_anchors_lack_does_not_matter(context, tools):
    # Least norm: what is orthogonal to all anchors adds nothing.
    donor = tools.random(3, 50, 5) @ tools.random(4, 5, 20)
    aside = donor.clone()
    orthogonal = torch.linalg.svd(donor[:30], full_matrices=True).Vh[-1]
    aside[30:] += 10 * orthogonal
    plain, moved = run(context(donor_rows=donor)), run(context(donor_rows=aside))
    torch.testing.assert_close(moved, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_rows_do_not_depend_on_the_batch_size_or_the_seed(context, batch_size):
    told = context()
    torch.testing.assert_close(run(dataclasses.replace(told, batch_size=batch_size)), run(told))
    assert run(context(generator=torch.Generator().manual_seed(1))).equal(run(told))


def test_all_tokens_are_served_unless_there_is_no_anchor(context):
    none = torch.zeros(0, dtype=torch.int64)
    assert Stb(StbParams())(context()).served.all()
    assert not Stb(StbParams())(context(anchor_targets=none, anchor_bases=none)).served.any()


def test_its_cost_has_a_pursuit_for_every_basis_vector():
    few, many = (StbParams(components=count).cost(1000, 46_000, 640, "cpu") for count in (64, 640))
    assert few.operations < many.operations
