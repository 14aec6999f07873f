"""Vectors of words and tokens: trained alike every time, brought into one space, averaged, looked up."""

import gc
import logging
import os
import subprocess
import sys
import weakref

import pytest
import torch

from tokensurgeon.errors import InputError
from tokensurgeon.methods import wordvectors
from tokensurgeon.methods.base import InitRows, Segmentation, WordVectors
from tokensurgeon.methods.wordvectors import Holdings, TokenVectors, Words
from tokensurgeon.solvers.nearest import build_index

OPTIONS = {"dim": 8, "epochs": 2, "min_count": 1, "ngrams": (3, 6), "seed": 7}
LINES = [f"the {beast} ate {food} and slept".split() for beast in ("cat", "dog") for food in "abcdef"] * 5


def train(lines=LINES, **changes):
    return wordvectors.train(lines, **OPTIONS | changes)


class TestTraining:
    def test_two_runs_give_one_table_and_every_option_another(self):
        first, again = train(), train()
        assert first.words == again.words
        assert first.rows.equal(again.rows)
        for change in ({"seed": 8}, {"epochs": 3}, {"ngrams": (5, 5)}):
            assert not train(**change).rows.equal(first.rows)
        assert train(dim=5).rows.shape == (len(first.words), 5)

    def test_another_process_gives_the_same_table(self):
        code = (
            "from tokensurgeon.methods.wordvectors import train\n"
            "lines = [f'the {b} ate {f} and slept'.split() for b in ('cat', 'dog') for f in 'abcdef'] * 5\n"
            f"print(train(lines, **{OPTIONS!r}).rows.double().sum().item())"
        )
        told = os.environ | {"PYTHONHASHSEED": "1"}
        ran = subprocess.run(
            [sys.executable, "-c", code], env=told, capture_output=True, text=True, check=True
        )
        assert float(ran.stdout) == train().rows.double().sum().item()

    def test_words_used_alike_get_similar_vectors(self):
        lines = [[f"a{i}", pet, f"b{i}"] for i in range(9) for pet in ("cat", "dog")] * 40
        lines += [[f"c{i}", pet, f"d{i}"] for i in range(9) for pet in ("oak", "elm")] * 40
        made = train(lines, epochs=600, ngrams=(1, 0))
        unit = torch.nn.functional.normalize(made.rows, dim=1)
        cat, dog, oak, elm = (unit[made.words.index(word)] for word in ("cat", "dog", "oak", "elm"))
        assert min(cat @ dog, oak @ elm) > max(cat @ oak, cat @ elm, dog @ oak, dog @ elm) + 0.5

    def test_words_come_by_frequency_and_rare_ones_do_not(self):
        made = train([["b", "a", "a", "c", "b", "a"]], min_count=2)
        assert made.words == ["a", "b"]
        assert made.frequencies.tolist() == [3, 2]
        none = train([["a"]], min_count=2)
        assert none.words == []
        assert none.rows.shape == (0, 8)

    def test_long_lines_are_read_to_their_end(self):
        words = [f"w{i % 300}" for i in range(15_000)]
        split = [words[start : start + 1000] for start in range(0, 15_000, 1000)]
        assert train([words]).rows.equal(train(split).rows)

    def test_it_is_quiet(self, caplog, capfd):
        train()
        assert not caplog.records
        assert capfd.readouterr() == ("", "")
        assert logging.getLogger("gensim").level == logging.NOTSET


def test_tokens_have_names_of_their_own_made_of_their_letters():
    tokens = {0: b"\xff", 1: rb"\xff", 2: b" a", 3: "▁a".encode(), 4: b"", 5: "é".encode(), 6: b" a"}
    names = wordvectors.token_names(tokens)
    assert len(set(names.values())) == 7
    assert (names[2], names[5]) == ("▁a", "é")


def test_named_vectors_are_of_unit_length_and_by_id(tools):
    words = Words(["x", "y", "z"], tools.random(1, 3, 4), torch.ones(3))
    made = wordvectors.named_vectors(words, {9: "y", 2: "z", 5: "none"})
    assert made.ids.tolist() == [2, 9]
    torch.testing.assert_close(made.rows, torch.nn.functional.normalize(words.rows[[2, 1]], dim=1))


class TestSpaces:
    @staticmethod
    def spaces(context, tools, **resources):
        return wordvectors.word_spaces(context(resources=tools.resources(**resources)), 6, 2)

    @pytest.fixture
    def base(self, tools):
        return WordVectors([f"word{i}" for i in range(30)], tools.random(1, 30, 6))

    def test_without_given_vectors_both_sides_are_the_corpus(self, context, tools):
        corpus = ["one two one"] * 5 + ["rare two"]
        target, base = self.spaces(context, tools, corpus=corpus)
        assert target is base
        assert target.words == ["one", "two"]
        assert target.frequencies.tolist() == [10, 6]
        assert target.rows.shape == (2, 6)

    def test_the_dictionary_turns_target_words_onto_base_words(self, context, tools, base):
        turn = torch.linalg.qr(tools.random(2, 6, 6)).Q
        target = WordVectors([f"wort{i}" for i in range(30)], 3 * base.rows @ turn)
        pairs = [(f"word{i}", f"wort{i}") for i in range(20)]
        made, same = self.spaces(
            context, tools, base_vectors=base, target_vectors=target, dictionary=pairs, corpus=[]
        )
        torch.testing.assert_close(made.rows, 3 * base.rows)
        assert same.rows.equal(base.rows)
        torch.testing.assert_close(made.frequencies, 1 / torch.arange(1.0, 31).double())

    def test_a_narrower_space_is_turned_as_well(self, context, tools, base):
        flat = WordVectors(base.words, base.rows * torch.tensor([1.0, 1, 1, 1, 0, 0]))
        narrow = WordVectors(base.words, base.rows[:, :4])
        pairs = [(word, word) for word in base.words]
        made, _ = self.spaces(context, tools, base_vectors=flat, target_vectors=narrow, dictionary=pairs)
        torch.testing.assert_close(made.rows, flat.rows)

    def test_dictionary_words_are_looked_up_in_lower_and_title_case(self, tools):
        base = Words(["haus", "Baum"], torch.eye(2), torch.ones(2))
        target = Words(["House", "tree"], torch.eye(2).flip(0), torch.ones(2))
        turn = wordvectors.align(target, base, [("Haus", "house"), ("BAUM", "TREE")])
        torch.testing.assert_close(target.rows @ turn, torch.eye(2))

    def test_given_vectors_of_one_width_are_taken_as_aligned(self, context, tools, base):
        target = WordVectors(["x"], tools.random(2, 1, 6))
        made, _ = self.spaces(context, tools, base_vectors=base, target_vectors=target)
        assert made.rows.equal(target.rows)

    def test_target_vectors_alone_serve_both_sides(self, context, tools, base):
        target, same = self.spaces(context, tools, target_vectors=base)
        assert target is same
        assert target.rows.equal(base.rows)

    def test_spaces_that_nothing_joins_are_refused(self, context, tools, base):
        narrow = WordVectors(["x"], torch.ones(1, 5))
        with pytest.raises(InputError, match=r"target \(given, 5 wide\) and of the base \(6 wide\)"):
            self.spaces(context, tools, base_vectors=base, target_vectors=narrow)
        with pytest.raises(InputError, match="trained on the corpus"):
            self.spaces(context, tools, base_vectors=base)
        with pytest.raises(InputError, match="dictionary of 1 pairs, of which none"):
            self.spaces(context, tools, base_vectors=base, target_vectors=narrow, dictionary=[("x", "x")])


def test_a_word_holds_each_token_once_in_whatever_form_it_is_written():
    def segment(text):
        return Segmentation([ord(letter) for letter in text], [])

    forms = (wordvectors.bare, wordvectors.spaced, wordvectors.capital, wordvectors.spaced_capital)
    made = wordvectors.hold(["aba", "B"], segment, forms)
    pairs = list(zip(map(chr, made.tokens.tolist()), made.words.tolist(), strict=True))
    assert pairs == [(" ", 0), ("A", 0), ("a", 0), ("b", 0), (" ", 1), ("B", 1)]
    assert wordvectors.hold([], segment, forms).tokens.tolist() == []


def test_a_tokens_vector_is_the_direction_of_its_words_weighted_mean(tools):
    rows, weights = tools.random(1, 4, 5), torch.tensor([1.0, 2, 0.5, 1]).double()
    rows[3] = -rows[0]
    holdings = Holdings(torch.tensor([7, 7, 2, 9, 9]), torch.tensor([0, 1, 2, 0, 3]))
    made = wordvectors.mean_vectors(holdings, rows, weights)
    assert made.ids.tolist() == [2, 7], "words that cancel say nothing"
    expected = torch.stack([rows[2], (rows[0] + 2 * rows[1]) / 3])
    torch.testing.assert_close(made.rows, torch.nn.functional.normalize(expected, dim=1))


def test_tokens_are_found_by_id(tools):
    vectors = TokenVectors(torch.tensor([2, 5, 9]), torch.eye(3))
    places, found = vectors.find(torch.tensor([9, 3, 2, 11, 0]))
    assert found.tolist() == [True, False, True, False, False]
    assert places[found].tolist() == [2, 0]
    assert vectors.among(torch.tensor([9, 1])).ids.tolist() == [9]
    none = TokenVectors(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3))
    assert none.find(torch.tensor([1]))[1].tolist() == [False]


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_weights_are_softmax_and_sparsemax_of_the_nearest_cosines(tools, temperature):
    queries, candidates, bases = tools.random(1, 5, 6), tools.random(2, 9, 6), torch.arange(9) * 3
    index = build_index(candidates)
    for weigh in (wordvectors.by_softmax, wordvectors.by_sparsemax):
        sources, coefs = weigh(queries, index, bases, 4, temperature)
        for row in range(5):
            cosines = torch.cosine_similarity(queries[row], candidates)
            near = cosines.argsort(descending=True)[:4]
            scores = (cosines[near] / temperature).double()
            if weigh is wordvectors.by_softmax:
                expected = scores.exp() / scores.exp().sum()
            else:
                low, high = scores.max() - 1, scores.max()
                for _ in range(60):
                    middle = (low + high) / 2
                    low, high = (middle, high) if (scores - middle).clamp(min=0).sum() > 1 else (low, middle)
                expected = (scores - low).clamp(min=0)
            kept = sources[row] >= 0
            assert sources[row][kept].tolist() == bases[near][expected > 1e-12].tolist()
            torch.testing.assert_close(coefs[row][kept], expected[expected > 1e-12].float())
            assert not coefs[row][~kept].any()


def test_rows_without_a_vector_are_not_served_and_columns_are_no_more_than_needed(context):
    told = context(batch_size=3)
    vectors = TokenVectors(torch.tensor([31, 35]), torch.eye(2))

    def weigh(at):
        return torch.tensor([[4, -1], [7, 9]])[at], torch.tensor([[1.0, 0], [0.5, 0.5]])[at]

    made = wordvectors.combine_near(told, vectors, weigh, 30)
    assert told.wanted[made.served].tolist() == [31, 35]
    assert made.sources.shape == made.coefs.shape == (20, 2)
    torch.testing.assert_close(made.rows[1], told.base_rows[4])
    torch.testing.assert_close(made.rows[5], told.base_rows[[7, 9]].mean(dim=0))
    torch.testing.assert_close(made.rows[0], told.base_mean)
    assert isinstance(made, InitRows)


class TestOnce:
    class Resources:
        corpus = ()

    def test_the_second_tensor_of_a_run_gets_what_the_first_made(self, context, tools):
        resources, made = self.Resources(), []
        told = context(resources=resources)
        for other in (told, context(resources=resources, lexicon=tools.lexicon())):
            assert wordvectors.once(other, "key", lambda: made.append(1) or len(made)) == 1
        other = torch.Generator().manual_seed(1)
        for changes, key in (
            ({}, "other key"),
            ({"generator": other}, "key"),
            ({"resources": self.Resources()}, "key"),
            ({"lexicon": tools.lexicon(base_of={1: 2})}, "key"),
        ):
            wordvectors.once(context(**{"resources": resources} | changes), key, lambda: made.append(1))
        assert len(made) == 5

    def test_it_is_gone_with_the_resources(self, context):
        resources, value = self.Resources(), torch.ones(1)
        kept = weakref.ref(value)
        values = [value]
        wordvectors.once(context(resources=resources), "key", values.pop)
        del value
        assert kept() is not None
        del resources
        gc.collect()
        assert kept() is None

    def test_resources_that_cannot_be_a_key_make_it_anew(self, context):
        made = []
        for _ in range(2):
            wordvectors.once(context(), "key", lambda: made.append(1))
        assert len(made) == 2
