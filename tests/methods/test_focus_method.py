"""FOCUS: anchors that the corpus uses like the token, by sparsemax of cosines."""

import json
from pathlib import Path

import pytest
import torch

from tokensurgeon.methods.focus import Focus
from tokensurgeon.methods.params import FocusParams
from tokensurgeon.solvers.nearest import build_index

SMALL = {"dim": 10, "min_count": 1}


def slow_sparsemax(scores):
    """The threshold above which scores add up to one, by bisection."""
    low, high = scores.max() - 1, scores.max()
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (scores - middle).clamp(min=0).sum() > 1 else (low, middle)
    return (scores - low).clamp(min=0)


def test_rows_are_sparsemax_combinations_of_the_anchors(context):
    told, method = context(), Focus(FocusParams(**SMALL))
    made, vectors = method(told), method.train(told)
    place = {index: row for index, row in zip(vectors.ids.tolist(), vectors.rows.double(), strict=True)}
    anchors = [(t, b) for t, b in zip(range(30), range(10, 40), strict=True) if t in place]
    assert len(anchors) > 20
    assert made.served.sum() > 15
    for row, target in enumerate(told.wanted.tolist()):
        assert bool(made.served[row]) == (target in place)
        if target not in place:
            torch.testing.assert_close(made.rows[row], told.base_mean)
            continue
        weights = slow_sparsemax(torch.stack([place[target] @ place[anchor] for anchor, _ in anchors]))
        expected = sum(
            weight * told.base_rows[base] for weight, (_, base) in zip(weights, anchors, strict=True)
        )
        torch.testing.assert_close(made.rows[row], expected.float(), rtol=1e-4, atol=1e-4)


def test_the_authors_package_makes_the_same_rows():
    told = json.loads((Path(__file__).parent / "peer_values.json").read_text())["focus_rows"]
    targets, anchors, base, rows = (torch.tensor(told[key]) for key in ("targets", "anchors", "base", "rows"))
    sources, coefs = Focus(FocusParams()).weigh(targets, build_index(anchors), torch.arange(12))
    made = (base[sources.clamp(min=0)] * coefs[:, :, None]).sum(dim=1)
    torch.testing.assert_close(made, rows, rtol=0, atol=1e-5)


def test_sources_and_coefficients_rebuild_the_rows_from_anchors_only(context, tools):
    told = context(anchor_targets=torch.arange(0, 30, 2), anchor_bases=torch.arange(39, 24, -1))
    made = Focus(FocusParams(**SMALL))(told)
    assert set(made.sources.flatten().tolist()) <= {-1, *range(25, 40)}
    torch.testing.assert_close(tools.rebuild(made, told.base_rows)[made.served], made.rows[made.served])
    torch.testing.assert_close(made.coefs.sum(dim=1), made.served.float())


def test_tokens_that_the_corpus_has_too_seldom_are_not_served(context, tools):
    told = context(resources=tools.resources(corpus=[*tools.corpus(), *["dadadada"] * 50]))
    counts = torch.zeros(50)
    for line in told.resources.corpus:
        for index in told.lexicon.segment_target(line).ids:
            counts[index] += 1
    for least in (1, 20, 100):
        made = Focus(FocusParams(dim=4, min_count=least))(told)
        assert made.served.tolist() == (counts[30:] >= least).tolist()
    assert 0 < made.served.sum() < 20
    assert (made.sources[made.served] == 26).all(), "the one anchor that is as common"


@pytest.mark.parametrize("change", [{"dim": 11}, {"epochs": 4}])
def test_every_option_of_training_matters(context, change):
    one, other = (Focus(FocusParams(**SMALL | given))(context()) for given in ({}, change))
    assert not torch.allclose(one.rows, other.rows)


def test_a_token_takes_most_from_the_anchor_that_is_used_like_it(context, tools):
    # " abe", target 30, and "da" have the same neighbours; "de" and "do" have others.
    lines = [f"ba{word}{end}" for end in ("bi", "bo") for word in (" abe", "da")]
    lines += [f"fa{word}{end}" for end in ("fi", "fo") for word in ("de", "do")]
    told = context(wanted=torch.tensor([30]), resources=tools.resources(corpus=lines * 60))
    made = Focus(FocusParams(dim=16, epochs=300, min_count=1))(told)
    assert made.sources[0, 0] == 10 + told.lexicon.segment_target("da").ids[0]


@pytest.mark.parametrize("anchors", [0, 1])
def test_few_anchors_give_finite_rows(context, anchors):
    told = context(anchor_targets=torch.arange(anchors), anchor_bases=torch.arange(anchors) + 10)
    made = Focus(FocusParams(**SMALL))(told)
    expected = told.base_rows[10] if anchors else told.base_mean
    torch.testing.assert_close(made.rows, expected.expand(20, 12))
    assert made.served.tolist() == [bool(anchors)] * 20


def test_an_empty_corpus_serves_nothing(context, tools):
    made = Focus(FocusParams())(context(resources=tools.resources(corpus=[])))
    assert not made.served.any()
    assert torch.isfinite(made.rows).all()


def test_rows_depend_on_the_seed_and_not_on_the_batch_size(context):
    method = Focus(FocusParams(**SMALL))
    whole = method(context())
    for size in (1, 7):
        split = method(context(batch_size=size))
        torch.testing.assert_close(split.rows, whole.rows)
        assert split.sources.equal(whole.sources)
    assert not torch.allclose(method(context(generator=torch.Generator().manual_seed(1))).rows, whole.rows)


def test_at_most_256_anchors_are_combined(context, tools):
    method = Focus(FocusParams())
    flat = torch.cat([torch.ones(300, 1), 1e-3 * tools.random(1, 300, 5)], dim=1)
    sources, coefs = method.weigh(flat[:2], build_index(flat), torch.arange(300))
    assert sources.shape == (2, 256)
    torch.testing.assert_close(coefs.sum(dim=1), torch.ones(2))
