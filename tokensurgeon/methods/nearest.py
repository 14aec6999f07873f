"""The nearest anchors in the donor's space, interpolated.

mergekit's ``common_interpolation``, which C. Goddard, F. Fernandes Neto, arXiv:2506.06607, compare with. A
donor row ``x`` finds its ``k`` nearest anchors ``a_i``; weights ``w`` made there are applied to the base
rows of the same anchors. The weights are in proportion to ``1 / |x - a_i|`` or to the cosine; or they
minimise ``|x - sum w_i a_i|`` among those that add up to one, or among all.

On purpose not as in mergekit: a negative cosine has weight zero, so that weights never explode; best weights
are those of least norm, so that anchors may depend on one another; a donor row that equals an anchor's gets
that anchor's base row; ``k`` is cut to the number of anchors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokensurgeon.methods.base import InitRows, MethodContext
from tokensurgeon.methods.params import NearestParams
from tokensurgeon.solvers.nearest import build_index

_SMALLEST = 1e-6
_RANK = 1e-10
# Candidates beyond k, whose distances are compared again: the index orders them in float32.
_SPARE = 8


class Nearest:
    """Combine the ``k`` nearest anchors of each token."""

    def __init__(self, params: NearestParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Weigh in the donor's space, apply in the base's."""
        anchors = context.donor_anchors()
        count = min(self.params.k, len(anchors))
        centre = anchors.mean(dim=0)
        cosine = self.params.metric == "cosine"
        index = build_index(anchors) if cosine else build_index(_lift(anchors - centre), similarity="dot")
        bases = context.anchor_bases.to(context.device)

        def solve(span: slice) -> InitRows:
            rows = context.donor(context.wanted[span])
            if cosine:
                found = index.search(rows, count)
                near, similarities = found.indices, found.similarities
            else:
                lifted = torch.nn.functional.pad(rows - centre, (0, 1), value=1.0)
                near, similarities = index.search(lifted, count + _SPARE).indices.sort(dim=1).values, None
            distances = _distances(rows, anchors[near])
            if not cosine:
                distances, order = distances.sort(dim=1, stable=True)
                distances, near = distances[:, :count], near.gather(1, order)[:, :count]
            coefs = self.weigh(rows, anchors[near], distances, similarities)
            # A combination of nothing says nothing.
            sources = torch.where((coefs != 0).any(dim=1, keepdim=True), bases[near], -1)
            return context.combine(sources, coefs)

        return context.in_batches(solve)

    def weigh(self, rows: Tensor, near: Tensor, distances: Tensor, similarities: Tensor | None) -> Tensor:
        """Weights of the nearest anchors.

        Args:
            rows: ``(n, d)`` float32.
            near: ``(n, k, d)`` float32, their anchors.
            distances: ``(n, k)`` float32, Euclidean.
            similarities: ``(n, k)`` float32, cosines; None to weigh by distance.

        Returns:
            ``(n, k)`` float32.
        """
        equal = 1 / max(near.shape[1], 1)
        if self.params.weighting == "least_squares":
            coefs = least_norm(near, rows)
        elif self.params.weighting == "barycentric":
            # Around the anchors' mean the answer of least norm adds up to zero by itself.
            middle = near.mean(dim=1)
            coefs = equal + least_norm(near - middle[:, None], rows - middle)
        else:
            raw = 1 / distances.clamp(min=_SMALLEST) if similarities is None else similarities.clamp(min=0)
            total = raw.sum(dim=1, keepdim=True)
            coefs = torch.where(total > 0, raw / total, equal)
        hits = (distances == 0).to(torch.float32)
        number = hits.sum(dim=1, keepdim=True)
        return torch.where(number > 0, hits / number, coefs)


def least_norm(atoms: Tensor, targets: Tensor) -> Tensor:
    """Least-squares coefficients of each target on atoms of its own, those of least norm.

    Args:
        atoms: ``(n, k, d)`` float32; they may depend on one another.
        targets: ``(n, d)`` float32.

    Returns:
        ``(n, k)`` float32, computed in float64.
    """
    if not atoms.numel():
        return atoms.new_zeros(atoms.shape[:2])
    exact = atoms.to(torch.float64)
    values, vectors = torch.linalg.eigh(exact @ exact.mT)
    kept = values > _RANK * values[:, -1:]
    inverse = torch.where(kept, 1 / torch.where(kept, values, 1), 0)
    products = exact @ targets[:, :, None].to(torch.float64)
    coefs: Tensor = vectors @ (inverse[:, :, None] * (vectors.mT @ products))
    return coefs[:, :, 0].to(torch.float32)


def _lift(rows: Tensor) -> Tensor:
    """One dimension more, so that the largest product with ``(x, 1)`` is the smallest distance from ``x``."""
    return torch.cat([rows, -rows.square().sum(dim=1, keepdim=True) / 2], dim=1)


def _distances(rows: Tensor, near: Tensor) -> Tensor:
    distances: Tensor = (near - rows[:, None]).norm(dim=2)
    return distances
