"""Orthogonal Matching Pursuit, batched over targets.

Y. C. Pati, R. Rezaiifar, P. S. Krishnaprasad, "Orthogonal Matching Pursuit: recursive function
approximation with applications to wavelet decomposition", Asilomar 1993. Used for tokens by
C. Goddard, F. Fernandes Neto, "Training-Free Tokenizer Transplantation via Orthogonal Matching Pursuit",
arXiv:2506.06607.

Nearly all of the time goes into one product a step, of the residuals with all atoms. It only has to say
which atoms may be the best, so it runs in bfloat16 where the device is faster with it; the atoms on that
shortlist are scored again in float32. Two modes share this:

``exact``
    A product every step. A row is kept only if a bound on the rounding proves that no atom outside its
    shortlists could have won; the others, a few in a thousand, are solved again with float32 products.
``screened``
    A product every few steps. In between, atoms are taken from the shortlist alone, by a pivoted Cholesky
    factorisation of its Gram matrix, so that the atoms themselves are read once a product. Basis and residual
    are kept in float32, so what the fast dtype blurs between two products does not add up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokensurgeon.solvers.dictionary import Dictionary

Mode = Literal["exact", "screened"]

# An atom whose part orthogonal to the atoms already taken is smaller than this, relative to its norm, adds
# nothing a float32 selection can tell from rounding. Screened steps see squares and need a wider margin.
_DEPENDENT = 1e-4
_NEARLY_DEPENDENT = 0.1

# Shortlist sizes, and how many atoms are taken from each successive shortlist; the last number repeats.
# Early atoms change the residual most. On SmolLM2 and Gemma 3 (d 576 and 640, k 64) this leaves a residual
# 0.4 to 0.6 % above exact's; scripts/bench_omp.py measures it.
_EXACT_SHORTLIST = 24
_SCREENED_SHORTLIST = 64
_TAKEN = (2, 3, 5, 6)

# Columns of a large product that are looked at together.
_GROUP = 16

# Libraries switch to other kernels, which round differently, for products with few rows.
_ROWS_MULTIPLE = 64

# Rounding of a bfloat16 score (2^-8), doubled for back ends that also accumulate in bfloat16.
_SCORE_ROUNDING = 2.0**-7
# Rounding of a float32 score, relative to the residual's norm and with a wide margin.
_RESCORE_ROUNDING = 1e-5


@dataclass(frozen=True)
class OmpResult:
    """Sparse combinations of atoms.

    Attributes:
        indices: ``(B, k)`` int64, atoms in the order they were taken, -1 where there are fewer.
        coefs: ``(B, k)`` float32, least-squares coefficients on the atoms as given, 0 where there are fewer.
        residual: ``(B,)`` float32, norm of what is left relative to the target's norm; 0 for a zero target.
        n_active: ``(B,)`` int64, atoms taken.
        proven: ``(B,)`` int64, how many of them were taken when no atom off the shortlist could have been
            better; all of them in exact mode.
    """

    indices: Tensor
    coefs: Tensor
    residual: Tensor
    n_active: Tensor
    proven: Tensor


def bytes_per_target(atoms: int, width: int, k: int) -> int:
    """Memory that one target takes while it is solved.

    Args:
        atoms: Number of atoms.
        width: Their dimension.
        k: Atoms a target.

    Returns:
        Bytes: scores in float32 at most, basis, shortlist, and the chosen atoms in float64 with a copy.
    """
    k = min(k, atoms, width)
    return 4 * atoms + 4 * width * (k + 2 * _SCREENED_SHORTLIST) + 16 * width * k + 24 * k * k


def count_products(k: int, mode: Mode) -> int:
    """Products of the residuals with all atoms that a target takes.

    Args:
        k: Atoms a target.
        mode: As for ``omp``.

    Returns:
        Their number.
    """
    return k if mode == "exact" else len(list(_stages(k)))


def measure_speed(width: int, device: torch.device) -> float:
    """Time one step on random numbers, to estimate how long a run will take.

    Args:
        width: Dimension of the atoms.
        device: Where the run will compute.

    Returns:
        Multiplications and additions a second, all other work of a step counted as overhead.
    """
    generator = torch.Generator().manual_seed(0)
    dictionary = Dictionary.prepare(torch.randn((16384, width), generator=generator).to(device))
    targets = torch.randn((128, width), generator=generator).to(device)
    products = 4
    _solve(targets, dictionary, products, "exact", 0.0)
    started = time.perf_counter()
    # The residuals come back to the host, so the device is done when the clock is read.
    float(_solve(targets, dictionary, products, "exact", 0.0).residual.sum())
    return 2 * products * len(targets) * dictionary.rows.numel() / (time.perf_counter() - started)


def omp(
    targets: Tensor,
    dictionary: Dictionary,
    k: int,
    *,
    mode: Mode = "exact",
    tolerance: float = 0.0,
    batch_size: int = 256,
    advance: Callable[[int], None] | None = None,
) -> OmpResult:
    """Write each target as a combination of at most ``k`` atoms.

    Every step takes the atom with the largest absolute inner product with what is left (of equal atoms
    the lowest index) and then fits all atoms taken so far by least squares. A row stops at ``k``, at the
    tolerance, or when the best atom depends on those it has. Selection runs in float32, the final fit in
    float64. The result does not depend on how targets are split into batches.

    Screened mode takes the best atom of a shortlist that is renewed every few steps, and passes over atoms
    that nearly depend on those it has.

    Args:
        targets: ``(B, D)``, any floating dtype.
        dictionary: The atoms.
        k: Most atoms a row; cut to ``min(N, D)``.
        mode: Whether to look at all atoms at every step.
        tolerance: A row stops when its residual is at most this share of the target's norm.
        batch_size: Targets worked on at a time; bounds memory, see ``bytes_per_target``. Halved when the
            device runs out of memory.
        advance: Called with the number of targets finished.

    Returns:
        The combinations, on the device of the dictionary.

    Raises:
        ValueError: Shapes do not fit, or ``k`` is negative.
    """
    atoms = dictionary.rows
    if targets.ndim != 2 or targets.shape[1] != atoms.shape[1]:
        raise ValueError(
            f"targets {tuple(targets.shape)} and atoms {tuple(atoms.shape)} need one dimension D"
        )
    if k < 0:
        raise ValueError(f"k is {k}, expected 0 or more")
    k = min(k, *atoms.shape)
    parts: list[OmpResult] = []
    start = 0
    while start < len(targets) or not parts:
        batch = targets[start : start + batch_size].to(atoms)
        try:
            parts.append(_solve(batch, dictionary, k, mode, tolerance))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or batch_size <= _ROWS_MULTIPLE:
                raise
            batch_size = max(batch_size // 2, _ROWS_MULTIPLE)
            continue
        start += len(batch)
        if advance is not None:
            advance(len(batch))
    return OmpResult(
        *(
            torch.cat([getattr(part, name) for part in parts])
            for name in ("indices", "coefs", "residual", "n_active", "proven")
        )
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no memory left.

    Args:
        error: Any error.

    Returns:
        True for CUDA's error, for the CPU allocator's, which has no type of its own, and for Python's.
    """
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def _solve(batch: Tensor, dictionary: Dictionary, k: int, mode: Mode, tolerance: float) -> OmpResult:
    count = len(batch)
    targets = _pad(batch)
    if not (count and k):
        indices = torch.full((len(targets), k), -1, dtype=torch.int64, device=targets.device)
        proven = indices.new_zeros(len(targets))
    elif mode == "screened":
        indices, proven = _pursue_screened(targets, dictionary, k, tolerance)
    else:
        indices, doubtful = _pursue(targets, dictionary, k, tolerance)
        rows = doubtful.nonzero()[:, 0]
        if len(rows) and dictionary.rounding:
            again, _ = _pursue(_pad(targets[rows]), dictionary.with_float32_products(), k, tolerance)
            indices[rows] = again[: len(rows)]
        proven = (indices >= 0).sum(dim=1)
    return _fit(batch, dictionary, indices[:count], proven[:count])


def _pad(rows: Tensor) -> Tensor:
    """Zero rows added up to a multiple of 64; a zero target is finished before it starts."""
    return torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % _ROWS_MULTIPLE))


class _Shortlist:
    """Finds the atoms that may be the best for a residual, by one large product.

    Args:
        dictionary: The atoms.
        count: Number of residuals.
        size: Atoms on the list.

    Attributes:
        atoms: ``(B, M)`` int64, in rising order, so that the first of several best has the lowest index.
        scores: ``(B, M)`` float32, inner products with the residual as the large product has them.
        bound: ``(B,)`` float32, no other atom has a larger absolute score; -inf when there are no others.
        error: ``(B,)`` float32, by how much ``scores`` may be off.
    """

    def __init__(self, dictionary: Dictionary, count: int, size: int) -> None:
        atoms = len(dictionary.rows)
        self._dictionary = dictionary
        self._size = min(size, atoms)
        # Written anew by every product: fresh pages for each would take longer than the product itself.
        self._whole = dictionary.coarse.new_empty((count, len(dictionary.coarse)))
        self._products = self._whole[:, :atoms]

    def renew(self, residual: Tensor) -> None:
        """Fill the list for residuals ``(B, D)``."""
        dictionary = self._dictionary
        coarse = residual.to(dictionary.coarse.dtype)
        torch.mm(coarse, dictionary.coarse.T, out=self._whole)
        values, places = self._largest()
        self.atoms, order = dictionary.first[places].sort(dim=1)
        self.scores = values.to(residual.dtype).gather(1, order)
        rounded = coarse.to(residual)
        length, longest = rounded.norm(dim=1), dictionary.lengths.max()
        threshold = self.scores.abs().amin(dim=1)
        self.error = dictionary.rounding * length + longest * (residual - rounded).norm(dim=1)
        if dictionary.rounding:
            self.error = self.error + _SCORE_ROUNDING * threshold + _RESCORE_ROUNDING * longest * length
        complete = self._size == len(dictionary.rows)
        self.bound = torch.full_like(threshold, -torch.inf) if complete else threshold + self.error

    def _largest(self) -> tuple[Tensor, Tensor]:
        """The products that are largest in size ``(B, M)``, and their columns.

        Whatever is among the M largest lies in one of the M groups of columns with the largest member, so
        most columns are only read.
        """
        columns = self._products.shape[1]
        groups = columns // _GROUP
        if groups <= self._size:
            places = self._products.abs().topk(self._size, dim=1, sorted=False).indices
            return self._products.gather(1, places), places
        grouped = self._products[:, : groups * _GROUP].unflatten(1, (_GROUP, groups))
        peaks = torch.maximum(grouped.amax(dim=1), -grouped.amin(dim=1))
        chosen = peaks.topk(self._size, dim=1, sorted=False).indices
        starts = torch.arange(0, groups * _GROUP, groups, device=chosen.device)
        rest = torch.arange(groups * _GROUP, columns, device=chosen.device).expand(len(chosen), -1)
        candidates = torch.cat([(chosen[:, None] + starts[:, None]).flatten(1), rest], dim=1)
        values = self._products.gather(1, candidates)
        top = values.abs().topk(self._size, dim=1, sorted=False).indices
        return values.gather(1, top), candidates.gather(1, top)


def _gather(table: Tensor, places: Tensor, out: Tensor) -> Tensor:
    """``table[places]``, written into ``out``."""
    torch.index_select(table, 0, places.flatten(), out=out.flatten(0, 1))
    return out


def _pursue(targets: Tensor, dictionary: Dictionary, k: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Atoms of each target ``(B, k)``, -1 where a row has stopped, and rows whose atoms are not proven."""
    count, width = targets.shape
    order = torch.arange(count, device=targets.device)
    residual = targets.clone()
    limit = tolerance * targets.norm(dim=1)
    basis = targets.new_zeros((count, k, width))
    indices = torch.full((count, k), -1, dtype=torch.int64, device=targets.device)
    active = residual.norm(dim=1) > limit
    doubtful = torch.zeros_like(active)
    shortlist = _Shortlist(dictionary, count, _EXACT_SHORTLIST)
    rows = targets.new_empty((count, min(_EXACT_SHORTLIST, len(dictionary.rows)), width))
    for step in range(k):
        shortlist.renew(residual)
        _gather(dictionary.rows, shortlist.atoms, out=rows)
        score, place = torch.bmm(rows, residual[:, :, None])[:, :, 0].abs().max(dim=1)
        doubtful |= active & (score < shortlist.bound)
        best = shortlist.atoms[order, place]
        direction = _orthogonal(rows[order, place][:, None], basis[:, :step])[:, 0]
        length = direction.norm(dim=1)
        active = active & (length > _DEPENDENT * dictionary.lengths[best])
        direction = torch.where(active, 1 / length, 0)[:, None] * direction
        basis[:, step] = direction
        indices[:, step] = torch.where(active, best, -1)
        residual -= (direction * residual).sum(dim=1, keepdim=True) * direction
        active = active & (residual.norm(dim=1) > limit)
    return indices, doubtful


def _orthogonal(rows: Tensor, basis: Tensor) -> Tensor:
    """``(B, n, D)`` rows without their part in the span of an orthonormal ``(B, s, D)`` basis."""
    if basis.shape[1]:
        # Twice is enough: classical Gram-Schmidt loses orthogonality only once.
        for _ in range(2):
            rows = torch.baddbmm(rows, torch.bmm(rows, basis.mT), basis, alpha=-1)
    return rows


def _pursue_screened(
    targets: Tensor, dictionary: Dictionary, k: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Atoms of each target ``(B, k)``, -1 where none was taken, and how many none off the list could beat."""
    count, width = targets.shape
    order = torch.arange(count, device=targets.device)
    residual = targets.clone()
    limit = tolerance * targets.norm(dim=1)
    basis = targets.new_zeros((count, k, width))
    coarse_basis = torch.zeros_like(basis, dtype=dictionary.coarse.dtype)
    indices = torch.full((count, k), -1, dtype=torch.int64, device=targets.device)
    active = residual.norm(dim=1) > limit
    proven = torch.zeros_like(order)
    longest = dictionary.lengths.max()
    shortlist = _Shortlist(dictionary, count, _SCREENED_SHORTLIST)
    rows = coarse_basis.new_empty((count, min(_SCREENED_SHORTLIST, len(dictionary.rows)), width))
    for step, taken in _stages(k):
        shortlist.renew(residual)
        _gather(dictionary.coarse, shortlist.atoms, out=rows)
        scores = shortlist.scores
        # Gram matrix of the listed atoms' parts outside the basis; the residual has no part inside.
        overlap = torch.bmm(rows, coarse_basis[:, :step].mT).to(targets)
        gram = torch.baddbmm(torch.bmm(rows, rows.mT).to(targets), overlap, overlap.mT, alpha=-1)
        left = gram.diagonal(dim1=1, dim2=2).clone()
        least = _NEARLY_DEPENDENT**2 * dictionary.lengths[shortlist.atoms] ** 2
        factor = targets.new_zeros((count, taken, rows.shape[1]))
        started = residual.norm(dim=1)
        energy = started**2
        for turn in range(taken):
            score, place = torch.where(left > least, scores.abs(), -1).max(dim=1)
            active = active & (score > 0) & (energy.clamp(min=0).sqrt() > limit)
            # No score moves by more than the residual does, of which this is an estimate.
            moved = 1.1 * (started**2 - energy).clamp(min=0).sqrt()
            proven += active & (score - shortlist.error >= shortlist.bound + longest * moved)
            column = gram[order, place]
            if turn:
                pivots = factor[order, :turn, place]
                column = column - torch.bmm(pivots[:, None], factor[:, :turn])[:, 0]
            pivot = torch.where(active, left[order, place].clamp(min=1e-30).rsqrt(), 0)
            column = pivot[:, None] * column
            gain = pivot * scores[order, place]
            scores = scores - gain[:, None] * column
            left = left - column**2
            energy = energy - gain**2
            factor[:, turn] = column
            indices[:, step + turn] = torch.where(active, shortlist.atoms[order, place], -1)
        chosen = indices[:, step : step + taken]
        fresh = dictionary.rows[chosen.clamp(min=0)] * (chosen >= 0)[:, :, None]
        fresh = _orthonormal(_orthogonal(fresh, basis[:, :step]))
        basis[:, step : step + taken] = fresh
        coarse_basis[:, step : step + taken] = fresh
        residual = residual - torch.bmm(torch.bmm(residual[:, None], fresh.mT), fresh)[:, 0]
        active = active & (residual.norm(dim=1) > limit)
    return indices, proven


def _stages(k: int) -> Iterator[tuple[int, int]]:
    """How many atoms are taken before each product, and how many after it."""
    step, turn = 0, 0
    while step < k:
        taken = min(_TAKEN[min(turn, len(_TAKEN) - 1)], k - step)
        yield step, taken
        step, turn = step + taken, turn + 1


def _orthonormal(rows: Tensor) -> Tensor:
    """Few rows ``(B, n, D)`` made orthonormal in order, by modified Gram-Schmidt; zero rows stay zero."""
    rows = rows.clone()
    for turn in range(rows.shape[1]):
        length = rows[:, turn].norm(dim=1, keepdim=True)
        row = rows[:, turn] * torch.where(length > 0, 1 / length, 0)
        rows[:, turn] = row
        rest = rows[:, turn + 1 :]
        rest -= torch.bmm(rest, row[:, :, None]) * row[:, None]
    return rows


def _fit(targets: Tensor, dictionary: Dictionary, indices: Tensor, proven: Tensor) -> OmpResult:
    """Least squares on the selected atoms, in float64 by Cholesky of their Gram matrix."""
    padded, places = _pad(targets), _pad(indices + 1) - 1
    # On a CPU few rows at a time: the matrices of many leave the cache, and their memory is not used again.
    size = _ROWS_MULTIPLE if padded.device.type == "cpu" else 16 * _ROWS_MULTIPLE
    pieces = zip(padded.split(size), places.split(size), strict=True)
    solved = [_least_squares(piece.to(torch.float64), dictionary, place) for piece, place in pieces]
    coefs, residual = (torch.cat(parts)[: len(targets)] for parts in zip(*solved, strict=True))
    return OmpResult(indices, coefs, residual, (indices >= 0).sum(dim=1), proven)


def _least_squares(targets: Tensor, dictionary: Dictionary, places: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients ``(B, k)`` and relative residuals ``(B,)`` in float32."""
    taken = places >= 0
    chosen = dictionary.rows[places.clamp(min=0)].mul_(taken[:, :, None]).to(torch.float64)
    gram = chosen @ chosen.mT + torch.diag_embed((~taken).to(torch.float64))
    right = chosen @ targets[:, :, None]
    coefs = torch.cholesky_solve(right, torch.linalg.cholesky(gram))[:, :, 0]
    left = targets - (coefs[:, None] @ chosen)[:, 0]
    size = targets.norm(dim=1)
    residual = torch.where(size > 0, left.norm(dim=1) / size.clamp(min=torch.finfo(torch.float64).tiny), 0)
    coefs = coefs * taken / dictionary.divisors[places.clamp(min=0)]
    return coefs.to(torch.float32), residual.to(torch.float32)
