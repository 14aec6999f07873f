"""Some rows of a softmax layer, fitted to examples without leaving far from where they were.

The rows ``W`` of a softmax layer that predicts ``y`` from ``h`` minimise ``-sum log softmax(W h)[y]``, which
is convex. Here only some rows move, and each row's move ``z R`` costs ``|z|^2 / 2``: with ``R'R`` the
covariance of the error that a row is thought to have, the answer is the posterior mode under a Gaussian
prior. Rows may be in groups whose members are thought to be off in the same way: then a row also moves by
what its group shares, a move of the same kind and a factor on its distance from the mean row, so that rows
which no example shows learn from those that some do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tokensurgeon.solvers.dictionary import fast_dtype

# A row that takes less probability than this from all examples together, and is right in none, has nothing to
# learn: it stays, and its part of every normaliser is a constant.
_LEAST_MASS = 0.05
_BATCH = 1024
# Of a batch's logits, a CPU works on so many rows at a time: they stay in its cache, which halves the time.
_CACHED_ROWS = 16
_STEP = 0.02
_AVERAGE, _SQUARES = 0.9, 0.99
# Keeps the step of a coordinate small whose gradient is.
_DAMPING = 0.1
# Standard deviation of a group's factor.
_FACTOR = 0.3
# Occurrences added to those counted and those expected, so that rare tokens stay where they are.
_UNSEEN = 10


def fit_softmax_rows(
    states: Tensor,
    following: Tensor,
    rows: Tensor,
    free: Tensor,
    root: Tensor,
    *,
    groups: Tensor | None = None,
    limits: tuple[Tensor, Tensor] | None = None,
    passes: int = 12,
    seed: int = 0,
    advance: Callable[[int], object] = int,
) -> Tensor:
    """Fit some rows by mini-batches, with steps as Adam's (D. Kingma, J. Ba, arXiv:1412.6980).

    Args:
        states: ``(N, d)`` float32 inputs of the layer.
        following: ``(N,)`` int64 row that was right for each.
        rows: ``(V, d)`` float32.
        free: ``(F,)`` int64 rows that may move, each once.
        root: ``(d, d)`` float32; moves are ``z @ root``.
        groups: ``(F,)`` int64 from zero, the group of each free row; None for rows that share nothing. A
            free row that no example speaks of stays if it has no group, and moves with its group otherwise.
        limits: ``(N,)`` int64 the limit of each example, and ``(L, V)`` bool the rows that each limit allows,
            the right ones among them: others have no part in the normaliser. None for all rows.
        passes: Over the examples.
        seed: Of the order of the examples.
        advance: Called with the number of examples read since; each is read once a pass, and once before.

    Returns:
        ``(F, d)`` float32, the free rows in their order.
    """
    fast = fast_dtype(states.device)
    fitted = rows[free].clone()
    if not len(states) or not len(free):
        return fitted
    limited, barred = _bars(limits, following)
    wholes, masses = _look(states, rows, free, fast, limited, barred, advance)
    seen = torch.bincount(following, minlength=len(rows))[free] > 0
    places = ((masses > _LEAST_MASS) | seen).nonzero()[:, 0]
    start = fitted[places]
    if not len(places):
        return fitted
    if barred is not None:
        barred = barred[:, free[places]]
    rest = torch.cat(
        [
            _without(whole, _bar((part.to(fast) @ start.to(fast).mT).float(), limit, barred).logsumexp(dim=1))
            for part, limit, whole in zip(
                *(some.split(_BATCH) for some in (states, limited, wholes)), strict=True
            )
        ]
    )
    label = torch.full((len(rows),), -1, dtype=torch.int64, device=states.device)
    label[free[places]] = torch.arange(len(places), device=states.device)
    labels = label[following]
    generator = torch.Generator().manual_seed(seed)
    batches = [
        some.to(states.device)
        for _ in range(passes)
        for some in torch.randperm(len(states), generator=generator).split(_BATCH)
    ]
    moves = _Moves(start, root, rows.mean(dim=0), None if groups is None else groups[places])
    for step, batch in enumerate(batches):
        some = batch[limited[batch].argsort(stable=True)]
        part = states[some].to(fast)
        wrong = part @ moves.rows().to(fast).mT
        for products, others, right, limit in _few_rows(wrong, rest[some], labels[some], limited[some]):
            logits = _bar(products.float(), limit, barred)
            logits -= torch.logaddexp(logits.logsumexp(dim=1), others)[:, None]
            logits.exp_()
            ours = (right >= 0).nonzero()[:, 0]
            logits[ours, right[ours]] -= 1
            products.copy_(logits)
        slope = (wrong.mT @ part).float() * (len(states) / len(some))
        moves.step(slope, step, _STEP * (1 - step / len(batches)))
        advance(len(some))
    if groups is not None:
        fitted = moves.apart(fitted, groups)
    fitted[places] = moves.rows()
    return fitted


def fit_unigrams(
    states: Tensor,
    following: Tensor,
    rows: Tensor,
    *,
    passes: int,
    advance: Callable[[int], object] = int,
) -> tuple[Tensor, Tensor]:
    """Shift rows until each takes as much probability as it is right, by iterative proportional fitting.

    The states of language models have a large mean, and what rows have along it says little more than how
    often their tokens occur (the bias that B. Minixhofer et al. learn, arXiv:2405.07883). Here the shift is
    the logarithm of how often a token occurs over how often it is expected, with some occurrences added.

    Args:
        states: ``(N, d)`` float32 inputs of the layer.
        following: ``(N,)`` int64 row that was right for each.
        rows: ``(V, d)`` float32.
        passes: Over the examples.
        advance: Called with the number of examples read since; each is read once a pass.

    Returns:
        ``(V,)`` float32 shifts of the logits at the mean state, and the ``(d,)`` float32 direction along
        which a shift of one moves a row.
    """
    fast = fast_dtype(states.device)
    mean = states.mean(dim=0)
    along = mean / mean.square().sum()
    coarse = rows.to(fast).mT
    right = torch.bincount(following, minlength=len(rows)).float()
    shifts = torch.zeros(len(rows), device=states.device)
    for _ in range(passes):
        taken = torch.zeros_like(shifts)
        for part in states.split(_BATCH):
            for products, means in _few_rows(part.to(fast) @ coarse, part @ along):
                taken += (products.float() + means[:, None] * shifts).softmax(dim=1).sum(dim=0)
            advance(len(part))
        shifts += ((right + _UNSEEN) / (taken + _UNSEEN)).log()
    return shifts, along


class _Moves:
    """Where rows are, and the steps that take them further.

    Args:
        start: ``(P, d)`` where they were.
        root: ``(d, d)``.
        mean: ``(d,)`` what factors of groups count from.
        groups: ``(P,)`` group of each, or None.
    """

    def __init__(self, start: Tensor, root: Tensor, mean: Tensor, groups: Tensor | None) -> None:
        self._start, self._root, self._mean, self._groups = start, root, mean, groups
        self._centred = start - mean
        count = 0 if groups is None else int(groups.max()) + 1
        own, shared, factors = (
            torch.zeros_like(start),
            start.new_zeros((count, start.shape[1])),
            start.new_zeros(count),
        )
        self._parts = [own] if groups is None else [own, shared, factors]
        self._averages = [torch.zeros_like(part) for part in self._parts]
        self._squares = [torch.zeros_like(part) for part in self._parts]

    def rows(self) -> Tensor:
        """``(P, d)`` where they are now."""
        if self._groups is None:
            return self._start + self._parts[0] @ self._root
        own, shared, factors = self._parts
        turned = (own + shared[self._groups]) @ self._root
        return self._start + turned + factors[self._groups, None] * self._centred

    def apart(self, rows: Tensor, groups: Tensor) -> Tensor:
        """Other rows of the same groups, some of which may have no row here, with what their groups share."""
        _, shared, factors = self._parts
        known = groups < len(factors)
        groups = torch.where(known, groups, 0)
        moved = rows + shared[groups] @ self._root + factors[groups, None] * (rows - self._mean)
        return torch.where(known[:, None], moved, rows)

    def step(self, slope: Tensor, number: int, rate: float) -> None:
        """Follow the slope ``(P, d)`` of the loss by the rows."""
        own, *others = self._parts
        turned = slope @ self._root.mT
        slopes = [turned + own]
        if self._groups is not None:
            shared, factors = others
            slopes.append(torch.zeros_like(shared).index_add_(0, self._groups, turned) + shared)
            along = (slope * self._centred).sum(dim=1)
            slopes.append(torch.zeros_like(factors).index_add_(0, self._groups, along) + factors / _FACTOR**2)
        for part, average, squares, down in zip(
            self._parts, self._averages, self._squares, slopes, strict=True
        ):
            average.mul_(_AVERAGE).add_(down, alpha=1 - _AVERAGE)
            squares.mul_(_SQUARES).addcmul_(down, down, value=1 - _SQUARES)
            width = (squares / (1 - _SQUARES ** (number + 1))).sqrt() + _DAMPING
            part -= rate * average / (1 - _AVERAGE ** (number + 1)) / width


def _look(
    states: Tensor,
    rows: Tensor,
    free: Tensor,
    fast: torch.dtype,
    limited: Tensor,
    barred: Tensor | None,
    advance: Callable[[int], object],
) -> tuple[Tensor, Tensor]:
    """Logarithm ``(N,)`` of each example's normaliser, and what each free row takes of all ``(F,)``."""
    wholes = torch.empty(len(states), device=states.device)
    masses = torch.zeros(len(free), device=states.device)
    coarse = rows.to(fast).mT
    for part, limits, out in zip(*(some.split(_BATCH) for some in (states, limited, wholes)), strict=True):
        for products, limit, few in _few_rows(part.to(fast) @ coarse, limits, out):
            logits = _bar(products.float(), limit, barred)
            # Into place: small results kept between large ones would hold on to the memory of those.
            few.copy_(logits.logsumexp(dim=1))
            masses += (logits[:, free] - few[:, None]).exp().sum(dim=0)
        advance(len(part))
    return wholes, masses


def _bars(limits: tuple[Tensor, Tensor] | None, following: Tensor) -> tuple[Tensor, Tensor | None]:
    """Limit ``(N,)`` of each example, -1 for none, and what each adds to logits, ``(L + 1, V)``."""
    if limits is None:
        return torch.full_like(following, -1), None
    limited, allowed = limits
    barred = torch.zeros(len(allowed) + 1, allowed.shape[1], device=allowed.device)
    barred[:-1].masked_fill_(~allowed, -torch.inf)
    return limited.masked_fill(allowed.all(dim=1)[limited], -1), barred


def _bar(logits: Tensor, limited: Tensor, barred: Tensor | None) -> Tensor:
    """Logits ``(n, V)``, minus infinity where the limits of their examples ``(n,)`` allow no row."""
    return logits if barred is None or (limited < 0).all() else logits.add_(barred[limited])


def _few_rows(*batch: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same few rows of each; of all of them on a GPU."""
    count = _CACHED_ROWS if batch[0].device.type == "cpu" else _BATCH
    return zip(*(whole.split(count) for whole in batch), strict=True)


def _without(whole: Tensor, part: Tensor) -> Tensor:
    """``log(exp(whole) - exp(part))``, which rounding must not make the logarithm of nothing."""
    return whole + torch.log1p(-(part - whole).exp().clamp(max=1 - 1e-6))
