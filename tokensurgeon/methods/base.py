"""What a method gets and what it gives back. A method never sees a path, a recipe or a rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Side = Literal["embedding", "lm_head", "tied"]


@dataclass(frozen=True)
class Agreement:
    """How near an approximate solver came to the exact one, on a sample of the wanted tokens.

    Attributes:
        sample: Tokens that were solved again exactly.
        residual: Their mean residual as made.
        exact_residual: Their mean residual when solved exactly.
        shared_anchors: Mean share of the exact anchors that were taken as well, 0 to 1.
        proven: Share of all choices, over all tokens, at which no anchor off the solver's shortlist could
            have been better, 0 to 1.
    """

    sample: int
    residual: float
    exact_residual: float
    shared_anchors: float
    proven: float


@dataclass(frozen=True)
class InitRows:
    """Rows for the wanted tokens, and where they came from.

    Attributes:
        rows: ``(B, d_base)`` float32.
        sources: ``(B, k)`` int64 base ids that were combined, -1 where there are fewer; None when
            the rows are no combination.
        coefs: ``(B, k)`` float32 coefficients of the sources.
        residual: ``(B,)`` float32, share of the donor row that the combination misses; None if unknown.
        proven: ``(B,)`` int64, sources chosen when none off the solver's shortlist could have been better;
            None if unknown.
        solver: How the rows were solved for, such as ``exact``; empty where there is nothing to solve.
        agreement: A comparison with the exact solver; None for exact rows.
    """

    rows: Tensor
    sources: Tensor | None = None
    coefs: Tensor | None = None
    residual: Tensor | None = None
    proven: Tensor | None = None
    solver: str = ""
    agreement: Agreement | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The fields that hold a tensor, by name; each has one entry per token."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if isinstance(value, Tensor)}


Solve = Callable[[slice], InitRows]
"""Makes the rows of one batch: a slice of the wanted tokens."""


class BatchRunner(Protocol):
    """Whatever works through batches: here, or on several processes, or with finished ones kept."""

    def __call__(self, count: int, batch_size: int, solve: Solve, advance: Callable[[int], None]) -> InitRows:
        """Solve ``count`` tokens, ``batch_size`` at a time, and put the batches together."""


def run_batches(count: int, batch_size: int, solve: Solve, advance: Callable[[int], None]) -> InitRows:
    """Solve one batch after another in this process.

    Args:
        count: Number of tokens.
        batch_size: Tokens a batch.
        solve: Makes the rows of a batch.
        advance: Called with the number of tokens finished.

    Returns:
        Rows of all tokens, on the CPU.
    """

    def parts() -> Iterator[tuple[slice, InitRows]]:
        for span in batch_spans(count, batch_size):
            yield span, solve(span)
            advance(span.stop - span.start)

    return collect(count, parts())


def batch_spans(count: int, batch_size: int) -> list[slice]:
    """Cut ``count`` tokens into batches.

    Args:
        count: Number of tokens.
        batch_size: Tokens a batch.

    Returns:
        At least one slice; the last may be shorter.
    """
    starts = range(0, max(count, 1), batch_size)
    return [slice(start, min(start + batch_size, count)) for start in starts]


def collect(count: int, parts: Iterable[tuple[slice, InitRows]]) -> InitRows:
    """Put batches together without holding them twice.

    Args:
        count: Number of tokens.
        parts: Batches with their places, in any order; each token in one of them.

    Returns:
        Rows of all tokens, on the CPU.

    Raises:
        ValueError: There are no batches.
    """
    whole: dict[str, Any] = {}
    for span, part in parts:
        for name, values in part.tensors().items():
            if name not in whole:
                whole[name] = torch.empty((count, *values.shape[1:]), dtype=values.dtype)
            whole[name][span] = values.cpu()
    if not whole:
        raise ValueError("no batches to collect")
    return InitRows(**whole)


@dataclass(frozen=True)
class MethodContext:
    """Everything about one vocabulary tensor whose missing rows are wanted.

    Attributes:
        side: Which end of the model reads the rows; ``tied`` when both do.
        base_rows: ``(V_b, d_base)`` in the stored dtype, mapped from the file.
        base_ids: ``(U,)`` int64, rows of ``base_rows`` that belong to a token.
        pieces: For each wanted token the base ids that spell it, in order; may be empty.
        donor_rows: ``(V_t, d_donor)`` in the stored dtype, or None without a donor.
        wanted: ``(B,)`` int64, target ids in ascending order.
        anchor_targets: ``(A,)`` int64, target ids of the anchors, ascending.
        anchor_bases: ``(A,)`` int64, base ids of the same anchors.
        generator: Random numbers, on the CPU, seeded for this tensor.
        device: Where to compute.
        batch_size: Tokens at a time.
        advance: Called with the number of tokens finished.
        runner: Works through batches for methods whose tokens take long.
    """

    side: Side
    base_rows: Tensor
    base_ids: Tensor
    pieces: Sequence[tuple[int, ...]]
    donor_rows: Tensor | None
    wanted: Tensor
    anchor_targets: Tensor
    anchor_bases: Tensor
    generator: torch.Generator
    device: torch.device
    batch_size: int
    advance: Callable[[int], None]
    runner: BatchRunner = run_batches

    @cached_property
    def base_used(self) -> Tensor:
        """``(U, d_base)`` float32 rows of the base's own tokens."""
        return self.base_rows[self.base_ids].to(self.device, torch.float32)

    @cached_property
    def base_mean(self) -> Tensor:
        """``(d_base,)`` float32 mean row of the base's own tokens."""
        parts = (self.base_rows[ids].to(torch.float64).sum(dim=0) for ids in self.base_ids.split(8192))
        total = torch.stack(list(parts)).sum(dim=0)
        return (total / len(self.base_ids)).to(self.device, torch.float32)

    def base_anchors(self) -> Tensor:
        """``(A, d_base)`` float32 anchor rows in the base's space."""
        return self.base_rows[self.anchor_bases].to(self.device, torch.float32)

    def donor_anchors(self) -> Tensor:
        """``(A, d_donor)`` float32 anchor rows in the donor's space."""
        return self.donor(self.anchor_targets)

    def donor(self, ids: Tensor) -> Tensor:
        """Donor rows of target ids.

        Args:
            ids: ``(n,)`` int64.

        Returns:
            ``(n, d_donor)`` float32.

        Raises:
            RuntimeError: The pipeline gave no donor to a method that needs one.
        """
        if self.donor_rows is None:
            raise RuntimeError("no donor rows; the registry must say that the method needs a donor")
        return self.donor_rows[ids].to(self.device, torch.float32)

    def in_batches(self, solve: Solve) -> InitRows:
        """Solve the wanted tokens batch by batch, perhaps on several processes.

        Args:
            solve: Makes the rows of a slice of ``wanted``, the same whatever else is solved with it.

        Returns:
            Rows of all wanted tokens, on the CPU.
        """
        return self.runner(len(self.wanted), self.batch_size, solve, self.advance)


class InitMethod(Protocol):
    """A method with its parameters, ready to be called for one vocabulary tensor after another."""

    def __call__(self, context: MethodContext) -> InitRows:
        """Make rows for ``context.wanted``."""
