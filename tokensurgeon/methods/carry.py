"""A donor's row, moved as the rows it shares with the base moved: from a transplant to its base's fine-tune.

A donor that was made of another version of the base has rows of the base's own kind. What a fine-tune changed
is a task vector (G. Ilharco et al., "Editing Models with Task Arithmetic", arXiv:2212.04089), and is carried
over as B. Minixhofer et al. ("Zero-Shot Tokenizer Transfer", arXiv:2405.07883) carry a hypernetwork's
embeddings to fine-tunes: with anchors ``A`` of the donor and ``B`` of the base, a ridge map ``W`` of centred
``A`` predicts ``B - A``, and a missing token with donor row ``x`` gets ``x + (x - a) W + b - a``. Where the
fine-tune changed no row, that is ``x`` itself.
"""

from __future__ import annotations

import torch

from tokensurgeon.methods.affine import centre
from tokensurgeon.methods.base import InitRows, MethodContext
from tokensurgeon.methods.params import CarryParams
from tokensurgeon.solvers.linear import ridge


class Carry:
    """Take donor rows over; none where the spaces have different widths, and so are not of one kind."""

    def __init__(self, params: CarryParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Fit what moved on the anchors, apply to the missing tokens."""
        donor, base = context.donor_anchors(), context.base_anchors()
        if not len(donor) or donor.shape[1] != base.shape[1]:
            return context.in_batches(
                lambda span: InitRows(
                    context.base_mean.repeat(len(context.wanted[span]), 1),
                    served=torch.zeros(len(context.wanted[span]), dtype=torch.bool),
                )
            )
        # In this order: of rows that did not move nothing is left, not even rounding.
        moves, offset = centre(base - donor)
        features, mean = centre(donor)
        matrix = ridge(features, moves, self.params.ridge)

        def solve(span: slice) -> InitRows:
            rows = context.donor(context.wanted[span])
            return InitRows(rows + ((rows - mean) @ matrix + offset))

        return context.in_batches(solve)
