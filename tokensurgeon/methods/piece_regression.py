"""A linear map from the rows of a token's pieces to its row, learnt from the base's own tokens.

The base knows thousands of tokens that other tokens could spell: their parts go in, their own row comes out.
It is ZeTT's hypernetwork (B. Minixhofer et al., arXiv:2405.07883) reduced to one matrix with a closed form.
Features are the first piece, the last one, the mean of all, and the logarithms of the numbers of pieces and
bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokensurgeon.methods.base import InitRows, MethodContext
from tokensurgeon.methods.params import PieceRegressionParams
from tokensurgeon.solvers.linear import ridge

_FEWEST = 16
_MOST = 2**15


class PieceRegression:
    """Fit to base tokens spelt by others, then apply to the pieces of wanted tokens."""

    def __init__(self, params: PieceRegressionParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Fit and apply; tokens without pieces are not served, nor any where too few can be learnt from."""
        known = _sample(context)
        spelt = torch.tensor([len(pieces) > 0 for pieces in context.pieces], dtype=torch.bool)
        if len(known) < _FEWEST or not spelt.any():
            nothing = context.base_mean.expand(len(context.wanted), -1)
            return InitRows(nothing, served=torch.zeros(len(context.wanted), dtype=torch.bool))
        lexicon = context.lexicon
        rows = context.base(torch.tensor(list(known)))
        features = _features(context, list(known.values()), [len(lexicon.base[index]) for index in known])
        feature_mean, row_mean = features.mean(dim=0), rows.mean(dim=0)
        into_row = ridge(features - feature_mean, rows - row_mean, self.params.ridge)
        # A token without pieces has no features; it is not served, so any will do.
        stand_in = next(pieces for pieces in context.pieces if pieces)

        def solve(span: slice) -> InitRows:
            sizes = [len(lexicon.target.get(index, b"?")) for index in context.wanted[span].tolist()]
            features = _features(context, [pieces or stand_in for pieces in context.pieces[span]], sizes)
            made = row_mean + (features - feature_mean) @ into_row
            served = spelt[span]
            return InitRows(
                torch.where(served[:, None].to(made.device), made, context.base_mean), served=served
            )

        return context.in_batches(solve)


def _sample(context: MethodContext) -> dict[int, tuple[int, ...]]:
    """Base tokens with their parts, as many as are needed, evenly from all ids."""
    parts = context.lexicon.base_parts
    ids = list(parts)
    step = -(-len(ids) // _MOST) or 1
    return {index: parts[index] for index in ids[::step]}


def _features(context: MethodContext, spelt: Sequence[tuple[int, ...]], sizes: Sequence[int]) -> Tensor:
    """``(n, 3 d_base + 2)``: first piece, last piece, mean piece, log number of pieces, log bytes."""
    counts = torch.tensor([len(pieces) for pieces in spelt])
    flat = torch.tensor([piece for pieces in spelt for piece in pieces])
    first = context.base(torch.tensor([pieces[0] for pieces in spelt]))
    last = context.base(torch.tensor([pieces[-1] for pieces in spelt]))
    mean = torch.segment_reduce(context.base(flat), "mean", lengths=counts.to(first.device))
    # As long as a row, so that one ridge suits all features.
    scale = first.norm(dim=1).mean()
    extra = torch.stack([counts, torch.tensor(sizes)], dim=1).to(first).log() * scale
    return torch.cat([first, last, mean, extra], dim=1)
