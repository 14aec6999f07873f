"""RAMEN: the base tokens of the words that a token's words mean."""

from collections import defaultdict

import pytest
import torch

from tokensurgeon.methods.base import WordVectors
from tokensurgeon.methods.params import RamenParams
from tokensurgeon.methods.ramen import Ramen

TARGET_WORDS = ["bade", "abe", "babe", "bedibo", "baba", "bubad", "bode", "fada"]
BASE_WORDS = ["dafa", "bibo", "fadafa", "bu", "ada", "fu", "dodo", "bebe", "duhe"]


@pytest.fixture
def given(context, tools):
    """A context with word vectors of both languages, already aligned."""

    def make(*, words=TARGET_WORDS, base_words=BASE_WORDS, rows=None, **changes):
        told = {
            "target_vectors": WordVectors(words, tools.random(11, 8, 6)[: len(words)]),
            "base_vectors": WordVectors(base_words, tools.random(12, 9, 6) if rows is None else rows),
            "corpus": [],
        }
        return context(resources=tools.resources(**told), **changes)

    return make


def slow_sparsemax(scores):
    """The threshold above which scores add up to one, by bisection."""
    low, high = scores.max() - 1, scores.max()
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (scores - middle).clamp(min=0).sum() > 1 else (low, middle)
    return (scores - low).clamp(min=0)


def slow_probabilities(told):
    """p(base token | target token), word by word."""
    resources, lexicon = told.resources, told.lexicon
    base_rows = torch.nn.functional.normalize(resources.base_vectors.rows.double(), dim=1)
    likely = defaultdict(lambda: torch.zeros(40, dtype=torch.float64))
    for rank, word in enumerate(resources.target_vectors.words, 1):
        row = torch.nn.functional.normalize(resources.target_vectors.rows[rank - 1].double(), dim=0)
        meanings = slow_sparsemax(base_rows @ row)
        for space in ("", " "):
            for target in set(lexicon.segment_target(space + word).ids):
                for chance, meaning in zip(meanings, resources.base_vectors.words, strict=True):
                    spelling = lexicon.segment_base(space + meaning).ids
                    for base in spelling:
                        likely[target][base] += chance / rank / len(spelling)
    return {target: shares / shares.sum() for target, shares in likely.items() if shares.any()}


def test_rows_are_expected_rows_of_the_translated_words(given):
    told = given()
    made, expected = Ramen(RamenParams())(told), slow_probabilities(told)
    assert 0 < made.served.sum() < 20
    for row, target in enumerate(told.wanted.tolist()):
        assert bool(made.served[row]) == (target in expected)
        wanted = expected[target].float() @ told.base_rows if target in expected else told.base_mean
        torch.testing.assert_close(made.rows[row], wanted, rtol=1e-4, atol=1e-5)


def test_a_word_with_one_meaning_gets_the_tokens_of_that_meaning(given, tools):
    # "bade" is target 38, and means the base word "bibo": " " is no token, so "bi" and "bo" with and without.
    rows = torch.cat([tools.random(11, 8, 6)[:1], -tools.random(11, 8, 6)[:1]])
    told = given(words=["bade"], base_words=["bibo", "fu"], rows=rows)
    made = Ramen(RamenParams())(told)
    assert told.wanted[made.served].tolist() == [38]
    assert set(made.sources[8].tolist()) == set(told.lexicon.segment_base("bibo").ids)
    torch.testing.assert_close(made.coefs[8], torch.tensor([0.5, 0.5]))


def test_sources_and_coefficients_rebuild_the_rows(given, tools):
    told = given()
    made = Ramen(RamenParams())(told)
    torch.testing.assert_close(tools.rebuild(made, told.base_rows)[made.served], made.rows[made.served])
    torch.testing.assert_close(made.coefs.sum(dim=1), made.served.float())
    assert (made.coefs.diff(dim=1) <= 0).all(), "the likeliest first"


def test_a_row_takes_at_most_64_base_tokens(context, tools):
    # 100 base words of one letter each, all meant a little by the word "bade".
    tokens = {index: chr(0x100 + index).encode() for index in range(100)}
    lexicon = tools.lexicon(base=tokens, segment_base=lambda text: tools.segment(text, tokens))
    rows = torch.cat([torch.ones(100, 1), 1e-3 * tools.random(1, 100, 3)], dim=1)
    words = [tokens[index].decode() for index in range(100)]
    told = context(
        base_rows=tools.random(2, 100, 12),
        base_ids=torch.arange(100),
        lexicon=lexicon,
        resources=tools.resources(
            target_vectors=WordVectors(["bade", "baba"], torch.eye(4)[:2] + 0.1),
            base_vectors=WordVectors(words, rows),
        ),
    )
    made = Ramen(RamenParams())(told)
    assert made.sources.shape == (20, 64)
    torch.testing.assert_close(made.coefs[8].sum(), torch.tensor(1.0))


def test_only_base_tokens_with_a_row_are_taken(given):
    made = Ramen(RamenParams())(given(base_ids=torch.arange(0, 40, 2)))
    taken = made.sources[made.sources >= 0]
    assert len(taken)
    assert not (taken % 2).any()
    torch.testing.assert_close(made.coefs.sum(dim=1), made.served.float())


@pytest.mark.parametrize("change", [{"dim": 9}, {"epochs": 11}])
def test_without_given_vectors_the_corpus_is_trained_on(context, change):
    one, again, other = (Ramen(RamenParams(**given))(context()) for given in ({}, {}, change))
    assert one.served.sum() > 10
    assert one.rows.equal(again.rows)
    assert not torch.allclose(one.rows, other.rows)
    seeded = Ramen(RamenParams())(context(generator=torch.Generator().manual_seed(1)))
    assert not torch.allclose(one.rows, seeded.rows)


def test_words_without_vectors_or_base_tokens_serve_nothing(given, context, tools):
    for told in (given(base_ids=torch.tensor([1])), context(resources=tools.resources(corpus=["once"]))):
        made = Ramen(RamenParams())(told)
        assert not made.served.any()
        torch.testing.assert_close(made.rows, told.base_mean.expand(20, 12))
    zero = given(rows=torch.zeros(9, 6))
    assert torch.isfinite(Ramen(RamenParams())(zero).rows).all()


@pytest.mark.parametrize("batch_size", [1, 7])
def test_rows_do_not_depend_on_the_batch_size(given, batch_size):
    whole, split = (Ramen(RamenParams())(given(batch_size=size)) for size in (512, batch_size))
    torch.testing.assert_close(split.rows, whole.rows)
    torch.testing.assert_close(split.coefs, whole.coefs)
