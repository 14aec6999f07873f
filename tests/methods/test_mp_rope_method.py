"""Anchors are turned to positions in the donor's space, and their base rows to the same positions."""

import dataclasses

import numpy as np
import pytest
import torch

from tokensurgeon.methods.mp_rope import MpRope, frequencies, rotate
from tokensurgeon.methods.params import MpRopeParams


def run(told, **params):
    return MpRope(MpRopeParams(**params))(told)


def turn(row, position, theta):
    out = row.copy()
    for i in range(len(row) // 2):
        angle = position * theta ** (-2 * i / len(row))
        x, y = row[2 * i], row[2 * i + 1]
        out[2 * i] = x * np.cos(angle) - y * np.sin(angle)
        out[2 * i + 1] = x * np.sin(angle) + y * np.cos(angle)
    return out


def locate(atom, residual, theta):
    above = below = 0.0
    for i in range(len(atom) // 2):
        pair = complex(atom[2 * i], -atom[2 * i + 1]) * complex(residual[2 * i], residual[2 * i + 1])
        frequency = theta ** (-2 * i / len(atom))
        above += abs(pair) * frequency * np.angle(pair)
        below += abs(pair) * frequency**2
    return above / below if below else 0.0


def transcribe(told, k):
    """The definition, all anchors turned at every step."""
    rows = []
    anchors = told.donor_rows[told.anchor_targets].double().numpy()
    base = told.base_rows[told.anchor_bases].double().numpy()
    for x in told.donor_rows[told.wanted].double().numpy():
        taken, positions, residual, coefs = [], [], x, np.zeros(0)
        for _ in range(k):
            spots = [locate(anchor, residual, told.rope_thetas[1]) for anchor in anchors]
            scores = [
                abs(turn(anchor, p, told.rope_thetas[1]) @ residual) / np.linalg.norm(anchor)
                for anchor, p in zip(anchors, spots, strict=True)
            ]
            best = max((j for j in range(len(anchors)) if j not in taken), key=lambda j: scores[j])
            taken.append(best)
            positions.append(spots[best])
            pairs = list(zip(taken, positions, strict=True))
            turned = np.stack([turn(anchors[j], p, told.rope_thetas[1]) for j, p in pairs])
            coefs = np.linalg.lstsq(turned.T, x, rcond=None)[0]
            residual = x - coefs @ turned
        rows.append(coefs @ np.stack([turn(base[j], p, told.rope_thetas[0]) for j, p in pairs]))
    return torch.tensor(np.stack(rows)).float()


@pytest.mark.parametrize(("donor_width", "base_width"), [(20, 12), (21, 13), (7, 12)])
@pytest.mark.parametrize("k", [1, 5])
def test_rows_follow_the_definition(context, tools, donor_width, base_width, k):
    told = context(
        donor_rows=tools.random(2, 50, donor_width),
        base_rows=tools.random(1, 40, base_width),
        rope_thetas=(100.0, 5000.0),
    )
    torch.testing.assert_close(run(told, k=k).rows, transcribe(told, k), rtol=1e-3, atol=2e-3)


def test_a_turned_anchor_gets_its_base_row_turned_by_the_bases_frequencies(context):
    told = context(rope_thetas=(100.0, 5000.0))
    told.donor_rows[30] = torch.tensor(2 * turn(told.donor_rows[7].numpy(), 0.8, 5000.0))
    expected = torch.tensor(2 * turn(told.base_rows[17].numpy(), 0.8, 100.0))
    torch.testing.assert_close(run(told, k=1).rows[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", [0, 1])
def test_each_sides_frequency_matters(context, side):
    thetas = [10_000.0, 10_000.0]
    plain = run(context(rope_thetas=tuple(thetas)), k=3).rows
    thetas[side] = 50.0
    assert not torch.allclose(run(context(rope_thetas=tuple(thetas)), k=3).rows, plain, atol=1e-2)


def test_turning_keeps_lengths_and_an_odd_last_dimension(tools):
    rows = tools.random(1, 6, 7)
    turned = rotate(rows, torch.linspace(-9, 9, 6).double(), frequencies(7, 10_000.0))
    torch.testing.assert_close(turned.norm(dim=1), rows.norm(dim=1))
    assert turned[:, 6].equal(rows[:, 6])
    assert not torch.isclose(turned[:, 0], rows[:, 0]).any()


def test_more_anchors_leave_less(context):
    shares = [run(context(), k=k).residual for k in (1, 4, 12)]
    assert (shares[0] > shares[1]).all()
    assert (shares[1] > shares[2]).all()
    assert ((shares[2] > 0) & (shares[0] < 1)).all()


def test_long_anchors_are_not_preferred(context):
    told = context()
    told.donor_rows[:30] *= torch.linspace(0.01, 100, 30)[:, None]
    told.base_rows[10:] *= torch.linspace(0.01, 100, 30)[:, None]
    torch.testing.assert_close(run(told, k=4).rows, run(context(), k=4).rows, rtol=1e-3, atol=1e-3)


def test_of_more_anchors_than_the_shortlist_a_turned_one_is_found(context, tools):
    donor = tools.random(2, 520, 40)
    donor[500] = torch.tensor(turn(donor[250].numpy(), 0.3, 10_000.0))
    told = context(
        donor_rows=donor,
        base_rows=tools.random(1, 500, 12),
        base_ids=torch.arange(500),
        wanted=torch.arange(500, 520),
        anchor_targets=torch.arange(500),
        anchor_bases=torch.arange(500),
    )
    expected = torch.tensor(turn(told.base_rows[250].numpy(), 0.3, 10_000.0))
    torch.testing.assert_close(run(told, k=8).rows[0], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("anchors", [1, 2, 30])
@pytest.mark.parametrize("case", ["rank two", "one row", "width one"])
def test_degenerate_donors_give_finite_rows(context, tools, anchors, case):
    donor = {
        "rank two": tools.random(3, 50, 2) @ tools.random(4, 2, 20),
        "one row": torch.ones(50, 20),
        "width one": tools.random(3, 50, 1),
    }[case]
    chosen = {"anchor_targets": torch.arange(anchors), "anchor_bases": torch.arange(anchors) + 10}
    made = run(context(donor_rows=donor, **chosen), k=64)
    assert torch.isfinite(made.rows).all()
    assert made.rows.abs().max() < 200


def test_a_zero_donor_row_is_not_served(context):
    told = context()
    told.donor_rows[35] = 0
    made = run(told, k=5)
    assert made.served.tolist() == [True] * 5 + [False] + [True] * 14
    torch.testing.assert_close(made.rows[5], told.base_mean)
    assert made.sources is None


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize("k", [5, 64])
def test_rows_do_not_depend_on_the_batch_size_or_the_seed(context, batch_size, k):
    told = context()
    split = run(dataclasses.replace(told, batch_size=batch_size), k=k)
    torch.testing.assert_close(split.rows, run(told, k=k).rows, rtol=1e-4, atol=1e-4)
    assert run(context(generator=torch.Generator().manual_seed(1)), k=k).rows.equal(run(told, k=k).rows)
