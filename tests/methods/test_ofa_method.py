"""OFA: base tokens near in the plain mean of their words' vectors, on a table of lower rank."""

from collections import defaultdict

import pytest
import torch

from tokensurgeon.methods.base import Segmentation, WordVectors
from tokensurgeon.methods.ofa import Ofa
from tokensurgeon.methods.params import OfaParams

TARGET_WORDS = ["bade", "abe", "babe", "bedibo", "baba", "bubad", "bode", "fada"]
BASE_WORDS = ["dafa", "bibo", "fadafa", "bu", "ada", "fu", "dodo", "bebe", "duhe"]


@pytest.fixture
def given(context, tools):
    """A context with word vectors of both languages, in one space."""

    def make(**changes):
        told = {
            "target_vectors": WordVectors(TARGET_WORDS, tools.random(11, 8, 6)),
            "base_vectors": WordVectors(BASE_WORDS, tools.random(12, 9, 6)),
            "corpus": [],
        }
        return context(resources=tools.resources(**told), **changes)

    return make


def mean_of_words(words, rows, segment):
    held = defaultdict(dict)
    for place, word in enumerate(words):
        for text in (word, " " + word, word.capitalize(), " " + word.capitalize()):
            for index in segment(text).ids:
                held[index][place] = rows[place]
    return {index: torch.nn.functional.normalize(sum(v.values()), dim=0) for index, v in sorted(held.items())}


@pytest.mark.parametrize("rank", [None, 5])
@pytest.mark.parametrize(("neighbours", "temperature"), [(10, 0.1), (3, 2.0)])
def test_rows_are_combined_coordinates_times_primitives(given, rank, neighbours, temperature):
    told = given()
    made = Ofa(OfaParams(rank=rank, neighbours=neighbours, temperature=temperature))(told)
    left, values, right = torch.linalg.svd(told.base_rows, full_matrices=False)
    coordinates, primitives = left[:, :rank], values[:rank, None] * right[:rank]
    ours = mean_of_words(TARGET_WORDS, told.resources.target_vectors.rows, told.lexicon.segment_target)
    theirs = mean_of_words(BASE_WORDS, told.resources.base_vectors.rows, told.lexicon.segment_base)
    assert 0 < made.served.sum() < 20
    for row, target in enumerate(told.wanted.tolist()):
        assert bool(made.served[row]) == (target in ours)
        if target not in ours:
            torch.testing.assert_close(made.rows[row], told.base_mean)
            continue
        nearest = sorted(theirs, key=lambda base: -float(ours[target] @ theirs[base]))[:neighbours]
        scores = torch.tensor([float(ours[target] @ theirs[base]) / temperature for base in nearest])
        weights = scores.exp() / scores.exp().sum()
        expected = weights @ coordinates[nearest] @ primitives
        torch.testing.assert_close(made.rows[row], expected, rtol=1e-4, atol=1e-4)


def test_rows_lie_in_the_span_of_the_primitives(given):
    told, method = given(), Ofa(OfaParams(rank=4))
    made = method(told)
    primitives = method.primitives(told)
    assert made.primitives.equal(primitives)
    assert primitives.shape == (4, 12)
    lengths = torch.linalg.svdvals(told.base_rows)[:4]
    torch.testing.assert_close(primitives.norm(dim=1), lengths)
    assert torch.linalg.matrix_rank(torch.cat([primitives, made.rows[made.served]]), atol=1e-3) == 4
    assert Ofa(OfaParams())(told).primitives is None


def test_primitives_are_those_of_tokens_with_a_row(given, tools):
    told = given(base_ids=torch.arange(0, 40, 2))
    method = Ofa(OfaParams(rank=3))
    _, values, right = torch.linalg.svd(told.base_rows[::2], full_matrices=False)
    primitives = method.primitives(told)
    torch.testing.assert_close(primitives.norm(dim=1), values[:3])
    directions = torch.nn.functional.normalize(primitives, dim=1)
    torch.testing.assert_close((directions * right[:3]).sum(dim=1).abs(), torch.ones(3))


def test_a_table_of_lower_rank_than_asked_for_is_kept_whole(given, tools):
    low = tools.random(1, 40, 3) @ tools.random(2, 3, 12)
    whole, cut = (Ofa(OfaParams(rank=rank))(given(base_rows=low)) for rank in (None, 8))
    torch.testing.assert_close(cut.rows, whole.rows, rtol=1e-3, atol=1e-3)
    assert not Ofa(OfaParams(rank=2))(given(base_rows=torch.zeros(40, 12))).rows.any()


def test_capitals_are_tried_as_well(context, tools):
    # Target 30 is " abe"; here it stands for a capital A in front of the rest.
    lexicon = tools.lexicon(segment_target=lambda text: Segmentation([30] if "A" in text else [31], [1]))
    words = WordVectors(["ab"], torch.ones(1, 3))
    told = context(lexicon=lexicon, resources=tools.resources(target_vectors=words))
    assert Ofa(OfaParams())(told).served[:3].tolist() == [True, True, False]


@pytest.mark.parametrize("change", [{"dim": 9}, {"epochs": 11}])
def test_without_given_vectors_the_corpus_is_trained_on(context, change):
    one, again, other = (Ofa(OfaParams(**given))(context()) for given in ({}, {}, change))
    assert one.served.sum() > 10
    assert one.rows.equal(again.rows)
    assert not torch.allclose(one.rows, other.rows)
    seeded = Ofa(OfaParams())(context(generator=torch.Generator().manual_seed(1)))
    assert not torch.allclose(one.rows, seeded.rows)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_rows_do_not_depend_on_the_batch_size(given, batch_size):
    whole, split = (Ofa(OfaParams(rank=5))(given(batch_size=size)) for size in (512, batch_size))
    assert split.sources.equal(whole.sources)
    torch.testing.assert_close(split.rows, whole.rows)
