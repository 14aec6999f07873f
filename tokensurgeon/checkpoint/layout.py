"""Which tensors of a checkpoint have one row per token, from names and shapes.

No table of model classes: a name is read by its last parts, a shape by the number of rows of the input
embedding. A tensor that has this number somewhere and a name that says nothing stops the run, because
a wrong guess either way writes a broken model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tokensurgeon.checkpoint.index import CheckpointIndex, TensorRef
from tokensurgeon.errors import InputError


class TensorRole(StrEnum):
    """What a vocabulary tensor does."""

    EMBEDDING = "embedding"
    HEAD = "lm_head"
    BIAS = "bias"
    """One entry per token, added to the logits."""
    PER_LAYER = "per_layer_embedding"


@dataclass(frozen=True)
class VocabTensor:
    """One vocabulary tensor.

    Attributes:
        ref: Where it lies.
        role: What it does.
        axis: The axis that counts tokens.
    """

    ref: TensorRef
    role: TensorRole
    axis: int

    @property
    def name(self) -> str:
        """Its name in the checkpoint."""
        return self.ref.name

    @property
    def rows(self) -> int:
        """Number of tokens it has a row for."""
        return self.ref.shape[self.axis]


@dataclass(frozen=True)
class Layout:
    """The vocabulary tensors of a checkpoint.

    Attributes:
        tensors: All of them; the main input embedding first.
        tied: Whether the input embedding also serves as lm_head: no head is stored.
    """

    tensors: tuple[VocabTensor, ...]
    tied: bool

    @property
    def embedding(self) -> VocabTensor:
        """The main input embedding."""
        return self.tensors[0]

    @property
    def head(self) -> VocabTensor:
        """The lm_head; the input embedding of a tied model."""
        heads = [tensor for tensor in self.tensors if tensor.role is TensorRole.HEAD]
        # A copy deep inside a layer (multi-token prediction) may lie in an earlier shard.
        return min(heads, key=lambda head: head.name.count("."), default=self.embedding)

    @property
    def rows(self) -> int:
        """Rows of the main input embedding."""
        return self.embedding.rows

    @property
    def names(self) -> set[str]:
        """Names of all vocabulary tensors."""
        return {tensor.name for tensor in self.tensors}

    def find(self, role: TensorRole) -> VocabTensor | None:
        """The first tensor of a role, if there is one."""
        return next((tensor for tensor in self.tensors if tensor.role is role), None)


_NAMES = (
    (TensorRole.PER_LAYER, r"embed_tokens_per_layer\.weight"),
    (
        TensorRole.EMBEDDING,
        r"(embed_tokens|tokens_embed|wte|word_embeddings|word_embedding|embed_in|tok_embeddings|shared|token_embd"
        r"|embeddings|input_embedding|embedding|embed|emb|transformer\.w)\.weight",
    ),
    (
        TensorRole.HEAD,
        r"(lm_head|lm_head\.decoder|embed_out|output|proj_out|predictions\.decoder|decoder|shared_head\.head"
        r"|lm_loss|output_projection|generator_lm_head|score_head|head|vocab_projector|pred_layer\.proj"
        r"|unembed)\.weight",
    ),
    (
        TensorRole.BIAS,
        r"(lm_head|lm_head\.decoder|predictions|predictions\.decoder|decoder|lm_loss|embed_out|output|proj_out"
        r"|generator_lm_head|head)\.bias|final_logits_bias",
    ),
)
_PATTERNS = tuple((role, re.compile(rf"(^|.*\.)({pattern})$")) for role, pattern in _NAMES)

# The main input embedding, should several tensors look like one.
_MAIN = ("embed_tokens", "wte", "word_embeddings", "shared", "embed_in", "tok_embeddings")
# These names are never those of a body tensor.
_PLAIN_HEADS = re.compile(r"(^|.*\.)(lm_head|lm_head\.decoder|embed_out|lm_loss)\.weight$")
_FLOATS = ("BF16", "F16", "F32", "F64")
_PACKED = re.compile(
    r"\.(qweight|qzeros|scales|weight_scale(_inv)?|absmax|quant_map|weight_packed|weight\..*)$"
)


def is_vocab_name(name: str) -> bool:
    """Whether a tensor's name is that of a vocabulary tensor; its shape may still say otherwise."""
    return role_of(name) is not None


def role_of(name: str) -> TensorRole | None:
    """What a tensor does by its name alone; None for a body tensor."""
    return next((role for role, pattern in _PATTERNS if pattern.match(name)), None)


def find_layout(
    index: CheckpointIndex, config: Mapping[str, Any], overrides: Mapping[str, str] | None = None
) -> Layout:
    """Find the vocabulary tensors of a checkpoint.

    Args:
        index: The checkpoint's headers.
        config: Its ``config.json``; used to tell vocabulary sizes from other sizes.
        overrides: Role (``embedding`` or ``lm_head``) to tensor name, where names do not tell.

    Returns:
        The layout.

    Raises:
        InputError: There is no input embedding, it is quantised, or a tensor has a vocabulary-sized axis
            and an unknown name.
    """
    tensors = index.tensors
    forced = _forced(tensors, overrides or {})
    _refuse_packed(tensors)
    _refuse_empty(tensors)
    embedding = forced.get(TensorRole.EMBEDDING) or _main_embedding(tensors, config)
    rows = embedding.shape[0]
    others = _other_sizes(config)
    found = [VocabTensor(embedding, TensorRole.EMBEDDING, 0)]
    for ref in tensors.values():
        if ref.name == embedding.name:
            continue
        role = TensorRole.HEAD if forced.get(TensorRole.HEAD) is ref else role_of(ref.name)
        axis = _token_axis(ref, role, rows)
        if axis is None and forced.get(TensorRole.HEAD) is ref:
            raise InputError(
                f"layout.lm_head: {ref.name} has {ref.shape[0]} rows, {embedding.name} has {rows}",
                "an lm_head with a row for every row of the input embedding",
            )
        if role is None and ref.shape == (rows,) and ref.name.endswith(".bias") and rows not in others:
            # One entry per token: whatever the layer in front of it is called, it writes tokens.
            role, axis = TensorRole.BIAS, 0
        if role is not None and axis is not None:
            found.append(VocabTensor(ref, role, axis))
        elif rows in ref.shape and rows not in others:
            raise InputError(
                f"{ref.path.name}: tensor {ref.name} {list(ref.shape)} has the vocabulary size {rows} "
                "in its shape and a name that does not say what it is",
                "an input embedding, an lm_head, a bias or a per-layer embedding",
                f"name the tensors in the recipe: layout: {{embedding: {embedding.name}, lm_head: ...}}",
            )
        elif _PLAIN_HEADS.match(ref.name) and ref.shape[1:] == embedding.shape[1:]:
            raise InputError(
                f"{ref.path.name}: {ref.name} has {ref.shape[0]} rows, {embedding.name} has {rows}",
                "an lm_head with a row for every row of the input embedding",
            )
    for tensor in found:
        _refuse_quantised(tensor.ref)
    tied = not any(tensor.role is TensorRole.HEAD for tensor in found)
    return Layout(tuple(found), tied)


def _forced(tensors: Mapping[str, TensorRef], overrides: Mapping[str, str]) -> dict[TensorRole, TensorRef]:
    forced = {}
    for role, name in overrides.items():
        if name not in tensors:
            raise InputError(f"layout.{role}: no tensor {name}", "the name of a tensor of the base")
        forced[TensorRole(role)] = tensors[name]
    embedding, head = forced.get(TensorRole.EMBEDDING), forced.get(TensorRole.HEAD)
    for ref in (embedding, head):
        if ref is not None and (len(ref.shape) != 2 or 0 in ref.shape):
            raise InputError(f"layout: {ref.name} is {list(ref.shape)}", "a tensor with one row per token")
    return forced


def _token_axis(ref: TensorRef, role: TensorRole | None, rows: int) -> int | None:
    if role is TensorRole.BIAS:
        # BART keeps its bias as (1, V).
        return len(ref.shape) - 1 if ref.shape and ref.shape[-1] == rows else None
    if role is TensorRole.PER_LAYER:
        # Gemma 3n: its own number of rows, without the tokens of other modalities.
        return 0 if len(ref.shape) == 2 else None
    return 0 if role is not None and len(ref.shape) == 2 and ref.shape[0] == rows else None


def _main_embedding(tensors: Mapping[str, TensorRef], config: Mapping[str, Any]) -> TensorRef:
    candidates = [
        ref for ref in tensors.values() if role_of(ref.name) is TensorRole.EMBEDDING and len(ref.shape) == 2
    ]
    sizes = {value for level in _levels(config) if isinstance(value := level.get("vocab_size"), int)}
    # position_embeddings and the like end in the same words: prefer the declared size, then the larger.
    candidates.sort(
        key=lambda ref: (
            ref.shape[0] not in sizes,
            _main_rank(ref.name),
            -ref.shape[0],
            "decoder" in ref.name.split("."),  # what a sequence-to-sequence model reads is its encoder's
            ref.name,
        )
    )
    if not candidates or candidates[0].shape[0] == 0:
        listed = ", ".join(sorted(tensors)[:5])
        raise InputError(
            f"no input embedding among {len(tensors)} tensors ({listed}, ...)",
            "a tensor such as model.embed_tokens.weight",
            "name it in the recipe: layout: {embedding: NAME}",
        )
    return candidates[0]


def _main_rank(name: str) -> int:
    leaf = name.split(".")[-2]
    return _MAIN.index(leaf) if leaf in _MAIN else len(_MAIN)


def _levels(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    levels = [config]
    for value in config.values():
        if isinstance(value, Mapping):
            levels += _levels(value)
    return levels


def _other_sizes(config: Mapping[str, Any]) -> set[int]:
    """Sizes that are not vocabulary sizes; an axis of such a length proves nothing."""
    sizes: set[int] = set()
    for level in _levels(config):
        numbers = {
            key: value
            for key, value in level.items()
            if type(value) is int and "vocab" not in key and key != "embedding_size"  # OLMo's rows
        }
        sizes |= {value for key, value in numbers.items() if not key.endswith(("_id", "_index"))}
        heads, width = level.get("num_attention_heads"), level.get("head_dim")
        if type(heads) is int and type(width) is int:
            sizes |= {heads * width, int(level.get("num_key_value_heads") or heads) * width}
    return sizes


def _refuse_packed(tensors: Mapping[str, TensorRef]) -> None:
    for name, ref in tensors.items():
        stem = _PACKED.sub(".weight", name)
        if stem != name and role_of(stem) in (TensorRole.EMBEDDING, TensorRole.HEAD):
            _raise_quantised(ref)


def _refuse_empty(tensors: Mapping[str, TensorRef]) -> None:
    for ref in tensors.values():
        if 0 in ref.shape and role_of(ref.name) in (TensorRole.EMBEDDING, TensorRole.HEAD):
            raise InputError(
                f"{ref.path}: {ref.name} is empty: {list(ref.shape)}",
                "gathered weights; DeepSpeed ZeRO-3 saves empty ones",
                "run zero_to_fp32.py in the training checkpoint first",
            )


def _refuse_quantised(ref: TensorRef) -> None:
    if ref.dtype not in _FLOATS:
        _raise_quantised(ref)


def _raise_quantised(ref: TensorRef) -> None:
    raise InputError(
        f"{ref.path}: {ref.name} is {ref.dtype} {list(ref.shape)}: a quantised vocabulary tensor",
        f"a plain one ({', '.join(_FLOATS)}); the body may be quantised",
        "use a checkpoint whose embedding and lm_head are not quantised",
    )
