"""What a model's lm_head sees over a text, and what follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Module

from tokensurgeon.console import progress
from tokensurgeon.evaluation.windows import encode, find_bos, pad

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_PROBE = 16
# Tokens read at once: more do not stay in a processor's cache, fewer leave a GPU idle.
_CPU_TOKENS, _GPU_TOKENS = 1024, 16384


@torch.inference_mode()
def read_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: dict[str, str]
) -> tuple[Tensor, Tensor]:
    """Run a model over texts, each opened by one BOS if the tokenizer has one.

    Args:
        model: Causal language model.
        tokenizer: Its tokenizer.
        texts: Text by name, each short enough for one pass.

    Returns:
        ``(N, d)`` float32 inputs of the lm_head, and the ``(N,)`` int64 tokens that follow them.
    """
    sequences = _encode(tokenizer, texts)
    states: list[Tensor] = [torch.empty(0)] * len(sequences)
    with (
        progress("reading", len(sequences), "texts") as advance,
        _watched(model, all_logits=False) as seen,
    ):
        for batch in _batches(sequences, model.device.type):
            ids, mask = pad([sequences[place][:-1] for place in batch])
            model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False)
            for place, found in zip(batch, seen.pop(), strict=True):
                states[place] = found[: len(sequences[place]) - 1].clone()
            advance(len(batch))
    following = torch.tensor([index for ids in sequences for index in ids[1:]], device=states[0].device)
    return torch.cat(states), following


def trace_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: dict[str, str],
    slope: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """How a loss over texts depends on the rows that a model reads, by way of its body.

    Args:
        model: Causal language model.
        tokenizer: Its tokenizer.
        texts: Text by name, each short enough for one pass.
        slope: Derivatives ``(N, d)`` of the loss by inputs ``(N, d)`` of the lm_head, given those and the
            ``(N,)`` int64 tokens that follow them.

    Returns:
        ``(V, d)`` float32 derivatives by the rows of the embedding, summed over the places where each is
        read, and ``(d, d)`` float32, the mean over those places of a derivative's product with itself: the
        Fisher information, if the model wrote the texts and the loss is what they take.
    """
    sequences = _encode(tokenizer, texts)
    opening = find_bos(tokenizer) is not None
    table = model.get_input_embeddings().weight
    slopes = torch.zeros(table.shape, device=table.device)
    squares, places = slopes.new_zeros((table.shape[1], table.shape[1])), 0
    with (
        torch.enable_grad(),
        progress("tracing", len(sequences), "texts") as advance,
        _watched(model, all_logits=False) as seen,
        _opened(model) as read,
    ):
        for batch in _batches(sequences, model.device.type):
            ids, mask = (some.to(table.device) for some in pad([sequences[place][:-1] for place in batch]))
            following, _ = pad([sequences[place][1:] for place in batch])
            model(input_ids=ids, attention_mask=mask, use_cache=False)
            states, rows = seen.pop(), read.pop()
            real = mask.bool()
            wanted = torch.zeros_like(states)
            wanted[real] = slope(states[real].detach(), following.to(table.device)[real])
            (found,) = torch.autograd.grad(states, rows, wanted)
            # Some models multiply what they read with a constant.
            factor = rows.detach()[real].float().norm() / table[ids[real]].float().norm()
            # The opening token is read everywhere, and unlike any other.
            real[:, 0] &= not opening
            part = factor * found[real].float()
            slopes.index_add_(0, ids[real], part)
            squares += part.mT @ part
            places += len(part)
            advance(len(batch))
    return slopes, squares / max(places, 1)


def _encode(tokenizer: PreTrainedTokenizerFast, texts: dict[str, str]) -> list[list[int]]:
    """Texts as tokens, opened by one BOS if there is one; without those of which nothing follows."""
    start = find_bos(tokenizer)
    opening = [] if start is None else [start]
    sequences = ([*opening, *encode(tokenizer, name, text).ids] for name, text in texts.items())
    return [ids for ids in sequences if len(ids) > 1]


def _batches(sequences: list[list[int]], device: str) -> Iterator[list[int]]:
    """Places of sequences of like length, as many as have no more tokens, padded, than suit a device."""
    most = _CPU_TOKENS if device == "cpu" else _GPU_TOKENS
    batch: list[int] = []
    for place in sorted(range(len(sequences)), key=lambda place: len(sequences[place])):
        if batch and (len(batch) + 1) * len(sequences[place]) > most:
            yield batch
            batch = []
        batch.append(place)
    yield batch


@torch.inference_mode()
def has_plain_logits(model: PreTrainedModel) -> bool:
    """Whether logits are products with the lm_head: no bias, no scale, no cap.

    Args:
        model: Causal language model.

    Returns:
        What a few tokens say.
    """
    rows = model.get_output_embeddings().weight
    ids = torch.arange(min(_PROBE, len(rows)), device=model.device)[None]
    with _watched(model, all_logits=True) as seen:
        logits = model(input_ids=ids, use_cache=False).logits[0].float()
    products = seen[0][0] @ rows.float().mT
    return torch.allclose(logits, products, rtol=1e-3, atol=1e-3 * float(products.abs().max()))


@contextmanager
def _watched(model: PreTrainedModel, *, all_logits: bool) -> Iterator[list[Tensor]]:
    """What the lm_head sees, ``(B, n, d)`` float32 for each pass, until the block ends.

    Without all logits it goes on with no position: over a large vocabulary the product takes longer than the
    rest of a small model.
    """
    seen: list[Tensor] = []

    def look(_: Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        seen.append(given[0].float())
        return None if all_logits else (given[0][:, :0], *given[1:])

    watch = model.get_output_embeddings().register_forward_pre_hook(look)
    try:
        yield seen
    finally:
        watch.remove()


@contextmanager
def _opened(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """What the body reads, ``(B, n, d)`` for each pass, as leaves to derive by, until the block ends."""
    read: list[Tensor] = []

    def look(_: Module, __: object, rows: Tensor) -> Tensor:
        read.append(rows.detach().requires_grad_())
        return read[-1]

    watch = model.get_input_embeddings().register_forward_hook(look)
    try:
        yield read
    finally:
        watch.remove()
