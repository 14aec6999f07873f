"""Shared tokens, weighted by similarity in the donor's space.

M. Ostendorff, G. Rehm, "Efficient Language Model Training through Cross-Lingual and Progressive Transfer
Learning" (CLP-Transfer), arXiv:2301.09626: weights of all anchors in proportion to their cosine to the donor
row. A. Yamaguchi et al., arXiv:2402.10712 (CLP+): sparsemax of the cosines, which leaves few anchors.

On purpose not as in the authors' code: an anchor with a negative cosine has weight zero, so that the sum
cannot vanish; sparsemax is taken over the 256 most similar anchors, which is exact unless more would share
the weight.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn.functional import normalize, pad

from tokensurgeon.methods.base import InitRows, MethodContext
from tokensurgeon.methods.params import ClpParams
from tokensurgeon.solvers.nearest import build_index
from tokensurgeon.solvers.sparsemax import sparsemax

_MOST = 256


class Clp:
    """Combine anchors by their cosines."""

    def __init__(self, params: ClpParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Compare in the donor's space, apply in the base's."""
        sparse = self.params.weighting == "sparsemax" and len(context.anchor_bases) > 0
        return _sparse(context) if sparse else _proportional(context)


def _proportional(context: MethodContext) -> InitRows:
    anchors, base = normalize(context.donor_anchors(), dim=1), context.base_anchors()

    def solve(span: slice) -> InitRows:
        cosines = normalize(context.donor(context.wanted[span]), dim=1) @ anchors.mT
        weights = cosines.clamp(min=0)
        total = weights.sum(dim=1, keepdim=True)
        rows = torch.where(total > 0, weights @ base / torch.where(total > 0, total, 1), context.base_mean)
        return InitRows(rows, served=total[:, 0] > 0)

    return context.in_batches(solve)


def _sparse(context: MethodContext) -> InitRows:
    index = build_index(context.donor_anchors())
    bases = context.anchor_bases.to(context.device)
    most = min(_MOST, len(bases))

    def solve(span: slice) -> InitRows:
        rows = context.donor(context.wanted[span])
        found = index.search(rows, most)
        columns, weights = sparsemax(found.similarities, few=most)
        # A zero row is as similar to all.
        taken = (columns >= 0) & rows.any(dim=1, keepdim=True)
        sources = bases[found.indices.gather(1, columns.clamp(min=0))].where(taken, -1)
        weights = weights.where(taken, 0)
        made = context.combine(sources, weights)
        # Batches have one width, whatever their supports.
        room = (0, most - weights.shape[1])
        return replace(made, sources=pad(sources, room, value=-1), coefs=pad(weights, room))

    made = context.in_batches(solve)
    assert made.sources is not None and made.coefs is not None
    width = int((made.sources >= 0).any(dim=0).sum())
    return replace(made, sources=made.sources[:, :width].clone(), coefs=made.coefs[:, :width].clone())
