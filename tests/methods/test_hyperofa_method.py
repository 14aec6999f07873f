"""HyperOFA: a network that reads rows out of the vectors of words."""

import pytest
import torch

from tokensurgeon.methods.base import WordVectors
from tokensurgeon.methods.hyperofa import Hyperofa, drop_words, gather, measure, run_network, start_network
from tokensurgeon.methods.params import HyperofaParams
from tokensurgeon.methods.wordvectors import Holdings

SMALL = {"hidden": 24, "steps": 60, "batch": 16, "context": 6, "learning_rate": 5e-3}
WORDS = [
    "bade",
    "abe",
    "babe",
    "bedibo",
    "baba",
    "bubad",
    "bode",
    "fada",
    "dafa",
    "bibo",
    "fu",
    "dodo",
    "duhe",
]


@pytest.fixture
def given(context, tools):
    """A context with word vectors that serve both sides."""

    def make(**changes):
        words = WordVectors(WORDS, tools.random(11, len(WORDS), 6))
        return context(resources=tools.resources(target_vectors=words, corpus=[]), **changes)

    return make


def test_the_network_learns_rows_that_the_words_tell(context, tools):
    # Each syllable is a word, and a base row is a linear map of its vector; the last four were never seen.
    words = [token.decode() for token in tools.lexicon().base.values()][18:]
    vectors = torch.nn.functional.normalize(tools.random(1, len(words), 4), dim=1)
    rows = torch.zeros(40, 12)
    rows[18:] = vectors @ tools.random(2, 4, 12) + 3
    told = context(
        base_rows=rows,
        base_ids=torch.arange(36),
        wanted=torch.arange(26, 30),
        resources=tools.resources(target_vectors=WordVectors(words, vectors)),
    )
    guess = (rows[36:] - rows[18:36].mean(dim=0)).norm()
    errors = [
        (Hyperofa(HyperofaParams(**SMALL | {"steps": steps}))(told).rows - rows[36:]).norm()
        for steps in (1, 800)
    ]
    assert errors[1] < 0.5 * guess < errors[0]


def test_tokens_without_words_are_not_served(given):
    told = given()
    made = Hyperofa(HyperofaParams(**SMALL))(told)
    held = {i for word in WORDS for text in (word, " " + word) for i in told.lexicon.segment_target(text).ids}
    assert made.served.tolist() == [index in held for index in told.wanted.tolist()]
    assert 0 < made.served.sum() < 20
    torch.testing.assert_close(made.rows[~made.served], told.base_mean.expand(int((~made.served).sum()), 12))


@pytest.mark.parametrize(
    "change",
    [{"hidden": 25}, {"steps": 61}, {"batch": 15}, {"learning_rate": 6e-3}, {"context": 2}],
    ids=str,
)
def test_every_option_of_the_network_matters(given, change):
    one, again, other = (Hyperofa(HyperofaParams(**SMALL | more))(given()) for more in ({}, {}, change))
    assert one.rows.equal(again.rows)
    assert not torch.allclose(one.rows, other.rows, rtol=1e-3)


@pytest.mark.parametrize("change", [{"dim": 9}, {"epochs": 11}])
def test_without_given_vectors_the_corpus_is_trained_on(context, change):
    one, other = (Hyperofa(HyperofaParams(**SMALL | more))(context()) for more in ({}, change))
    assert one.served.sum() > 10
    assert not torch.allclose(one.rows, other.rows)


def test_rows_depend_on_the_seed_and_on_no_other_random_numbers(given):
    method = Hyperofa(HyperofaParams(**SMALL))
    one = method(given())
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert method(given()).rows.equal(one.rows)
    assert torch.get_rng_state().equal(state)
    assert not torch.allclose(method(given(generator=torch.Generator().manual_seed(1))).rows, one.rows)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_rows_do_not_depend_on_the_batch_size(given, batch_size):
    whole, split = (Hyperofa(HyperofaParams(**SMALL))(given(batch_size=size)) for size in (512, batch_size))
    torch.testing.assert_close(split.rows, whole.rows)
    assert split.served.equal(whole.served)


def test_degenerate_bases_give_finite_rows(given, tools):
    low = tools.random(1, 40, 1) @ tools.random(2, 1, 12)
    for changes in (
        {"base_rows": low},
        {"base_rows": torch.zeros(40, 12)},
        {"base_ids": torch.tensor([10 + 9])},
        {"base_ids": torch.tensor([2])},
    ):
        told = given(**changes)
        made = Hyperofa(HyperofaParams(**SMALL))(told)
        assert torch.isfinite(made.rows).all()
    assert not made.served.any(), "base token 2 is in no word, so there is nothing to learn from"


def test_the_first_words_of_each_token_are_taken():
    ids, words = gather(Holdings(torch.tensor([4, 9, 4, 4, 2]), torch.tensor([0, 0, 1, 2, 3])), 2)
    assert ids.tolist() == [2, 4, 9]
    assert words.tolist() == [[3, -1], [0, 1], [0, -1]]


def test_half_of_the_large_sets_lose_up_to_half_of_their_words():
    words = torch.arange(8).repeat(4000, 1)
    words[:2000, 4:] = -1
    kept = drop_words(words, torch.Generator().manual_seed(0))
    assert kept[:2000].equal(words[:2000]), "four words are too few to drop any"
    counts = (kept[2000:] >= 0).sum(dim=1)
    assert counts.unique().tolist() == [5, 6, 7, 8]
    # Half are left alone, and a quarter of the others keep 7 and a bit, which makes 8.
    assert 0.59 < (counts == 8).float().mean() < 0.66
    assert ((kept == words) | (kept == -1)).all()
    share = (kept[2000:] >= 0).float().mean(dim=0)
    assert share.max() - share.min() < 0.04, "no word is favoured"


def test_the_network_and_its_loss_are_what_their_formulas_say(tools):
    generator = torch.Generator().manual_seed(0)
    weights = start_network(5, 7, 3, generator, torch.device("cpu"))
    vectors, is_word = tools.random(1, 2, 4, 5), torch.tensor([[True, True, False, False], [True] * 4])
    gelu = torch.nn.functional.gelu
    with torch.no_grad():
        made = run_network(weights, vectors, is_word)
        for row, count in enumerate((2, 4)):
            words = gelu(vectors[row, :count] @ weights["word"].T + weights["word_bias"])
            attention = (words @ weights["query"][0]).softmax(dim=0)
            hidden = gelu((attention @ words) @ weights["middle"].T + weights["middle_bias"])
            torch.testing.assert_close(made[row], hidden @ weights["row"].T + weights["row_bias"])
    truth = tools.random(2, 2, 3)
    cosines = torch.cosine_similarity(made[:, None], truth[None], dim=2) / 0.25
    contrast = sum(-cosines[row].log_softmax(dim=0)[row] for row in range(2)) / 2
    expected = 0.1 * contrast + 0.9 * (made - truth).abs().sum() / truth.abs().sum()
    torch.testing.assert_close(measure(made, truth), expected)
