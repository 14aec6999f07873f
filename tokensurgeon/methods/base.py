"""What a method gets and what it gives back. A method never sees a path, a recipe or a rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor

Side = Literal["embedding", "lm_head", "tied"]


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

    @cached_property
    def base_used(self) -> Tensor:
        """``(U, d_base)`` float32 rows of the base's own tokens."""
        return self.base_rows[self.base_ids].to(self.device, torch.float32)

    @cached_property
    def base_mean(self) -> Tensor:
        """``(d_base,)`` float32 mean row of the base's own tokens."""
        return self.base_used.mean(dim=0, dtype=torch.float64).to(torch.float32)

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


@dataclass(frozen=True)
class InitRows:
    """Rows for the wanted tokens, and where they came from.

    Attributes:
        rows: ``(B, d_base)`` float32.
        sources: ``(B, k)`` int64 base ids that were combined, -1 where there are fewer; None when
            the rows are no combination.
        coefs: ``(B, k)`` float32 coefficients of the sources.
        residual: ``(B,)`` float32, share of the donor row that the combination misses; None if unknown.
    """

    rows: Tensor
    sources: Tensor | None = None
    coefs: Tensor | None = None
    residual: Tensor | None = None


class InitMethod(Protocol):
    """A method with its parameters, ready to be called for one vocabulary tensor after another."""

    def __call__(self, context: MethodContext) -> InitRows:
        """Make rows for ``context.wanted``."""
