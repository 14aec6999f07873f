"""The base's own spelling of a token.

Mean of the pieces: L. Gee et al., "Fast Vocabulary Transfer", arXiv:2402.09977. Last piece in, first
piece out: S. Kim et al., EEVE, arXiv:2402.14714. A model finishes reading a word at its last piece and
decides to write it at its first, so the two ends want different pieces; one tied row has to serve both
and takes the mean.
"""

from __future__ import annotations

import torch

from tokensurgeon.methods.base import InitRows, MethodContext, Side
from tokensurgeon.methods.params import PiecesParams


class Pieces:
    """Combine the rows of the base pieces of each token."""

    def __init__(self, params: PiecesParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Weigh the pieces; a token that cannot be spelt gets the mean row."""
        longest = max((len(pieces) for pieces in context.pieces), default=0)
        sources = torch.full((len(context.pieces), max(longest, 1)), -1, dtype=torch.int64)
        coefs = torch.zeros(sources.shape, dtype=torch.float32)
        for row, pieces in enumerate(context.pieces):
            sources[row, : len(pieces)] = torch.tensor(pieces, dtype=torch.int64)
            coefs[row, : len(pieces)] = torch.tensor(self.weights(len(pieces), context.side))
        parts = []
        for ids, weights in zip(
            sources.split(context.batch_size), coefs.split(context.batch_size), strict=True
        ):
            gathered = context.base_rows[ids.clamp(min=0)].to(context.device, torch.float32)
            rows = (weights.to(context.device)[:, None] @ gathered)[:, 0]
            unspelt = (ids < 0).all(dim=1).to(context.device)
            parts.append(torch.where(unspelt[:, None], context.base_mean, rows))
            context.advance(len(ids))
        return InitRows(torch.cat(parts), sources.to(context.device), coefs.to(context.device))

    def weights(self, count: int, side: Side) -> list[float]:
        """Weights of the pieces of one token, which add up to one.

        Args:
            count: Number of pieces.
            side: Which end of the model reads the row.

        Returns:
            One weight a piece.
        """
        if self.params.weighting == "mean" or side == "tied":
            return [1 / count] * count if count else []
        if side == "embedding":
            return [0.0] * (count - 1) + [1.0] * min(count, 1)
        raw = [self.params.decay**place for place in range(count)]
        return [weight / sum(raw) for weight in raw]
