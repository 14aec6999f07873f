"""Atoms made ready for matching pursuit: in float32 to be exact with, in a faster dtype to look for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_COLUMNS_MULTIPLE = 64


@dataclass(frozen=True)
class Dictionary:
    """Atoms made ready for any number of calls.

    Attributes:
        rows: ``(N, D)`` float32, what residuals are compared with: unit atoms, or the atoms as given.
        lengths: ``(N,)`` float32, norms of ``rows``.
        divisors: ``(N,)`` float32, atoms are ``rows`` times this.
        first: ``(N,)`` int64, for every atom the lowest index of an equal one.
        coarse: ``(N or more, D)``, ``rows`` in the dtype of the large products; rows past them are zero.
        rounding: Largest norm of a row of ``rows - coarse``; 0 when they are the same.
    """

    rows: Tensor
    lengths: Tensor
    divisors: Tensor
    first: Tensor
    coarse: Tensor
    rounding: float

    @staticmethod
    def prepare(
        atoms: Tensor, normalize_atoms: bool = True, coarse_dtype: torch.dtype | None = None
    ) -> Dictionary:
        """Make a dictionary.

        Args:
            atoms: ``(N, D)``, any floating dtype; need not have unit norm. Zero atoms are never taken.
            normalize_atoms: Divide inner products by the atom's norm, as the algorithm's authors do. Without
                it long atoms win, as in mergekit.
            coarse_dtype: Dtype of the large products; by default what the device is fastest with.

        Returns:
            The dictionary, on the device of ``atoms``.

        Raises:
            ValueError: ``atoms`` is no matrix.
        """
        if atoms.ndim != 2:
            raise ValueError(f"atoms {tuple(atoms.shape)} need two dimensions (N, D)")
        rows = atoms.to(torch.float32)
        norms = rows.norm(dim=1)
        divisors = torch.where(norms > 0, norms, 1) if normalize_atoms else torch.ones_like(norms)
        first = _first_equals(rows)
        if normalize_atoms:
            rows = rows / divisors[:, None]
        coarse = rows.to(coarse_dtype or fast_dtype(rows.device))
        rounding = 0.0
        if coarse.dtype is not torch.float32 and len(rows):
            rounding = max(float((a - b).norm(dim=1).max()) for a, b in _blocks(rows, coarse))
            # Tensor cores want aligned columns: on an H200, 46,144 atoms take an eighth of 46,145's time.
            coarse = torch.nn.functional.pad(coarse, (0, 0, 0, -len(rows) % _COLUMNS_MULTIPLE))
        return Dictionary(rows, norms / divisors, divisors, first, coarse, rounding)

    def with_float32_products(self) -> Dictionary:
        """The same atoms, with nothing to prove: the large products are in float32 as well."""
        return replace(self, coarse=self.rows, rounding=0.0)


def fast_dtype(device: torch.device) -> torch.dtype:
    """The dtype in which a device multiplies large matrices fastest, of float32 and bfloat16.

    Args:
        device: Where the product runs.

    Returns:
        bfloat16 where the hardware has it, else float32. Never measured, so that two runs agree.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    probe = getattr(torch.cpu, "get_capabilities", None) if device.type == "cpu" else None
    found: dict[str, object] = probe() if probe else {}
    return torch.bfloat16 if found.get("amx_bf16") or found.get("avx512_bf16") else torch.float32


def _first_equals(atoms: Tensor) -> Tensor:
    """For every atom the lowest index of an equal one.

    Equal atoms have inner products that are equal up to rounding, and rounding depends on the shape of the
    batch; the choice between them must not.
    """
    _, group = torch.unique(atoms, dim=0, return_inverse=True)
    order = torch.arange(len(atoms), device=atoms.device)
    lowest = torch.full_like(order, len(atoms)).scatter_reduce_(0, group, order, "amin")
    return lowest[group]


def _blocks(*tensors: Tensor, size: int = 4096) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)
