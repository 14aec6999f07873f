"""Sampled tokens are runs of base tokens within a word, the frequent ones first."""

from collections import Counter

import pytest
import torch

from tokensurgeon.training.sampling import Sizes, TokenizerSampler

# One token a character, and "the" as one.
KNOWN = {ord(character): character.encode() for character in "abcdefgh 12.\n"} | {0: b"the", 1: "é".encode()}
CORPUS = ["abc abc abcd 12.", "the abc hg", "gh gh abab"] * 5


def segment(text):
    return [ord(character) for character in text.replace("the", "\0")]


def make(corpus=CORPUS, seed=0, texts=3, block=20, pieces=3, tokens=64):
    generator = torch.Generator().manual_seed(seed)
    return TokenizerSampler(corpus, segment, KNOWN, Sizes(texts, block, pieces, tokens), generator)


def spelt(runs):
    return [b"".join(KNOWN[token] for token in run).decode() for run in runs]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("abc de", ["abc", " de"]),
        ("ab12.", ["ab", "12", "."]),
        ("a\n b", ["a", "\n", " b"]),
        ("thea the", ["thea", " the"]),
        ("ab?cd", ["ab", "cd"]),
    ],
)
def test_words_begin_at_blanks_and_between_letters_digits_and_others(text, words):
    found = spelt(make().words(text))
    # A blank that is a token of its own is not of a kind with the letters after it.
    assert found == [part for word in words for part in ([" ", word[1:]] if word[0] == " " else [word])]


def test_a_blank_within_a_token_begins_a_word_and_letters_beyond_ascii_go_on():
    known = {0: b"ab", 1: b" cd", 2: "é".encode()}
    sampler = TokenizerSampler([], lambda _: [0, 1, 2, 0, 1], known, Sizes(1, 8, 3, 64), torch.Generator())
    assert sampler.words("") == [(0,), (1, 2, 0), (1,)]


def test_frequent_runs_are_taken_and_no_more_than_asked_for():
    words = [(97, 98, 99)] * 1000 + [(100 + index % 4, 97) for index in range(8)]
    sampler = make(tokens=6)
    assert sampler.tokens(words) == {(97, 98, 99), (97, 98), (98, 99), (97,), (98,), (99,)}
    assert len(make(tokens=9).tokens(words)) == 9


def test_runs_have_at_most_as_many_pieces_as_asked_for():
    for pieces in (2, 4):
        found = make(pieces=pieces, tokens=999).tokens([(97, 98, 99, 100, 101)] * 3)
        assert Counter(map(len, found)) == {size: 6 - size for size in range(1, pieces + 1)}


def test_noise_makes_another_tokenizer_each_time():
    sampler = make(tokens=5)
    words = [(97 + index % 8, 97 + index // 8) for index in range(64)]
    assert len({frozenset(sampler.tokens(words)) for _ in range(5)}) == 5


def test_a_word_is_cut_into_the_longest_known_runs_from_the_left():
    known = {(97, 98), (97, 98, 99), (98, 99), (100, 97)}
    word = (97, 98, 99, 100, 98, 99, 97)
    assert make().cut(word, known) == [(97, 98, 99), (100,), (98, 99), (97,)]
    assert make(pieces=2).cut(word, known) == [(97, 98), (99,), (100,), (98, 99), (97,)]


@pytest.mark.parametrize("start", [None, 1])
def test_a_batch_is_texts_of_the_corpus_with_the_next_token_as_label(start):
    runs, batch = make().batch(start)
    assert len(set(runs)) == len(runs)
    assert batch.ids.shape == batch.labels.shape
    assert batch.ids.shape[0] == 3
    assert batch.ids.shape[1] > 8
    for ids, labels in zip(batch.ids, batch.labels, strict=True):
        kept = labels >= 0
        assert labels[kept][:-1].equal(ids[kept][1:])
        text = "".join(spelt(runs[token] for token in [int(ids[0]), *labels[kept].tolist()]))
        if start is not None:
            assert text[0] == "é"
        assert text.removeprefix("é") in "\n".join(CORPUS)
        assert len(text) > 8


def test_texts_have_a_block_of_tokens_at_most():
    assert make(block=8).batch(None)[1].ids.shape == (3, 8)
    assert make(corpus=["ab"], block=8).batch(1)[1].ids.shape[1] <= 2


def test_other_base_tokens_join_the_vocabulary():
    runs, _ = make(corpus=["ab"]).batch(None)
    assert {run[0] for run in runs if len(run) == 1} == set(KNOWN)


def test_a_corpus_without_known_tokens_has_no_words():
    assert make().has_words
    assert not make(corpus=[]).has_words
    assert not make(corpus=["???"]).has_words


def test_the_seed_decides():
    (one, first), (two, second), (three, _) = (make(seed=seed).batch(None) for seed in (1, 1, 2))
    assert one == two
    assert first.ids.equal(second.ids)
    assert one != three
