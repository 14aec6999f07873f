"""One linear map, fitted to the anchors, makes all rows."""

import dataclasses
from itertools import product

import numpy as np
import pytest
import torch

from tokensurgeon.methods.affine import Affine
from tokensurgeon.methods.params import AffineParams

FITS = ["ridge", "least_squares", "orthogonal", "sgd"]
SCALINGS = ["centre", "standard"]
every = pytest.mark.parametrize(("fit", "scaling"), list(product(FITS, SCALINGS)))


def run(told, **params):
    return Affine(AffineParams(**params))(told).rows


def transcribe(told, fit, scaling, ridge=0.01):
    """The definition in numpy."""
    donor = told.donor_rows[told.anchor_targets].double().numpy()
    base = told.base_rows[told.anchor_bases].double().numpy()
    wanted = told.donor_rows[told.wanted].double().numpy()
    scales = []
    for side in (donor, base):
        scale = np.ones(side.shape[1])
        if scaling == "standard":
            scale = side.std(axis=0)
            scale = scale * np.mean([np.linalg.norm(r) for r in (side - side.mean(axis=0)) / scale])
        scales.append(scale)
    features, targets = (donor - donor.mean(axis=0)) / scales[0], (base - base.mean(axis=0)) / scales[1]
    if fit == "least_squares":
        matrix = np.linalg.pinv(features) @ targets
    elif fit == "ridge":
        width = features.shape[1]
        penalty = ridge * len(features) * np.mean(features**2)
        matrix = np.linalg.solve(features.T @ features + penalty * np.eye(width), features.T @ targets)
    else:
        left, _, right = np.linalg.svd(features.T @ targets, full_matrices=False)
        matrix = left @ right
    made = ((wanted - donor.mean(axis=0)) / scales[0]) @ matrix * scales[1] + base.mean(axis=0)
    return torch.tensor(made).float()


@pytest.mark.parametrize(("fit", "scaling"), list(product(FITS[:3], SCALINGS)))
def test_rows_follow_the_definition(context, tools, fit, scaling):
    donor = tools.random(2, 50, 20) * torch.linspace(0.2, 3, 20) + 1
    told = context(donor_rows=donor, base_rows=tools.random(1, 40, 12) * torch.linspace(3, 0.1, 12) - 2)
    torch.testing.assert_close(
        run(told, fit=fit, scaling=scaling), transcribe(told, fit, scaling), rtol=1e-3, atol=1e-3
    )


def test_fits_and_scalings_all_differ(context, tools):
    told = context(donor_rows=tools.random(2, 50, 20) * torch.linspace(0.2, 3, 20))
    made = [run(told, fit=fit, scaling=scaling) for fit, scaling in product(FITS, SCALINGS)]
    # Least squares does not care about units.
    pairs = [(a, b) for a in range(8) for b in range(a) if (a, b) != (3, 2)]
    assert all(not torch.allclose(made[a], made[b], atol=1e-2) for a, b in pairs)
    torch.testing.assert_close(made[2], made[3], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("ridge", [0.0, 0.1, 10.0])
def test_ridge_is_in_units_of_the_mean_variance(context, ridge):
    torch.testing.assert_close(
        run(context(), ridge=ridge), transcribe(context(), "ridge", "centre", ridge), rtol=1e-3, atol=1e-3
    )


@every
def test_an_affine_map_is_found(context, tools, fit, scaling):
    # Orthogonal and of one spread a dimension, so that every fit can be right.
    turn = torch.linalg.qr(tools.random(3, 8, 8)).Q
    donor = tools.random(2, 1020, 8)
    base = torch.cat([tools.random(5, 10, 8), donor[:1000] @ turn + 3])
    told = context(
        donor_rows=donor,
        base_rows=base,
        base_ids=torch.arange(1010),
        wanted=torch.arange(1000, 1020),
        anchor_targets=torch.arange(1000),
        anchor_bases=torch.arange(1000) + 10,
    )
    made = run(told, fit=fit, scaling=scaling, ridge=1e-6, steps=2000)
    # Standardising turned spaces leaves a difference that no rotation can undo.
    near = 0.25 if (fit, scaling) == ("orthogonal", "standard") else 0.01
    torch.testing.assert_close(made, donor[1000:] @ turn + 3, rtol=0, atol=near)


def test_the_first_step_of_sgd_goes_against_the_gradients_sign(context):
    # All anchors are drawn alike, so the minibatch does not matter.
    told = context(anchor_targets=torch.tensor([3, 4]), anchor_bases=torch.tensor([13, 14]))
    donor, base = told.donor_rows[[3, 4]], told.base_rows[[13, 14]]
    donor_mean, base_mean = donor.mean(dim=0), base.mean(dim=0)
    gradient = -(donor - donor_mean).mT @ (base - base_mean)
    units = (base - base_mean).square().mean().sqrt() / (donor - donor_mean).square().mean().sqrt()
    for rate in (1e-3, 1e-2):
        made = run(told, fit="sgd", steps=1, learning_rate=rate)
        expected = (told.donor_rows[told.wanted] - donor_mean) @ (-rate * units * gradient.sign()) + base_mean
        torch.testing.assert_close(made, expected, rtol=1e-3, atol=1e-4)


def test_more_steps_come_nearer_to_least_squares(context):
    exact = run(context(), fit="least_squares")
    few, many = (run(context(), fit="sgd", steps=steps, learning_rate=0.01) for steps in (50, 3000))
    assert (many - exact).norm() < 0.5 * (few - exact).norm()


def test_a_random_part_of_the_anchors_is_fitted_to(context):
    def seeded(seed, **params):
        return run(context(generator=torch.Generator().manual_seed(seed)), **params)

    assert not torch.allclose(seeded(0, anchors=25), seeded(0))
    assert not torch.allclose(seeded(0, anchors=25), seeded(1, anchors=25))
    assert seeded(0, anchors=25).equal(seeded(0, anchors=25))
    assert seeded(0, anchors=99).equal(seeded(0))
    told = context()
    only = run(told, anchors=1)
    assert any(torch.allclose(only[0], told.base_rows[base]) for base in range(10, 40))


@every
def test_the_seed_matters_to_sgd_only_and_runs_agree(context, fit, scaling):
    first, again, other = (
        run(context(generator=torch.Generator().manual_seed(s)), fit=fit, scaling=scaling) for s in (0, 0, 1)
    )
    assert first.equal(again)
    assert first.equal(other) == (fit != "sgd")


@every
@pytest.mark.parametrize("case", ["rank two", "constant", "one anchor"])
def test_degenerate_anchors_give_finite_rows(context, tools, fit, scaling, case):
    one = {"anchor_targets": torch.tensor([3]), "anchor_bases": torch.tensor([13])}
    changes = {
        "rank two": {"donor_rows": tools.random(3, 50, 2) @ tools.random(4, 2, 20)},
        "constant": {"donor_rows": torch.ones(50, 20), "base_rows": torch.ones(40, 12)},
        "one anchor": one,
    }[case]
    assert torch.isfinite(run(context(**changes), fit=fit, scaling=scaling, steps=50)).all()


@every
@pytest.mark.parametrize("batch_size", [1, 7])
def test_rows_do_not_depend_on_the_batch_size(context, fit, scaling, batch_size):
    told = context()
    whole = run(told, fit=fit, scaling=scaling, steps=50)
    split = run(dataclasses.replace(told, batch_size=batch_size), fit=fit, scaling=scaling, steps=50)
    torch.testing.assert_close(split, whole)


def test_without_anchors_no_token_is_served(context):
    none = torch.zeros(0, dtype=torch.int64)
    told = context(anchor_targets=none, anchor_bases=none)
    made = Affine(AffineParams())(told)
    assert not made.served.any()
    torch.testing.assert_close(made.rows, told.base_mean.expand(20, -1))
