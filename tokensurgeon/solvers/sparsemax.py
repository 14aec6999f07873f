"""Sparsemax: the Euclidean projection of scores onto the probability simplex, for many scores a row.

A. Martins, R. Astudillo, "From Softmax to Sparsemax", arXiv:1602.02068.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FEW = 128


def sparsemax(scores: Tensor, few: int = _FEW) -> tuple[Tensor, Tensor]:
    """Non-zero sparsemax weights of each row.

    Only the largest scores are sorted; a row whose support may be larger is sorted whole, so the result is
    exact.

    Args:
        scores: ``(n, m)``, finite.
        few: Scores a row that are sorted first.

    Returns:
        ``(n, s)`` int64 columns by falling weight, -1 where a row has fewer than ``s``, and ``(n, s)``
        weights, which add up to one in each row; ``s`` is the largest support.
    """
    values, columns, weights = _project(scores, min(few, scores.shape[1]))
    if len(scores) and values.shape[1] < scores.shape[1] and bool((weights[:, -1] > 0).any()):
        values, columns, weights = _project(scores, scores.shape[1])
    width = int((weights > 0).sum(dim=1).max()) if len(scores) else 1
    weights = weights[:, :width]
    return torch.where(weights > 0, columns[:, :width], -1), weights


def _project(scores: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    values, columns = scores.topk(count, dim=1)
    # Shifted by the largest: sums of large scores would lose the small differences that decide.
    shifted = values - values[:, :1]
    sums = shifted.cumsum(dim=1)
    place = torch.arange(1, count + 1, device=scores.device, dtype=scores.dtype)
    support = (1 + place * shifted > sums).sum(dim=1, keepdim=True)
    threshold = (sums.gather(1, support - 1) - 1) / support
    return values, columns, (shifted - threshold).clamp(min=0)
