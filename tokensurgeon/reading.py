"""What a model makes of text that the base wrote, and rows fitted to that text.

In a text that is limited to a writing system, the base drew from fewer tokens than it knows. That no other
came says nothing of those, so none of them has a part in the normaliser.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokensurgeon.console import progress
from tokensurgeon.evaluation.bits_per_byte import score_texts
from tokensurgeon.evaluation.states import read_states, trace_rows
from tokensurgeon.evaluation.windows import encode
from tokensurgeon.lessons import limit_of, may_hold
from tokensurgeon.solvers.softmax import Reads, fit_softmax_rows, state_slopes
from tokensurgeon.vocab.scripts import count_scripts, script_of
from tokensurgeon.vocab.vocabulary import Token

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# Times that rows are led past the text they are fitted to; twice as many gain nothing.
PASSES = 6
_LEAST_GROUP = 20


@dataclass(frozen=True)
class Limited:
    """Texts with the same limit.

    Attributes:
        texts: Text by name.
        ids: ``(n,)`` int64 tokens that they may hold; None for all.
    """

    texts: dict[str, str]
    ids: Tensor | None

    def allowed(self, model: PreTrainedModel) -> Tensor:
        """``(V,)`` bool, the rows of a model that may be right."""
        mask = torch.full((len(model.get_input_embeddings().weight),), self.ids is None)
        if self.ids is not None:
            # A vocabulary may have more tokens than the model has rows.
            mask[self.ids[self.ids < len(mask)]] = True
        return mask.to(model.device)


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


def group_by_limit(
    tokenizer: PreTrainedTokenizerFast, texts: Mapping[str, str], tokens: Mapping[int, Token]
) -> list[Limited]:
    """Put texts that the base wrote with the same limit together.

    Args:
        tokenizer: That of the model that is to read them.
        texts: Text by name, as ``tokensurgeon.lessons`` gives them.
        tokens: The tokenizer's tokens by id.

    Returns:
        The limits in the order of their first texts.
    """
    groups: dict[str, dict[str, str]] = {}
    for name, text in texts.items():
        groups.setdefault(limit_of(name), {})[name] = text
    found = []
    for limit, some in groups.items():
        ids = None
        if limit:
            held = {index for index, token in tokens.items() if may_hold(limit, token)}
            # Pieces of letters, too, which may belong to any system.
            held.update(*(encode(tokenizer, name, text).ids for name, text in some.items()))
            ids = torch.tensor(sorted(held))
        found.append(Limited(some, ids))
    return found


def score_written(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, written: Sequence[Limited]
) -> float:
    """How well a model predicts texts that the base wrote.

    Args:
        model: Causal language model.
        tokenizer: Its tokenizer.
        written: The texts.

    Returns:
        Bits per byte of all texts together.
    """
    scores = [
        score
        for some in written
        for score in score_texts(model, tokenizer, some.texts, allowed=some.allowed(model)).scores
    ]
    return sum(score.bits for score in scores) / sum(score.bytes for score in scores)


def read_examples(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, written: Sequence[Limited]
) -> Examples:
    """Run a model over texts that the base wrote, one limit after another.

    Args:
        model: Causal language model.
        tokenizer: Its tokenizer.
        written: The texts.

    Returns:
        What its lm_head sees.
    """
    read = [read_states(model, tokenizer, some.texts) for some in written]
    return Examples(
        torch.cat([states for states, _ in read]),
        torch.cat([following for _, following in read]),
        torch.cat([torch.full_like(following, number) for number, (_, following) in enumerate(read)]),
        torch.stack([some.allowed(model) for some in written]),
    )


def trace_written(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, written: Sequence[Limited]
) -> Reads:
    """What moves of the rows that a model reads would cost it over texts that the base wrote.

    Args:
        model: Causal language model.
        tokenizer: Its tokenizer.
        written: The texts.

    Returns:
        The cost in nats, under the limits in their order.
    """
    head, table = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    slopes, curvatures = torch.zeros(table.shape, device=table.device), []
    for some in written:
        allowed = some.allowed(model)
        rows = head if some.ids is None else head[allowed]
        places = allowed.cumsum(dim=0) - 1

        def slope(states: Tensor, following: Tensor, rows: Tensor = rows, places: Tensor = places) -> Tensor:
            return state_slopes(states, places[following], rows)

        found, curvature = trace_rows(model, tokenizer, some.texts, slope)
        slopes += found
        curvatures.append(curvature)
    return Reads(slopes, torch.stack(curvatures))


def fit_rows(
    examples: Examples,
    rows: Tensor,
    free: Sequence[int],
    tokens: Sequence[Token],
    root: Tensor,
    *,
    reads: Reads | None = None,
    seed: int = 0,
) -> Tensor:
    """Fit rows to what the base wrote; those of one writing system share a part of their moves.

    Args:
        examples: What the lm_head sees over that.
        rows: ``(V, d)`` of the lm_head, in any dtype, anywhere.
        free: The rows that may move, each once.
        tokens: Theirs.
        root: ``(d, d)``; moves are ``z @ root``.
        reads: What moves cost where the rows are read; None for rows that only write.
        seed: Of the order of the examples.

    Returns:
        ``(F, d)`` float32 on the CPU, the free rows in their order.
    """
    states = examples.states
    with progress("fitting lm_head rows", (PASSES + 1) * len(states), "tokens") as advance:
        return fit_softmax_rows(
            states,
            examples.following,
            rows.to(states),
            torch.tensor(free, device=states.device),
            root.to(states),
            groups=group_by_script(tokens).to(states.device),
            limits=(examples.limits, examples.allowed),
            reads=reads,
            passes=PASSES,
            seed=seed,
            advance=advance,
        ).cpu()


def group_by_script(tokens: Sequence[Token]) -> Tensor:
    """Number the writing systems of tokens; those of too few tokens to learn anything from are one.

    Args:
        tokens: Any tokens.

    Returns:
        ``(n,)`` int64 from zero.
    """
    large = [script for script, count in count_scripts(tokens).items() if count >= _LEAST_GROUP]
    numbers = {script: number for number, script in enumerate(large)}
    return torch.tensor([numbers.get(script_of(token), len(large)) for token in tokens], dtype=torch.int64)
