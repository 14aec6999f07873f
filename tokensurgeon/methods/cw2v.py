"""Rows inside the convex hull of the base's rows, found by skip-gram on the corpus.

N. Mundra et al., "An Empirical Comparison of Vocabulary Expansion and Initialization Approaches for
Language Models" (Constrained Word2Vec), arXiv:2407.05841: new rows are ``softmax(A B) E`` of the base's rows
``E``, and ``A`` and ``B`` are learnt with skip-gram and negative sampling.

The paper's softmax is dense, of rank 1024 over the whole base table. Here a token's softmax is over at most
64 base tokens: its pieces, then those that stand near it most often. ``A`` has a row of ``rank`` numbers a
missing token, ``B`` one a candidate, shared by all tokens; logits are their products plus a fixed start, 0
for pieces and -4 for others, so that training begins near the mean of the pieces. Contexts and negatives are
anchors only, whose vectors are their base rows and stay fixed. All rows are centred and scaled by one
number for training, to products of order one. A token that never stands near a shared one stays at its start.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tokensurgeon.console import track
from tokensurgeon.methods.base import InitRows, MethodContext
from tokensurgeon.methods.params import Cw2vParams
from tokensurgeon.methods.tokalign import Floats, Ints, count_pairs, read_tokens

_MOST_CANDIDATES = 64
_START = -4.0
_POWER = 0.75
_BLOCK = 8192


@dataclass(frozen=True)
class Text:
    """What the corpus says of missing tokens.

    Attributes:
        missing: ``(n,)`` places among the wanted tokens that occur, ascending.
        centres: ``(m,)`` indices into ``missing``, ascending.
        contexts: ``(m,)`` base ids of shared tokens near them.
        counts: ``(m,)`` how often.
        shared: ``(s,)`` base ids of the shared tokens that occur, ascending.
        frequencies: ``(s,)`` how often.
    """

    missing: Ints
    centres: Ints
    contexts: Ints
    counts: Floats
    shared: Ints
    frequencies: Ints


class Cw2v:
    """Learn convex weights of base tokens."""

    def __init__(self, params: Cw2vParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Count, train, combine; tokens that do not occur, or have no candidates, are not served."""
        text = read_text(context, self.params.window)
        candidates, start = choose_candidates(context, text)
        weights = self.train(context, text, candidates, start)
        sources = torch.full((len(context.wanted), candidates.shape[1]), -1, dtype=torch.int64)
        coefs = torch.zeros(sources.shape)
        missing = torch.from_numpy(text.missing)
        sources[missing], coefs[missing] = candidates, weights
        return context.in_batches(lambda span: context.combine(sources[span], coefs[span]))

    def train(self, context: MethodContext, text: Text, candidates: Tensor, start: Tensor) -> Tensor:
        """Skip-gram with negative sampling.

        Args:
            context: Where the rows are.
            text: What is near what.
            candidates: ``(n, c)`` int64 base ids, -1 where there are fewer.
            start: ``(n, c)`` float32 logits to begin with.

        Returns:
            ``(n, c)`` float32 weights, adding up to one.
        """
        device = context.device
        used, places = torch.unique(
            torch.cat([candidates.flatten().clamp(min=0), torch.from_numpy(text.shared)]), return_inverse=True
        )
        rows = standardise(context, used)
        columns = places[: candidates.numel()].view(candidates.shape).to(device)
        shared = places[candidates.numel() :].to(device)
        contexts = shared[torch.from_numpy(np.searchsorted(text.shared, text.contexts)).to(device)]
        start, centres = start.to(device), torch.from_numpy(text.centres).to(device)
        generator = torch.Generator().manual_seed(context.generator.initial_seed())
        rank = self.params.rank
        ours = torch.zeros(len(start), rank, device=device, requires_grad=True)
        theirs = (torch.randn(len(used), rank, generator=generator) / rank**0.5).to(device).requires_grad_()

        def weigh(tokens: Tensor) -> Tensor:
            # Looked up as embeddings: their gradients are summed in one order.
            factors = functional.embedding(columns[tokens], theirs)
            logits = (factors * functional.embedding(tokens, ours)[:, None]).sum(dim=2)
            return (logits + start[tokens]).softmax(dim=1)

        draw_pair, draw_negative = _Draw(text.counts), _Draw(text.frequencies**_POWER)
        optimizer = torch.optim.Adam([ours, theirs], lr=self.params.learning_rate)
        for _ in track(range(self.params.steps if len(centres) else 0), "cw2v: training"):
            pair = draw_pair((self.params.batch,), generator).to(device)
            negative = draw_negative((self.params.batch, self.params.negatives), generator).to(device)
            tokens, place = torch.unique(centres[pair], return_inverse=True)
            vectors = functional.embedding_bag(
                columns[tokens], rows, per_sample_weights=weigh(tokens), mode="sum"
            )
            vectors = functional.embedding(place, vectors)
            near = (vectors * rows[contexts[pair]]).sum(dim=1)
            far = (vectors[:, None] * rows[shared[negative]]).sum(dim=2)
            loss = functional.softplus(-near).mean() + functional.softplus(far).sum(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            parts = [weigh(part) for part in torch.arange(len(start), device=device).split(_BLOCK)]
        return torch.cat(parts).cpu() if parts else start.cpu()


def read_text(context: MethodContext, window: int) -> Text:
    """Cut the corpus and count which shared tokens stand near which missing ones.

    Args:
        context: Where the corpus is.
        window: Largest distance.

    Returns:
        The counts.
    """
    ids, lines = read_tokens(context.resources.corpus, context.lexicon.segment_target)
    count = len(context.wanted)
    # Missing tokens by place, anchors by base id after them; what is neither is cut out.
    anchors = zip(context.anchor_targets.tolist(), context.anchor_bases.tolist(), strict=True)
    codes = {index: count + base for index, base in anchors}
    codes |= {index: place for place, index in enumerate(context.wanted.tolist())}
    tokens = np.array([codes.get(index, -1) for index in ids.tolist()], dtype=np.int64)
    kept = tokens >= 0
    first, second, counts = count_pairs(tokens[kept], lines[kept], window, lambda distance: 1.0)
    useful = (first < count) & (second >= count)
    occurring, frequencies = np.unique(tokens[kept], return_counts=True)
    missing, shared = occurring[occurring < count], occurring >= count
    centres = np.searchsorted(missing, first[useful])
    return Text(
        missing,
        centres,
        second[useful] - count,
        counts[useful],
        occurring[shared] - count,
        frequencies[shared],
    )


def choose_candidates(context: MethodContext, text: Text) -> tuple[Tensor, Tensor]:
    """Pieces first, then the base tokens most often near, of equals the lowest id.

    Args:
        context: Where the pieces are.
        text: What is near what.

    Returns:
        ``(n, c)`` int64 base ids, -1 where there are fewer, and ``(n, c)`` float32 logits to begin with,
        minus infinity there.
    """
    order = np.lexsort((text.contexts, -text.counts, text.centres))
    ends = np.searchsorted(text.centres, np.arange(len(text.missing)), "right").tolist()
    lists, pieces, low = [], [], 0
    for place, high in zip(text.missing.tolist(), ends, strict=True):
        own = list(dict.fromkeys(context.pieces[place]))[:_MOST_CANDIDATES]
        # Pieces may be among those near.
        near = text.contexts[order[low : min(high, low + _MOST_CANDIDATES)]].tolist()
        lists.append(list(dict.fromkeys([*own, *near]))[:_MOST_CANDIDATES])
        pieces.append(len(own))
        low = high
    width = max(map(len, lists), default=0)
    candidates = torch.full((len(lists), max(width, 1)), -1, dtype=torch.int64)
    start = torch.full(candidates.shape, float("-inf"))
    for row, (found, own_count) in enumerate(zip(lists, pieces, strict=True)):
        candidates[row, : len(found)] = torch.tensor(found, dtype=torch.int64)
        start[row, : len(found)] = _START
        start[row, :own_count] = 0
        if not found:
            # Any finite number will do: a token without candidates is not served.
            start[row] = 0
    return candidates, start


def standardise(context: MethodContext, ids: Tensor) -> Tensor:
    """Centred base rows, on a scale on which products of unrelated ones are of order one.

    Args:
        context: Where the rows are.
        ids: ``(n,)`` int64 base ids.

    Returns:
        ``(n, d_base)`` float32.
    """
    mean = context.base_mean
    total = sum(
        float((context.base(part) - mean).to(torch.float64).square().sum())
        for part in context.base_ids.split(_BLOCK)
    )
    width = len(mean)
    spread = (total / (len(context.base_ids) * width)) ** 0.5
    scale: float = max(spread, 1e-30) * width**0.25
    return (context.base(ids) - mean) / scale


class _Draw:
    """Draws places with chances in proportion to their weights."""

    def __init__(self, weights: Floats) -> None:
        self._sums = torch.from_numpy(np.cumsum(weights, dtype=np.float64))

    def __call__(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        points = torch.rand(shape, generator=generator, dtype=torch.float64) * self._sums[-1]
        return torch.searchsorted(self._sums, points, right=True).clamp(max=len(self._sums) - 1)
