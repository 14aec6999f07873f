"""Tiny real models and tokenizers, made here, no network."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

TRAINING = ["the quick brown fox jumps over the lazy dog and the cat sat on the mat " * 3, "Über 東京 🙂"]
ROWS = 320
SHAPE = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,  # enough for predictions that differ by position
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}


def make_byte_level(size, **roles):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


def make_byte_fallback():
    pieces = ["<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghijklmnopqrstuvwxyz."]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def tokenizers():
    return {
        "byte-level": make_byte_level(300, bos_token="<s>", eos_token="</s>"),
        "bytes": make_byte_level(258, bos_token="<s>", eos_token="</s>"),
        "byte-fallback": make_byte_fallback(),
    }


@pytest.fixture(scope="session")
def byte_level():
    return make_byte_level


@pytest.fixture(scope="session")
def llama():
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False)).eval()


@pytest.fixture(scope="session")
def gemma():
    torch.manual_seed(2)
    layers = ["sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, sliding_window=8, layer_types=layers)).eval()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory, llama, tokenizers):
    directory = tmp_path_factory.mktemp("llama")
    llama.save_pretrained(directory)
    tokenizers["byte-level"].save_pretrained(directory)
    return directory
