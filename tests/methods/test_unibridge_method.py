"""UniBridge: mutual nearest neighbours in one space of both vocabularies, else anchors by sparsemax."""

import pytest
import torch

from tokensurgeon.methods.params import UnibridgeParams
from tokensurgeon.methods.unibridge import Unibridge, mutual_neighbours
from tokensurgeon.methods.wordvectors import TokenVectors

SMALL = {"dim": 10, "epochs": 5}


def slow_sparsemax(scores):
    """The threshold above which scores add up to one, by bisection."""
    low, high = scores.max() - 1, scores.max()
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (scores - middle).clamp(min=0).sum() > 1 else (low, middle)
    return (scores - low).clamp(min=0)


def by_id(vectors):
    return dict(zip(vectors.ids.tolist(), vectors.rows.double(), strict=True))


@pytest.fixture
def bare_base(context, tools):
    """A context whose lexicon shares the first 20 tokens only, so that base tokens are left to be copied."""

    def make(**changes):
        shared = {index: index + 10 for index in range(20)}
        told = {"anchor_targets": torch.arange(20), "anchor_bases": torch.arange(10, 30)}
        return context(lexicon=tools.lexicon(base_of=shared), **told | changes)

    return make


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_mutual_neighbours_are_copied_and_others_combined(bare_base, temperature):
    told = bare_base(wanted=torch.arange(20, 50))
    method = Unibridge(UnibridgeParams(temperature=temperature, **SMALL))
    made, (targets, bases) = method(told), map(by_id, method.train(told))
    copied = 0
    for row, target in enumerate(told.wanted.tolist()):
        assert bool(made.served[row]) == (target in targets)
        if target not in targets:
            continue
        nearest = max(bases, key=lambda base: float(targets[target] @ bases[base]))
        if target == max(targets, key=lambda other: float(targets[other] @ bases[nearest])):
            copied += 1
            assert made.rows[row].equal(told.base_rows[nearest])
            continue
        anchors = [anchor for anchor in range(20) if anchor in targets]
        scores = torch.stack([targets[target] @ targets[anchor] for anchor in anchors]) / temperature
        weights = slow_sparsemax(scores).float()
        expected = weights @ told.base_rows[torch.tensor(anchors) + 10]
        torch.testing.assert_close(made.rows[row], expected, rtol=1e-4, atol=1e-4)
    assert 0 < copied < made.served.sum()


def test_shared_tokens_have_one_vector_for_both_vocabularies(bare_base):
    targets, bases = map(by_id, Unibridge(UnibridgeParams(**SMALL)).train(bare_base()))
    both = [index for index in range(20) if index in targets]
    assert len(both) > 10
    assert all(targets[index].equal(bases[index + 10]) for index in both)
    # Shared bytes alone do not make a shared token.
    apart = [index for index in range(20, 30) if index in targets and index + 10 in bases]
    assert apart
    assert not any(targets[index].equal(bases[index + 10]) for index in apart)


def test_neighbours_are_mutual_only_if_each_is_the_others_nearest():
    angles = torch.tensor([0.0, 10, 50, 90, 180])
    circle = torch.stack([angles.deg2rad().cos(), angles.deg2rad().sin()], dim=1)
    targets = TokenVectors(torch.tensor([3, 4, 5, 6, 7]), circle)
    angles = torch.tensor([8.0, 60, 100])
    bases = TokenVectors(
        torch.tensor([0, 20, 30]), torch.stack([angles.deg2rad().cos(), angles.deg2rad().sin()], dim=1)
    )
    found = mutual_neighbours(targets, bases, torch.tensor([2, 3, 4, 5, 6]), torch.device("cpu"))
    assert found.tolist() == [-1, 0, 20, 30, -1]
    # Token 4 is the nearest of base token 0 whether it is wanted or not.
    assert mutual_neighbours(targets, bases, torch.tensor([3]), torch.device("cpu"))[0] == -1
    none = TokenVectors(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2))
    assert mutual_neighbours(targets, none, torch.tensor([3]), torch.device("cpu")).tolist() == [-1] * 5


def test_only_base_tokens_with_a_row_are_copied(bare_base):
    told = bare_base(wanted=torch.arange(20, 50), base_ids=torch.arange(30))
    made = Unibridge(UnibridgeParams(**SMALL))(told)
    assert made.sources.max() < 30


@pytest.mark.parametrize("change", [{"dim": 11}, {"epochs": 6}, {"min_count": 40}, {"temperature": 0.1}])
def test_every_option_matters(context, change):
    one, other = (Unibridge(UnibridgeParams(**SMALL | given))(context()) for given in ({}, change))
    assert not torch.allclose(one.rows, other.rows)
    if "min_count" in change:
        assert other.served.sum() < one.served.sum()


def test_sources_and_coefficients_rebuild_the_rows(bare_base, tools):
    told = bare_base(wanted=torch.arange(20, 50))
    made = Unibridge(UnibridgeParams(**SMALL))(told)
    torch.testing.assert_close(tools.rebuild(made, told.base_rows)[made.served], made.rows[made.served])
    torch.testing.assert_close(made.coefs.sum(dim=1), made.served.float())


@pytest.mark.parametrize("anchors", [0, 1])
def test_few_anchors_give_finite_rows(context, anchors):
    told = context(anchor_targets=torch.arange(anchors), anchor_bases=torch.arange(anchors) + 10)
    made = Unibridge(UnibridgeParams(**SMALL))(told)
    assert torch.isfinite(made.rows).all()
    if anchors:
        assert made.served.all()


def test_an_empty_corpus_serves_nothing(context, tools):
    told = context(resources=tools.resources(corpus=[]))
    made = Unibridge(UnibridgeParams())(told)
    assert not made.served.any()
    torch.testing.assert_close(made.rows, told.base_mean.expand(20, 12))


def test_rows_depend_on_the_seed_and_not_on_the_batch_size(bare_base):
    method, wanted = Unibridge(UnibridgeParams(**SMALL)), torch.arange(20, 50)
    whole = method(bare_base(wanted=wanted))
    for size in (1, 7):
        split = method(bare_base(wanted=wanted, batch_size=size))
        torch.testing.assert_close(split.rows, whole.rows)
        assert split.sources.equal(whole.sources)
    seeded = method(bare_base(wanted=wanted, generator=torch.Generator().manual_seed(1)))
    assert not torch.allclose(seeded.rows, whole.rows)
