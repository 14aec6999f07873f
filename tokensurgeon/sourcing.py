"""What rows of a vocabulary tensor are made from: its donor rows, its anchors, and who makes which row."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tokensurgeon.checkpoint.layout import TensorRole, VocabTensor
from tokensurgeon.checkpoint.reader import map_tensor
from tokensurgeon.errors import InputError, PolicyError
from tokensurgeon.methods.learnt import infinite_rows, near_copies, near_zero_rows
from tokensurgeon.methods.params import AnyMethod, PiecesParams
from tokensurgeon.plan import Plan


def donor_counterpart(plan: Plan, tensor: VocabTensor) -> Tensor | None:
    """The donor's counterpart of a base tensor; a tied donor has its embedding for both ends.

    Args:
        plan: What to do.
        tensor: A vocabulary tensor of the base.

    Returns:
        ``(V_t, d_donor)`` in the stored dtype, mapped from the file; None without a donor.
    """
    layout = plan.inputs.donor_layout
    if layout is None:
        return None
    twin = layout.head if tensor.role is TensorRole.HEAD else layout.find(tensor.role) or layout.embedding
    return map_tensor(twin.ref)


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
    if donor_rows is None:
        return {}, {}
    # A per-layer table may have fewer rows than the embedding that the plan was made for.
    usable = {t: b for t, b in plan.anchors.items() if t < len(donor_rows) and b < len(base_rows)}
    targets = torch.tensor(list(usable), dtype=torch.int64)
    bases = torch.tensor(list(usable.values()), dtype=torch.int64)
    # An atom that is not finite spoils every row, whatever the recipe excludes.
    rules = {*plan.recipe.anchors.exclude, "not finite"}
    excluded: dict[str, list[int]] = {}
    keep = torch.ones(len(targets), dtype=torch.bool)
    for side, table, ids in (("target", donor_rows, targets), ("base", base_rows, bases)):
        rows = table[ids].float()
        for rule, find in (
            ("not finite", infinite_rows),
            ("near_zero", near_zero_rows),
            ("near_copy", near_copies),
        ):
            if rule in rules and len(rows):
                found = find(rows) & keep
                keep &= ~found
                if found.any():
                    excluded[f"{rule} ({side})"] = targets[found].tolist()
    if int(keep.sum()) < plan.recipe.anchors.minimum:
        raise PolicyError(
            f"{int(keep.sum())} anchors are left after near-zero and repeated rows are excluded",
            f"at least {plan.recipe.anchors.minimum} (anchors.minimum)",
            "choose a method without a donor, such as pieces, or change anchors.exclude",
        )
    return dict(zip(targets[keep].tolist(), bases[keep].tolist(), strict=True)), excluded


def assign_methods(
    plan: Plan, donor_rows: Tensor | None, ids: list[int]
) -> Iterator[tuple[str, AnyMethod, list[int]]]:
    """Who makes which row: the user's own spelling, the method, or the fallback.

    Args:
        plan: What to do.
        donor_rows: ``(V_t, d_donor)``, or None.
        ids: Target ids whose rows are wanted, ascending.

    Yields:
        A name for the report, the method's parameters, and its target ids; at least one id each.

    Raises:
        InputError: A donor row that would be used is not finite.
    """
    mapped = {index for index in ids if index in plan.match.sources}
    unserved = set(plan.unserved) - mapped
    if donor_rows is not None:
        unserved |= {index for index in ids if index >= len(donor_rows) and index not in mapped}
        unserved |= _find_untrained(donor_rows, [i for i in ids if i not in mapped and i not in unserved])
    recipe = plan.recipe
    spell = recipe.method if isinstance(recipe.method, PiecesParams) else PiecesParams()
    for label, params, group in (
        ("map", spell, [i for i in ids if i in mapped]),
        (recipe.method.name, recipe.method, [i for i in ids if i not in mapped and i not in unserved]),
        (recipe.fallback.name, recipe.fallback, [i for i in ids if i in unserved]),
    ):
        if group:
            yield label, params, group


def _find_untrained(donor_rows: Tensor, ids: list[int]) -> set[int]:
    """Target ids that the donor never learnt: it has nothing to say about them."""
    served = torch.tensor(ids, dtype=torch.int64)
    rows = donor_rows[served].float()
    bad = served[infinite_rows(rows)]
    if len(bad):
        raise InputError(
            f"{len(bad)} donor rows are not finite, such as that of token {int(bad[0])}",
            "finite rows",
            "repair the donor, or choose a method without one",
        )
    return set(served[near_zero_rows(rows) | near_copies(rows)].tolist())
