"""Probabilities over all cuts of a text, against sums that know nothing of covers."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tokensurgeon.errors import InputError
from tokensurgeon.evaluation.bits_per_byte import score_texts
from tokensurgeon.evaluation.exact import score_exactly
from tokensurgeon.vocab.canonical import CHAR_OF_BYTE

EXACT = {"width": 10**9, "least": 0.0}


@pytest.fixture(scope="module")
def small():
    """A model of six tokens, and what they spell; one row more than there are tokens."""
    vocab = {"</s>": 0, "a": 1, "b": 2, "ab": 3, "aba": 4, "ba": 5}
    merges = [("a", "b"), ("ab", "a"), ("b", "a")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=7,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.5,
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    return LlamaForCausalLM(config).eval(), fast, {1: b"a", 2: b"b", 3: b"ab", 4: b"aba", 5: b"ba"}


def sequences_with(model, spelling, length):
    """What every sequence of tokens spells, up to its first special token, with its probability."""
    ids = torch.tensor(list(itertools.product(range(7), repeat=length)))
    given = torch.cat([torch.zeros(len(ids), 1, dtype=torch.long), ids], dim=1)
    with torch.no_grad():
        logs = model(input_ids=given[:, :-1]).logits.double().log_softmax(-1)
    probabilities = logs.gather(2, ids[:, :, None])[:, :, 0].sum(dim=1).exp()
    for row, probability in zip(ids.tolist(), probabilities.tolist(), strict=True):
        parts = itertools.takewhile(bool, (spelling.get(index, b"") for index in row))
        yield b"".join(parts), probability


@pytest.mark.parametrize("text", ["a", "ab", "abab", "baba", "aabb"])
def test_equals_the_sum_over_all_sequences_of_tokens(small, text):
    model, tokenizer, spelling = small
    data = text.encode()
    total, after = 0.0, dict.fromkeys([97, 98, None], 0.0)
    # One token more than bytes: the byte after the text is there too, whatever the cut.
    for spelt, probability in sequences_with(model, spelling, len(data) + 1):
        if spelt.startswith(data):
            total += probability
            after[next(iter(spelt[len(data) :]), None)] += probability
    found = score_exactly(model, tokenizer, "t", text, **EXACT)
    assert found.dropped == 0
    assert found.most_bits == found.least_bits == pytest.approx(-math.log2(total), rel=1e-5)
    assert [found.next_bytes[byte] for byte in (97, 98)] == pytest.approx(
        [after[97] / total, after[98] / total], rel=1e-4
    )
    assert found.end == pytest.approx(after[None] / total, rel=1e-4)
    assert sum(found.next_bytes) + found.end == pytest.approx(1)
    assert math.fsum(found.byte_bits) == pytest.approx(found.most_bits)


def covers(text, pieces, begun=()):
    """Sequences whose last token reaches to the end of the text or past it."""
    if not text:
        yield begun
        return
    for index, data in pieces.items():
        if data.startswith(text):
            yield (*begun, index)
        elif text.startswith(data):
            yield from covers(text[len(data) :], pieces, (*begun, index))


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
def test_equals_the_sum_over_covers_of_a_larger_vocabulary(llama, tokenizers, kind):
    tokenizer = tokenizers[kind]
    text = "the fox é"
    ids = {index: tokenizer.convert_ids_to_tokens(index) for index in range(2, len(tokenizer))}
    if kind == "byte-level":
        byte_of = {char: byte for byte, char in CHAR_OF_BYTE.items()}
        pieces = {index: bytes(byte_of[char] for char in token) for index, token in ids.items()}
        data = text.encode()
    else:
        pieces = {
            index: bytes([int(token[3:5], 16)])
            if token.startswith("<0x")
            else token.replace("▁", " ").encode()
            for index, token in ids.items()
        }
        data = b" " + text.encode()
    total = 0.0
    by_length = {}
    for cover in covers(data, pieces):
        by_length.setdefault(len(cover), []).append(cover)
    for group in by_length.values():
        given = torch.tensor([[0, *cover] for cover in group])
        with torch.no_grad():
            logs = llama(input_ids=given[:, :-1]).logits.double().log_softmax(-1)
        total += logs.gather(2, given[:, 1:, None])[:, :, 0].sum(dim=1).exp().sum().item()
    found = score_exactly(llama, tokenizer, "t", text, **EXACT)
    assert found.most_bits == pytest.approx(-math.log2(total), rel=1e-5)
    assert found.bytes == len(text.encode())
    assert found.canonical_bits > found.most_bits


def test_a_narrow_walk_bounds_the_exact_figure_from_both_sides(llama, tokenizers):
    text = "the fox and"
    exact = score_exactly(llama, tokenizers["byte-level"], "t", text, **EXACT)
    narrow = score_exactly(llama, tokenizers["byte-level"], "t", text, width=2)
    assert exact.dropped == 0
    assert narrow.dropped > 0
    assert narrow.passes < exact.passes
    assert narrow.least_bits < exact.most_bits <= narrow.most_bits <= narrow.canonical_bits
    assert 0 == exact.dropped_share < narrow.dropped_share < 1
    alone = score_exactly(llama, tokenizers["byte-level"], "t", text, width=0)
    assert alone.passes == len(tokenizers["byte-level"](text)["input_ids"]) + 1
    assert alone.most_bits <= alone.canonical_bits + 1e-6


def test_nodes_that_are_dropped_at_the_last_byte_leave_the_text_exact(small):
    model, tokenizer, _ = small
    exact = score_exactly(model, tokenizer, "t", "ab", **EXACT)
    narrow = [score_exactly(model, tokenizer, "t", "ab", least=place / 50) for place in range(51)]
    whole = [score for score in narrow if score.dropped and score.most_bits == exact.most_bits]
    assert whole  # some drop the two tokens at the end, and not the first of them before
    for score in whole:
        assert score.least_bits == score.most_bits
        assert score.next_bytes != exact.next_bytes


def test_with_one_way_to_cut_it_is_the_usual_figure(llama, tokenizers):
    [usual] = score_texts(llama, tokenizers["bytes"], {"t": "the fox"}).scores
    found = score_exactly(llama, tokenizers["bytes"], "t", "the fox", **EXACT)
    assert found.most_bits == found.least_bits == pytest.approx(usual.bits, rel=1e-5)
    assert found.canonical_bits == pytest.approx(usual.bits, rel=1e-5)
    assert np.argmax(found.next_bytes) < 256


def test_a_text_that_a_normaliser_changes_is_refused(llama, tokenizers):
    changed = copy.deepcopy(tokenizers["byte-level"])
    changed.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(InputError, match=r"(?s)its tokens spell b'the fox'.*does not change"):
        score_exactly(llama, changed, "t", "The Fox")


def test_without_a_token_to_open_it_a_text_is_refused(llama, byte_level):
    with pytest.raises(InputError, match="a token that opens a text"):
        score_exactly(llama, byte_level(300), "t", "the")
