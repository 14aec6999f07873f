"""The one base token that stands in the same places of the same text.

C. Li et al., "TokAlign: Efficient Vocabulary Adaptation via Token Alignment", arXiv:2506.03523: the corpus is
cut by both tokenizers, each gets GloVe vectors (J. Pennington et al., EMNLP 2014) of its own, and cosines to
random shared tokens, the pivots, make the two spaces comparable (L. Moschella et al., arXiv:2209.15430). A
token's row is that of the base token whose cosines are most like its own.

GloVe here takes its AdaGrad steps on sums over batches of pairs, so that a seed settles the result. The
authors' code gives a random base token's row to a token without a vector; here it is not served.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokensurgeon.console import track
from tokensurgeon.methods.base import InitRows, MethodContext, Segmentation
from tokensurgeon.methods.params import TokalignParams
from tokensurgeon.solvers.nearest import build_index

Ints = NDArray[Any]
Floats = NDArray[Any]

_FEWEST_PIVOTS = 3
_LEARNING_RATE = 0.05
_X_MAX, _ALPHA = 10, 0.75
_BATCHES, _SMALLEST, _LARGEST = 256, 32, 8192
_MOST_PENDING = 2**24


class Tokalign:
    """Map each token to one base token."""

    def __init__(self, params: TokalignParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Train both spaces, make them comparable, and look; tokens without a vector are not served."""
        generator = torch.Generator().manual_seed(context.generator.initial_seed())
        corpus, lexicon = context.resources.corpus, context.lexicon
        target_ids, target = self.vectors(read_tokens(corpus, lexicon.segment_target), generator)
        base_ids, base = self.vectors(read_tokens(corpus, lexicon.segment_base), generator)
        usable = torch.isin(base_ids, context.base_ids)
        base_ids, base = base_ids[usable], base[usable]
        places, pivots = self.pivots(context, target_ids, base_ids, generator)
        candidates = relative(base, base[pivots])
        queries = relative(target, target[places])
        near = build_index(candidates, device=context.device)
        found = _find(context.wanted, target_ids)
        if len(pivots) < _FEWEST_PIVOTS:
            # Relative to so few, most tokens have the same place.
            found = torch.full_like(found, -1)

        def solve(span: slice) -> InitRows:
            sources = torch.full((len(found[span]), 1), -1, dtype=torch.int64)
            known = found[span] >= 0
            if known.any():
                nearest = near.search(queries[found[span][known]], 1).indices.cpu()
                sources[known] = base_ids[nearest]
            return context.combine(sources, (sources >= 0).to(torch.float32))

        return context.in_batches(solve)

    def vectors(self, text: tuple[Ints, Ints], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Vectors of the tokens that are frequent enough; rarer ones are cut out of the text.

        Args:
            text: Ids, and the line of each.
            generator: Seeded.

        Returns:
            ``(n,)`` int64 ids, ascending, and ``(n, dim)`` float32.
        """
        ids, lines = text
        known, counts = np.unique(ids, return_counts=True)
        known = known[counts >= self.params.min_count]
        kept = np.isin(ids, known)
        tokens = np.searchsorted(known, ids[kept])
        pairs = count_pairs(tokens, lines[kept], self.params.window, lambda distance: 1 / distance)
        return torch.from_numpy(known), glove(
            *pairs, len(known), self.params.dim, self.params.epochs, generator
        )

    def pivots(
        self, context: MethodContext, target_ids: Tensor, base_ids: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Random anchors that have vectors on both sides.

        Args:
            context: Where the anchors are.
            target_ids: ``(n,)`` int64, target tokens with a vector, ascending.
            base_ids: ``(m,)`` int64, base tokens with a vector, ascending.
            generator: Seeded.

        Returns:
            Their places among both, ``(p,)`` int64 each.
        """
        places, bases = _find(context.anchor_targets, target_ids), _find(context.anchor_bases, base_ids)
        both = ((places >= 0) & (bases >= 0)).nonzero()[:, 0]
        drawn = both[torch.randperm(len(both), generator=generator)[: self.params.pivots]].sort().values
        return places[drawn], bases[drawn]


def _find(ids: Tensor, known: Tensor) -> Tensor:
    """Place of each id among the known ones, which ascend; -1 where it is not there."""
    if not len(known):
        return torch.full_like(ids, -1)
    places = torch.searchsorted(known, ids).clamp(max=len(known) - 1)
    return torch.where(known[places] == ids, places, -1)


def relative(vectors: Tensor, pivots: Tensor) -> Tensor:
    """Cosines to the pivots, as unit vectors.

    Args:
        vectors: ``(n, d)``.
        pivots: ``(p, d)``.

    Returns:
        ``(n, p)`` float32.
    """
    normalise = torch.nn.functional.normalize
    return normalise(normalise(vectors, dim=1) @ normalise(pivots, dim=1).mT, dim=1)


def read_tokens(corpus: Iterable[str], segment: Callable[[str], Segmentation]) -> tuple[Ints, Ints]:
    """Cut a corpus.

    Args:
        corpus: Lines of text.
        segment: The tokenizer.

    Returns:
        ``(n,)`` ids in order and ``(n,)`` the line of each.
    """
    parts = [np.array(segment(line).ids, dtype=np.int64) for line in corpus]
    sizes = [len(part) for part in parts]
    return np.concatenate([np.zeros(0, np.int64), *parts]), np.repeat(np.arange(len(parts)), sizes)


def count_pairs(
    tokens: Ints, lines: Ints, window: int, weigh: Callable[[int], float]
) -> tuple[Ints, Ints, Floats]:
    """How often tokens stand near each other in a line; each pair is there in both orders.

    Args:
        tokens: ``(n,)`` in order.
        lines: ``(n,)`` the line of each.
        window: Largest distance.
        weigh: What a pair at a distance counts.

    Returns:
        First tokens, second tokens and counts, ``(m,)`` each, in ascending order of the pairs.
    """
    size = int(tokens.max()) + 1 if len(tokens) else 1
    pending: list[tuple[Ints, Floats]] = [(np.zeros(0, np.int64), np.zeros(0))]
    for distance in range(1, min(window, len(tokens) - 1) + 1):
        first, second = tokens[:-distance], tokens[distance:]
        near = lines[:-distance] == lines[distance:]
        codes, counts = np.unique(first[near] * size + second[near], return_counts=True)
        pending.append((codes, counts * weigh(distance)))
        if sum(len(codes) for codes, _ in pending) > _MOST_PENDING:
            pending = [_merge(pending)]
    codes, counts = _merge(pending)
    codes, counts = _merge([(codes, counts), (codes % size * size + codes // size, counts)])
    return codes // size, codes % size, counts


def _merge(parts: list[tuple[Ints, Floats]]) -> tuple[Ints, Floats]:
    codes, counts = (np.concatenate(column) for column in zip(*parts, strict=True))
    merged, place = np.unique(codes, return_inverse=True)
    return merged, np.bincount(place, counts, len(merged))


def glove(
    first: Ints,
    second: Ints,
    counts: Floats,
    tokens: int,
    dim: int,
    epochs: int,
    generator: torch.Generator,
) -> Tensor:
    """Vectors whose products, with offsets, are logarithms of the counts; frequent pairs weigh more.

    Args:
        first: ``(m,)`` tokens.
        second: ``(m,)`` tokens near them.
        counts: ``(m,)`` above zero.
        tokens: How many there are.
        dim: Dimensions.
        epochs: Times that every pair is looked at.
        generator: Seeded.

    Returns:
        ``(tokens, dim)`` float32, on the CPU, where sums have one order.
    """
    pairs = torch.from_numpy(np.stack([first, second]))
    goals = torch.from_numpy(np.log(counts)).to(torch.float32)
    weights = torch.from_numpy(np.minimum(counts / _X_MAX, 1) ** _ALPHA).to(torch.float32)
    # The last column is the token's offset.
    tables = [(torch.rand(tokens, dim + 1, generator=generator) - 0.5) / dim for _ in range(2)]
    squares = [torch.ones_like(table) for table in tables]
    batch = min(max(len(goals) // _BATCHES, _SMALLEST), _LARGEST)
    for _ in track(range(epochs), "tokalign: training", unit="epochs"):
        for chosen in torch.randperm(len(goals), generator=generator).split(batch):
            rows = pairs[:, chosen]
            ours, theirs = (table[places] for table, places in zip(tables, rows, strict=True))
            fitted = (ours[:, :dim] * theirs[:, :dim]).sum(dim=1) + ours[:, dim] + theirs[:, dim]
            slopes = (weights[chosen] * (fitted - goals[chosen]))[:, None]
            offsets = torch.ones(len(chosen), 1)
            for side, other in ((0, theirs), (1, ours)):
                gradient = slopes * torch.cat([other[:, :dim], offsets], dim=1)
                _descend(tables[side], squares[side], rows[side], gradient)
    return (tables[0] + tables[1])[:, :dim]


def _descend(table: Tensor, squares: Tensor, rows: Tensor, gradient: Tensor) -> None:
    """A step of AdaGrad on some rows, which may be named more than once."""
    used, place = torch.unique(rows, return_inverse=True)
    total = torch.zeros(len(used), table.shape[1]).index_add_(0, place, gradient)
    squares[used] += total.square()
    table[used] -= _LEARNING_RATE * total / squares[used].sqrt()
