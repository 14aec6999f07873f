"""Rows are means of aligned base rows: by bytes in one text, by words in two."""

from dataclasses import replace
from math import exp

import pytest
import torch

from tokensurgeon.methods.base import Segmentation
from tokensurgeon.methods.params import TranstokenizerParams
from tokensurgeon.methods.transtokenizer import Transtokenizer, find_spans


def run(told, **params):
    return Transtokenizer(TranstokenizerParams(**params))(told)


def weights(made, row):
    found = {}
    for base, coef in zip(made.sources[row].tolist(), made.coefs[row].tolist(), strict=True):
        if base >= 0:
            assert base not in found
            found[base] = coef
    return found


def cut(text, tokens):
    """The longest tokens from the left; a character that none has is skipped."""
    ids, ends, start = [], [], 0
    while start < len(text):
        fits = [index for index, data in tokens.items() if data and text.encode().startswith(data, start)]
        if fits:
            ids.append(max(fits, key=lambda index: len(tokens[index])))
            ends.append(start + len(tokens[ids[-1]]))
        start = ends[-1] if fits else start + 1
    return Segmentation(ids, ends)


def lexicon_of(tools, target, base, **changes):
    target, base = ({i: t.encode() for i, t in enumerate(part)} for part in (target, base))
    told = {
        "target": target,
        "base": base,
        "base_of": {},
        "segment_target": lambda text: cut(text, target),
        "segment_base": lambda text: cut(text, base),
    }
    return tools.lexicon(**told | changes)


def small(context, tools, target, base, corpus=(), parallel=(), **changes):
    none = torch.zeros(0, dtype=torch.int64)
    return context(
        wanted=torch.arange(len(target)),
        base_ids=torch.arange(len(base)),
        anchor_targets=none,
        anchor_bases=none,
        lexicon=lexicon_of(tools, target, base, **changes),
        resources=tools.resources(corpus=list(corpus), parallel=list(parallel)),
    )


def test_base_tokens_count_by_the_bytes_they_share(context, tools):
    told = context()
    made = run(told, min_count=1)
    lexicon = told.lexicon
    counts = [{} for _ in range(50)]
    for line in told.resources.corpus:
        owners = [{}, {}]
        for owner, segment in zip(owners, (lexicon.segment_target, lexicon.segment_base), strict=True):
            low = 0
            for place, (index, end) in enumerate(zip(*segment(line), strict=True)):
                owner |= {byte: (place, index) for byte in range(low, end)}
                low = end
        for byte, (_, token) in owners[0].items():
            base = owners[1][byte][1]
            share = 1 / len(lexicon.target[token])
            counts[token][base] = counts[token].get(base, 0) + share
    for row in range(20):
        total = sum(counts[30 + row].values())
        expected = {base: count / total for base, count in counts[30 + row].items()}
        assert weights(made, row) == pytest.approx(expected)
    torch.testing.assert_close(tools.rebuild(made, told.base_rows), made.rows)


def test_a_token_across_two_base_tokens_counts_both_by_length(context, tools):
    made = run(small(context, tools, ["bcde", "a", "f"], ["ab", "cdef"], ["abcdef"]), min_count=1)
    assert weights(made, 0) == pytest.approx({0: 0.25, 1: 0.75})
    assert weights(made, 1) == {0: 1}


def test_tokens_that_share_a_character_share_its_bytes():
    data = {1: b"x", 2: b"\xc3", 3: b"\xa9", 4: b"yy"}
    _, starts, ends = find_spans(Segmentation([1, 2, 3, 4], [1, 3, 3, 6]), data)
    assert (starts.tolist(), ends.tolist()) == ([0, 1, 1, 4], [1, 3, 3, 6])


def test_a_rare_token_inherits_from_the_largest_tokens_inside_it(context, tools):
    # "abcd" is met once; inside are "abc" and "cd", both frequent, and "bc", which lies inside "abc".
    texts = ["abcd", *["abc"] * 3, *["cd"] * 3, *["bc"] * 3]
    told = small(context, tools, ["abcd", "abc", "cd", "bc", "e"], ["a", "b", "c", "d"], texts)
    made = run(told, min_count=2)
    assert weights(made, 0) == pytest.approx({0: 1 / 6, 1: 1 / 6, 2: 1 / 6 + 1 / 4, 3: 1 / 4})
    assert made.served.tolist() == [True, True, True, True, False]
    torch.testing.assert_close(made.rows[4], told.base_mean)


def test_shared_tokens_are_inherited_from_but_smoothed_ones_are_not(context, tools):
    target, base = ["abcd", "abc", "ab"], ["x", "y"]
    made = run(small(context, tools, target, base, base_of={2: 1}), min_count=1)
    assert [weights(made, row) for row in range(3)] == [{1: 1.0}] * 3


def test_min_count_counts_occurrences(context, tools):
    told = small(context, tools, ["abc", "def"], ["ab", "c", "d", "ef"], ["abcdefabc", "abc"])
    assert run(told, min_count=3).served.tolist() == [True, False]
    assert run(told, min_count=1).served.tolist() == [True, True]
    assert run(told, min_count=4).served.tolist() == [False, False]


PARALLEL = [("ab c", "xyz w"), ("ab", "xyz"), ("c ab c", "w xyz w"), ("c d", "w v")]


def by_hand(iterations):
    """IBM model 1 with a diagonal prior, then pieces, in plain loops."""
    bases, targets = {"ab": (0, 1), "c": (2,), "d": (3,)}, {"xyz": (0, 1, 2), "w": (3,), "v": (4,)}
    chances, counts = {}, {}
    for _ in range(iterations):
        counts = {}
        for ours, theirs in (([None, *one.split()], other.split()) for one, other in PARALLEL):
            m, n = len(ours) - 1, len(theirs)
            for j, word in enumerate(theirs, 1):
                near = [exp(-4 * abs(i / m - j / n)) for i in range(1, m + 1)]
                prior = [0.08, *(0.92 * value / sum(near) for value in near)]
                scores = [chances.get((e, word), 1) * p for e, p in zip(ours, prior, strict=True)]
                for e, score in zip(ours, scores, strict=True):
                    counts[e, word] = counts.get((e, word), 0) + score / sum(scores)
        totals = {e: sum(c for (o, _), c in counts.items() if o == e) for e, _ in counts}
        chances = {(e, f): count / totals[e] for (e, f), count in counts.items()}
    found = [{} for _ in range(5)]
    for (e, f), count in counts.items():
        for j, piece in enumerate(targets[f]):
            for i, base in enumerate(bases[e] if e else ()):
                p, q = len(bases[e]), len(targets[f])
                overlap = max(0, min((j + 1) / q, (i + 1) / p) - max(j / q, i / p))
                found[piece][base] = found[piece].get(base, 0) + count * (0.5 / p + 0.5 * q * overlap)
    return [{base: c / sum(part.values()) for base, c in part.items()} for part in found]


@pytest.mark.parametrize("iterations", [1, 5])
def test_words_of_parallel_text_are_aligned_and_their_pieces_counted(context, tools, iterations):
    told = small(context, tools, ["x", "y", "z", "w", "v"], ["a", "b", "c", "d"], ["never read"], PARALLEL)
    made = run(told, min_count=0, iterations=iterations)
    for row, expected in enumerate(by_hand(iterations)):
        assert weights(made, row) == pytest.approx(expected, rel=1e-5)
    assert by_hand(1)[3] != pytest.approx(by_hand(5)[3], rel=1e-2)


def test_more_rounds_tell_the_translation_from_its_neighbours(context, tools):
    parallel = [("a c", "w x"), *[("a", "x")] * 3, *[("c", "w")] * 3]
    told = small(context, tools, ["x", "w"], ["a", "c"], parallel=parallel)
    once, often = (weights(run(told, min_count=0, iterations=n), 0)[0] for n in (1, 9))
    assert once < 0.8 < 0.85 < often


def test_a_row_has_at_most_64_sources(context, tools):
    base = [chr(0x21 + place) for place in range(80)]
    parallel = [(text, "x") for place, text in enumerate(base) for _ in range(1 + place // 40)]
    told = replace(small(context, tools, ["x"], base, parallel=parallel), base_rows=tools.random(1, 80, 12))
    found = weights(run(told, min_count=0), 0)
    assert len(found) == 64
    assert set(range(40, 80)) < set(found)
    assert sum(found.values()) == pytest.approx(1)


def test_nothing_to_align_gives_the_mean_row(context, tools):
    for told in (
        small(context, tools, ["x", ""], ["a"], ["zzz"]),
        small(context, tools, ["x", ""], ["a"], parallel=[("zz", "zz"), ("a", "z"), ("z", "x")]),
        context(base_ids=torch.tensor([0]), lexicon=tools.lexicon(base_of={}), pieces=[()] * 20),
    ):
        made = run(told)
        assert torch.isfinite(made.rows).all()
        torch.testing.assert_close(
            made.rows[~made.served], told.base_mean.repeat(int((~made.served).sum()), 1)
        )


def test_rows_depend_on_neither_batches_nor_runs(context):
    whole, *others = (run(context(batch_size=size)) for size in (512, 1, 7))
    for other in others:
        assert other.sources.equal(whole.sources)
        torch.testing.assert_close(other.rows, whole.rows)
