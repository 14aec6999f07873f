"""Made embedding rows, mixed with the row of the last base piece where that is read better.

A donor tells what a token means. What the base's body makes of it is another matter: where it has learnt to
read text in pieces, it draws its conclusions at the last of them. Most made rows are read well all the same.
After some, such as English ``'t`` and fragments of characters, the next words cost ten bits less with the row
of the last piece. Which they are, text that the base wrote tells: each token is tried by itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokensurgeon.checkpoint.layout import TensorRole
from tokensurgeon.checkpoint.reader import map_tensor
from tokensurgeon.console import track
from tokensurgeon.errors import RecipeError
from tokensurgeon.evaluation.bits_per_byte import score_windows
from tokensurgeon.evaluation.windows import Window, encode, find_bos
from tokensurgeon.plan import Plan
from tokensurgeon.rows import NewTensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# Of the last piece's row, as tried: half of it is right for some tokens, all of it for others. Where half of
# it does harm, which is after most tokens, the rest is not tried.
SHARES = (0.5, 1.0)

_MOST_TOKENS = 256
_LEAST_USES, _MOST_USES = 8, 24
_BEFORE, _AFTER = 48, 16
# Standard errors by which a token has to be read better.
_SURE = 2.0


def told_shares(plan: Plan) -> dict[int, float]:
    """The shares that a recipe tells.

    Args:
        plan: A transplant.

    Returns:
        By target id; none where they are still to be chosen.

    Raises:
        RecipeError: One for what is no token, or for one whose row is not made or has no last piece.
    """
    told = plan.recipe.new_rows.last_piece
    if told == "auto":
        return {}
    target, last = plan.match.target, _last_pieces(plan)
    found = {}
    for name, share in told.items():
        token = target.by_content.get(name) or next(iter(target.by_bytes.get(name.encode(), ())), None)
        if token is None or token.id not in last:
            raise RecipeError(
                f"new_rows.last_piece: {name!r} is no token of the target whose row is made",
                "a token that the base lacks and can spell",
                "run `tokensurgeon inspect` to see which those are",
            )
        found[token.id] = share
    return found


def mix_last_pieces(plan: Plan, tensors: Sequence[NewTensor], shares: Mapping[int, float]) -> list[NewTensor]:
    """Mix rows that read with those of last pieces.

    Args:
        plan: What the tensors are for.
        tensors: All vocabulary tensors; copies of others are left to follow them.
        shares: Of the last piece's row, by target id.

    Returns:
        The tensors in their order.
    """
    if not shares:
        return list(tensors)
    ids = torch.tensor(list(shares))
    share = torch.tensor(list(shares.values()))[:, None]
    mixed = []
    for new in tensors:
        if new.tensor.role is TensorRole.EMBEDDING and new.equal_to is None:
            data, last = new.data.clone(), _last_rows(plan, new, list(shares))
            data[ids] = torch.lerp(data[ids].float(), last, share).to(data.dtype)
            new = replace(new, data=data, last_pieces=dict(shares))
        mixed.append(new)
    return mixed


def choose_shares(
    plan: Plan,
    new: NewTensor,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: dict[str, str],
    *,
    writes: bool,
) -> dict[int, float]:
    """Find the tokens after which text is read better with some of the last piece's row.

    Args:
        plan: What the tensor is for.
        new: The embedding, its rows made.
        model: The base with the new tensors installed, in any dtype.
        tokenizer: The output's.
        texts: Text by name.
        writes: Whether rows will write as they read, so that the token's own probability counts as well.

    Returns:
        The best of ``SHARES`` by target id, for those of the most used tokens that are surely read better.
    """
    places = _find_places(tokenizer, texts, _last_pieces(plan))
    ids = sorted(places, key=lambda index: (-len(places[index]), index))[:_MOST_TOKENS]
    ids = [index for index in ids if len(places[index]) >= _LEAST_USES]
    if not ids:
        return {}
    reads = model.get_input_embeddings()
    table = reads.weight
    if not writes:
        reads.weight = torch.nn.Parameter(table.detach().clone(), requires_grad=False)
    chosen = {}
    try:
        for index, row in zip(
            track(ids, "trying last pieces", unit="tokens"), _last_rows(plan, new, ids), strict=True
        ):
            uses = places[index][:: -(-len(places[index]) // _MOST_USES)]
            windows = [_cut(sequence, place, writes) for sequence, place in uses]
            before = _read(model, windows)
            mine = reads.weight[index].clone()
            best = 0.0
            for share in SHARES:
                reads.weight[index] = torch.lerp(mine.float(), row.to(mine.device), share).to(mine.dtype)
                gains = before - _read(model, windows)
                surely = _SURE * gains.std(ddof=1) / len(gains) ** 0.5
                if gains.mean() > max(best, surely):
                    best, chosen[index] = gains.mean(), share
                if gains.mean() <= 0:
                    break
            reads.weight[index] = mine
    finally:
        reads.weight = table
    return chosen


def _last_pieces(plan: Plan) -> dict[int, int]:
    """The last base piece of every token whose row is made, unless the user spelt it out, by target id."""
    spelt = zip(plan.wanted, plan.pieces, strict=True)
    return {i: pieces.ids[-1] for i, pieces in spelt if pieces.ids and i not in plan.match.sources}


def _last_rows(plan: Plan, new: NewTensor, ids: Sequence[int]) -> Tensor:
    """``(n, d)`` float32 rows of last pieces."""
    last = _last_pieces(plan)
    return map_tensor(new.tensor.ref)[torch.tensor([last[index] for index in ids])].float()


def _find_places(
    tokenizer: PreTrainedTokenizerFast, texts: dict[str, str], wanted: Container[int]
) -> dict[int, list[tuple[list[int], int]]]:
    """Where tokens stand that something follows: the text in tokens, opened by its BOS, and a place in it."""
    start = find_bos(tokenizer)
    opening = [] if start is None else [start]
    places = defaultdict(list)
    for name, text in texts.items():
        sequence = [*opening, *encode(tokenizer, name, text).ids]
        for place, index in enumerate(sequence[:-1]):
            if place and index in wanted:
                places[index].append((sequence, place))
    return places


def _cut(sequence: list[int], place: int, writes: bool) -> Window:
    """The token at a place with what is around it; what follows is scored, and itself if it is to write."""
    ids = sequence[max(0, place - _BEFORE) : place + 1 + _AFTER]
    first = place if writes else place + 1
    return Window(ids, first, min(place + 1 + _AFTER, len(sequence)) - first, 0)


def _read(model: PreTrainedModel, windows: list[Window]) -> NDArray[np.float64]:
    """Bits of each window."""
    return np.array([losses.sum() for losses in score_windows(model, windows)])
