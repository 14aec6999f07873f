"""The base's own spelling of a token.

Mean of the pieces: L. Gee et al., "Fast Vocabulary Transfer", arXiv:2402.09977; weighted by length in its
WVT. First piece out: S. Kim et al., EEVE, arXiv:2402.14714. Last piece in and decaying pieces out:
transplant-vocab. Exponential weights: I. Nakash et al., AdaptiVocab, arXiv:2503.19693. Halves of the target's
merges: A. Yamaguchi et al., arXiv:2406.11477. A model finishes reading a word at its last piece and decides
to write it at its first, so the two ends want different pieces; one tied row has to serve both and takes
weights that favour neither.
"""

from __future__ import annotations

from math import exp, sqrt

import torch
from torch import Tensor

from tokensurgeon.methods.base import InitRows, MethodContext, Side
from tokensurgeon.methods.params import PiecesParams


class Pieces:
    """Combine the rows of the base pieces of each token."""

    def __init__(self, params: PiecesParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Weigh the pieces; a token that cannot be spelt gets the mean row and is not served."""
        spelt = list(context.pieces)
        shares: list[list[float]] = []
        if self.params.weighting == "merges":
            spelt, shares = _halve(context)
        longest = max((len(pieces) for pieces in spelt), default=0)
        sources = torch.full((len(spelt), max(longest, 1)), -1, dtype=torch.int64)
        coefs = torch.zeros(sources.shape, dtype=torch.float32)
        for row, pieces in enumerate(spelt):
            sources[row, : len(pieces)] = torch.tensor(pieces, dtype=torch.int64)
            sizes = [len(context.lexicon.base.get(piece, b"?")) for piece in pieces]
            weights = shares[row] if shares else self.weights(sizes, context.side)
            coefs[row, : len(pieces)] = torch.tensor(weights)
        if self.params.weighting == "similarity":
            coefs = _attend(context, sources)

        def solve(span: slice) -> InitRows:
            return context.combine(sources[span], coefs[span])

        return context.in_batches(solve)

    def weights(self, sizes: list[int], side: Side) -> list[float]:
        """Weights of the pieces of one token by their places and lengths, which add up to one.

        Args:
            sizes: Bytes of each piece.
            side: Which end of the model reads the row.

        Returns:
            One weight a piece; equal ones where neither places nor lengths count.
        """
        count = len(sizes)
        forward = list(range(1, count + 1))
        raw: list[float] = [1.0] * count
        match self.params.weighting:
            case "last_first" if side == "embedding":
                raw = [0.0] * (count - 1) + [1.0] * min(count, 1)
            case "last_first" if side == "lm_head":
                raw = [self.params.decay**place for place in range(count)]
            case "eeve" if side == "lm_head":
                raw = [1.0] * min(count, 1) + [0.0] * (count - 1)
            case "length":
                raw = [float(size) for size in sizes]
            case "position" if side != "tied":
                raw = [float(place) for place in (forward if side == "embedding" else forward[::-1])]
            case "exponential" if side != "tied":
                # The largest weight is one: exp(2 i) itself would overflow for a long token.
                behind = [count - place if side == "embedding" else place - 1 for place in forward]
                raw = [exp(-2.0 * places) for places in behind]
        return [weight / sum(raw) for weight in raw]


def _attend(context: MethodContext, sources: Tensor) -> Tensor:
    """Softmax of each piece's product with the mean piece, divided by the root of the width."""
    found = []
    for ids in sources.split(context.batch_size):
        rows, there = context.base(ids.clamp(min=0)), (ids >= 0).to(context.device)
        counts = there.sum(dim=1, keepdim=True).clamp(min=1)
        mean = (rows * there[:, :, None]).sum(dim=1) / counts
        scores = (rows * mean[:, None]).sum(dim=2) / sqrt(rows.shape[2])
        weights = torch.softmax(scores.masked_fill(~there, -torch.inf), dim=1).nan_to_num()
        found.append(weights.cpu())
    return torch.cat(found)


def _halve(context: MethodContext) -> tuple[list[tuple[int, ...]], list[list[float]]]:
    """Split tokens where the target merges them until every part has a counterpart; a half weighs half.

    A token with a part that is neither shared nor merged is spelt by the base, as a whole.
    """
    lexicon = context.lexicon
    spelt, shares = [], []
    for index, pieces in zip(context.wanted.tolist(), context.pieces, strict=True):
        parts: list[int] = []
        weights: list[float] = []
        stack = [(index, 1.0)]
        while stack:
            part, weight = stack.pop()
            if part in lexicon.base_of:
                parts.append(lexicon.base_of[part])
                weights.append(weight)
            elif part in lexicon.target_parts:
                left, right = lexicon.target_parts[part]
                stack += [(right, weight / 2), (left, weight / 2)]
            else:
                parts, weights = list(pieces), [1 / len(pieces) for _ in pieces]
                break
        spelt.append(tuple(parts))
        shares.append(weights)
    return spelt, shares
