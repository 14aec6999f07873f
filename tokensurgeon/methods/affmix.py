"""A ridge map of the donor's row, corrected both at anchors by matching pursuit and at the nearest ones.

With ``W`` the ridge map between the centred anchors ``X`` and ``Y``, and ``R = Y - X W`` what it misses, a
token's row is ``mean + x W + (1 - s) sum_j c_j R_j + s sum_j w_j R_j``: ``c`` is the sparse combination of
anchors that OMP finds for ``x`` (C. Goddard, F. Fernandes Neto, arXiv:2506.06607), ``w`` a softmax over the
nearest ones. So with ``s`` a half the rows are the mean of affomp's and affknn's, which miss the true rows
each in a way of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokensurgeon.methods.base import InitRows, MethodContext
from tokensurgeon.methods.params import AffmixParams
from tokensurgeon.solvers.dictionary import Dictionary
from tokensurgeon.solvers.linear import fit_affine
from tokensurgeon.solvers.nearest import build_index
from tokensurgeon.solvers.omp import omp


class Affmix:
    """Map every token, then correct it by a combination of anchors and by its neighbours."""

    def __init__(self, params: AffmixParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Fit to the anchors, then apply to the wanted tokens."""
        params = self.params
        donor, base = context.donor_anchors(), context.base_anchors()
        # From here on centred donor rows, and what the map misses of the base's.
        donor_mean, base_mean, into_base = fit_affine(donor, base, params.ridge)
        index = build_index(donor, device=context.device)
        dictionary = Dictionary.prepare(donor)
        bases = context.anchor_bases.to(context.device)

        def solve(span: slice) -> InitRows:
            rows = context.donor(context.wanted[span]) - donor_mean
            found = omp(rows, dictionary, params.k, batch_size=context.batch_size)
            near = index.search(rows, params.neighbours)
            weights = torch.softmax(near.similarities / params.temperature, dim=1)
            anchors, coefs = _join(
                found.indices, (1 - params.nearest) * found.coefs, near.indices, params.nearest * weights
            )
            local = (base[anchors.clamp(min=0)] * coefs[:, :, None]).sum(dim=1)
            return InitRows(
                base_mean + rows @ into_base + local,
                sources=torch.where(anchors >= 0, bases[anchors.clamp(min=0)], -1),
                coefs=coefs,
                corrects=torch.ones(len(rows), dtype=torch.bool),
                residual=found.residual,
            )

        return context.in_batches(solve)


def _join(ours: Tensor, coefs: Tensor, theirs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Both combinations as one, an anchor of both named once; -1 and nothing where it was named before."""
    same = ours[:, :, None] == theirs[:, None, :]
    coefs = coefs + (same * weights[:, None, :]).sum(dim=2)
    twice = same.any(dim=1)
    return (
        torch.cat([ours, theirs.masked_fill(twice, -1)], dim=1),
        torch.cat([coefs, weights.masked_fill(twice, 0)], dim=1),
    )
