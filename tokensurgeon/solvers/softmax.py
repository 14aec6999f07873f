"""Some rows of a softmax layer, fitted to examples without leaving far from where they were.

The rows ``W`` of a softmax layer that predicts ``y`` from ``h`` minimise ``-sum log softmax(W h)[y]``, which
is convex. Here only some rows move, and each row's move ``z R`` costs ``|z|^2 / 2``: with ``R'R`` the
covariance of the error that a row is thought to have, the answer is the posterior mode under a Gaussian
prior. Rows may be in groups whose members are thought to be off in the same way: then a row also moves by
what its group shares, a move of the same kind and a factor on its distance from the mean row, so that rows
which no example shows learn from those that some do. Rows that a model also reads cost it something there,
too, when they move; what that is, is known to second order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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
# Directions in which a prior is this much narrower than in its widest have coordinates of their own.
_REACHED = 1e-4
# Standard deviation of a group's factor.
_FACTOR = 0.3
# Occurrences added to those counted and those expected, so that rare tokens stay where they are.
_UNSEEN = 10


@dataclass(frozen=True)
class Reads:
    """What moves of rows cost where a model reads them.

    Attributes:
        slopes: ``(V, d)`` float32 derivative of the cost by each row where it is now.
        curvatures: ``(L, d, d)`` float32 second derivative for each time that a row is read under each limit.
    """

    slopes: Tensor
    curvatures: Tensor


def fit_softmax_rows(
    states: Tensor,
    following: Tensor,
    rows: Tensor,
    free: Tensor,
    root: Tensor,
    *,
    groups: Tensor | None = None,
    limits: tuple[Tensor, Tensor] | None = None,
    reads: Reads | None = None,
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
        reads: What moves cost besides; each row is read as often as it follows. None for nothing.
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
    limited, allowed = _limits(limits, following, len(rows))
    wholes, masses = _look(states, rows, free, fast, limited, allowed, advance)
    seen = torch.bincount(following, minlength=len(rows))[free] > 0
    places = ((masses > _LEAST_MASS) | seen).nonzero()[:, 0]
    if not len(places):
        return fitted
    moves = _Moves(fitted[places], root, rows.mean(dim=0), None if groups is None else groups[places])
    moving = [_indices(mask[free[places]]) for mask in allowed]
    rest = _leave_out(wholes, states, fitted[places].to(fast), limited, moving)
    right = _find_right(following, free[places], limited, moving, len(rows))
    inputs, offsets = moves.turn(states, fast)
    rest -= offsets
    if reads is not None:
        given = torch.zeros_like(following) if limits is None else limits[0]
        times = [
            torch.bincount(following[given == number], minlength=len(rows))[free[places]]
            for number in range(len(reads.curvatures))
        ]
        cost = _Cost(reads.slopes[free[places]] @ root.mT, root @ reads.curvatures @ root.mT, times)
    generator = torch.Generator().manual_seed(seed)
    batches = [
        some.to(states.device)
        for _ in range(passes)
        for some in torch.randperm(len(states), generator=generator).split(_BATCH)
    ]
    for step, batch in enumerate(batches):
        table = moves.table().to(fast)
        slope = torch.zeros(table.shape, device=table.device)
        for number, some in _by_limit(batch, limited):
            free_here, part = moving[number], inputs[some]
            wrong = part @ (table if free_here is None else table[free_here]).mT
            for products, others, answers in _few_rows(wrong, rest[some], right[some]):
                logits = products.float()
                logits -= torch.logaddexp(logits.logsumexp(dim=1), others)[:, None]
                logits.exp_()
                ours = (answers >= 0).nonzero()[:, 0]
                logits[ours, answers[ours]] -= 1
                products.copy_(logits)
            found = (wrong.mT @ part).float()
            slope = slope.add_(found) if free_here is None else slope.index_add_(0, free_here, found)
        slope *= len(states) / len(batch)
        if reads is not None:
            cost.add_slope(slope, moves.moved())
        moves.step(slope, _STEP * (1 - step / len(batches)))
        advance(len(batch))
    if groups is not None:
        fitted = moves.apart(fitted, groups)
    fitted[places] = moves.rows()
    return fitted


@torch.no_grad()
def state_slopes(states: Tensor, following: Tensor, rows: Tensor) -> Tensor:
    """Derivatives of ``-log softmax(W h)[y]`` by ``h``.

    Args:
        states: ``(N, d)`` float32 inputs ``h`` of the layer.
        following: ``(N,)`` int64 row ``y`` that was right for each.
        rows: ``(V, d)``, ``W``.

    Returns:
        ``(N, d)`` float32.
    """
    fast = fast_dtype(states.device)
    table = rows.to(fast)
    slopes = torch.empty_like(states)
    for some, right, found in zip(
        states.split(_BATCH), following.split(_BATCH), slopes.split(_BATCH), strict=True
    ):
        wrong = some.to(fast) @ table.mT
        for products, answers in _few_rows(wrong, right):
            shares = products.float().softmax(dim=1)
            shares[torch.arange(len(answers), device=answers.device), answers] -= 1
            products.copy_(shares)
        found.copy_(wrong @ table)
    return slopes


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


class _Cost:
    """What moves cost where rows are read, in the coordinates of the moves.

    Args:
        slopes: ``(P, d)`` where the rows start.
        curvatures: ``(L, d, d)`` of one reading under each limit.
        times: ``(P,)`` int64 readings of each row, for each limit.
    """

    def __init__(self, slopes: Tensor, curvatures: Tensor, times: Sequence[Tensor]) -> None:
        self._slopes = slopes
        read = [some.nonzero()[:, 0] for some in times]
        self._parts = [
            (where, some[where, None], curvature)
            for where, some, curvature in zip(read, times, curvatures, strict=True)
        ]

    def add_slope(self, slope: Tensor, moved: Tensor) -> None:
        """Add the cost's slope after moves ``(P, d)`` to another one, ``(P, e)``."""
        ours = slope[:, : moved.shape[1]]
        ours += self._slopes
        for read, times, curvature in self._parts:
            ours.index_add_(0, read, times * (moved[read] @ curvature))


class _Moves:
    """Where rows are, and the steps that take them further.

    Rows and inputs are held in the coordinates of the moves, so that no step multiplies with the root: a row
    at ``mean + y root`` gives an input ``h`` the logit ``h mean + (h root') y``. What of a row the root does
    not reach has coordinates of its own, which stay.

    Args:
        start: ``(P, d)`` where they were.
        root: ``(d, d)``.
        mean: ``(d,)`` what factors of groups count from.
        groups: ``(P,)`` group of each, or None.
    """

    def __init__(self, start: Tensor, root: Tensor, mean: Tensor, groups: Tensor | None) -> None:
        self._start, self._root, self._mean, self._groups = start, root, mean, groups
        left, scales, right = torch.linalg.svd(root.double())
        reached = scales > _REACHED * scales[0]
        inverse = (right[reached].mT / scales[reached]) @ left[:, reached].mT
        self._unreached = right[~reached].float()
        self._origin = (start - mean) @ torch.cat([inverse, right[~reached].mT], dim=1).float()
        self._own = torch.zeros_like(start)
        parts = [{"params": [self._own], "weight_decay": 1.0}]
        if groups is not None:
            count = int(groups.max()) + 1
            self._shared, self._factors = start.new_zeros((count, start.shape[1])), start.new_zeros(count)
            parts += [
                {"params": [self._shared], "weight_decay": 1.0},
                {"params": [self._factors], "weight_decay": _FACTOR**-2},
            ]
        self._steps = torch.optim.Adam(parts, betas=(_AVERAGE, _SQUARES), eps=_DAMPING, fused=True)

    def turn(self, states: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Inputs ``(N, e)`` in the coordinates of the table, and the ``(N,)`` logits of the mean row."""
        turns = torch.cat([self._root, self._unreached]).mT
        turned = states.new_empty((len(states), turns.shape[1]), dtype=dtype)
        for part, out in zip(states.split(_BATCH), turned.split(_BATCH), strict=True):
            out.copy_(part @ turns)
        return turned, states @ self._mean

    def table(self) -> Tensor:
        """``(P, e)`` coordinates of the rows where they are now."""
        if self._groups is None:
            found = self._origin.clone()
        else:
            found = self._origin * (1 + self._factors[self._groups, None])
            found[:, : self._own.shape[1]] += self._shared[self._groups]
        found[:, : self._own.shape[1]] += self._own
        return found

    def moved(self) -> Tensor:
        """``(P, d)`` how far they have come, in coordinates of the moves; what the root misses aside."""
        return (self.table() - self._origin)[:, : self._own.shape[1]]

    def rows(self) -> Tensor:
        """``(P, d)`` where they are now."""
        if self._groups is None:
            return self._start + self._own @ self._root
        turned = (self._own + self._shared[self._groups]) @ self._root
        return self._start + turned + self._factors[self._groups, None] * (self._start - self._mean)

    def apart(self, rows: Tensor, groups: Tensor) -> Tensor:
        """Other rows of the same groups, some of which may have no row here, with what their groups share."""
        known = groups < len(self._factors)
        groups = torch.where(known, groups, 0)
        factors = self._factors[groups, None] * (rows - self._mean)
        return torch.where(known[:, None], rows + self._shared[groups] @ self._root + factors, rows)

    def step(self, slope: Tensor, rate: float) -> None:
        """Follow the slope ``(P, e)`` of the loss by the table."""
        # The fused steps take it for contiguous.
        self._own.grad = slope[:, : self._own.shape[1]].contiguous()
        if self._groups is not None:
            self._shared.grad = torch.zeros_like(self._shared).index_add_(0, self._groups, self._own.grad)
            along = (slope * self._origin).sum(dim=1)
            self._factors.grad = torch.zeros_like(self._factors).index_add_(0, self._groups, along)
        for part in self._steps.param_groups:
            part["lr"] = rate
        self._steps.step()


def _look(
    states: Tensor,
    rows: Tensor,
    free: Tensor,
    fast: torch.dtype,
    limited: Tensor,
    allowed: Tensor,
    advance: Callable[[int], object],
) -> tuple[Tensor, Tensor]:
    """Logarithm ``(N,)`` of each example's normaliser, and what each free row takes of all ``(F,)``."""
    wholes = torch.empty(len(states), device=states.device)
    masses = torch.zeros(len(free), device=states.device)
    coarse = rows.to(fast)
    for number, examples in _by_limit(torch.arange(len(states), device=states.device), limited):
        ids = _indices(allowed[number])
        table = (coarse if ids is None else coarse[ids]).mT
        held = allowed[number][free].nonzero()[:, 0]
        columns = (allowed[number].cumsum(dim=0) - 1)[free[held]]
        taken = masses.new_zeros(len(held))
        for some in examples.split(_BATCH):
            normalisers = masses.new_empty(len(some))
            for products, few in _few_rows(states[some].to(fast) @ table, normalisers):
                logits = products.float()
                # Into place: small results kept between large ones would hold on to the memory of those.
                few.copy_(logits.logsumexp(dim=1))
                taken += (logits[:, columns] - few[:, None]).exp().sum(dim=0)
            wholes[some] = normalisers
            advance(len(some))
        masses[held] += taken
    return wholes, masses


def _limits(limits: tuple[Tensor, Tensor] | None, following: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Limit ``(N,)`` of each example, zero for none, and what each allows, ``(L + 1, V)``."""
    every = torch.ones((1, rows), dtype=torch.bool, device=following.device)
    if limits is None:
        return torch.zeros_like(following), every
    limited, allowed = limits
    return (limited + 1).masked_fill(allowed.all(dim=1)[limited], 0), torch.cat([every, allowed])


def _by_limit(examples: Tensor, limited: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Examples of each limit that some of them have, and its number."""
    found = limited[examples]
    parts = examples[found.argsort(stable=True)].split(torch.bincount(found).tolist())
    return ((number, part) for number, part in enumerate(parts) if len(part))


def _indices(mask: Tensor) -> Tensor | None:
    """Where a mask holds; None for everywhere."""
    return None if mask.all() else mask.nonzero()[:, 0]


def _leave_out(
    wholes: Tensor, states: Tensor, start: Tensor, limited: Tensor, moving: Sequence[Tensor | None]
) -> Tensor:
    """Logarithm ``(N,)`` of each example's normaliser without the rows that move."""
    rest = torch.empty_like(wholes)
    for number, examples in _by_limit(torch.arange(len(states), device=states.device), limited):
        here = moving[number]
        table = (start if here is None else start[here]).mT
        for some in examples.split(_BATCH):
            parts = (states[some].to(start.dtype) @ table).float().logsumexp(dim=1)
            rest[some] = _without(wholes[some], parts)
    return rest


def _find_right(
    following: Tensor, free: Tensor, limited: Tensor, moving: Sequence[Tensor | None], rows: int
) -> Tensor:
    """Place ``(N,)`` of the right row among those that move under an example's limit, -1 for none."""
    right = torch.empty_like(following)
    for number, examples in _by_limit(torch.arange(len(following), device=following.device), limited):
        here = moving[number]
        ids = free if here is None else free[here]
        place = torch.full((rows,), -1, dtype=torch.int64, device=following.device)
        place[ids] = torch.arange(len(ids), device=following.device)
        right[examples] = place[following[examples]]
    return right


def _few_rows(*batch: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same few rows of each; of all of them on a GPU."""
    count = _CACHED_ROWS if batch[0].device.type == "cpu" else _BATCH
    return zip(*(whole.split(count) for whole in batch), strict=True)


def _without(whole: Tensor, part: Tensor) -> Tensor:
    """``log(exp(whole) - exp(part))``, which rounding must not make the logarithm of nothing."""
    return whole + torch.log1p(-(part - whole).exp().clamp(max=1 - 1e-6))
