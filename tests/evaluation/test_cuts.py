"""Fertility, bytes per token and Rényi efficiency of a text that was cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokensurgeon.evaluation.cuts import measure_cut, renyi_efficiency
from tokensurgeon.evaluation.measure import cut_text

MIXED = "the cat, 東京 is\n\nПривет 12 🙂 สวัสดี "


def cut(*pieces):
    """Pieces of a text as tokens; equal ones are the same token."""
    ends = [sum(len(piece.encode()) for piece in pieces[: place + 1]) for place in range(len(pieces))]
    kinds = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    return measure_cut("".join(pieces), [kinds[piece] for piece in pieces], ends)


def test_a_token_belongs_to_the_word_its_first_byte_that_is_no_blank_lies_in():
    found = cut("the", " ca", "t is", "\n", " ", "12")
    by_script = {share.script: (share.words, share.tokens, share.bytes) for share in found.by_script}
    assert by_script == {"Latin": (3, 3, 10), "Digits": (1, 1, 2), "Whitespace": (0, 2, 2)}
    assert (found.words, found.tokens, found.types) == (4, 6, 6)
    assert found.fertility == 6 / 4
    assert [share.fertility for share in found.by_script] == [1.0, 1.0, None]


def test_where_words_are_not_spaced_a_character_is_one():
    found = cut("東京都 ", "に", "go")
    assert [(share.script, share.words) for share in found.by_script] == [
        ("CJK", 3),
        ("Kana", 1),
        ("Latin", 1),
    ]
    assert found.fertility == 3 / 5


@given(st.text(st.sampled_from("a é東に1 \n🙂"), min_size=1))
def test_writing_systems_add_up_to_the_text_and_words_do_not_depend_on_the_cut(text):
    by_character = cut(*text)
    at_once = cut(text)
    for found in (by_character, at_once):
        assert sum(share.tokens for share in found.by_script) == found.tokens
        assert sum(share.bytes for share in found.by_script) == found.bytes == len(text.encode())
    words = {share.script: share.words for share in by_character.by_script if share.words}
    assert words == {share.script: share.words for share in at_once.by_script if share.words}
    assert sum(words.values()) == by_character.words == at_once.words


@pytest.mark.parametrize("kind", ["byte-level", "bytes", "byte-fallback"])
def test_tokens_of_real_tokenizers_are_all_counted(tokenizers, kind):
    found = cut_text(tokenizers[kind], "t", MIXED)
    assert found.tokens == len(tokenizers[kind](MIXED, add_special_tokens=False)["input_ids"])
    assert sum(share.tokens for share in found.by_script) == found.tokens
    assert found.bytes_per_token == len(MIXED.encode()) / found.tokens
    assert {share.script for share in found.by_script} >= {"Latin", "CJK", "Cyrillic", "Thai", "Symbols"}


def test_renyi_efficiency_is_that_of_the_authors_scorer():
    # README of zouharvi/tokenization-scorer, whose figures are those of order 3.
    first = ["pick", "@@ed", "pick", "@@l", "@@ed", "pick", "@@les"]
    second = ["pick", "@@e", "@@d", "pick", "@@l", "@@e", "@@d", "pick", "@@l", "@@e", "@@s"]
    for tokens, value in ((first, 0.8031528501359657), (second, 0.9105681923824472)):
        counts = [tokens.count(token) for token in set(tokens)]
        assert renyi_efficiency(counts, alpha=3) == pytest.approx(value)


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=50))
def test_renyi_efficiency_is_one_for_equal_counts_and_lower_for_others(counts):
    value = renyi_efficiency(counts)
    assert 0 < value <= 1 + 1e-9
    assert renyi_efficiency([7] * len(counts)) == pytest.approx(1)
    assert (value < 1 - 1e-9) or max(counts) - min(counts) <= 1 or value == pytest.approx(1, abs=1e-4)


def test_one_token_alone_has_no_efficiency():
    assert renyi_efficiency([5]) is None
    assert cut(" ").fertility is None
