"""The rows of a vocabulary tensor in numbers: distributions, and the rows to look at first."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict

import torch
from torch import Tensor

from tokensurgeon.checkpoint.expectation import MADE, token_rows
from tokensurgeon.plan import Plan
from tokensurgeon.report.model import Ingredient, Quantiles, RowTable, Solver, TensorQuality, TokenRow
from tokensurgeon.rows import MadeRows, NewTensor
from tokensurgeon.solvers.nearest import build_index
from tokensurgeon.sourcing import donor_counterpart
from tokensurgeon.vocab.canonical import Kind

_BINS = 40
_WORST = 20
_INGREDIENTS = 5
_SAMPLE = 2048
# Less than two megabytes of page; where more rows were made, the tokens that merge first say most.
_MOST_ROWS = 20_000


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
    worst = _order(made, norms, kept)[:_WORST] if made else []
    nearest = _find_nearest(plan, new, made, worst) if made else {}
    return TensorQuality(
        name=tensor.name,
        role=str(tensor.role),
        tied=new.tied,
        dtype=tensor.ref.dtype,
        old_shape=[] if tensor.name in plan.inputs.added else list(tensor.ref.shape),
        new_shape=list(new.data.shape),
        copied=sum(origin >= 0 and row in plan.match.target.tokens for row, origin in enumerate(source)),
        made=source.count(MADE) - len(set(new.healed) - set(made.ids if made else ())),
        made_by=dict(Counter(made.methods).most_common()) if made else {},
        padding=len(source) - len(plan.match.target),
        equal_to=new.equal_to,
        kept_norms=quantiles(kept),
        new_norms=quantiles(norms[made.ids]) if made else None,
        residuals=quantiles(residuals),
        similarities=quantiles(torch.tensor([similarity for _, similarity in nearest.values()])),
        solver=_solver(made) if made and made.solver else None,
        worst=[_describe(plan, made, row, norms, nearest) for row in worst] if made else [],
        rows=_tabulate(plan, made) if made and made.ids and new.equal_to is None else None,
        healed=len(new.healed),
        note=new.note,
    )


def _solver(made: MadeRows) -> Solver:
    return Solver(mode=made.solver, **(asdict(made.agreement) if made.agreement else {}))


def _order(made: MadeRows, norms: Tensor, kept: Tensor) -> list[int]:
    """Rows to look at first: largest residual, or most unusual norm where the method has none."""
    unusual = (norms[made.ids].log() - kept.median().log()).abs() if len(kept) else norms[made.ids]
    badness = torch.where(made.residual.isnan(), unusual, made.residual).tolist()
    return sorted(range(len(made.ids)), key=lambda row: (-badness[row], made.ids[row]))


def _find_nearest(
    plan: Plan, new: NewTensor, made: MadeRows, worst: list[int]
) -> dict[int, tuple[int, float]]:
    """Nearest anchor and cosine in the donor's space, for the worst tokens and a sample of all."""
    donor = donor_counterpart(plan, new.tensor)
    if donor is None or not new.anchors:
        return {}
    sample = {*made.ids[:: -(-len(made.ids) // _SAMPLE)], *(made.ids[row] for row in worst)}
    ids = torch.tensor(sorted(index for index in sample if index < len(donor)), dtype=torch.int64)
    ids = ids[torch.isfinite(donor[ids]).all(dim=1)]
    index = build_index(donor[torch.tensor(new.anchors)].float())
    found = index.search(donor[ids].float(), 1)
    anchors = [new.anchors[place] for place in found.indices[:, 0].tolist()]
    return dict(zip(ids.tolist(), zip(anchors, found.similarities[:, 0].tolist(), strict=True), strict=True))


def _tabulate(plan: Plan, made: MadeRows) -> RowTable:
    """What rows are made of; of very many, those of text before control tokens, the lowest ids first."""
    target, base = plan.match.target.tokens, plan.match.base.tokens
    order = sorted(range(len(made.ids)), key=lambda row: target[made.ids[row]].kind is Kind.SPECIAL)
    rows = sorted(order[:_MOST_ROWS])
    mixes = [_ingredients(made, row) for row in rows]
    residuals = made.residual[rows].tolist()
    return RowTable(
        made=len(made.ids),
        ids=[made.ids[row] for row in rows],
        tokens=[target[made.ids[row]].text for row in rows],
        methods=[made.methods[row] for row in rows],
        residuals=[None if math.isnan(residual) else _short(residual) for residual in residuals],
        sources=[[source for source, _ in mix] for mix in mixes],
        weights=[[_short(weight) for _, weight in mix] for mix in mixes],
        source_tokens={i: base[i].text for i in sorted({source for mix in mixes for source, _ in mix})},
    )


def _short(number: float) -> float:
    return float(f"{number:.4g}")


def _ingredients(made: MadeRows, row: int) -> list[tuple[int, float]]:
    """The largest base ids and coefficients behind one made row."""
    pairs = zip(made.sources[row].tolist(), made.coefs[row].tolist(), strict=True)
    used = [(source, weight) for source, weight in pairs if source >= 0]
    return sorted(used, key=lambda pair: (-abs(pair[1]), pair[0]))[:_INGREDIENTS]


def _describe(
    plan: Plan, made: MadeRows, row: int, norms: Tensor, nearest: dict[int, tuple[int, float]]
) -> TokenRow:
    target, base = plan.match.target.tokens, plan.match.base.tokens
    index, residual = made.ids[row], float(made.residual[row])
    anchor, similarity = nearest.get(index, (None, 0.0))
    return TokenRow(
        id=index,
        token=target[index].text,
        method=made.methods[row],
        residual=None if math.isnan(residual) else residual,
        norm=float(norms[index]),
        made_of=[Ingredient(token=base[i].text, weight=weight) for i, weight in _ingredients(made, row)],
        nearest=None if anchor is None else Ingredient(token=target[anchor].text, weight=similarity),
    )


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
