"""What a model's lm_head sees over a text, and what follows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Module

from tokensurgeon.console import track
from tokensurgeon.evaluation.windows import encode, find_bos

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_PROBE = 16


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
    start = find_bos(tokenizer)
    opening = [] if start is None else [start]
    followers: list[int] = []
    with _watched(model, all_logits=False) as seen:
        for name, text in track(texts.items(), "reading", unit="texts"):
            ids = [*opening, *encode(tokenizer, name, text).ids]
            if len(ids) > 1:
                model(input_ids=torch.tensor([ids[:-1]], device=model.device), use_cache=False)
                followers += ids[1:]
    return torch.cat(seen), torch.tensor(followers, device=seen[0].device)


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
    products = seen[0] @ rows.float().mT
    return torch.allclose(logits, products, rtol=1e-3, atol=1e-3 * float(products.abs().max()))


@contextmanager
def _watched(model: PreTrainedModel, *, all_logits: bool) -> Iterator[list[Tensor]]:
    """What the lm_head sees, ``(n, d)`` float32 for each pass, until the block ends.

    Without all logits it goes on with no position: over a large vocabulary the product takes longer than the
    rest of a small model.
    """
    seen: list[Tensor] = []

    def look(_: Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        seen.append(given[0][0].float().clone())
        return None if all_logits else (given[0][:, :0], *given[1:])

    watch = model.get_output_embeddings().register_forward_pre_hook(look)
    try:
        yield seen
    finally:
        watch.remove()
