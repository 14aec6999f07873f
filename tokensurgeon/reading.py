"""What a model makes of text that the base wrote.

In a text that is limited to a writing system, the base drew from fewer tokens than it knows. That no other
came says nothing of those, so none of them has a part in the normaliser.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokensurgeon.evaluation.bits_per_byte import score_texts
from tokensurgeon.evaluation.states import read_states
from tokensurgeon.evaluation.windows import encode
from tokensurgeon.lessons import limit_of, may_hold
from tokensurgeon.vocab.vocabulary import Token

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Examples:
    """What an lm_head sees over texts, and what follows.

    Attributes:
        states: ``(N, d)`` float32.
        following: ``(N,)`` int64 token that follows each.
        limits: ``(N,)`` int64 limit of the text of each.
        allowed: ``(L, V)`` bool, tokens that texts with each limit may hold.
    """

    states: Tensor
    following: Tensor
    limits: Tensor
    allowed: Tensor


def score_written(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Mapping[str, str],
    tokens: Mapping[int, Token],
) -> float:
    """How well a model predicts texts that the base wrote.

    Args:
        model: Causal language model.
        tokenizer: Its tokenizer.
        texts: Text by name, as ``tokensurgeon.lessons`` gives them.
        tokens: The tokenizer's tokens by id.

    Returns:
        Bits per byte of all texts together.
    """
    scores = [
        score
        for some, allowed in _by_limit(model, tokenizer, texts, tokens)
        for score in score_texts(model, tokenizer, some, allowed=allowed).scores
    ]
    return sum(score.bits for score in scores) / sum(score.bytes for score in scores)


def read_examples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Mapping[str, str],
    tokens: Mapping[int, Token],
) -> Examples:
    """Run a model over texts that the base wrote.

    Args:
        model: Causal language model.
        tokenizer: Its tokenizer.
        texts: Text by name, as ``tokensurgeon.lessons`` gives them.
        tokens: The tokenizer's tokens by id.

    Returns:
        Texts with the same limit together.
    """
    states, following, limits, allowed = [], [], [], []
    for number, (some, may_follow) in enumerate(_by_limit(model, tokenizer, texts, tokens)):
        seen, follows = read_states(model, tokenizer, some)
        states.append(seen)
        following.append(follows)
        limits.append(torch.full_like(follows, number))
        allowed.append(may_follow)
    return Examples(torch.cat(states), torch.cat(following), torch.cat(limits), torch.stack(allowed))


def _by_limit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Mapping[str, str],
    tokens: Mapping[int, Token],
) -> Iterator[tuple[dict[str, str], Tensor]]:
    """Texts with the same limit, and the ``(V,)`` bool tokens that they may hold."""
    groups: dict[str, dict[str, str]] = {}
    for name, text in texts.items():
        groups.setdefault(limit_of(name), {})[name] = text
    rows = len(model.get_input_embeddings().weight)
    for limit, some in groups.items():
        allowed = torch.full((rows,), not limit)
        if limit:
            allowed[[index for index, token in tokens.items() if may_hold(limit, token)]] = True
            # Pieces of letters, too, which may belong to any system.
            for name, text in some.items():
                allowed[encode(tokenizer, name, text).ids] = True
        yield some, allowed.to(model.device)
