"""What an lm_head is given, and the rows it multiplies with.

Over a large vocabulary its product takes longer than the rest of a small model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Linear, Module, Parameter

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def flat_head(model: PreTrainedModel) -> Iterator[None]:
    """Let an lm_head see its states as one matrix, until the block ends.

    Given the last positions of several windows in bfloat16, a CPU multiplies one by one, many times slower.

    Args:
        model: Causal language model.

    Yields:
        Nothing.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, Linear):
        yield
        return
    shapes: list[torch.Size] = []

    def flatten(_: Module, given: tuple[Tensor, ...]) -> Tensor:
        shapes.append(given[0].shape[:-1])
        return given[0].flatten(end_dim=-2)

    def restore(_: Module, __: tuple[Tensor, ...], found: Tensor) -> Tensor:
        logits: Tensor = found.unflatten(0, shapes.pop())
        return logits

    hooks = head.register_forward_pre_hook(flatten), head.register_forward_hook(restore)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def narrow_head(model: PreTrainedModel, ids: Tensor | None) -> Iterator[None]:
    """Let an lm_head multiply with a few of its rows only, until the block ends.

    Its logits are as many as before, minus infinity for the other rows. One with a bias, or that is no plain
    product, goes on with all rows: whoever wants no others has to bar them.

    Args:
        model: Causal language model.
        ids: ``(n,)`` int64 rows, each once; None for all.

    Yields:
        Nothing.
    """
    head = model.get_output_embeddings()
    if ids is None or type(head) is not Linear or head.bias is not None:
        yield
        return
    whole = head.weight

    def widen(_: Module, __: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        return logits.new_full((*logits.shape[:-1], len(whole)), -torch.inf).index_copy_(-1, ids, logits)

    hook = head.register_forward_hook(widen)
    head.weight = Parameter(whole[ids], requires_grad=False)
    try:
        yield
    finally:
        head.weight = whole
        hook.remove()
