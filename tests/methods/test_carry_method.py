"""A donor's rows, moved as the rows that it shares with the base moved."""

import dataclasses

import numpy as np
import pytest
import torch

from tokensurgeon.methods.carry import Carry
from tokensurgeon.methods.params import CarryParams


def run(told, **params):
    return Carry(CarryParams(**params))(told)


@pytest.fixture
def donor(tools):
    return tools.random(2, 50, 12) + 1


def fine_tuned(tools, donor, moves):
    """A base whose shared rows are the donor's, moved."""
    return torch.cat([tools.random(4, 10, 12), donor[:30] + moves])


def test_a_base_that_did_not_move_gets_the_donors_rows_bit_for_bit(context, tools, donor):
    told = context(donor_rows=donor, base_rows=fine_tuned(tools, donor, 0))
    assert run(told).rows.equal(donor[30:])


def test_a_common_move_is_carried_over(context, tools, donor):
    told = context(donor_rows=donor, base_rows=fine_tuned(tools, donor, torch.arange(12.0)))
    torch.testing.assert_close(run(told).rows, donor[30:] + torch.arange(12.0), rtol=1e-5, atol=1e-5)


def test_a_move_that_depends_on_the_row_is_learnt(context, tools, donor):
    turn = tools.random(3, 12, 12)
    told = context(donor_rows=donor, base_rows=fine_tuned(tools, donor, donor[:30] @ turn))
    torch.testing.assert_close(run(told, ridge=0).rows, donor[30:] + donor[30:] @ turn, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_rows_follow_the_definition(context, tools, donor, ridge):
    moves = tools.random(6, 30, 12)
    told = context(donor_rows=donor, base_rows=fine_tuned(tools, donor, moves))
    a, m, x = (part.double().numpy() for part in (donor[:30], moves, donor[30:]))
    centred = a - a.mean(axis=0)
    damped = centred.T @ centred
    damped += ridge * np.trace(damped) / 12 * np.eye(12)
    expected = (
        x + (x - a.mean(axis=0)) @ np.linalg.solve(damped, centred.T @ (m - m.mean(axis=0))) + m.mean(axis=0)
    )
    torch.testing.assert_close(
        run(told, ridge=ridge).rows, torch.tensor(expected).float(), rtol=1e-4, atol=1e-4
    )


def test_a_space_of_another_width_or_without_anchors_is_left_to_the_next_method(context, tools, donor):
    none = torch.zeros(0, dtype=torch.int64)
    for told in (
        context(donor_rows=tools.random(2, 50, 7)),
        context(donor_rows=donor, anchor_targets=none, anchor_bases=none),
    ):
        made = run(told)
        assert made.rows.shape == (20, 12)
        assert not made.served.any()


@pytest.mark.parametrize("batch_size", [1, 7])
def test_rows_do_not_depend_on_the_batch_size(context, donor, batch_size):
    told = context(donor_rows=donor)
    changed = dataclasses.replace(told, batch_size=batch_size)
    torch.testing.assert_close(run(changed).rows, run(told).rows)
