"""A ridge map of the donor's row, and what the map misses at a few anchors chosen by matching pursuit.

With ``W`` the ridge map between the centred anchors ``X`` and ``Y``, and ``R = Y - X W`` what it misses, a
token's row is ``mean + x W + sum_j c_j R_j``, where ``c`` is the sparse combination of anchors that OMP finds
for ``x`` (C. Goddard, F. Fernandes Neto, arXiv:2506.06607). In other words the combination is carried over as
in plain OMP, and what it leaves of the donor's row is carried over by the map instead of being dropped. So
few anchors are enough: many fit the donor's rows better and the base's worse.
"""

from __future__ import annotations

import torch

from tokensurgeon.methods.base import InitRows, MethodContext
from tokensurgeon.methods.params import AffompParams
from tokensurgeon.solvers.dictionary import Dictionary
from tokensurgeon.solvers.linear import fit_affine
from tokensurgeon.solvers.omp import omp


class Affomp:
    """Map every token, then correct it by at most ``k`` anchors."""

    def __init__(self, params: AffompParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Fit to the anchors, then apply to the wanted tokens."""
        donor, base = context.donor_anchors(), context.base_anchors()
        # From here on centred donor rows, and what the map misses of the base's.
        donor_mean, base_mean, into_base = fit_affine(donor, base, self.params.ridge)
        dictionary = Dictionary.prepare(donor)
        bases = context.anchor_bases.to(context.device)

        def solve(span: slice) -> InitRows:
            rows = context.donor(context.wanted[span]) - donor_mean
            found = omp(rows, dictionary, self.params.k, batch_size=context.batch_size)
            local = (base[found.indices.clamp(min=0)] * found.coefs[:, :, None]).sum(dim=1)
            return InitRows(
                base_mean + rows @ into_base + local,
                sources=torch.where(found.indices >= 0, bases[found.indices.clamp(min=0)], -1),
                coefs=found.coefs,
                corrects=torch.ones(len(rows), dtype=torch.bool),
                residual=found.residual,
            )

        return context.in_batches(solve)
