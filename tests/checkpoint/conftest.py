"""A tiny Llama checkpoint with a byte-level tokenizer and the provenance of an output, written by hand."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokensurgeon.checkpoint.expectation import (
    MADE,
    PADDING,
    BodyTensor,
    Expectation,
    VocabRows,
    hash_rows,
)
from tokensurgeon.checkpoint.stream import hash_file
from tokensurgeon.vocab.probe import probe_chat, probe_ids
from tokensurgeon.vocab.vocabulary import load_vocabulary

COPIED = 300
WIDTH = 16
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def _llama(rows: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = {
        "self_attn.q_proj": (WIDTH, WIDTH),
        "self_attn.k_proj": (8, WIDTH),
        "self_attn.v_proj": (8, WIDTH),
    }
    shapes |= {"self_attn.o_proj": (WIDTH, WIDTH), "mlp.gate_proj": (24, WIDTH), "mlp.up_proj": (24, WIDTH)}
    shapes |= {
        "mlp.down_proj": (WIDTH, 24),
        "input_layernorm": (WIDTH,),
        "post_attention_layernorm": (WIDTH,),
    }
    named = {f"model.layers.0.{name}.weight": shape for name, shape in shapes.items()}
    named |= {EMBEDDING: (rows, WIDTH), HEAD: (rows, WIDTH), "model.norm.weight": (WIDTH,)}
    return {name: torch.randn(shape).to(torch.bfloat16) for name, shape in named.items()}


def _expected(directory: Path, tensors: dict[str, torch.Tensor]) -> Expectation:
    vocabulary = load_vocabulary(directory)
    rows = vocabulary.bound
    # One row that the tokenizer could do without stands for padding.
    source = [*range(COPIED), *[MADE] * (rows - COPIED - 1), PADDING]
    return Expectation(
        rows=rows,
        bound=rows,
        body={
            name: BodyTensor(
                dtype="BF16",
                shape=list(tensor.shape),
                sha256=hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest(),
            )
            for name, tensor in tensors.items()
            if name not in (EMBEDDING, HEAD)
        },
        vocab={
            name: VocabRows(
                role="embedding" if "embed" in name else "lm_head",
                dtype="BF16",
                shape=[rows, WIDTH],
                axis=0,
                equal_to=None,
                source=source,
                copied_sha256=hash_rows(tensors[name], list(range(COPIED))),
                may_repeat=[],
                may_vanish=False,
            )
            for name in (EMBEDDING, HEAD)
        },
        files={name: hash_file(directory / name) for name in ("tokenizer.json", "tokenizer_config.json")},
        probe=probe_ids(vocabulary),
        chat=probe_chat(vocabulary),
    )


@pytest.fixture(scope="session")
def healthy(byte_level: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output as the pipeline would write it; tests copy it before they damage it."""
    directory = tmp_path_factory.mktemp("healthy")
    for path in byte_level.iterdir():
        shutil.copy(path, directory)
    vocabulary = load_vocabulary(directory)
    ids = {f"{role}_token_id": vocabulary.roles[role] for role in ("bos", "eos", "pad")}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary.bound,
        "hidden_size": WIDTH,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
        **ids,
    }
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "generation_config.json").write_text(json.dumps(ids))
    tensors = _llama(vocabulary.bound)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    _expected(directory, tensors).save(directory)
    return directory


class Output:
    """A copy of the healthy output, and ways to damage it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def change_tensors(self, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
        path = self.directory / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})

    def change_json(self, name: str, **fields: object) -> None:
        path = self.directory / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    def change_expected_rows(self, name: str, **fields: object) -> None:
        vocab = json.loads((self.directory / "provenance.json").read_text())["vocab"]
        vocab[name] |= fields
        self.change_json("provenance.json", vocab=vocab)


@pytest.fixture
def output(healthy: Path, tmp_path: Path) -> Output:
    return Output(Path(shutil.copytree(healthy, tmp_path / "output")))
