"""A rotation between the principal components of the anchors, as in mergekit's ``landmark_pca``.

With anchors ``A`` and ``B`` centred on their means ``a`` and ``b``, and their leading principal directions
``P`` and ``Q``, the rotation ``R`` takes coordinates ``A P`` to ``B Q`` (P. Schönemann,
doi:10.1007/BF02289451), and a missing token gets ``s (x - a) P R Q' + b``.

On purpose not as in mergekit: a factor ``s`` is fitted, without which rows of a donor with longer ones are
too long by far; ``R`` is the solution and not its transpose; the components are exact, not randomised, and
computed once; directions in which the anchors do not vary are no components.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokensurgeon.methods.affine import centre, map_rows
from tokensurgeon.methods.base import InitRows, MethodContext
from tokensurgeon.methods.params import LandmarkPcaParams
from tokensurgeon.solvers.linear import products, rotation

_RANK = 1e-10


class LandmarkPca:
    """Rotate coordinates on principal components."""

    def __init__(self, params: LandmarkPcaParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Fit to the anchors, apply to the missing tokens."""
        donor, donor_mean = centre(context.donor_anchors())
        base, base_mean = centre(context.base_anchors())
        donor_axes, base_axes = principal_axes(donor), principal_axes(base)
        count = min(donor_axes.shape[1], base_axes.shape[1], self.params.components or donor_axes.shape[1])
        donor_axes, base_axes = donor_axes[:, :count], base_axes[:, :count]
        turn, factor = rotation(donor @ donor_axes, base @ base_axes)
        matrix = donor_axes @ turn @ base_axes.mT
        return map_rows(context, donor_mean, matrix * factor if self.params.scale else matrix, base_mean)


def principal_axes(centred: Tensor) -> Tensor:
    """Directions in which rows vary, most of all first.

    Args:
        centred: ``(n, d)`` float32 of mean zero.

    Returns:
        ``(d, r)`` float32, orthonormal columns; ``r`` is the rank.
    """
    gram, _ = products(centred, centred[:, :0])
    values, vectors = torch.linalg.eigh(gram)
    kept = values > _RANK * values[-1]
    axes: Tensor = vectors[:, kept].flip(1).to(torch.float32)
    return axes
