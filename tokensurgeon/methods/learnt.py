"""Tell rows that training never moved from learnt ones.

S. Land, M. Bartolo, "Fishing for Magikarp", arXiv:2405.05417, shows how under-trained tokens look; a row
that training never moved says nothing about the token, and as an atom it pulls others towards noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

_NEAR_ZERO = 0.05
_NEAR_COPY = 0.999
_SKETCH = 64


def infinite_rows(rows: Tensor) -> Tensor:
    """Rows with a NaN or an infinity.

    Args:
        rows: ``(n, d)``.

    Returns:
        ``(n,)`` bool.
    """
    return ~torch.isfinite(rows).all(dim=1)


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


def near_copies(rows: Tensor, block: int = 2048) -> Tensor:
    """Rows that share their direction with another row, up to rounding: training told neither apart.

    Pairs are found in a random projection to 64 dimensions and then compared in full.

    Args:
        rows: ``(n, d)`` float32.
        block: Rows compared at a time.

    Returns:
        ``(n,)`` bool; every member of a group is marked.
    """
    generator = torch.Generator().manual_seed(0)
    sketch = torch.randn((rows.shape[1], _SKETCH), generator=generator).to(rows)
    unit = torch.nn.functional.normalize(rows, dim=1)
    small = torch.nn.functional.normalize(unit @ sketch, dim=1)
    marked = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    for start in range(0, len(rows), block):
        close = small[start : start + block] @ small[: start + block].T > 2 * _NEAR_COPY - 1
        later, earlier = close.nonzero(as_tuple=True)
        later = later + start
        pairs = earlier < later
        later, earlier = later[pairs], earlier[pairs]
        same = (unit[later] * unit[earlier]).sum(dim=1) > _NEAR_COPY
        marked[later[same]] = True
        marked[earlier[same]] = True
    return marked
