"""How white space is cut, what stands in front of a text, and a token found by what it is called."""

import pytest
from tokenizers import pre_tokenizers

from tokensurgeon.errors import InputError
from tokensurgeon.vocab.lookup import find_token, token_at
from tokensurgeon.vocab.traits import read_traits
from tokensurgeon.vocab.vocabulary import load_vocabulary
from tokensurgeon.vocab.whitespace import whitespace_scheme


class TestWhitespace:
    def test_the_longest_runs_are_those_that_one_token_spells(self, build):
        found = whitespace_scheme(build.load(build.byte_level(["  ", "\n\n\n", " the"])))
        assert (found.spaces, found.newlines, found.tabs) == (2, 3, 1)
        assert found.opens_words
        assert not found.joins_indentation

    def test_a_newline_and_its_indentation_may_be_one_token(self, build):
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        found = whitespace_scheme(build.load(build.byte_level(["\n    "], pre_tokenizer=whole)))
        assert found.joins_indentation
        assert not found.opens_words
        assert str(found).endswith("newline and indentation in one, space alone")

    def test_a_wordpiece_tokenizer_drops_spaces(self, vocabularies):
        assert str(whitespace_scheme(vocabularies["wordpiece-cased"])) == "dropped"

    def test_every_kind_has_a_scheme(self, vocabulary):
        found = whitespace_scheme(vocabulary)
        assert 0 <= found.spaces <= 64
        assert 0 <= found.newlines <= 64


def test_traits_tell_the_tokens_in_front_of_a_prompt_and_a_chat(sentencepiece, byte_level):
    adds, does_not = read_traits(load_vocabulary(sentencepiece)), read_traits(load_vocabulary(byte_level))
    assert (adds.bos, does_not.bos) == (1, 0)
    assert (adds.bos_chat, does_not.bos_chat) == (2, 1)
    assert (adds.normalizer, does_not.normalizer) == ("Replace", "none")
    assert str(adds.whitespace) != str(does_not.whitespace)


class TestLookup:
    def test_a_token_is_found_by_its_text_and_by_its_printed_form(self, vocabularies):
        vocabulary = vocabularies["byte-level"]
        assert find_token(vocabulary, " the") == find_token(vocabulary, "Ġthe")
        assert find_token(vocabulary, "<|endoftext|>").id == vocabulary.roles["eos"]

    def test_every_ordinary_token_that_is_preferred_is_found_by_its_text(self, vocabulary):
        for token in vocabulary:
            preferred = vocabulary.by_bytes.get(token.data, ())
            if preferred and preferred[0] is token and "\\x" not in token.text:
                assert find_token(vocabulary, token.text) is token

    def test_a_text_that_is_no_token_gets_its_cut_and_the_nearest_names(self, vocabularies):
        message = r"(?s)no token 'The'; it is cut into 'T' \| 'h' \| 'e'.*did you mean ' the'\?"
        with pytest.raises(InputError, match=message):
            find_token(vocabularies["byte-level"], "The")
        with pytest.raises(InputError, match=r"did you mean ' running'"):
            find_token(vocabularies["byte-level"], " runing")
        with pytest.raises(InputError, match=r"--id N$"):
            find_token(vocabularies["byte-level"], "xyzzyxyzzy")

    def test_an_id_that_is_no_token_is_refused(self, vocabularies):
        vocabulary = vocabularies["byte-level"]
        assert token_at(vocabulary, 3).id == 3
        with pytest.raises(InputError, match=r"(?s)no token with id 99999.*an id below"):
            token_at(vocabulary, 99999)
