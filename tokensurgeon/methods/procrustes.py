"""The donor's space, rotated onto the base's.

P. Schönemann, "A generalized solution of the orthogonal Procrustes problem", doi:10.1007/BF02289451. With
anchors ``A`` and ``B`` centred on their means ``a`` and ``b`` and ``A'B = U S V'``, the rotation ``R = U V'``
minimises ``|A R - B|``, and a missing token gets ``s (x - a) R + b``. The factor ``s`` minimises
``|s A R - B|`` given ``R``; without it rows keep their distances in the donor's space.
"""

from __future__ import annotations

from tokensurgeon.methods.affine import centre, map_rows
from tokensurgeon.methods.base import InitRows, MethodContext
from tokensurgeon.methods.params import ProcrustesParams
from tokensurgeon.solvers.linear import rotation


class Procrustes:
    """Rotate every donor row."""

    def __init__(self, params: ProcrustesParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Fit to the anchors, apply to the missing tokens."""
        donor, donor_mean = centre(context.donor_anchors())
        base, base_mean = centre(context.base_anchors())
        turn, factor = rotation(donor, base)
        return map_rows(context, donor_mean, turn * factor if self.params.scale else turn, base_mean)
