"""Transplantation by Orthogonal Matching Pursuit.

C. Goddard, F. Fernandes Neto, "Training-Free Tokenizer Transplantation via Orthogonal Matching
Pursuit", arXiv:2506.06607: the donor row of a missing token is written as a sparse combination of the
donor rows of shared tokens, and the same coefficients are applied to the base rows of those tokens.
"""

from __future__ import annotations

import torch

from tokensurgeon.methods.base import InitRows, MethodContext
from tokensurgeon.methods.params import OmpParams
from tokensurgeon.solvers.omp import omp


class Omp:
    """Combine at most ``k`` anchors per token."""

    def __init__(self, params: OmpParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Solve in the donor's space, apply in the base's."""
        result = omp(
            context.donor(context.wanted),
            context.donor_anchors(),
            self.params.k,
            tolerance=self.params.tolerance,
            normalize_atoms=self.params.normalize_atoms,
            batch_size=context.batch_size,
            advance=context.advance,
        )
        base = context.base_anchors()
        rows = torch.cat(
            [
                (coefs[:, None] @ base[indices.clamp(min=0)])[:, 0]
                for coefs, indices in zip(
                    result.coefs.split(context.batch_size),
                    result.indices.split(context.batch_size),
                    strict=True,
                )
            ]
        )
        taken = result.indices >= 0
        bases = context.anchor_bases.to(result.indices.device)[result.indices.clamp(min=0)]
        return InitRows(rows, torch.where(taken, bases, -1), result.coefs, result.residual)
