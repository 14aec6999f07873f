"""A loss in parts: every chunk in one class of each split, and the classes make up the whole."""

import math
from itertools import accumulate, pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokensurgeon.evaluation.anatomy import find_anatomy
from tokensurgeon.evaluation.bits_per_byte import TextScore, TokenLosses, score_texts

MIXED = "a🙂🙂b 東京都 the fox\u0301 Ünïcode — 한국어 \u200d👩\u200d🚀 " * 3 + "\n\n\tend"


def scored(pieces, bits=None, ids=None):
    """A text as its pieces, each with its bits; 1, 2, 4, ... so that every sum tells its parts."""
    pieces = [piece if isinstance(piece, bytes) else piece.encode() for piece in pieces]
    bits = [float(2**place) for place in range(len(pieces))] if bits is None else bits
    ends = list(accumulate(map(len, pieces)))
    losses = TokenLosses(np.array(ids or range(len(pieces))), np.array(ends), np.array(bits))
    return TextScore("t", ends[-1], len(pieces), math.fsum(bits), losses)


def chunks_of(parts):
    return {part.name: part.chunks for part in parts if part.chunks}


def cuts(base, output, made=frozenset()):
    return chunks_of(find_anatomy("".join(base), scored(base), scored(output), made).by_cut)


class TestCuts:
    def test_one_token_in_both_is_the_same_token(self):
        assert cuts(["a", " b"], ["a", " b"]) == {"same token": 2}

    def test_one_base_token_in_several_target_tokens_is_split(self):
        assert cuts(["abc"], ["a", "b", "c"]) == {"split": 1}

    def test_several_base_tokens_in_one_target_token_are_merged(self):
        assert cuts(["a", "b", "c"], ["abc"]) == {"merged": 1}

    def test_several_tokens_on_both_sides_are_cut_differently(self):
        assert cuts(["ab", "c"], ["a", "bc"]) == {"cut differently": 1}

    def test_only_the_first_same_token_after_another_cut_is_after_it(self):
        found = cuts(["ab", "c", "d"], ["a", "b", "c", "d"])
        assert found == {"split": 1, "after a re-segmented one": 1, "same token": 1}

    def test_a_token_with_a_made_row_makes_its_chunk_missing_whatever_the_cut(self):
        assert cuts(["a", "b"], ["ab"], made={0}) == {"missing": 1}
        assert cuts(["ab"], ["a", "b"], made={1}) == {"missing": 1}
        assert cuts(["a"], ["a"], made={0}) == {"missing": 1}
        assert cuts(["a"], ["a"], made={7}) == {"same token": 1}

    def test_a_missing_token_that_was_not_cut_anew_leaves_the_next_one_the_same(self):
        assert cuts(["a", "b"], ["a", "b"], made={0}) == {"missing": 1, "same token": 1}

    def test_bits_are_those_of_both_sides_over_the_bytes_of_the_whole_text(self):
        anatomy = find_anatomy("abcdefgh", scored(["ab", "cdefgh"]), scored(["ab", "cd", "efgh"]), None)
        same, split = (part for part in anatomy.by_cut if part.chunks)
        assert (same.base, same.output, same.excess) == (1 / 8, 1 / 8, 0)
        assert (split.base, split.output, split.excess) == (2 / 8, 6 / 8, 4 / 8)
        assert (same.byte_share, split.byte_share) == (0.25, 0.75)

    def test_a_token_of_no_text_counts_in_the_chunk_that_it_opens(self):
        assert cuts(["", "a", "b"], ["a", "b"]) == {"merged": 1, "after a re-segmented one": 1}
        assert cuts(["", "a"], ["", "a"]) == {"cut differently": 1}


class TestScripts:
    def test_a_chunk_is_in_the_script_of_its_first_letter(self):
        pieces = [" the", "мир", "東京", " 42", "\n\n  ", "!?", "a"]
        anatomy = find_anatomy("".join(pieces), scored(pieces), scored(pieces), None)
        expected = {"CJK": 1, "Cyrillic": 1, "Latin": 2, "Whitespace": 1, "Digits": 1, "Symbols": 1}
        assert chunks_of(anatomy.by_script) == expected

    def test_the_script_with_the_most_text_comes_first(self):
        pieces = ["!", "a", "東", "b", "c"]
        anatomy = find_anatomy("".join(pieces), scored(pieces), scored(pieces), None)
        assert [part.name for part in anatomy.by_script[-1:]] == ["Symbols"]

    def test_a_chunk_that_ends_inside_a_character_is_in_the_script_of_that_character(self):
        first, second = "東".encode()[:1], "東".encode()[1:]
        pieces = [b"a", first, second]
        anatomy = find_anatomy("a東", scored(pieces), scored(pieces), None)
        assert chunks_of(anatomy.by_script) == {"CJK": 2, "Latin": 1}


class TestNewRows:
    @staticmethod
    def names(pieces, made):
        anatomy = find_anatomy("".join(pieces), scored(pieces), scored(pieces), made)
        return chunks_of(anatomy.by_new_rows)

    def test_a_new_row_is_predicted_once_and_seen_by_the_eight_tokens_after_it(self):
        found = self.names(list("abcdefghijkl"), {1})
        assert found == {
            "a new row is predicted": 1,
            "a new row among the 8 tokens before": 8,
            "neither": 3,  # a, k and l
        }

    def test_a_new_row_that_is_predicted_near_another_is_predicted(self):
        assert self.names(["a", "b"], {0, 1}) == {"a new row is predicted": 2}

    def test_rows_that_nobody_knows_of_leave_their_classes_out(self):
        anatomy = find_anatomy("ab", scored(["a", "b"]), scored(["ab"]), None)
        assert anatomy.by_new_rows is None
        assert "missing" not in [part.name for part in anatomy.by_cut]


def test_a_chunk_is_of_the_content_that_tokenizers_cut_most_differently():
    pieces = ["if", " 1", ":", "  ", "\n", "    ", "x", "\t", "=", "   7", " \n\n", "end", "\r\n"]
    anatomy = find_anatomy("".join(pieces), scored(pieces), scored(pieces), set())
    assert chunks_of(anatomy.by_content) == {
        "numbers": 2,
        "line breaks and indentation": 5,
        "runs of spaces, tabs": 1,
        "the rest": 5,
    }


def test_a_score_without_its_losses_is_refused():
    bare = TextScore("t", 1, 1, 1.0)
    with pytest.raises(ValueError, match="keep_losses"):
        find_anatomy("a", bare, scored(["a"]), None)


def splits(anatomy):
    return [anatomy.by_cut, anatomy.by_script, anatomy.by_content, anatomy.by_new_rows or anatomy.by_cut]


def assert_adds_up(anatomy, base, output):
    difference = output.bits_per_byte - base.bits_per_byte
    assert anatomy.excess == difference
    for parts in splits(anatomy):
        assert sum(part.chunks for part in parts) == anatomy.chunks
        assert sum(part.byte_share for part in parts) == pytest.approx(1)
        assert math.fsum(part.base for part in parts) == pytest.approx(base.bits_per_byte, rel=1e-12)
        assert math.fsum(part.output for part in parts) == pytest.approx(output.bits_per_byte, rel=1e-12)
        assert math.fsum(part.excess for part in parts) == pytest.approx(difference, abs=1e-12)


@st.composite
def tokenised(draw, data):
    """A way to cut bytes, inside characters too, with bits and ids."""
    inner = draw(st.sets(st.integers(1, len(data) - 1))) if len(data) > 1 else set()
    edges = [0, *sorted(inner), len(data)]
    pieces = [data[start:end] for start, end in pairwise(edges)]
    size = len(pieces)
    bits = draw(st.lists(st.floats(0, 30), min_size=size, max_size=size))
    ids = draw(st.lists(st.integers(0, 20), min_size=size, max_size=size))
    return scored(pieces, bits, ids)


@given(st.data())
def test_the_classes_of_every_split_add_up_to_the_whole_difference(data):
    text = data.draw(st.text(st.sampled_from("ab é🙂東1 \n"), min_size=1, max_size=30))
    base, output = data.draw(tokenised(text.encode())), data.draw(tokenised(text.encode()))
    made = data.draw(st.none() | st.frozensets(st.integers(0, 20), max_size=5))
    anatomy = find_anatomy(text, base, output, made)
    assert_adds_up(anatomy, base, output)
    if made is not None:
        assert anatomy.by_cut[-1].chunks == anatomy.by_new_rows[0].chunks


@pytest.mark.parametrize(
    ("one", "other"), list(product(["byte-level", "bytes", "byte-fallback", "without BOS"], repeat=2))
)
def test_the_loss_of_real_tokenizers_adds_up(llama, tokenizers, byte_level, one, other):
    kinds = {**tokenizers, "without BOS": byte_level(300)}
    options = {"stride_bytes": 24, "context_bytes": 16, "keep_losses": True}
    base, output = (
        score_texts(llama, kinds[kind], {"t": MIXED}, **options).scores[0] for kind in (one, other)
    )
    anatomy = find_anatomy(MIXED, base, output, {5, 70, 100, 290})
    assert_adds_up(anatomy, base, output)
    if one == other:
        assert {part.excess for part in anatomy.by_cut} == {0.0}
