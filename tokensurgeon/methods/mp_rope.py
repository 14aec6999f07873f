"""Matching pursuit over anchors that are rotated like keys, as in mergekit's ``mp_rope``.

Rotary positions (J. Su et al., "RoFormer", arXiv:2104.09864) turn dimensions ``2i`` and ``2i + 1`` of a row
by ``p f_i`` at position ``p``, with ``f_i = theta ** (-2i / d)``. At each step every anchor is turned to the
position at which it is most like what is left of the donor row: with ``phi_i`` the angle between their
``i``-th pairs and ``l_i`` the product of the pairs' lengths, ``p = sum l_i f_i phi_i / sum l_i f_i^2``
minimises ``sum l_i (p f_i - phi_i)^2``. The unit anchor whose turned row has the largest product with what is
left is taken, and all turned anchors taken so far are fitted by least squares. The base's rows of the same
anchors are turned by the base's frequencies at the same positions and summed with the same coefficients.

On purpose not as in mergekit: pairs count by their length; only the 64 anchors with the largest plain
products are turned at a step, since high frequencies decide the position and most pairs hardly move; the
width is one head, so that models of any two widths fit; an odd last dimension is not turned; no anchor is
taken twice; anchors may depend on one another.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tokensurgeon.methods.base import InitRows, MethodContext
from tokensurgeon.methods.nearest import least_norm
from tokensurgeon.methods.params import MpRopeParams
from tokensurgeon.solvers.dictionary import Dictionary

_SHORTLIST = 64
# Rows whose shortlists are turned at a time on a CPU: what leaves its cache takes half as long again.
_ROWS = 16
# A turned anchor adds nothing when so little of it, or of the donor row, is left.
_DEPENDENT = 1e-4


class MpRope:
    """Combine at most ``k`` rotated anchors per token."""

    def __init__(self, params: MpRopeParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Solve in the donor's space, apply in the base's."""
        dictionary = Dictionary.prepare(context.donor_anchors(), coarse_dtype=torch.float32)
        # Of equal anchors the first: rounding must not choose.
        number = torch.arange(len(dictionary.first), device=context.device)
        usable = (dictionary.first == number) & (dictionary.lengths > 0)
        atoms, lengths = dictionary.rows[usable], dictionary.divisors[usable]
        bases = context.anchor_bases[usable.cpu()]
        base_width = context.base_rows.shape[1]
        base_turns = frequencies(base_width, context.rope_thetas[0]).to(context.device)
        donor_turns = frequencies(atoms.shape[1], context.rope_thetas[1]).to(context.device)

        def solve(span: slice) -> InitRows:
            rows = context.donor(context.wanted[span])
            found = _pursue(rows, atoms, donor_turns, self.params.k)
            made = rows.new_zeros((len(rows), base_width))
            for step in range(found.places.shape[1]):
                places = found.places[:, step]
                turned = rotate(context.base(bases[places.cpu()]), found.positions[:, step], base_turns)
                made += turned * (found.coefs[:, step] / lengths[places])[:, None]
            served = (found.coefs != 0).any(dim=1)
            made = torch.where(served[:, None], made, context.base_mean)
            return InitRows(made, residual=found.residual, served=served)

        return context.in_batches(solve)


class _Pursuit(NamedTuple):
    """Places of atoms, their positions and coefficients ``(n, k)``, and the share ``(n,)`` they miss."""

    places: Tensor
    positions: Tensor
    coefs: Tensor
    residual: Tensor


def frequencies(width: int, theta: float) -> Tensor:
    """Angles that one position turns each pair of dimensions by.

    Args:
        width: Dimensions of a row.
        theta: Base frequency.

    Returns:
        ``(width // 2,)`` float64.
    """
    pair = torch.arange(width // 2, dtype=torch.float64)
    return theta ** (-2 * pair / width)


def rotate(rows: Tensor, positions: Tensor, turns: Tensor) -> Tensor:
    """Turn each row to its position.

    Args:
        rows: ``(n, d)`` float32.
        positions: ``(n,)`` float64.
        turns: ``(d // 2,)`` float64, see ``frequencies``.

    Returns:
        ``(n, d)`` float32; an odd last dimension is as it was.
    """
    angles = positions[:, None] * turns
    cos, sin = angles.cos().to(rows), angles.sin().to(rows)
    first, second = _pairs(rows)
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=2).flatten(1)
    return torch.cat([turned, rows[:, turned.shape[1] :]], dim=1)


def _pursue(rows: Tensor, atoms: Tensor, turns: Tensor, k: int) -> _Pursuit:
    """Choose unit atoms for each row, and positions for them."""
    count, width = rows.shape
    k = min(k, *atoms.shape)
    places = torch.zeros((count, k), dtype=torch.int64, device=rows.device)
    positions = torch.zeros((count, k), dtype=torch.float64, device=rows.device)
    chosen, basis = rows.new_zeros((count, k, width)), rows.new_zeros((count, k, width))
    norms = rows.norm(dim=1, keepdim=True)
    residual = rows
    together = _ROWS if rows.device.type == "cpu" else max(count, 1)
    for step in range(k):
        scores = (residual @ atoms.mT).abs().scatter(1, places[:, :step], -1.0)
        free, shortlist = scores.topk(min(_SHORTLIST, len(atoms)), dim=1)
        parts = zip(shortlist.split(together), residual.split(together), strict=True)
        products = torch.cat([_turned_products(atoms[near], left, turns) for near, left in parts])
        best = torch.where(free < 0, -1, products.abs()).argmax(dim=1, keepdim=True)
        places[:, step] = shortlist.gather(1, best)[:, 0]
        atom = atoms[places[:, step]]
        # Once more in float64: a far position times a high frequency loses digits.
        angles, weights = _compare(atom.to(torch.float64), residual.to(torch.float64))
        positions[:, step] = _locate(angles, weights, turns)
        turned = rotate(atom, positions[:, step], turns)
        new = _orthogonal(_orthogonal(turned, basis[:, :step]), basis[:, :step])
        length = new.norm(dim=1, keepdim=True)
        useful = (length > _DEPENDENT) & (residual.norm(dim=1, keepdim=True) > _DEPENDENT * norms)
        chosen[:, step] = torch.where(useful, turned, 0)
        basis[:, step] = torch.where(useful, new / length.clamp(min=_DEPENDENT), 0)
        residual = _orthogonal(residual, basis[:, : step + 1])
    share = residual.norm(dim=1) / torch.where(norms > 0, norms, 1)[:, 0]
    return _Pursuit(places, positions, least_norm(chosen, rows), share)


def _turned_products(near: Tensor, residual: Tensor, turns: Tensor) -> Tensor:
    """Products ``(n, s)`` of residuals ``(n, d)`` with atoms ``(n, s, d)``, each at its best position."""
    angles, weights = _compare(near, residual[:, None])
    turns = turns.to(near)
    positions = _locate(angles, weights, turns)
    products = (weights * (angles - positions[..., None] * turns).cos()).sum(dim=2)
    if near.shape[2] % 2:
        products = products + near[:, :, -1] * residual[:, None, -1]
    return products


def _compare(atoms: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """Angle from each pair of an atom to the residual's, and the product of their lengths."""
    one, two = _pairs(atoms), _pairs(residual)
    along, across = one[0] * two[0] + one[1] * two[1], one[0] * two[1] - one[1] * two[0]
    return torch.atan2(across, along), torch.hypot(along, across)


def _locate(angles: Tensor, weights: Tensor, turns: Tensor) -> Tensor:
    total = (weights * turns.square()).sum(dim=-1)
    return (weights * turns * angles).sum(dim=-1) / torch.where(total > 0, total, 1)


def _pairs(rows: Tensor) -> tuple[Tensor, Tensor]:
    even = rows.shape[-1] // 2 * 2
    return rows[..., 0:even:2], rows[..., 1:even:2]


def _orthogonal(rows: Tensor, basis: Tensor) -> Tensor:
    """Rows ``(n, d)`` without their part in the span of orthonormal vectors ``(n, t, d)``."""
    return rows - ((basis @ rows[:, :, None]) * basis).sum(dim=1)
