"""Texts cut before and after an edit, and tokens that no text leads to."""

import dataclasses

import pytest
from hypothesis import given, settings
from small import EVERY_TEXT, byte_level, load, merge_lists, sentencepiece, unigram, unigrams, wordpiece

from tokensurgeon.edits.document import Edited, open_tokenizer
from tokensurgeon.edits.lossless import compare, unreachable
from tokensurgeon.edits.params import TrimParams
from tokensurgeon.edits.trim import count_tokens, trim
from tokensurgeon.vocab.vocabulary import load_vocabulary

TEXTS = {"one": "The quick brown fox\nПривет, мир!\n\n", "two": "the dog sleeps\u2028été"}


def after(vocabulary, edited: Edited):
    """The vocabulary of an edited tokenizer, as if read from disk."""
    tokens = {new: dataclasses.replace(vocabulary.tokens[old], id=new) for new, old in edited.origins.items()}
    return dataclasses.replace(
        vocabulary, tokens=tokens, tokenizer=open_tokenizer(edited.spec), spec=edited.spec
    )


def contents(vocabulary):
    return [vocabulary.tokens[index].content for index in unreachable(vocabulary)]


class TestCompare:
    @pytest.fixture
    def learnt(self, byte_level):
        return load_vocabulary(byte_level)

    def trimmed(self, vocabulary, *texts):
        edited = trim(vocabulary, TrimParams(corpus=("any",)), count_tokens(vocabulary, texts))
        return after(vocabulary, edited), edited.origins

    def test_nothing_differs_where_all_is_kept(self, learnt):
        result = compare(learnt, *self.trimmed(learnt, *TEXTS.values()), TEXTS)
        assert (result.lines, result.changed_lines, result.changed_bytes) == (4, 0, 0)
        assert (result.broken, result.examples) == (0, ())
        assert result.bytes_per_token[0] == result.bytes_per_token[1] > 1

    def test_shares_of_lines_and_bytes(self, learnt):
        # Without Cyrillic tokens there are only bytes for the second of four lines.
        result = compare(learnt, *self.trimmed(learnt, TEXTS["one"][:20], TEXTS["two"]), TEXTS)
        assert result.changed_lines == 1 / 4
        assert 8 <= result.changed_bytes * sum(len(text.encode()) for text in TEXTS.values()) <= 20
        assert result.bytes_per_token[0] > result.bytes_per_token[1]
        assert result.broken == 0

    def test_a_line_whose_tokens_were_all_kept_is_named_where_it_differs(self, learnt):
        # Two tokens change places.
        one, two = learnt.encode("dog")[0], learnt.encode("fox")[0]
        origins = {index: index for index in learnt.tokens} | {one: two, two: one}
        result = compare(learnt, learnt, origins, {"a": "dog\ncat\n" + "fox\n" * 7})
        assert (result.lines, result.changed_lines, result.broken) == (9, 8 / 9, 8)
        assert result.examples == ("dog\n", *["fox\n"] * 4)

    def test_no_text_is_no_tokens(self, learnt):
        result = compare(learnt, *self.trimmed(learnt, "a"), {})
        assert (result.lines, result.changed_lines, result.bytes_per_token) == (0, 0, (None, None))


class TestUnreachable:
    @pytest.mark.parametrize("make", [byte_level, sentencepiece])
    @settings(max_examples=40, deadline=None)
    @given(merges=merge_lists("abc"))
    def test_no_text_leads_to_them(self, make, merges):
        vocabulary = make(merges)
        seen = {index for text in EVERY_TEXT for index in vocabulary.encode(text)}
        assert not seen & set(unreachable(vocabulary))

    @settings(max_examples=40, deadline=None)
    @given(vocabulary=unigrams())
    def test_no_text_leads_to_them_by_scores_either(self, vocabulary):
        seen = {index for text in EVERY_TEXT for index in vocabulary.encode(text)}
        assert not seen & set(unreachable(vocabulary))

    def test_merges_that_lose_to_others(self):
        assert "abc" in contents(byte_level([("b", "c"), ("a", "b"), ("ab", "c")]))
        assert "abc" not in contents(byte_level([("a", "b"), ("b", "c"), ("ab", "c")]))

    def test_whole_words_are_looked_up_where_merges_are_ignored(self):
        merges = [("b", "c"), ("a", "b"), ("ab", "c"), ("!", "a"), ("b", "!"), ("b!", "a")]
        found = contents(byte_level(merges, ignore_merges=True))
        assert "abc" not in found
        # The pre-tokenizer never hands over letters and marks together.
        assert "b!a" in found
        assert {"abc", "b!a"} <= set(contents(byte_level(merges)))

    def test_bytes_that_have_a_piece_or_never_occur(self):
        found = contents(sentencepiece([], letters="▁a"))
        assert {"<0x20>", "<0x61>", "<0xC0>", "<0xFF>"} <= set(found)
        assert not {"<0x62>", "<0xC3>", "<0x80>", "a"} & set(found)

    def test_byte_sequences_that_are_not_utf8(self):
        # "é" is C3 A9: the second half of one and the first of the next occur, a lone first half does not.
        found = contents(byte_level([("©", "Ã"), ("Ã", "a"), ("©", "a")]))
        assert "Ãa" in found
        assert {"©Ã", "©a"}.isdisjoint(found)
        assert {"À", "ÿ"} <= set(found)

    def test_pieces_with_a_better_path(self):
        assert contents(unigram([["▁", -1.0], ["a", -1.0], ["b", -1.0], ["ab", -3.0], ["ba", -1.5]])) == [
            "ab"
        ]

    def test_wordpieces(self):
        vocabulary = wordpiece(["a", "ab", "abc", "##c", "##cb", "##.", ".", "[unused0]", "a."])
        assert contents(vocabulary) == ["##.", "[unused0]", "a."]

    def test_added_and_special_tokens_count_as_reachable(self, vocabulary_with_added):
        assert contents(vocabulary_with_added) == ["x y"]

    @pytest.fixture
    def vocabulary_with_added(self):
        model = {"type": "BPE", "vocab": {"x": 0, "y": 1, "xy": 2, "<s>": 3, "x y": 4}, "merges": []}
        names = [("<s>", 3), ("xy", 2)]
        return load(model, names)
