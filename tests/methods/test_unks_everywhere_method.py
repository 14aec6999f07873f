"""Rows are means of overlapping anchors, on the leading directions of the base's table."""

import pytest
import torch

from tokensurgeon.methods.params import UnksEverywhereParams
from tokensurgeon.methods.unks_everywhere import UnksEverywhere


def run(told, **params):
    return UnksEverywhere(UnksEverywhereParams(**params))(told)


def weights(made, row):
    pairs = zip(made.sources[row].tolist(), made.coefs[row].tolist(), strict=True)
    return {base: coef for base, coef in pairs if base >= 0}


def told_of(context, tools, wanted, anchors, **changes):
    """Anchors are targets 0, 1, ... and base tokens 39, 38, ...; wanted tokens follow."""
    count = len(anchors)
    data = {
        i: text if isinstance(text, bytes) else text.encode() for i, text in enumerate([*anchors, *wanted])
    }
    return context(
        wanted=torch.arange(count, len(data)),
        anchor_targets=torch.arange(count),
        anchor_bases=torch.arange(39, 39 - count, -1),
        lexicon=tools.lexicon(target=data),
        **changes,
    )


def by_hand(token, anchors, size):
    """Weights of anchors by the longest run in common, the ten best; of equals the shorter first."""
    found = []
    for place, anchor in enumerate(anchors):
        one, other = token.casefold(), anchor.casefold()
        runs = [b - a for a in range(len(one)) for b in range(a + 1, len(one) + 1) if one[a:b] in other]
        if max(runs, default=0) >= size:
            found.append((-max(runs), len(anchor), place))
    best = sorted(found)[:10]
    total = sum(overlap for overlap, _, _ in best)
    return {39 - place: overlap / total for overlap, _, place in best}


ANCHORS = ["nation", " nations", "Nat", "station", "ion", "tio", "x", "international", " the", "tionsx", "ab"]
WANTED = ["national", "NATION", " stationary", "theory", "xylophone", "rations", "internat"]


@pytest.mark.parametrize("size", [3, 4, 5])
def test_weights_are_lengths_of_common_runs(context, tools, size):
    made = run(told_of(context, tools, WANTED, ANCHORS), min_overlap=size)
    for row, token in enumerate(WANTED):
        assert weights(made, row) == pytest.approx(by_hand(token, ANCHORS, size)), token
    assert [bool(by_hand(token, ANCHORS, size)) for token in WANTED] == made.served.tolist()


def test_overlap_in_two_places_counts_the_ngrams_of_both(context, tools):
    made = run(told_of(context, tools, ["abc-xyz"], ["abc+xyz", "abcd"]), min_overlap=3)
    assert weights(made, 0) == pytest.approx({39: 4 / 7, 38: 3 / 7})


def test_ten_anchors_at_most(context, tools):
    anchors = ["abc" + "d" * place for place in range(12)]
    made = run(told_of(context, tools, ["abcx"], anchors), min_overlap=3)
    assert set(weights(made, 0)) == set(range(30, 40))


def test_of_a_frequent_ngram_only_long_anchors_are_looked_at(context, tools):
    anchors = ["abc", *["abcd"] * 256]
    data = {place: text.encode() for place, text in enumerate([*anchors, "abcx"])}
    told = context(
        wanted=torch.tensor([257]),
        anchor_targets=torch.arange(257),
        anchor_bases=torch.arange(257) % 40,
        lexicon=tools.lexicon(target=data),
    )
    assert run(told, min_overlap=3).sources[0].tolist() == list(range(1, 11))


@pytest.mark.parametrize("rank", [1, 4, 100])
def test_rows_are_projected_on_the_leading_directions(context, tools, rank):
    told = told_of(context, tools, ["national", "zzz"], ANCHORS)
    made = run(told, rank=rank)
    mean = told.base_rows.mean(dim=0)
    _, _, directions = torch.linalg.svd(told.base_rows - mean, full_matrices=False)
    basis = directions[:rank]
    mixed = sum(coef * told.base_rows[base] for base, coef in by_hand("national", ANCHORS, 3).items())
    torch.testing.assert_close(made.rows[0], mean + (mixed - mean) @ basis.T @ basis)
    assert made.served.tolist() == [True, False]
    torch.testing.assert_close(made.rows[1], told.base_mean)
    if rank < 12:
        assert (made.rows[0] - mixed).norm() > 0.1


def test_only_rows_of_tokens_shape_the_directions(context, tools):
    told = told_of(context, tools, ["national"], ["nation"], base_ids=torch.arange(20, 40))
    made = run(told, rank=2)
    told.base_rows[:20] = 1e6
    torch.testing.assert_close(run(told, rank=2).rows, made.rows)


@pytest.mark.parametrize(
    "base_rows", [torch.zeros(40, 12), torch.ones(40, 12), torch.randn(40, 1) @ torch.randn(1, 12)]
)
def test_a_flat_table_gives_finite_rows(context, tools, base_rows):
    made = run(told_of(context, tools, WANTED, ANCHORS, base_rows=base_rows))
    assert torch.isfinite(made.rows).all()
    torch.testing.assert_close(made.rows[0], tools.rebuild(made, base_rows)[0])


def test_fragments_of_characters_are_left_out_and_empty_tokens_not_served(context, tools):
    told = told_of(context, tools, [b"\xffnational\xe2", b"\xe2\x82", b""], ["nation"])
    assert run(told).served.tolist() == [True, False, False]


def test_without_anchors_nothing_is_served(context, tools):
    made = run(told_of(context, tools, WANTED, []))
    assert not made.served.any()
    assert torch.isfinite(made.rows).all()


def test_rows_depend_on_neither_batches_nor_runs(context):
    whole, *others = (run(context(batch_size=size), min_overlap=2, rank=5) for size in (512, 512, 1, 7))
    assert whole.served.all()
    for other in others:
        assert other.sources.equal(whole.sources)
        torch.testing.assert_close(other.rows, whole.rows)


def test_half_precision_rows_are_read(context):
    told = context(base_rows=torch.ones(40, 12, dtype=torch.bfloat16))
    assert run(told).rows.dtype is torch.float32
