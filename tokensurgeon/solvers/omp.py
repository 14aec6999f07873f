"""Orthogonal Matching Pursuit, batched over targets.

Y. C. Pati, R. Rezaiifar, P. S. Krishnaprasad, "Orthogonal Matching Pursuit: recursive function
approximation with applications to wavelet decomposition", Asilomar 1993. Used for tokens by
C. Goddard, F. Fernandes Neto, "Training-Free Tokenizer Transplantation via Orthogonal Matching Pursuit",
arXiv:2506.06607.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# An atom whose part orthogonal to the atoms already taken is smaller than this, relative to its norm, adds
# nothing a float32 selection can tell from rounding.
_DEPENDENT = 1e-4


@dataclass(frozen=True)
class OmpResult:
    """Sparse combinations of atoms.

    Attributes:
        indices: ``(B, k)`` int64, atoms in the order they were taken, -1 past ``n_active``.
        coefs: ``(B, k)`` float32, least-squares coefficients on the atoms as given, 0 past ``n_active``.
        residual: ``(B,)`` float32, norm of what is left relative to the target's norm; 0 for a zero target.
        n_active: ``(B,)`` int64, atoms taken.
    """

    indices: Tensor
    coefs: Tensor
    residual: Tensor
    n_active: Tensor


def omp(
    targets: Tensor,
    atoms: Tensor,
    k: int,
    *,
    tolerance: float = 0.0,
    normalize_atoms: bool = True,
    batch_size: int = 512,
    advance: Callable[[int], None] | None = None,
) -> OmpResult:
    """Write each target as a combination of at most ``k`` atoms.

    Every step takes the atom with the largest absolute inner product with what is left (of equal atoms
    the lowest index) and then fits all atoms taken so far by least squares. A row stops at ``k``, at the
    tolerance, or when the best atom depends on those it has. Selection runs in float32, the final fit in
    float64.

    Args:
        targets: ``(B, D)``, any floating dtype.
        atoms: ``(N, D)``; need not have unit norm. Zero atoms are never taken.
        k: Most atoms a row; cut to ``min(N, D)``.
        tolerance: A row stops when its residual is at most this share of the target's norm.
        normalize_atoms: Divide inner products by the atom's norm, as the algorithm's authors do. Without it
            long atoms win, as in mergekit.
        batch_size: Targets worked on at a time; bounds memory, ``batch_size * (N + k * D)`` floats.
        advance: Called with the number of targets finished.

    Returns:
        The combinations, on the device of ``atoms``.

    Raises:
        ValueError: Shapes do not fit, or ``k`` is negative.
    """
    if targets.ndim != 2 or atoms.ndim != 2 or targets.shape[1] != atoms.shape[1]:
        raise ValueError(
            f"targets {tuple(targets.shape)} and atoms {tuple(atoms.shape)} need one dimension D"
        )
    if k < 0:
        raise ValueError(f"k is {k}, expected 0 or more")
    k = min(k, *atoms.shape)
    atoms = atoms.to(torch.float32)
    norms = atoms.norm(dim=1)
    usable = norms > 0
    scaled = atoms / torch.where(usable, norms, 1)[:, None] if normalize_atoms else atoms
    first = _first_equals(atoms)
    parts = []
    for start in range(0, len(targets), batch_size):
        batch = targets[start : start + batch_size].to(atoms)
        indices = _select(batch, atoms, scaled, norms, first, k, tolerance)
        parts.append(_fit(batch, atoms, indices))
        if advance is not None:
            advance(len(batch))
    if not parts:
        return _fit(targets.to(atoms), atoms, torch.empty((0, k), dtype=torch.int64, device=atoms.device))
    return OmpResult(
        *(
            torch.cat([getattr(part, name) for part in parts])
            for name in ("indices", "coefs", "residual", "n_active")
        )
    )


def _first_equals(atoms: Tensor) -> Tensor:
    """For every atom the lowest index of an equal one.

    Equal atoms have inner products that are equal up to rounding, and rounding depends on the shape of the
    batch; the choice between them must not.
    """
    _, group = torch.unique(atoms, dim=0, return_inverse=True)
    order = torch.arange(len(atoms), device=atoms.device)
    lowest = torch.full_like(order, len(atoms)).scatter_reduce_(0, group, order, "amin")
    return lowest[group]


def _select(
    targets: Tensor, atoms: Tensor, scaled: Tensor, norms: Tensor, first: Tensor, k: int, tolerance: float
) -> Tensor:
    """Atoms of each target, ``(B, k)``, -1 where a row has stopped."""
    count, width = targets.shape
    residual = targets.clone()
    limit = tolerance * targets.norm(dim=1)
    basis = targets.new_zeros((count, k, width))
    indices = torch.full((count, k), -1, dtype=torch.int64, device=targets.device)
    active = residual.norm(dim=1) > limit
    for step in range(k):
        best = first[(residual @ scaled.T).abs_().argmax(dim=1)]
        direction = atoms[best]
        if step:
            # Twice is enough: classical Gram-Schmidt loses orthogonality only once.
            for _ in range(2):
                overlap = torch.bmm(basis[:, :step], direction[:, :, None])
                direction = direction - torch.bmm(overlap.mT, basis[:, :step])[:, 0]
        length = direction.norm(dim=1)
        active = active & (length > _DEPENDENT * norms[best])
        direction = torch.where(active, 1 / length, 0)[:, None] * direction
        basis[:, step] = direction
        indices[:, step] = torch.where(active, best, -1)
        residual -= (direction * residual).sum(dim=1, keepdim=True) * direction
        active = active & (residual.norm(dim=1) > limit)
    return indices


def _fit(targets: Tensor, atoms: Tensor, indices: Tensor) -> OmpResult:
    """Least squares on the selected atoms, in float64 by Cholesky of their Gram matrix."""
    taken = indices >= 0
    chosen = atoms[indices.clamp(min=0)].to(torch.float64) * taken[:, :, None]
    exact = targets.to(torch.float64)
    gram = chosen @ chosen.mT + torch.diag_embed((~taken).to(torch.float64))
    right = chosen @ exact[:, :, None]
    coefs = torch.cholesky_solve(right, torch.linalg.cholesky(gram))[:, :, 0]
    left = exact - (coefs[:, None] @ chosen)[:, 0]
    size = exact.norm(dim=1)
    residual = torch.where(size > 0, left.norm(dim=1) / size.clamp(min=torch.finfo(torch.float64).tiny), 0)
    return OmpResult(indices, (coefs * taken).to(torch.float32), residual.to(torch.float32), taken.sum(dim=1))
