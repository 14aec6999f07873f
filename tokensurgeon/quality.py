"""The rows of a vocabulary tensor in numbers: distributions, and the rows to look at first."""

from __future__ import annotations

import math
from dataclasses import asdict

import torch
from torch import Tensor

from tokensurgeon.checkpoint.expectation import MADE, token_rows
from tokensurgeon.plan import Plan
from tokensurgeon.report.model import Ingredient, Quantiles, Solver, TensorQuality, TokenRow
from tokensurgeon.surgery import MadeRows, NewTensor

_BINS = 40
_WORST = 20
_INGREDIENTS = 5


def judge_rows(plan: Plan, new: NewTensor) -> TensorQuality:
    """Describe the rows of one vocabulary tensor.

    Args:
        plan: What was to be done.
        new: What was done.

    Returns:
        Counts, distributions and the rows to look at first.
    """
    tensor = new.tensor
    source = new.source
    data = token_rows(new.data, tensor.axis)
    norms = torch.cat([part.float().norm(dim=1) for part in data.split(16384)])
    kept = norms[[row for row, origin in enumerate(source) if origin >= 0]]
    made = new.made
    residuals = made.residual[~made.residual.isnan()] if made else torch.empty(0)
    return TensorQuality(
        name=tensor.name,
        role=str(tensor.role),
        tied=new.tied,
        dtype=tensor.ref.dtype,
        old_shape=list(tensor.ref.shape),
        new_shape=list(new.data.shape),
        copied=sum(origin >= 0 and row in plan.match.target.tokens for row, origin in enumerate(source)),
        made=source.count(MADE),
        padding=len(source) - len(plan.match.target),
        equal_to=new.equal_to,
        kept_norms=quantiles(kept),
        new_norms=quantiles(norms[made.ids]) if made else None,
        residuals=quantiles(residuals),
        solver=_solver(made) if made and made.solver else None,
        worst=_worst(plan, made, norms, kept) if made else [],
        note=new.note,
    )


def _solver(made: MadeRows) -> Solver:
    return Solver(mode=made.solver, **(asdict(made.agreement) if made.agreement else {}))


def _worst(plan: Plan, made: MadeRows, norms: Tensor, kept: Tensor) -> list[TokenRow]:
    """Rows to look at first: largest residual, or most unusual norm where the method has none."""
    unusual = (norms[made.ids].log() - kept.median().log()).abs() if len(kept) else norms[made.ids]
    badness = torch.where(made.residual.isnan(), unusual, made.residual)
    order = sorted(range(len(made.ids)), key=lambda row: (-float(badness[row]), made.ids[row]))[:_WORST]
    rows = []
    for row in order:
        weights = made.coefs[row].tolist()
        ingredients = sorted(
            (
                (weight, index)
                for weight, index in zip(weights, made.sources[row].tolist(), strict=True)
                if index >= 0
            ),
            key=lambda pair: (-abs(pair[0]), pair[1]),
        )
        residual = float(made.residual[row])
        rows.append(
            TokenRow(
                id=made.ids[row],
                token=plan.match.target.tokens[made.ids[row]].text,
                method=made.methods[row],
                residual=None if math.isnan(residual) else residual,
                norm=float(norms[made.ids[row]]),
                made_of=[
                    Ingredient(token=plan.match.base.tokens[index].text, weight=weight)
                    for weight, index in ingredients[:_INGREDIENTS]
                ],
            )
        )
    return rows


def quantiles(values: Tensor) -> Quantiles | None:
    """A distribution in short; None for no values.

    Args:
        values: ``(n,)`` float32, finite.

    Returns:
        Quantiles and a histogram, or None.
    """
    if not len(values):
        return None
    ordered = values.to(torch.float64).sort().values
    at = [
        float(ordered[min(int(share * len(ordered)), len(ordered) - 1)])
        for share in (0, 0.01, 0.25, 0.5, 0.75, 0.99, 1)
    ]
    low, high = at[0], at[-1]
    counts = torch.histc(ordered, _BINS, low, high) if high > low else torch.tensor([float(len(ordered))])
    names = ("minimum", "q01", "q25", "median", "q75", "q99", "maximum")
    return Quantiles(
        count=len(ordered), histogram=[int(c) for c in counts], **dict(zip(names, at, strict=True))
    )
