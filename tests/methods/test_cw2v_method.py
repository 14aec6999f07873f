"""Rows are convex combinations of base rows, learnt from what stands near a token."""

import pytest
import torch

from tokensurgeon.methods.base import Segmentation
from tokensurgeon.methods.cw2v import Cw2v, choose_candidates, read_text
from tokensurgeon.methods.params import Cw2vParams

NONE = float("-inf")


def run(told, **params):
    return Cw2v(Cw2vParams(**{"steps": 30, "batch": 16, "rank": 8} | params))(told)


def weights(made, row):
    pairs = zip(made.sources[row].tolist(), made.coefs[row].tolist(), strict=True)
    return {base: coef for base, coef in pairs if base >= 0}


def told_of(context, tools, lines, **changes):
    """Lines are lists of target ids; targets 0 to 29 are base tokens 10 to 39, the others are missing."""
    lexicon = tools.lexicon(
        segment_target=lambda line: Segmentation(list(map(int, line.split())), [0] * len(line.split()))
    )
    return context(lexicon=lexicon, resources=tools.resources(corpus=lines), **changes)


def test_what_stands_near_is_counted_within_the_window_and_the_line(context, tools):
    told = told_of(context, tools, ["5 30 6 31 5", "7 7 30", "8 99 9"])
    for window, expected in (
        (1, {(30, 15): 1, (30, 16): 1, (31, 16): 1, (31, 15): 1, (30, 17): 1}),
        (2, {(30, 15): 1, (30, 16): 1, (31, 16): 1, (31, 15): 1, (30, 17): 2}),
        (3, {(30, 15): 2, (30, 16): 1, (31, 16): 1, (31, 15): 2, (30, 17): 2}),
    ):
        text = read_text(told, window)
        seen = zip(text.missing[text.centres] + 30, text.contexts, text.counts, strict=True)
        assert {(int(one), int(other)): count for one, other, count in seen} == expected
        frequencies = dict(zip(text.shared.tolist(), text.frequencies.tolist(), strict=True))
        assert frequencies == {15: 2, 16: 1, 17: 2, 18: 1, 19: 1}


def test_candidates_are_pieces_then_the_most_frequent_neighbours(context, tools):
    near = [place for place in range(29, 19, -1) for _ in range(place)]
    lines = [f"30 {place}" for place in near] + ["31", "32 4"]
    told = told_of(context, tools, lines, pieces=[(3, 39, 3), (1,), ()] + [()] * 17)
    candidates, start = choose_candidates(told, read_text(told, 5))
    assert candidates[0].tolist() == [3, *range(39, 29, -1)]
    assert start[0].tolist() == [0, 0, *[-4] * 9]
    assert candidates[1].tolist() == [1, *[-1] * 10]
    assert start[1].tolist() == [0, *[NONE] * 10]
    assert (int(candidates[2, 0]), float(start[2, 0])) == (14, -4)


def test_a_token_has_at_most_64_candidates(context, tools):
    lexicon = tools.lexicon(
        base_of={index: index for index in range(100)},
        segment_target=lambda line: Segmentation(list(map(int, line.split())), []),
    )
    told = context(
        base_rows=tools.random(1, 100, 12),
        base_ids=torch.arange(100),
        wanted=torch.tensor([100]),
        anchor_targets=torch.arange(100),
        anchor_bases=torch.arange(100),
        lexicon=lexicon,
        resources=tools.resources(corpus=[f"100 {place} {place}" for place in range(100)]),
    )
    made = run(told)
    assert made.sources.shape == (1, 64)
    assert made.coefs.min() > 0


def by_hand(told, steps, batch, rank, window, negatives, learning_rate):
    """The same pairs, one at a time and without any table made beforehand."""
    text = read_text(told, window)
    candidates, start = choose_candidates(told, text)
    used = sorted({*candidates.clamp(min=0).flatten().tolist(), *text.shared.tolist()})
    generator = torch.Generator().manual_seed(told.generator.initial_seed())
    ours = torch.zeros(len(start), rank, requires_grad=True)
    theirs = (torch.randn(len(used), rank, generator=generator) / rank**0.5).requires_grad_()
    centred = told.base_rows - told.base_rows.mean(dim=0)
    rows = centred / centred.square().mean().sqrt() / 12**0.25

    def draw(chances):
        point = float(torch.rand((), generator=generator, dtype=torch.float64)) * sum(chances)
        return next(place for place in range(len(chances)) if point < sum(chances[: place + 1]))

    def weigh(centre):
        found = [(place, int(base)) for place, base in enumerate(candidates[centre]) if base >= 0]
        logits = [ours[centre] @ theirs[used.index(base)] + start[centre, place] for place, base in found]
        return [base for _, base in found], torch.stack(logits).softmax(dim=0)

    optimizer = torch.optim.Adam([ours, theirs], lr=learning_rate)
    for _ in range(steps):
        pairs = [draw(text.counts.tolist()) for _ in range(batch)]
        chances = (text.frequencies**0.75).tolist()
        loss = 0
        for pair, others in [(pair, [draw(chances) for _ in range(negatives)]) for pair in pairs]:
            bases, shares = weigh(text.centres[pair])
            vector = shares @ rows[bases]
            loss = loss - torch.log(torch.sigmoid(vector @ rows[text.contexts[pair]]))
            for other in others:
                loss = loss - torch.log(torch.sigmoid(-vector @ rows[text.shared[other]]))
        optimizer.zero_grad()
        (loss / batch).backward()
        optimizer.step()
    made = torch.stack([weigh(centre)[1] @ told.base_rows[weigh(centre)[0]] for centre in range(len(start))])
    return text.missing, made.detach()


DEFAULTS = {"steps": 4, "batch": 5, "rank": 4, "window": 2, "negatives": 2, "learning_rate": 0.3}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"steps": 2},
        {"batch": 3},
        {"rank": 2},
        {"window": 1},
        {"negatives": 1},
        {"learning_rate": 0.05},
    ],
    ids=str,
)
def test_training_is_skip_gram_with_negative_sampling(context, tools, changes):
    told = told_of(context, tools, ["0 30 1 2 31 0", "3 31 32 4", "30 1", "5 33 5 6"])
    missing, expected = by_hand(told, **DEFAULTS | changes)
    made = run(told, **DEFAULTS | changes)
    torch.testing.assert_close(made.rows[missing], expected, rtol=1e-3, atol=1e-4)
    assert made.served.nonzero()[:, 0].tolist() == missing.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(made.rows[4:], told.base_mean.repeat(16, 1))
    if changes:
        assert (run(told, **DEFAULTS).rows - made.rows).abs().max() > 1e-3


def test_rows_are_in_the_convex_hull_and_move_towards_what_is_near(context, tools):
    # Pieces 0 and 1 are opposite; base token 10 is like 0, and it is what stands near token 30.
    base = tools.random(1, 40, 12)
    base[1], base[10] = -base[0], base[0]
    told = told_of(context, tools, ["0 30", "30 0", "5 6 7 8 9 11"] * 5, base_rows=base, pieces=[(0, 1)] * 20)
    made = run(told, steps=60, learning_rate=0.1, negatives=1)
    found = weights(made, 0)
    assert min(found.values()) >= 0
    assert sum(found.values()) == pytest.approx(1)
    assert found[0] + found[10] > 0.9 > 0.1 > found[1]
    torch.testing.assert_close(tools.rebuild(made, base)[0], made.rows[0])


def test_a_token_far_from_all_shared_ones_stays_at_the_mean_of_its_pieces(context, tools):
    told = told_of(context, tools, ["30 31", "32 5"], pieces=[(1, 2), (), (3, 4), *[(0,)] * 17])
    made = run(told)
    assert weights(made, 0) == pytest.approx({1: 0.5, 2: 0.5})
    assert made.served.tolist() == [True, False, True] + [False] * 17


@pytest.mark.parametrize("base_rows", [torch.zeros(40, 12), torch.ones(40, 12), torch.full((40, 12), 1e-20)])
def test_a_flat_table_gives_finite_rows(context, base_rows):
    assert torch.isfinite(run(context(base_rows=base_rows)).rows).all()


def test_nothing_to_read_gives_the_mean_row(context, tools):
    for lines in ([], ["0 1 2"], ["99"]):
        made = run(told_of(context, tools, lines))
        assert not made.served.any()
        assert torch.isfinite(made.rows).all()


def test_the_seed_alone_decides(context):
    whole, *others = (run(context(batch_size=size)) for size in (512, 512, 1, 7))
    assert whole.served.all()
    for other in others:
        assert other.sources.equal(whole.sources)
        torch.testing.assert_close(other.rows, whole.rows)
    seeded = run(context(generator=torch.Generator().manual_seed(1)))
    assert (seeded.rows - whole.rows).abs().max() > 1e-3
