"""Tell rows that training never moved from learnt ones.

S. Land, M. Bartolo, "Fishing for Magikarp", arXiv:2405.05417, shows how under-trained tokens look; a row
that training never moved says nothing about the token, and as an atom it pulls others towards noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isqrt, sqrt

import torch
from torch import Tensor
from torch.nn.functional import normalize

_NEAR_ZERO = 0.05
_NEAR_COPY = 0.999
_LIKE_UNUSED = 0.5
_FEWEST_UNUSED = 8
_SKETCH = 64
# Cosine in the sketch that hardly any near copy falls short of: it would double their squared distance.
_CLOSE = 2 * _NEAR_COPY - 1
# More than float32 inner products and distances of unit vectors are off by.
_ROUNDING = 1e-4


def infinite_rows(rows: Tensor) -> Tensor:
    """Rows with a NaN or an infinity.

    Args:
        rows: ``(n, d)``.

    Returns:
        ``(n,)`` bool.
    """
    if not len(rows):
        return torch.zeros(0, dtype=torch.bool, device=rows.device)
    # In parts: looking takes a copy.
    return torch.cat([~torch.isfinite(part).all(dim=1) for part in rows.split(8192)])


def near_zero_rows(rows: Tensor) -> Tensor:
    """Rows much shorter than the median row.

    Args:
        rows: ``(n, d)`` float32.

    Returns:
        ``(n,)`` bool.
    """
    norms = rows.norm(dim=1)
    learnt: Tensor = norms > _NEAR_ZERO * norms.nanmedian()
    return ~learnt


def untrained_rows(rows: Tensor, unused: Tensor, groups: Sequence[str]) -> Tensor:
    """Rows that point where the rows of unused tokens lie, seen from the mean row.

    The cosine to the mean unused row is an indicator of Land and Bartolo; here both are centred, since in a
    table whose rows share a large component all of them would be close. Where most of a group (a script) is
    close, that is what the group is like and says nothing of its single tokens.

    Args:
        rows: ``(n, d)`` float32.
        unused: ``(u, d)`` float32 rows without a token, or of reserved ones; few tell nothing.
        groups: ``n`` names.

    Returns:
        ``(n,)`` bool.
    """
    marked = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    if len(unused) < _FEWEST_UNUSED or not len(rows):
        return marked
    centre = rows.nanmean(dim=0)
    direction = normalize(unused.mean(dim=0) - centre, dim=0)
    close = normalize(rows - centre, dim=1) @ direction > _LIKE_UNUSED
    members: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    for places in members.values():
        at = torch.tensor(places, device=rows.device)
        if close[at].float().mean() < 0.5:
            marked[at] = close[at]
    return marked


def near_copies(rows: Tensor, block: int = 2048) -> Tensor:
    """Rows that share their direction with another row, up to rounding: training told neither apart.

    Pairs are found in a random projection to 64 dimensions and then compared in full. Rows far apart never
    meet, which spares nearly all pairs of a real table.

    Args:
        rows: ``(n, d)`` float32.
        block: Rows compared at a time.

    Returns:
        ``(n,)`` bool; every member of a group is marked.
    """
    marked = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    if not len(rows):
        return marked
    generator = torch.Generator().manual_seed(0)
    sketch = torch.randn((rows.shape[1], _SKETCH), generator=generator).to(rows)
    unit = normalize(rows, dim=1)
    small = normalize(unit @ sketch, dim=1).nan_to_num()
    order = torch.randperm(len(rows), generator=generator).to(rows.device)
    pivots = small[order[: 2 * isqrt(len(rows))]]
    for home, guests in _neighbourhoods(small, pivots, block):
        # Residents first: then a row meets itself on the diagonal only.
        visitors = torch.cat([home, guests])
        points = small[visitors]
        for start in range(0, len(visitors), block):
            part = visitors[start : start + block]
            close = points[start : start + block] @ points[: len(home)].T
            close[:, start:].fill_diagonal_(0)
            found = close.amax(dim=1) > _CLOSE
            if not found.any():
                continue
            one, other = part[found], home[(close > _CLOSE).any(dim=0)]
            same = (unit[one] @ unit[other].T > _NEAR_COPY) & (one[:, None] != other)
            marked[one] |= same.any(dim=1)
    return marked


def _neighbourhoods(points: Tensor, pivots: Tensor, block: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids of the points at home at a pivot, and of its guests: two close points meet at the home of either.

    A point's home is at the pivot with the largest inner product. Take points u at home at a and v at b, and
    close, ``|u - v| <= r``. Then ``v.b >= v.a``, so ``u.b >= u.a - r|a - b|``: u need visit no other pivots.
    """
    reach = sqrt(2 - 2 * _CLOSE) * torch.cdist(pivots, pivots) + _ROUNDING
    homes, visits = [], []
    for start in range(0, len(points), block):
        products = points[start : start + block] @ pivots.T
        largest, home = products.max(dim=1, keepdim=True)
        products += reach[home[:, 0]]
        products.scatter_(1, home, -torch.inf)
        homes.append(home[:, 0])
        visits.append((products >= largest).nonzero() + torch.tensor([start, 0], device=points.device))
    guests, visited = torch.cat(visits).unbind(dim=1)
    home = torch.cat(homes)
    at_home, calls = (
        label.argsort(stable=True).split(label.bincount(minlength=len(pivots)).tolist())
        for label in (home, visited)
    )
    return ((home, guests[call]) for home, call in zip(at_home, calls, strict=True) if len(home))
