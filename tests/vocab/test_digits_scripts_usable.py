"""How numbers are cut, which script a token is in, and whether a model has learnt it."""

import itertools

import pytest
from tokenizers import Regex, pre_tokenizers

from tokensurgeon.vocab.canonical import Kind
from tokensurgeon.vocab.digits import digit_scheme
from tokensurgeon.vocab.scripts import count_scripts, script_of, script_of_text
from tokensurgeon.vocab.usable import is_reachable, is_reserved
from tokensurgeon.vocab.vocabulary import Token

TRIPLES = ["".join(digits) for size in (2, 3) for digits in itertools.product("0123456789", repeat=size)]


def grouped(build, pattern):
    """A byte-level vocabulary with every number of up to three digits, cut by a regex."""
    pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return build.load(build.byte_level(TRIPLES, pre_tokenizer=pre_tokenizer, ignore_merges=True))


class TestDigits:
    def test_a_vocabulary_without_longer_numbers_has_single_digits(self, vocabularies):
        assert digit_scheme(vocabularies["byte-level"]) == "single digits"
        assert digit_scheme(vocabularies["sentencepiece"]) == "single digits"

    def test_numbers_may_be_cut_into_threes_from_the_left(self, build):
        assert digit_scheme(grouped(build, r"\d{1,3}")) == "groups of 3 from the left"

    def test_numbers_may_be_cut_into_threes_from_the_right(self, build):
        assert digit_scheme(grouped(build, r"\d{1,3}(?=(?:\d{3})*\b)")) == "groups of 3 from the right"

    def test_numbers_may_be_cut_into_twos(self, build):
        assert digit_scheme(grouped(build, r"\d{1,2}")) == "groups of 2 from the left"

    def test_frequent_numbers_may_be_tokens(self, build):
        assert digit_scheme(build.load(build.byte_level(["73", "2504"]))) == "learnt groups"

    def test_a_word_start_in_front_of_a_number_is_no_digit(self, build):
        digits = build.load(build.unigram(words=[*"0123456789", " the"]))
        assert digits.tokens[digits.encode("7")[0]].content == "▁"
        assert digit_scheme(digits) == "single digits"

    def test_a_vocabulary_without_digits_says_so(self, vocabularies):
        assert digit_scheme(vocabularies["unigram"]) == "no digits"
        assert digit_scheme(vocabularies["wordpiece-cased"]) == "no digits"


def text_token(data, kind=Kind.TEXT):
    data = data.encode() if isinstance(data, str) else data
    return Token(0, "", kind, data, word_start=False, added=False)


@pytest.mark.parametrize(
    ("data", "script"),
    [
        (" the", "Latin"),
        ("é", "Latin"),
        ("1st", "Latin"),
        ("Ｆ", "Latin"),
        (" мир", "Cyrillic"),
        ("αβ", "Greek"),
        ("日本", "CJK"),
        ("々", "CJK"),
        ("ひらがな", "Kana"),
        ("カタカナ", "Kana"),
        ("ー", "Kana"),
        ("한국", "Hangul"),
        ("مرحبا", "Arabic"),
        ("नम", "Devanagari"),
        (" 42", "Digits"),
        ("  \n\t", "Whitespace"),
        ("!?", "Symbols"),
        ("🙂", "Symbols"),
        (b"\xe6\x97", "Bytes"),
    ],
)
def test_a_token_is_in_the_script_of_its_first_letter(data, script):
    assert script_of(text_token(data)) == script
    assert isinstance(data, bytes) or script_of_text(data) == script


def test_a_control_token_is_in_no_script():
    assert script_of(text_token("<pad>", Kind.SPECIAL)) == "Special"


def test_scripts_are_counted_the_largest_first_then_by_name():
    tokens = [text_token(text) for text in ("мир", "7", "the", "cat", "!")]
    assert list(count_scripts(tokens).items()) == [
        ("Latin", 2),
        ("Cyrillic", 1),
        ("Digits", 1),
        ("Symbols", 1),
    ]


@pytest.mark.parametrize(
    ("content", "reserved"),
    [
        ("<unused7>", True),
        ("[unused0]", True),
        ("<|reserved_special_token_12|>", True),
        ("<extra_id_0>", True),
        ("<|PLACEHOLDER|>", True),
        ("[PAD]", False),
        ("unused", False),
        ("▁reserved", False),
        ("<|im_start|>", False),
    ],
)
def test_a_name_in_brackets_tells_a_reserved_token(content, reserved):
    assert is_reserved(Token(0, content, Kind.TEXT, content.encode(), False, True)) is reserved


class TestReachable:
    def test_a_byte_piece_beside_a_normal_piece_is_never_produced(self, vocabularies):
        vocabulary = vocabularies["sentencepiece"]
        assert not is_reachable(vocabulary.by_content["<0x61>"], vocabulary)
        assert is_reachable(vocabulary.by_content["<0x51>"], vocabulary)
        assert is_reachable(vocabulary.by_content["a"], vocabulary)

    def test_a_piece_whose_merges_lose_to_others_is_never_produced(self, build):
        vocabulary = build.load(build.byte_level(words=["ab", "bcd", "abcd"]))
        assert [vocabulary.tokens[i].content for i in vocabulary.run_model("bcd")] == ["bcd"]
        assert is_reachable(vocabulary.by_content["abcd"], vocabulary)
        vocabulary = build.load(build.byte_level(words=["bc", "abc"]))
        # "b c" comes first, so "ab" and with it "abc" never form from "abc".
        assert not is_reachable(vocabulary.by_content["abc"], vocabulary)

    def test_a_whole_word_that_is_looked_up_first_is_produced(self, build):
        vocabulary = build.load(build.tiktoken(words=["bc", "abc"]))
        assert is_reachable(vocabulary.by_content["abc"], vocabulary)

    def test_partial_letters_are_produced_in_byte_level_vocabularies(self, vocabularies):
        vocabulary = vocabularies["byte-level"]
        assert is_reachable(vocabulary.by_content["æĹ"], vocabulary)

    def test_added_special_and_wordpiece_tokens_count_as_reachable(self, vocabularies):
        for kind, content in (
            ("sentencepiece", "<bos>"),
            ("sentencepiece", "\n\n"),
            ("wordpiece-cased", "##ing"),
        ):
            assert is_reachable(vocabularies[kind].by_content[content], vocabularies[kind])
