"""A ridge map of the donor's row, and what the map misses at the nearest anchors (AffKNN).

With ``X`` and ``Y`` the centred anchor rows of donor and base, ``W`` the ridge map from one to the other and
``R = Y - X W`` what it misses, a token's row is ``mean + x W + sum_j w_j R_j`` over the anchors whose donor
rows are nearest by cosine, weighted by a softmax. The affine half is SAVA's (L. Moroni et al.,
arXiv:2504.17025): it carries axes that all tokens share, such as frequency and script. The local half carries
the word.
"""

from __future__ import annotations

import torch

from tokensurgeon.methods.base import InitRows, MethodContext
from tokensurgeon.methods.params import AffknnParams
from tokensurgeon.solvers.linear import fit_affine
from tokensurgeon.solvers.nearest import build_index


class Affknn:
    """Map every token, then correct it by its neighbours."""

    def __init__(self, params: AffknnParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Fit to the anchors, then apply to the wanted tokens."""
        donor, base = context.donor_anchors(), context.base_anchors()
        # From here on centred donor rows, and what the map misses of the base's.
        donor_mean, base_mean, into_base = fit_affine(donor, base, self.params.ridge)
        index = build_index(donor, device=context.device)
        bases = context.anchor_bases.to(context.device)

        def solve(span: slice) -> InitRows:
            rows = context.donor(context.wanted[span]) - donor_mean
            near = index.search(rows, self.params.k)
            weights = torch.softmax(near.similarities / self.params.temperature, dim=1)
            local = (base[near.indices] * weights[:, :, None]).sum(dim=1)
            return InitRows(
                base_mean + rows @ into_base + local,
                sources=bases[near.indices],
                coefs=weights,
                corrects=torch.ones(len(rows), dtype=torch.bool),
            )

        return context.in_batches(solve)
