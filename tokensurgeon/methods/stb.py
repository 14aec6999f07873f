"""A sparse token basis, as in mergekit's ``stb``.

C. Goddard, F. Fernandes Neto, arXiv:2506.06607, is where it comes from. Each principal direction of the
centred donor anchors is approximated by orthogonal matching pursuit with at most ``k`` of them; the same
anchors and coefficients give a vector in the base's space. With the approximations as rows of ``D`` and their
counterparts as rows of ``E``, a missing token with donor row ``x`` gets ``(x - a) D+ E + b``: least-squares
coordinates on ``D``, those of least norm, applied to ``E``; ``a`` and ``b`` are the anchors' means.

On purpose not as in mergekit: the directions are always the donor's, where the coordinates are read; the
means are the anchors', from which the directions are made, and not those of the whole tables.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokensurgeon.methods.affine import centre, map_rows
from tokensurgeon.methods.base import InitRows, MethodContext
from tokensurgeon.methods.landmark_pca import principal_axes
from tokensurgeon.methods.params import OmpParams, StbParams
from tokensurgeon.solvers.dictionary import Dictionary
from tokensurgeon.solvers.omp import OmpResult, omp

_RANK = 1e-5
_BLOCK = 64


class Stb:
    """Read coordinates on the donor's basis, apply them to the base's."""

    def __init__(self, params: StbParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Make both bases, and the map between the spaces that they define."""
        donor, donor_mean = centre(context.donor_anchors())
        base, base_mean = centre(context.base_anchors())
        count = self.params.components or min(donor.shape[1], base.shape[1])
        axes = principal_axes(donor)[:, :count].mT.contiguous()
        mode = OmpParams(k=self.params.k).choose_mode(
            len(axes), len(donor), donor.shape[1], context.device.type
        )
        found = omp(axes, Dictionary.prepare(donor), self.params.k, mode=mode)
        inverse = torch.linalg.pinv(_combine(donor, found), rtol=_RANK)
        matrix = (inverse @ _combine(base, found)).to(torch.float32)
        return map_rows(context, donor_mean, matrix, base_mean)


def _combine(anchors: Tensor, found: OmpResult) -> Tensor:
    """``(m, d)`` float64 basis vectors."""
    vectors = []
    for places, coefs in zip(found.indices.split(_BLOCK), found.coefs.split(_BLOCK), strict=True):
        # Where there are fewer anchors the coefficient is zero.
        products = anchors[places.clamp(min=0)] * coefs[:, :, None]
        vectors.append(products.sum(dim=1, dtype=torch.float64))
    return torch.cat(vectors)
