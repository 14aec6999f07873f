"""Where tokens end in the bytes of a text."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tokensurgeon.evaluation.boundaries import token_ends
from tokensurgeon.evaluation.windows import Encoded, encode
from tokensurgeon.vocab.canonical import BYTE_OF_CHAR, CHAR_OF_BYTE

MIXED = "a🙂🙂b 東京都 the fox\u0301 Ünïcode — 한국어 \u200d👩\u200d🚀 " * 2 + "\n\n\tend"


def ends_of(tokenizer, text):
    return token_ends(tokenizer, encode(tokenizer, "t", text), text.encode()).tolist()


def byte_pair(merges=(), normalizer=None, **options):
    """A byte-level tokenizer of the 256 bytes and these merges, nothing cut beforehand."""
    pairs = [tuple("".join(CHAR_OF_BYTE[byte] for byte in part) for part in merge) for merge in merges]
    pieces = [*CHAR_OF_BYTE.values(), *(left + right for left, right in pairs)]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs, **options))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def words(*vocab, pre_tokenizer):
    pieces = {piece: index for index, piece in enumerate(("[UNK]", *vocab))}
    tokenizer = Tokenizer(models.WordPiece(vocab=pieces, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def test_tokens_of_one_byte_end_after_each_byte(tokenizers):
    assert ends_of(tokenizers["bytes"], MIXED) == list(range(1, len(MIXED.encode()) + 1))


def test_tokens_end_where_their_own_bytes_end(tokenizers):
    tokenizer = tokenizers["byte-level"]
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(MIXED, add_special_tokens=False)["input_ids"])
    spelt = [bytes(BYTE_OF_CHAR[char] for char in piece) for piece in pieces]
    assert max(map(len, spelt)) > 1
    assert ends_of(tokenizer, MIXED) == np.cumsum([len(part) for part in spelt]).tolist()


def test_byte_pieces_end_inside_the_character_they_spell(tokenizers):
    # The first token is a word start that is not in the text; it shares the letter of the second.
    assert ends_of(tokenizers["byte-fallback"], "a🙂b") == [1, 1, 2, 3, 4, 5, 6]


def test_a_token_of_a_space_and_half_a_character_ends_inside_it():
    rocket = "🚀".encode()
    tokenizer = byte_pair([(b" ", rocket[:1]), (b" " + rocket[:1], rocket[1:2])])
    assert ends_of(tokenizer, "x 🚀y") == [1, 4, 5, 6, 7]


@pytest.mark.parametrize("text", ["the cat", "the cat  ", "  the  cat"])
def test_text_that_no_token_covers_belongs_to_the_token_after_it(text):
    tokenizer = words("the", "cat", pre_tokenizer=pre_tokenizers.BertPreTokenizer())
    assert ends_of(tokenizer, text) == [text.index("the") + 3, len(text)]


def test_a_leading_space_belongs_to_its_token_though_offsets_leave_it_out():
    tokenizer = byte_pair([(b"c", b"a"), (b"ca", b"t"), (b" ", b"cat")])
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    assert tokenizer("x cat", return_offsets_mapping=True)["offset_mapping"] == [(0, 1), (2, 5)]
    assert ends_of(tokenizer, "x cat") == [1, 5]


def test_a_leading_space_belongs_to_the_first_of_the_bytes_that_follow_it():
    rocket = "🚀".encode()
    tokenizer = byte_pair([(b" ", rocket[:1])])
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    assert tokenizer("x 🚀", return_offsets_mapping=True)["offset_mapping"][1] == (2, 3)
    assert ends_of(tokenizer, "x 🚀") == [1, 3, 4, 5, 6]


def test_tokens_that_share_an_altered_character_end_together_and_the_others_apart():
    tokenizer = byte_pair(normalizer=normalizers.NFKC())
    assert tokenizer.convert_ids_to_tokens(tokenizer("aﬁ🙂")["input_ids"])[:3] == ["a", "f", "i"]
    assert ends_of(tokenizer, "aﬁ🙂") == [1, 4, 4, 5, 6, 7, 8]


def test_a_tokenizer_that_cannot_be_read_as_bytes_is_told_apart_by_characters():
    tokenizer = byte_pair(end_of_word_suffix="</w>")
    assert tokenizer("a🙂")["input_ids"]
    assert ends_of(tokenizer, "a🙂")[-1] == 5
    assert set(ends_of(tokenizer, "a🙂")) == {1, 5}


def test_tokens_out_of_order_end_together():
    encoded = Encoded([0, 1, 2, 3], np.zeros(5, dtype=np.int64), np.array([(0, 2), (2, 4), (1, 2), (4, 6)]))
    assert token_ends(byte_pair(), encoded, b"abcdef").tolist() == [4, 4, 4, 6]


@pytest.mark.parametrize(
    "spans",
    [
        [(0, 0), (0, 0), (0, 0)],
        [(2, 4), (0, 2), (4, 6)],
        [(0, 2), (0, 0), (2, 4)],
        [(0, 6), (2, 3), (1, 2)],
        [(6, 6), (6, 6), (6, 6)],
    ],
)
def test_offsets_that_make_no_sense_still_give_ascending_ends(spans):
    encoded = Encoded([0, 1, 2], np.zeros(4, dtype=np.int64), np.array(spans))
    ends = token_ends(byte_pair(), encoded, b"abcdef").tolist()
    assert ends == sorted(ends)
    assert ends[-1] == 6
