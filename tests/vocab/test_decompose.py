"""Any bytes are written as tokens, and never as something else."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokensurgeon.vocab.canonical import Kind
from tokensurgeon.vocab.decompose import Pieces, decompose

TOTAL = ["byte-level", "tiktoken", "sentencepiece", "unigram-bytes"]


def spelt(data, vocabulary):
    """Printed forms of the pieces, for exact pieces."""
    pieces = decompose(data, vocabulary)
    assert pieces.exact
    return [vocabulary.tokens[index].content for index in pieces.ids]


def joined(pieces, vocabulary):
    return b"".join(vocabulary.tokens[index].data for index in pieces.ids)


def check_total(data, vocabularies):
    for kind in TOTAL:
        pieces = decompose(data, vocabularies[kind])
        assert pieces.exact
        assert joined(pieces, vocabularies[kind]) == data
        assert all(vocabularies[kind].tokens[index].kind is not Kind.SPECIAL for index in pieces.ids)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(data=st.binary(min_size=1, max_size=12))
@example(data=b"\x00")
@example(data=b"\xe6\x97")
@example(data="▁".encode())
@example(data=b"<s><0x41>")
def test_any_bytes_are_spelt_by_a_vocabulary_that_has_all_bytes(vocabularies, data):
    check_total(data, vocabularies)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(text=st.text(alphabet="atheingcr é日本\n\t▁Ġ<.", min_size=1, max_size=10))
def test_any_text_is_spelt_by_a_vocabulary_that_has_all_bytes(vocabularies, text):
    check_total(text.encode(), vocabularies)


@pytest.mark.parametrize(
    ("text", "byte_level", "sentencepiece"),
    [
        ("é", ["Ã©"], ["é"]),
        ("日本", ["æĹ¥æľ¬"], ["日本"]),
        ("\n", ["Ċ"], ["\n"]),
        ("  ", ["ĠĠ"], ["▁▁"]),
        (" the cat", ["Ġthe", "Ġcat"], ["▁the", "▁cat"]),
        ("the", ["t", "h", "e"], ["t", "h", "e"]),
        ("Q", ["Q"], ["<0x51>"]),
    ],
)
def test_pieces_are_those_of_the_bytes_and_not_of_the_printed_form(
    vocabularies, text, byte_level, sentencepiece
):
    assert spelt(text.encode(), vocabularies["byte-level"]) == byte_level
    assert spelt(text.encode(), vocabularies["sentencepiece"]) == sentencepiece


def test_no_word_start_is_put_in_front(vocabularies):
    assert spelt(b"cat", vocabularies["unigram-bytes"]) == ["c", "a", "t"]
    assert spelt(b" cat", vocabularies["unigram-bytes"]) == ["▁cat"]


def test_bytes_around_valid_text_become_byte_pieces(vocabularies):
    data = b"\xad" + "é the".encode() + "日".encode()[:2]
    assert spelt(data, vocabularies["sentencepiece"]) == ["<0xAD>", "é", "▁the", "<0xE6>", "<0x97>"]
    assert spelt(data, vocabularies["byte-level"]) == ["Ń", "Ã©", "Ġthe", "æĹ"]


def test_the_start_of_a_letter_is_not_the_replacement_character(vocabularies):
    vocabulary = vocabularies["sentencepiece"]
    assert spelt("日".encode()[:1], vocabulary) == ["<0xE6>"]
    assert spelt("�".encode(), vocabulary) == ["<0xEF>", "<0xBF>", "<0xBD>"]


def test_a_normal_piece_goes_before_the_byte_piece_of_the_same_byte(vocabularies):
    assert spelt(b"a", vocabularies["sentencepiece"]) == ["a"]
    assert spelt(b"\xffa\xffa\xff", vocabularies["sentencepiece"]) == ["<0xFF>", "a", "<0xFF>", "a", "<0xFF>"]


def test_without_byte_pieces_what_cannot_be_spelt_is_left_out_and_said(vocabularies):
    vocabulary = vocabularies["unigram"]
    pieces = decompose(" the☃ cat".encode(), vocabulary)
    assert not pieces.exact
    assert [vocabulary.tokens[index].content for index in pieces.ids] == ["▁the", "▁cat"]


def test_the_name_of_a_control_token_is_spelt_as_text(vocabularies):
    vocabulary = vocabularies["sentencepiece"]
    ids = decompose(b"<bos>", vocabulary).ids
    assert vocabulary.by_content["<bos>"].id not in ids
    assert joined(Pieces(ids, True), vocabulary) == b"<bos>"


def test_a_learnt_control_token_is_no_piece_even_where_the_model_takes_it(build):
    vocabulary = build.load(build.byte_level(words=["<e>"]), eos_token="<e>")
    assert vocabulary.run_model("<e>") == [vocabulary.roles["eos"]]
    assert "".join(spelt(b"<e>", vocabulary)) == "<e>"
    assert "<e>" not in spelt(b"<e>", vocabulary)


@pytest.mark.parametrize("data", [b"\xff", "☃".encode(), b"\x00\x01"])
@pytest.mark.parametrize("kind", ["unigram", "wordpiece-cased", "wordpiece-uncased"])
def test_what_cannot_be_spelt_at_all_has_no_pieces_and_not_id_0_or_unk(vocabularies, kind, data):
    assert decompose(data, vocabularies[kind]) == Pieces((), exact=False)


class TestWordPiece:
    def test_the_start_and_the_inside_of_words_are_told_apart(self, vocabularies):
        vocabulary = vocabularies["wordpiece-cased"]
        assert spelt(b" thes", vocabulary) == ["the", "##s"]
        assert spelt(b"thes", vocabulary) == ["##the", "##s"]
        assert spelt(b" running", vocabulary) == ["run", "##n", "##ing"]
        assert spelt(b" the cat.", vocabulary) == ["the", "cat", "."]

    def test_capitals_are_spelt_in_lower_case_by_an_uncased_vocabulary(self, vocabularies):
        vocabulary = vocabularies["wordpiece-uncased"]
        pieces = decompose(b" The", vocabulary)
        assert not pieces.exact
        assert [vocabulary.tokens[index].content for index in pieces.ids] == ["the"]

    def test_accents_are_stripped_by_an_uncased_vocabulary_that_lacks_them(self, vocabularies):
        vocabulary = vocabularies["wordpiece-uncased"]
        pieces = decompose(" càt".encode(), vocabulary)
        assert not pieces.exact
        assert [vocabulary.tokens[index].content for index in pieces.ids] == ["cat"]

    def test_capitals_are_kept_by_a_cased_vocabulary(self, vocabularies):
        assert spelt(b" The", vocabularies["wordpiece-cased"]) == ["The"]
