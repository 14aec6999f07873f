"""WECHSEL: base tokens near in the vectors of the words that hold them, by softmax."""

import json
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from tokensurgeon.methods.base import WordVectors
from tokensurgeon.methods.params import WechselParams
from tokensurgeon.methods.wechsel import Wechsel
from tokensurgeon.methods.wordvectors import Words, align
from tokensurgeon.solvers.nearest import build_index

PEER = json.loads((Path(__file__).parent / "peer_values.json").read_text())
TARGET_WORDS = ["bade", "abe", "babe", "bedibo", "baba", "bubad", "bode", "fada"]
BASE_WORDS = ["dafa", "bibo", "fadafa", "bu", "ada", "fu", "dodo", "bebe", "duhe"]


@pytest.fixture
def given(context, tools):
    """A context with word vectors of both languages, already aligned."""

    def make(**changes):
        target = WordVectors(TARGET_WORDS, tools.random(11, 8, 6))
        base = WordVectors(BASE_WORDS, tools.random(12, 9, 6))
        told = {"target_vectors": target, "base_vectors": base, "corpus": []} | changes.pop("resources", {})
        return context(resources=tools.resources(**told), **changes)

    return make


def mean_of_words(words, rows, segment):
    held = defaultdict(dict)
    for place, word in enumerate(words):
        for text in (word, " " + word):
            for index in segment(text).ids:
                held[index][place] = rows[place] / (place + 1)
    return {index: torch.nn.functional.normalize(sum(v.values()), dim=0) for index, v in sorted(held.items())}


@pytest.mark.parametrize(("neighbours", "temperature"), [(10, 0.1), (3, 0.1), (3, 2.0)])
def test_rows_are_softmax_combinations_of_the_nearest_base_tokens(given, neighbours, temperature):
    told = given()
    made = Wechsel(WechselParams(neighbours=neighbours, temperature=temperature))(told)
    resources, lexicon = told.resources, told.lexicon
    ours = mean_of_words(TARGET_WORDS, resources.target_vectors.rows, lexicon.segment_target)
    theirs = mean_of_words(BASE_WORDS, resources.base_vectors.rows, lexicon.segment_base)
    assert 0 < made.served.sum() < 20
    assert len(theirs) > 10
    for row, target in enumerate(told.wanted.tolist()):
        assert bool(made.served[row]) == (target in ours)
        if target not in ours:
            torch.testing.assert_close(made.rows[row], told.base_mean)
            continue
        nearest = sorted(theirs, key=lambda base: -float(ours[target] @ theirs[base]))[:neighbours]
        scores = torch.tensor([float(ours[target] @ theirs[base]) / temperature for base in nearest])
        weights = scores.exp() / scores.exp().sum()
        torch.testing.assert_close(made.rows[row], weights @ told.base_rows[nearest], rtol=1e-4, atol=1e-4)


def test_the_authors_package_makes_the_same_rows():
    told = PEER["wechsel_rows"]
    targets, candidates, base, rows = (
        torch.tensor(told[key]) for key in ("targets", "candidates", "base", "rows")
    )
    sources, coefs = Wechsel(WechselParams()).weigh(targets, build_index(candidates), torch.arange(15))
    assert sources.tolist() == told["sources"]
    torch.testing.assert_close(coefs, torch.tensor(told["weights"]), rtol=0, atol=1e-5)
    torch.testing.assert_close((base[sources] * coefs[:, :, None]).sum(dim=1), rows, rtol=0, atol=1e-5)


def test_the_authors_package_finds_the_same_rotation():
    told = PEER["wechsel_alignment"]
    base, target = (
        Words([str(place) for place in range(9)], torch.tensor(told[key]), torch.ones(9))
        for key in ("base", "targets")
    )
    turn = align(target, base, [(str(place), str(place)) for place in range(9)])
    # Theirs turns the base's words onto the target's.
    torch.testing.assert_close(turn.T, torch.tensor(told["turn"]), rtol=0, atol=1e-5)


def test_a_turned_space_gives_the_same_rows_once_the_dictionary_turns_it_back(given, tools):
    base = given().resources.base_vectors
    words = WordVectors([*TARGET_WORDS, *BASE_WORDS], torch.cat([tools.random(11, 8, 6), base.rows]))
    turned = WordVectors(words.words, words.rows @ torch.linalg.qr(tools.random(3, 6, 6)).Q)
    pairs = [(word, word) for word in BASE_WORDS]
    method = Wechsel(WechselParams())
    straight, lost = (method(given(resources={"target_vectors": vectors})) for vectors in (words, turned))
    found = method(given(resources={"target_vectors": turned, "dictionary": pairs}))
    torch.testing.assert_close(found.rows, straight.rows, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(lost.rows, straight.rows, atol=0.1)


def test_sources_and_coefficients_rebuild_the_rows(given, tools):
    told = given()
    made = Wechsel(WechselParams(neighbours=4))(told)
    assert made.sources.shape == (20, 4)
    torch.testing.assert_close(tools.rebuild(made, told.base_rows)[made.served], made.rows[made.served])


def test_only_base_tokens_with_a_row_are_taken(given):
    made = Wechsel(WechselParams())(given(base_ids=torch.arange(0, 40, 3)))
    taken = made.sources[made.sources >= 0]
    assert len(taken)
    assert not (taken % 3).any()


@pytest.mark.parametrize("change", [{"dim": 9}, {"epochs": 21}])
def test_without_given_vectors_the_corpus_is_trained_on(context, change):
    one, again, other = (Wechsel(WechselParams(**given))(context()) for given in ({}, {}, change))
    assert one.served.sum() > 10
    assert one.rows.equal(again.rows)
    assert not torch.allclose(one.rows, other.rows)
    seeded = Wechsel(WechselParams())(context(generator=torch.Generator().manual_seed(1)))
    assert not torch.allclose(one.rows, seeded.rows)


def test_words_without_vectors_or_base_tokens_serve_nothing(given, context, tools):
    zero = WordVectors(TARGET_WORDS, torch.zeros(8, 6))
    for told in (
        given(resources={"target_vectors": zero}),
        given(base_ids=torch.tensor([1])),
        context(resources=tools.resources(corpus=["once"])),
    ):
        made = Wechsel(WechselParams())(told)
        assert not made.served.any()
        torch.testing.assert_close(made.rows, told.base_mean.expand(20, 12))


@pytest.mark.parametrize("batch_size", [1, 7])
def test_rows_do_not_depend_on_the_batch_size(given, batch_size):
    whole, split = (Wechsel(WechselParams())(given(batch_size=size)) for size in (512, batch_size))
    assert split.sources.equal(whole.sources)
    torch.testing.assert_close(split.rows, whole.rows)
