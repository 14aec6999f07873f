"""Linear maps between two spaces in which the same things have a row: ridge regression, rotation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_BLOCK = 8192
_RANK = 1e-10


def ridge(features: Tensor, targets: Tensor, strength: float) -> Tensor:
    """The map ``W`` that minimises ``|features W - targets|^2 + strength * energy * |W|^2``.

    The energy is the sum of the features' squares, divided by ``f``. Sums are in float64. Directions that the
    features do not span are mapped to zero, so rank-deficient features have a finite answer without any
    ridge, that of least norm.

    Args:
        features: ``(n, f)``; centre them first where an offset is wanted.
        targets: ``(n, t)``.
        strength: Not negative.

    Returns:
        ``(f, t)`` float32.
    """
    gram, cross = products(features, targets)
    penalty = strength * gram.diagonal().mean()
    if strength > 0:
        damped = gram.clone()
        damped.diagonal().add_(penalty)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            solution: Tensor = torch.cholesky_solve(cross, factor)
            return solution.to(torch.float32)
    values, vectors = torch.linalg.eigh(gram)
    kept = values > _RANK * values[-1]
    inverse = torch.where(kept, 1 / torch.where(kept, values + penalty, 1), 0)
    answer: Tensor = (vectors * inverse) @ (vectors.mT @ cross)
    return answer.to(torch.float32)


def rotation(features: Tensor, targets: Tensor) -> tuple[Tensor, float]:
    """The rotation ``R`` that minimises ``|features R - targets|^2``, and the best factor on it.

    P. Schönemann, "A generalized solution of the orthogonal Procrustes problem", 1966. Between spaces of
    different width ``R`` has orthonormal rows or columns; directions without rows are mapped to zero.

    Args:
        features: ``(n, f)``; centre them first.
        targets: ``(n, t)``; centre them first.

    Returns:
        ``(f, t)`` float32, and the factor that minimises the same distance given ``R``.
    """
    gram, cross = products(features, targets)
    left, values, right = torch.linalg.svd(cross, full_matrices=False)
    # A direction that nothing was seen in has no counterpart: any would be made up.
    seen = values > _RANK * values[:1]
    turn = (left * seen) @ right
    # |features R|^2, which is |features|^2 only where R keeps all dimensions.
    energy = float(((gram @ turn) * turn).sum())
    return turn.to(torch.float32), float(values.sum()) / energy if energy > 0 else 1.0


def products(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """``features' features`` and ``features' targets``, summed in float64.

    Args:
        features: ``(n, f)``.
        targets: ``(n, t)``.

    Returns:
        ``(f, f)`` and ``(f, t)`` float64.
    """
    width = features.shape[1]
    gram = torch.zeros((width, width), dtype=torch.float64, device=features.device)
    cross = torch.zeros((width, targets.shape[1]), dtype=torch.float64, device=features.device)
    for part, goal in _blocks(features, targets):
        gram += part.mT @ part
        cross += part.mT @ goal
    return gram, cross


def _blocks(features: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for part, goal in zip(features.split(_BLOCK), targets.split(_BLOCK), strict=True):
        yield part.to(torch.float64), goal.to(torch.float64)


def fit_affine(rows: Tensor, targets: Tensor, strength: float) -> tuple[Tensor, Tensor, Tensor]:
    """Fit a ridge map between centred rows. Works in place, since both tables may be large.

    Args:
        rows: ``(n, d)`` float32; becomes centred.
        targets: ``(n, m)`` float32; becomes what the map misses.
        strength: Of ``ridge``.

    Returns:
        Mean ``(d,)`` of the rows, mean ``(m,)`` of the targets, and the map ``(d, m)``.
    """
    row_mean, target_mean = rows.mean(dim=0), targets.mean(dim=0)
    rows -= row_mean
    targets -= target_mean
    into = ridge(rows, targets, strength)
    for part, missed in zip(rows.split(8192), targets.split(8192), strict=True):
        missed -= part @ into
    return row_mean, target_mean, into
