"""What is done to rows after methods made them: their norm, and how far lm_head rows lie from the mean row.

A made lm_head row competes with every other token at every position. How strongly it should depends on the
pair: where few tokens are new, rows a little farther from the mean than the best guess pay (a guess that is
off is right more often when it is louder); where most are new, they take probability from the kept tokens,
and nearer is better. ``head_scale: auto`` looks for the scale at which the output reads best what the base
itself would write.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokensurgeon.checkpoint.layout import TensorRole
from tokensurgeon.checkpoint.reader import map_tensor
from tokensurgeon.console import logger, progress
from tokensurgeon.errors import InputError
from tokensurgeon.evaluation.bits_per_byte import score_texts
from tokensurgeon.evaluation.loading import load_tokenizer
from tokensurgeon.plan import Plan
from tokensurgeon.resources import FileResources
from tokensurgeon.rows import NewTensor, mean_row

_BLOCK = 8192
_STEP = 0.1
_LEAST, _MOST = 0.5, 1.5


def adjust_rows(plan: Plan, tensors: Sequence[NewTensor], resources: FileResources) -> list[NewTensor]:
    """Scale made rows as the recipe says; rows the user spelt out stay as they are.

    Args:
        plan: What to do.
        tensors: All vocabulary tensors, with their rows made.
        resources: Where the base's body is.

    Returns:
        The tensors in their order, those whose rows moved with new contents and a note.

    Raises:
        InputError: A scale is to be chosen for a base that cannot be run with other rows.
    """
    rules = plan.recipe.new_rows
    adjusted = list(tensors)
    if rules.norm == "match":
        adjusted = [_change(new, _match_norms(new)) for new in adjusted]
    scale = rules.head_scale
    heads = [new for new in adjusted if _writes(new) and _free_ids(new)]
    if not heads or scale == 1.0:
        return _follow_twins(adjusted)
    note = ""
    if scale == "auto":
        scale, note = _choose_scale(plan, _follow_twins(adjusted), resources)
    scaled = scale_heads(plan, adjusted, scale)
    return [replace(new, head_scale=scale, note=note or new.note) if _writes(new) else new for new in scaled]


def scale_heads(plan: Plan, tensors: Sequence[NewTensor], scale: float) -> list[NewTensor]:
    """Move made rows that write along the line from the mean row.

    Args:
        plan: What the tensors are for.
        tensors: All vocabulary tensors.
        scale: What their distance to the mean row is multiplied with.

    Returns:
        The tensors in their order; rows that the user spelt out stay as they are.
    """
    return _follow_twins(
        [_change(new, _scaled(plan, new, scale)) if _writes(new) else new for new in tensors]
    )


def _writes(new: NewTensor) -> bool:
    """Whether a tensor's rows decide which token is written."""
    return new.equal_to is None and (new.tied or new.tensor.role is TensorRole.HEAD)


def _free_ids(new: NewTensor) -> list[int]:
    """Target ids of the rows that methods made."""
    return [index for index, method in new.made_by.items() if method != "map"]


def _change(new: NewTensor, rows: Tensor | None) -> NewTensor:
    """The tensor with other made rows; None leaves it as it is."""
    if rows is None:
        return new
    data = new.data.clone()
    data[torch.tensor(_free_ids(new), dtype=torch.int64)] = rows.to(data.dtype)
    return replace(new, data=data)


def _follow_twins(tensors: Sequence[NewTensor]) -> list[NewTensor]:
    """Copies of another tensor take its contents."""
    by_name = {new.tensor.name: new for new in tensors}
    return [replace(new, data=by_name[new.equal_to].data) if new.equal_to else new for new in tensors]


def _match_norms(new: NewTensor) -> Tensor | None:
    """Made rows as long as the median row that is kept."""
    ids = _free_ids(new)
    kept = torch.tensor([row for row, origin in enumerate(new.source) if origin >= 0], dtype=torch.int64)
    if not ids or not len(kept) or new.equal_to is not None:
        return None
    median = torch.cat([new.data[some].float().norm(dim=1) for some in kept.split(_BLOCK)]).median()
    rows = new.data[torch.tensor(ids)].float()
    own = rows.norm(dim=1, keepdim=True)
    return torch.where(own > 0, rows / own.clamp(min=1e-30) * median, rows)


def _scaled(plan: Plan, new: NewTensor, scale: float) -> Tensor | None:
    """Made rows at ``scale`` times their distance from the mean row."""
    ids = _free_ids(new)
    if not ids:
        return None
    base = map_tensor(new.tensor.ref)
    used = torch.tensor([i for i in plan.match.base.tokens if i < len(base)], dtype=torch.int64)
    mean = mean_row(base, used).float()
    return mean + scale * (new.data[torch.tensor(ids)].float() - mean)


def _choose_scale(plan: Plan, tensors: Sequence[NewTensor], resources: FileResources) -> tuple[float, str]:
    """The scale with the fewest bits per byte on text that the base wrote, and what to tell of it."""
    if any(new.tensor.role is TensorRole.PER_LAYER for new in tensors):
        raise InputError(
            "new_rows.head_scale: auto, for a base with a per-layer table",
            "a base that can be run with other rows",
            "give a number",
        )
    model = resources.load_body()
    texts = resources.written_by_base
    target = load_tokenizer(str(plan.inputs.target), plan.recipe.trust_remote_code)
    if plan.rewritten:
        target.backend_tokenizer.pre_tokenizer = plan.match.target.tokenizer.pre_tokenizer

    def bits(scale: float) -> float:
        _install(model, scale_heads(plan, tensors, scale))
        scores = score_texts(model, target, texts).scores
        found = sum(score.bits for score in scores) / sum(score.bytes for score in scores)
        logger.info("head_scale %.2f: %.4f bits per byte", scale, found)
        return found

    with progress("choosing head_scale", 8) as advance:

        def measure(scale: float) -> float:
            advance()
            return bits(scale)

        best, known = climb(measure)
    note = (
        f"head_scale {best:g}, chosen on text sampled from the base: "
        f"{known[1.0]:.3f} bits per byte at 1, {known[best]:.3f} at {best:g}"
    )
    return best, note


def climb(measure: Callable[[float], float]) -> tuple[float, dict[float, float]]:
    """Walk from one to the scale with the smallest measure, in steps of a tenth and then of half of that.

    Args:
        measure: Of a scale.

    Returns:
        The best scale, and what was measured at each that was tried.
    """
    known: dict[float, float] = {}

    def look(scale: float) -> float:
        scale = round(scale, 2)
        if not _LEAST <= scale <= _MOST:
            return float("inf")
        if scale not in known:
            known[scale] = measure(scale)
        return known[scale]

    best = 1.0
    look(best)
    for step in (_STEP, _STEP / 2):
        for direction in (-step, step):
            while look(best + direction) < look(best):
                best = round(best + direction, 2)
    return best, known


def _install(model: Any, tensors: Sequence[NewTensor]) -> None:  # noqa: ANN401 - a model of transformers
    """Let a loaded model read and write with new tensors."""
    reads, writes = model.get_input_embeddings(), model.get_output_embeddings()
    for new in tensors:
        rows = torch.nn.Parameter(new.data.to(writes.weight.device, torch.float32), requires_grad=False)
        if new.tensor.role is TensorRole.EMBEDDING:
            reads.weight = rows
            reads.num_embeddings = len(rows)
            # A padding id of the base may be past the rows.
            reads.padding_idx = None
        if _writes(new) or (new.tensor.role is TensorRole.HEAD):
            writes.weight = rows
            writes.out_features = len(rows)
        if new.tensor.role is TensorRole.BIAS and getattr(writes, "bias", None) is not None:
            writes.bias = torch.nn.Parameter(rows.flatten(), requires_grad=False)
    model.config.get_text_config().vocab_size = len(reads.weight)
