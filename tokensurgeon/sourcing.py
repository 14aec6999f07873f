"""What rows of a vocabulary tensor are made from: its donor rows and its anchors."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokensurgeon.checkpoint.configs import read_config, text_levels
from tokensurgeon.checkpoint.layout import TensorRole, VocabTensor
from tokensurgeon.checkpoint.reader import map_tensor
from tokensurgeon.errors import InputError, PolicyError
from tokensurgeon.methods.learnt import infinite_rows, near_copies, near_zero_rows, untrained_rows
from tokensurgeon.plan import Plan
from tokensurgeon.vocab.scripts import script_of
from tokensurgeon.vocab.usable import is_reserved
from tokensurgeon.vocab.vocabulary import Vocabulary


def donor_counterpart(plan: Plan, tensor: VocabTensor) -> Tensor | None:
    """The donor's counterpart of a base tensor; a tied donor has its embedding for both ends.

    Args:
        plan: What to do.
        tensor: A vocabulary tensor of the base.

    Returns:
        ``(V_t, d_donor)`` in the stored dtype, mapped from the file where the donor counts tokens as the
        target does; else zero where the donor has no row. None without a donor.
    """
    layout = plan.inputs.donor_layout
    if layout is None:
        return None
    twin = layout.head if tensor.role is TensorRole.HEAD else layout.find(tensor.role) or layout.embedding
    rows = map_tensor(twin.ref)
    if plan.donor_ids is None:
        return rows
    known = {index: own for index, own in plan.donor_ids.items() if own < len(rows)}
    ordered = rows.new_zeros((max(known, default=-1) + 1, rows.shape[1]))
    ordered[torch.tensor(list(known))] = rows[torch.tensor(list(known.values()))]
    return ordered


def choose_anchors(
    plan: Plan, base_rows: Tensor, donor_rows: Tensor | None
) -> tuple[dict[int, int], dict[str, list[int]]]:
    """Drop anchors whose rows show that one of the models never learnt them.

    Args:
        plan: What to do; its anchors are chosen by their tokens alone.
        base_rows: ``(V_b, d_base)``.
        donor_rows: ``(V_t, d_donor)``, or None.

    Returns:
        Target id to base id of the anchors that are left, and the target ids of the others by reason.

    Raises:
        PolicyError: Fewer than ``anchors.minimum`` are left.
    """
    if not plan.is_anchored:
        return {}, {}
    # A per-layer table may have fewer rows than the embedding that the plan was made for.
    bound = plan.match.target.bound if donor_rows is None else len(donor_rows)
    usable = {t: b for t, b in plan.anchors.items() if t < bound and b < len(base_rows)}
    targets = torch.tensor(list(usable), dtype=torch.int64)
    bases = torch.tensor(list(usable.values()), dtype=torch.int64)
    # An atom that is not finite spoils every row, whatever the recipe excludes.
    rules = {*plan.recipe.anchors.exclude, "not finite"}
    excluded: dict[str, list[int]] = {}
    keep = torch.ones(len(targets), dtype=torch.bool)
    for side, vocabulary, table, ids in (
        ("target", plan.match.target, donor_rows, targets),
        ("base", plan.match.base, base_rows, bases),
    ):
        if table is None or not len(ids):
            continue
        rows = table[ids].float()
        for rule, find in (
            ("not finite", infinite_rows),
            ("near_zero", near_zero_rows),
            ("near_copy", near_copies),
            ("untrained", partial(_untrained, vocabulary, table, ids)),
        ):
            if rule in rules:
                found = find(rows) & keep
                keep &= ~found
                if found.any():
                    excluded[f"{rule} ({side})"] = targets[found].tolist()
    if int(keep.sum()) < plan.recipe.anchors.minimum:
        raise PolicyError(
            f"{int(keep.sum())} anchors are left; excluded by their rows are "
            + (", ".join(f"{len(ids)} {reason}" for reason, ids in excluded.items()) or "none"),
            f"at least {plan.recipe.anchors.minimum} (anchors.minimum)",
            "choose a method without anchors, such as pieces, or change anchors.exclude",
        )
    return dict(zip(targets[keep].tolist(), bases[keep].tolist(), strict=True)), excluded


def _untrained(vocabulary: Vocabulary, table: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
    """Rows that look like those of tokens that training never met, each script by its own measure."""
    unused = [token.id for token in vocabulary if is_reserved(token) and token.id < len(table)]
    holes = sorted(set(range(len(table))) - vocabulary.tokens.keys())
    strange = table[torch.tensor([*unused, *holes], dtype=torch.int64)].float()
    strange = strange[~infinite_rows(strange)]
    scripts = [script_of(vocabulary.tokens[index]) for index in ids.tolist()]
    return untrained_rows(rows, strange, scripts)


def find_unserved(plan: Plan, donor_rows: Tensor, ids: list[int]) -> set[int]:
    """Tokens about which the donor has nothing to say: it has no row for them, or never learnt it.

    Args:
        plan: What to do.
        donor_rows: ``(V_t, d_donor)``.
        ids: Target ids whose rows are wanted, ascending.

    Returns:
        Those of the ids that no method with a donor can serve.

    Raises:
        InputError: A donor row that would be used is not finite.
    """
    beyond = set(plan.unserved) | {index for index in ids if index >= len(donor_rows)}
    served = torch.tensor([index for index in ids if index not in beyond], dtype=torch.int64)
    rows = donor_rows[served].float()
    bad = served[infinite_rows(rows)]
    if len(bad):
        raise InputError(
            f"{len(bad)} donor rows are not finite, such as that of token {int(bad[0])}",
            "finite rows",
            "repair the donor, or choose a method without one",
        )
    return (beyond & set(ids)) | set(served[near_zero_rows(rows) | near_copies(rows)].tolist())


def rope_thetas(plan: Plan) -> tuple[float, float]:
    """Base frequencies of the rotary positions of base and donor; 10,000 where a config names none."""
    inputs = plan.inputs
    donor = read_config(inputs.donor) if inputs.donor is not None else {}
    return _rope_theta(inputs.base_config), _rope_theta(donor)


def _rope_theta(config: dict[str, Any]) -> float:
    for level in text_levels(config):
        for place in (level, level.get("rope_parameters"), level.get("rope_scaling")):
            if isinstance(place, dict) and isinstance(place.get("rope_theta"), int | float):
                return float(place["rope_theta"])
    return 10_000.0
