"""Base tokens at a similar position relative to pivots are combined."""

import dataclasses

import numpy as np
import pytest
import torch

from tokensurgeon.methods.params import RelrepParams
from tokensurgeon.methods.relrep import Relrep


def run(told, **params):
    return Relrep(RelrepParams(**params))(told)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def transcribe(told, k, temperature):
    """The definition with all anchors as pivots, of which the order does not matter."""
    donor, base = told.donor_rows.double().numpy(), told.base_rows.double().numpy()
    donor_anchors, base_anchors = donor[told.anchor_targets], base[told.anchor_bases]

    def place(row, anchors):
        middle = anchors.mean(axis=0)
        cosines = [
            (row - middle) @ (a - middle) / np.linalg.norm(row - middle) / np.linalg.norm(a - middle)
            for a in anchors
        ]
        return np.array(cosines) / np.linalg.norm(cosines)

    rows = []
    for target in told.wanted.tolist():
        mine = place(donor[target], donor_anchors)
        scores = {b: mine @ place(base[b], base_anchors) for b in told.base_ids.tolist()}
        best = sorted(scores, key=lambda b: -scores[b])[:k]
        weights = np.exp([scores[b] / temperature for b in best])
        rows.append(weights / weights.sum() @ base[best])
    return torch.tensor(np.stack(rows)).float()


@pytest.mark.parametrize("k", [1, 4, 40])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_rows_follow_the_definition(context, k, temperature):
    made = run(context(), k=k, temperature=temperature)
    torch.testing.assert_close(made.rows, transcribe(context(), k, temperature), rtol=1e-3, atol=1e-4)


def test_a_base_token_in_the_same_place_is_found_though_it_is_no_anchor(context, tools):
    # The base is the donor's space, turned, stretched and moved; tokens 0 to 9 are targets 30 to 39.
    turn = torch.linalg.qr(tools.random(3, 20, 20)).Q
    donor = tools.random(2, 50, 20)
    base = 0.3 * donor[[*range(30, 40), *range(30)]] @ turn + 5
    made = run(context(donor_rows=donor, base_rows=base), k=3)
    assert made.sources[:10, 0].tolist() == list(range(10))
    made = run(context(donor_rows=donor, base_rows=base), k=3, temperature=1e-3)
    torch.testing.assert_close(made.rows[:10], base[:10], rtol=1e-3, atol=1e-3)


def test_rows_that_belong_to_no_base_token_are_not_taken(context):
    ids = torch.arange(10, 40)
    assert run(context(base_ids=ids), k=30).sources.min() == 10
    assert run(context(base_ids=ids), k=99).sources.shape == (20, 30)


def test_a_lower_temperature_gives_the_nearest_more_weight(context):
    cold, warm = (run(context(), temperature=t).coefs[:, 0] for t in (0.01, 1.0))
    assert (cold > warm).all()


def test_weights_add_up_to_one_and_rebuild_the_rows(context, tools):
    made = run(context())
    torch.testing.assert_close(made.coefs.sum(dim=1), torch.ones(20))
    torch.testing.assert_close(tools.rebuild(made, context().base_rows), made.rows)


def test_pivots_are_drawn_from_the_seed(context):
    def seeded(seed, pivots):
        return run(context(generator=torch.Generator().manual_seed(seed)), pivots=pivots).rows

    assert seeded(0, 8).equal(seeded(0, 8))
    assert not torch.allclose(seeded(0, 8), seeded(1, 8))
    assert not torch.allclose(seeded(0, 8), seeded(0, 30))
    # All anchors are pivots, in another order.
    torch.testing.assert_close(seeded(0, 300), seeded(1, 30), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("anchors", [1, 2, 30])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_degenerate_anchors_give_finite_rows(context, tools, anchors, rank):
    told = context(
        donor_rows=tools.random(3, 50, rank) @ tools.random(4, rank, 20),
        anchor_targets=torch.arange(anchors),
        anchor_bases=torch.arange(anchors) + 10,
    )
    made = run(told)
    assert torch.isfinite(made.rows).all()
    if rank == 0 or anchors == 1:
        assert not made.served.any()


def test_a_row_in_the_middle_of_the_anchors_is_nowhere_and_not_served(context):
    told = context()
    told.donor_rows[:30] = torch.cat([told.donor_rows[:15], -told.donor_rows[:15]])
    told.donor_rows[32] = told.donor_rows[:30].mean(dim=0)
    made = run(told)
    assert made.served.tolist() == [True, True, False, *[True] * 17]
    assert made.sources[2].tolist() == [-1] * 10
    assert not made.coefs[2].any()
    torch.testing.assert_close(made.rows[2], told.base_mean)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_rows_do_not_depend_on_the_batch_size(context, batch_size):
    told = context()
    whole, split = run(told, pivots=8), run(dataclasses.replace(told, batch_size=batch_size), pivots=8)
    torch.testing.assert_close(split.rows, whole.rows)
