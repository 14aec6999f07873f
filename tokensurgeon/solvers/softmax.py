"""Some rows of a softmax layer, fitted to examples without leaving far from where they were.

The rows ``W`` of a softmax layer that predicts ``y`` from ``h`` minimise ``-sum log softmax(W h)[y]``, which
is convex. Here only some rows move, and each row's move ``z R`` costs ``|z|^2 / 2``: with ``R'R`` the
covariance of the error that a row is thought to have, the answer is the posterior mode under a Gaussian
prior. A row that no example tells anything about stays where it was.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokensurgeon.solvers.dictionary import fast_dtype

# A row that takes less probability than this from all examples together, and is right in none, has nothing to
# learn: it stays, and its part of every normaliser is a constant.
_LEAST_MASS = 0.05
_BATCH = 1024
_STEP = 0.02
_AVERAGE, _SQUARES = 0.9, 0.99
# Keeps the step of a coordinate small whose gradient is.
_DAMPING = 0.1


def fit_softmax_rows(
    states: Tensor,
    following: Tensor,
    rows: Tensor,
    free: Tensor,
    root: Tensor,
    *,
    passes: int = 12,
    seed: int = 0,
) -> Tensor:
    """Fit some rows by mini-batches, with steps as Adam's (D. Kingma, J. Ba, arXiv:1412.6980).

    Args:
        states: ``(N, d)`` float32 inputs of the layer.
        following: ``(N,)`` int64 row that was right for each.
        rows: ``(V, d)`` float32.
        free: ``(F,)`` int64 rows that may move, each once.
        root: ``(d, d)`` float32; moves are ``z @ root``.
        passes: Over the examples.
        seed: Of the order of the examples.

    Returns:
        ``(F, d)`` float32, the free rows in their order.
    """
    fast = fast_dtype(states.device)
    fitted = rows[free].clone()
    if not len(states) or not len(free):
        return fitted
    wholes, masses = _look(states, rows, free, fast)
    seen = torch.bincount(following, minlength=len(rows))[free] > 0
    places = ((masses > _LEAST_MASS) | seen).nonzero()[:, 0]
    start = fitted[places]
    if not len(places):
        return fitted
    rest = torch.cat(
        [
            _without(whole, (part.to(fast) @ start.to(fast).mT).float().logsumexp(dim=1))
            for part, whole in zip(states.split(_BATCH), wholes.split(_BATCH), strict=True)
        ]
    )
    label = torch.full((len(rows),), -1, dtype=torch.int64, device=states.device)
    label[free[places]] = torch.arange(len(places), device=states.device)
    labels = label[following]
    moves = torch.zeros_like(start)
    average, squares = torch.zeros_like(start), torch.zeros_like(start)
    generator = torch.Generator().manual_seed(seed)
    batches = [
        some.to(states.device)
        for _ in range(passes)
        for some in torch.randperm(len(states), generator=generator).split(_BATCH)
    ]
    for step, some in enumerate(batches):
        part = states[some].to(fast)
        logits = (part @ (start + moves @ root).to(fast).mT).float()
        whole = torch.logaddexp(logits.logsumexp(dim=1), rest[some])
        wrong = (logits - whole[:, None]).exp()
        right = (labels[some] >= 0).nonzero()[:, 0]
        wrong[right, labels[some][right]] -= 1
        slope = (wrong.to(fast).mT @ part).float() @ root.mT * (len(states) / len(some)) + moves
        average.mul_(_AVERAGE).add_(slope, alpha=1 - _AVERAGE)
        squares.mul_(_SQUARES).addcmul_(slope, slope, value=1 - _SQUARES)
        width = (squares / (1 - _SQUARES ** (step + 1))).sqrt() + _DAMPING
        moves -= _STEP * (1 - step / len(batches)) * average / (1 - _AVERAGE ** (step + 1)) / width
    fitted[places] = start + moves @ root
    return fitted


def _look(states: Tensor, rows: Tensor, free: Tensor, fast: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logarithm ``(N,)`` of each example's normaliser, and what each free row takes of all ``(F,)``."""
    wholes = []
    masses = torch.zeros(len(free), device=states.device)
    coarse = rows.to(fast).mT
    for part in states.split(_BATCH):
        logits = (part.to(fast) @ coarse).float()
        wholes.append(logits.logsumexp(dim=1))
        masses += (logits[:, free] - wholes[-1][:, None]).exp().sum(dim=0)
    return torch.cat(wholes), masses


def _without(whole: Tensor, part: Tensor) -> Tensor:
    """``log(exp(whole) - exp(part))``, which rounding must not make the logarithm of nothing."""
    return whole + torch.log1p(-(part - whole).exp().clamp(max=1 - 1e-6))
