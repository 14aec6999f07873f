"""Each token is one base token: the one most like it relative to shared pivots."""

import numpy as np
import pytest
import torch

from tokensurgeon.methods.base import Segmentation
from tokensurgeon.methods.params import TokalignParams
from tokensurgeon.methods.tokalign import Tokalign, count_pairs, glove, read_tokens

SMALL = {"dim": 12, "epochs": 8, "window": 3, "min_count": 2}


def method(**params):
    return Tokalign(TokalignParams(**SMALL | params))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def split(line):
    return Segmentation(list(map(int, line.split())), [])


def mirrored(line):
    """Cut alike, but base ids run the other way."""
    return Segmentation([49 - index for index in split(line).ids], [])


def told_of(context, tools, lines, **changes):
    """50 targets, the first 30 of them anchors; base token 49 - i stands wherever target i does."""
    told = {
        "lexicon": tools.lexicon(segment_target=split, segment_base=mirrored),
        "resources": tools.resources(corpus=lines),
        "base_rows": tools.random(1, 50, 12),
        "base_ids": torch.arange(50),
        "anchor_bases": 49 - torch.arange(30),
    }
    return context(**told | changes)


def make_lines(tools, count):
    """Walks from token to token, to each from those that it is like."""
    places, generator = tools.random(7, 50, 4), seeded(3)
    chances = (0.75 * places @ places.mT).softmax(dim=1)
    walk = [torch.arange(count) % 50]
    for _ in range(19):
        walk.append(torch.multinomial(chances[walk[-1]], 1, generator=generator)[:, 0])
    return [" ".join(map(str, line)) for line in torch.stack(walk, dim=1).tolist()]


def test_pairs_are_counted_by_distance_within_a_line():
    tokens, lines = read_tokens(["3 1 3 0", "", "1 1 2"], split)
    assert (tokens.tolist(), lines.tolist()) == ([3, 1, 3, 0, 1, 1, 2], [0, 0, 0, 0, 2, 2, 2])
    for window in (1, 2, 9):
        expected = {}
        for one in range(7):
            for other in range(7):
                distance = abs(one - other)
                if lines[one] == lines[other] and 0 < distance <= window:
                    pair = int(tokens[one]), int(tokens[other])
                    expected[pair] = expected.get(pair, 0) + 1 / distance
        first, second, counts = count_pairs(tokens, lines, window, lambda distance: 1 / distance)
        found = dict(zip(zip(first.tolist(), second.tolist(), strict=True), counts.tolist(), strict=True))
        assert found == pytest.approx(expected)


def test_vectors_are_weighted_least_squares_by_adagrad():
    first, second = np.array([0, 0, 1, 2, 2]), np.array([1, 2, 0, 0, 2])
    counts = np.array([2.0, 0.5, 2.0, 0.5, 40.0])
    generator = seeded()
    tables = [((torch.rand(3, 5, generator=generator) - 0.5) / 4).requires_grad_() for _ in range(2)]
    optimizer = torch.optim.Adagrad(tables, lr=0.05, initial_accumulator_value=1, eps=0)
    for _ in range(6):
        loss = 0
        for one, other, count in zip(first, second, counts, strict=True):
            ours, theirs = tables[0][one], tables[1][other]
            fitted = ours[:4] @ theirs[:4] + ours[4] + theirs[4]
            loss = loss + min(count / 10, 1) ** 0.75 * (fitted - np.log(count)) ** 2 / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    expected = (tables[0] + tables[1])[:, :4].detach()
    torch.testing.assert_close(glove(first, second, counts, 3, 4, 6, seeded()), expected)
    assert (glove(first, second, counts, 3, 4, 5, seeded()) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("changes", [{"dim": 5}, {"window": 1}, {"epochs": 2}, {"min_count": 20}], ids=str)
def test_options_shape_the_vectors(tools, changes):
    text = read_tokens([*make_lines(tools, 40), "50 51 51"], split)
    ids, rows = method().vectors(text, seeded())
    other_ids, other_rows = method(**changes).vectors(text, seeded())
    assert rows.shape[1] == 12
    assert other_rows.shape[1] == changes.get("dim", 12)
    counts = torch.bincount(torch.from_numpy(text[0]))
    for known, least in ((ids, 2), (other_ids, changes.get("min_count", 2))):
        assert known.tolist() == (counts >= least).nonzero()[:, 0].tolist()
    assert rows.shape != other_rows.shape or (rows - other_rows).abs().max() > 1e-2


def test_near_tokens_count_more_than_far_ones(tools):
    text = read_tokens(make_lines(tools, 40), split)
    near, alike = (
        glove(*count_pairs(*text, 3, weigh), 50, 12, 8, seeded())
        for weigh in (lambda far: 1 / far, lambda far: 1)
    )
    assert method().vectors(text, seeded())[1].equal(near)
    assert not near.equal(alike)


def test_rare_tokens_are_cut_out_before_distances_are_measured():
    text = read_tokens(["1 9 2", "1 2", "1 8 2"], split)
    kept = read_tokens(["1 2"] * 3, split)
    assert method().vectors(text, seeded())[1].equal(method().vectors(kept, seeded())[1])


def test_a_token_is_mapped_to_the_base_token_in_the_same_places(context, tools):
    told = told_of(context, tools, make_lines(tools, 400))
    made = method(dim=30, epochs=30, window=1)(told)
    assert (made.sources[:, 0] == 49 - told.wanted).float().mean() >= 0.9
    assert made.coefs.eq(1).all()
    assert made.rows.equal(told.base_rows[made.sources[:, 0]])


@pytest.mark.parametrize("pivots", [9, 300])
def test_the_mapping_is_by_cosines_to_random_pivots(context, tools, pivots):
    told = told_of(context, tools, make_lines(tools, 20), base_ids=torch.arange(40))
    aligner = method(pivots=pivots)
    made = aligner(told)
    generator = seeded()
    sides = []
    for segment in (split, mirrored):
        ids, rows = aligner.vectors(read_tokens(told.resources.corpus, segment), generator)
        sides.append(dict(zip(ids.tolist(), rows.double(), strict=True)))
    target, base = sides[0], {index: row for index, row in sides[1].items() if index < 40}
    pairs = [(one, 49 - one) for one in range(30) if one in target and 49 - one in base]
    drawn = [pairs[place] for place in torch.randperm(len(pairs), generator=generator)[:pivots]]
    assert len(drawn) == min(pivots, len(pairs)) and len(pairs) > 10

    def relative(row, side, column):
        cosines = [torch.cosine_similarity(row, side[pair[column]], dim=0) for pair in drawn]
        return torch.stack(cosines) / torch.stack(cosines).norm()

    candidates = {index: relative(row, base, 1) for index, row in base.items()}
    for row, index in enumerate(told.wanted.tolist()):
        if index in target:
            ours = relative(target[index], target, 0)
            best = max(candidates, key=lambda other: float(ours @ candidates[other]))
            assert made.sources[row].tolist() == [best]
        assert bool(made.served[row]) == (index in target)


def test_tokens_that_are_too_rare_are_not_served(context, tools):
    lines = [*make_lines(tools, 20), "3 4 50"]
    told = told_of(context, tools, lines, wanted=torch.tensor([30, 50, 51]), pieces=[()] * 3)
    made = method()(told)
    assert made.served.tolist() == [True, False, False]
    torch.testing.assert_close(made.rows[1], told.base_mean)


def test_with_few_pivots_or_no_text_nothing_is_served(context, tools):
    few, none = torch.arange(2), torch.zeros(0, dtype=torch.int64)
    lines = make_lines(tools, 20)
    made = [
        method()(told_of(context, tools, lines, anchor_targets=few, anchor_bases=49 - few)),
        method()(told_of(context, tools, lines, anchor_targets=none, anchor_bases=none)),
        method()(told_of(context, tools, [])),
        method()(told_of(context, tools, ["30"])),
        method()(told_of(context, tools, ["30", "30"])),
    ]
    assert all(torch.isfinite(rows.rows).all() for rows in made)
    assert not any(rows.served.any() for rows in made)


def test_the_seed_alone_decides(context, tools):
    lines = make_lines(tools, 20)
    whole, *others = (method()(told_of(context, tools, lines, batch_size=size)) for size in (512, 512, 1, 7))
    for other in others:
        assert other.sources.equal(whole.sources)
        assert other.rows.equal(whole.rows)
    other = method()(told_of(context, tools, lines, generator=seeded(1)))
    assert not other.sources.equal(whole.sources)
