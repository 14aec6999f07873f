"""New contents of every vocabulary tensor: rows copied, rows made, rows without a token."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tokensurgeon.adjust import adjust_rows
from tokensurgeon.batches import Batches
from tokensurgeon.checkpoint.expectation import MADE, PADDING, token_rows
from tokensurgeon.checkpoint.layout import TensorRole, VocabTensor
from tokensurgeon.checkpoint.reader import map_tensor
from tokensurgeon.console import no_progress, progress
from tokensurgeon.device import find_device
from tokensurgeon.errors import InputError, PolicyError, RecipeError, ResourceError
from tokensurgeon.lexicon import make_lexicon
from tokensurgeon.methods.base import MethodContext, Side
from tokensurgeon.methods.learnt import infinite_rows
from tokensurgeon.methods.params import MeanParams, MethodParams, PiecesParams
from tokensurgeon.methods.registry import find_method
from tokensurgeon.notices import some_tokens
from tokensurgeon.plan import Plan
from tokensurgeon.resources import FileResources
from tokensurgeon.rows import MadeRows, NewTensor
from tokensurgeon.solvers.omp import is_out_of_memory
from tokensurgeon.sourcing import choose_anchors, donor_counterpart, find_unserved, rope_thetas


def operate(plan: Plan, batches: Batches, resources: FileResources) -> list[NewTensor]:
    """Make the new contents of all vocabulary tensors.

    Args:
        plan: What to do.
        batches: How the work is shared, and where finished batches are kept.
        resources: What the recipe brings besides the models.

    Returns:
        One entry for each tensor of the plan's layout, in its order.

    Raises:
        RecipeError: The ends of a tied base are given different methods.
        InputError: A row that would be used is not finite, or a method made one that is not.
        PolicyError: The base is declared tied and stores another lm_head; too few anchors are left.
        ResourceError: The device is out of memory.
    """
    tied = _is_tied(plan)
    if tied and plan.recipe.methods("embedding") != plan.recipe.methods("lm_head"):
        raise RecipeError(
            "method: one for the embedding and another for the lm_head, of a base that is tied",
            "one method: the same rows serve both ends",
            "give method a name or a list, or set untie: true for an lm_head with rows of its own",
        )
    done: list[NewTensor] = []
    for tensor in plan.inputs.layout.tensors:
        twin = _find_twin(plan, tensor, done)
        if twin is not None:
            done.append(replace(twin, tensor=tensor, equal_to=twin.tensor.name))
        elif tensor.role is not TensorRole.BIAS:
            try:
                done.append(_make_rows(plan, tensor, tied, batches, resources))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise ResourceError(
                    f"{tensor.name}: {error}", "enough memory for one batch", "lower runtime.memory_gb"
                ) from error
    by_name = {new.tensor.name: new for new in done}
    head = by_name[plan.inputs.layout.head.name]
    for tensor in plan.inputs.layout.tensors:
        if tensor.role is TensorRole.BIAS:
            by_name[tensor.name] = _make_bias(plan, tensor, head)
    made = [by_name[tensor.name] for tensor in plan.inputs.layout.tensors]
    return adjust_rows(plan, made, resources)


def _is_tied(plan: Plan) -> bool:
    """Whether one set of rows serves both ends, be it stored once or as two equal copies."""
    if plan.recipe.untie:
        return False
    embedding, head = plan.inputs.layout.embedding.ref, plan.inputs.layout.head.ref
    same = (embedding.dtype, embedding.shape) == (head.dtype, head.shape)
    # Stored once, it need not be read to know.
    return (
        plan.recipe.tie_policy == "drop-head"
        or embedding == head
        or (same and torch.equal(map_tensor(embedding), map_tensor(head)))
    )


def _find_twin(plan: Plan, tensor: VocabTensor, done: list[NewTensor]) -> NewTensor | None:
    """An earlier tensor with the same contents; such copies stay copies."""
    declared_tied = plan.inputs.base_config.get("tie_word_embeddings") is True
    for earlier in done:
        old, other = earlier.tensor.ref, tensor.ref
        if earlier.equal_to or (old.dtype, old.shape) != (other.dtype, other.shape):
            continue
        ends = {earlier.tensor.role, tensor.role} == {TensorRole.EMBEDDING, TensorRole.HEAD}
        if torch.equal(map_tensor(old), map_tensor(other)):
            if plan.recipe.untie and ends:
                continue
            return earlier
        if declared_tied and tensor.role is TensorRole.HEAD and earlier.tensor.role is TensorRole.EMBEDDING:
            if plan.recipe.tie_policy == "drop-head":
                return earlier
            if plan.recipe.tie_policy == "refuse":
                raise PolicyError(
                    f"config.json says tie_word_embeddings, but {tensor.name} differs from {old.name}",
                    "a decision",
                    "set tie_policy: keep-head (unties the output) or drop-head (loses the stored lm_head)",
                )
    return None


def _sources(plan: Plan, tensor: VocabTensor, tied: bool) -> list[int]:
    """Where each row of the output comes from."""
    if plan.is_identity:
        return list(range(tensor.rows))
    match = plan.match
    source = [PADDING] * plan.rows
    wanted = set(plan.wanted)
    for index in match.target.tokens:
        origin = match.sources.get(index)
        if index in wanted or origin is None:
            source[index] = MADE
        else:
            # One token that is both BOS and EOS is read as the one and written as the other.
            reads = tensor.role in (TensorRole.EMBEDDING, TensorRole.PER_LAYER) and not tied
            row = (origin.embedding if reads else origin.head)[0]
            source[index] = row if row < tensor.rows else PADDING
    if plan.only_adds:
        holes = set(range(min(plan.rows, tensor.rows))) - match.target.tokens.keys()
        for index in holes:
            source[index] = index
    return source


def _make_rows(
    plan: Plan, tensor: VocabTensor, tied: bool, batches: Batches, resources: FileResources
) -> NewTensor:
    base_rows = map_tensor(tensor.ref)
    source = _sources(plan, tensor, tied)
    data = torch.empty(plan.new_shape(tensor), dtype=base_rows.dtype)
    copied = torch.tensor([row for row, origin in enumerate(source) if origin >= 0], dtype=torch.int64)
    origins = torch.tensor([origin for origin in source if origin >= 0], dtype=torch.int64)
    for ids, sources in zip(copied.split(8192), origins.split(8192), strict=True):
        part = base_rows[sources]
        _refuse_infinite(part, sources, plan, tensor)
        data[ids] = part
    ids = [row for row, origin in enumerate(source) if origin == MADE]
    made: MadeRows | None = None
    excluded: dict[str, list[int]] = {}
    anchors: dict[int, int] = {}
    base_ids = torch.tensor([i for i in plan.match.base.tokens if i < tensor.rows], dtype=torch.int64)
    for part in base_ids.split(8192) if len(copied) < len(source) else ():
        _refuse_infinite(base_rows[part], part, plan, tensor)
    if ids:
        donor_rows = donor_counterpart(plan, tensor)
        anchors, excluded = choose_anchors(plan, base_rows, donor_rows)
        context = MethodContext(
            side=_side(tensor, tied),
            base_rows=base_rows,
            base_ids=base_ids,
            pieces=[],
            donor_rows=donor_rows,
            wanted=torch.tensor(ids, dtype=torch.int64),
            anchor_targets=torch.tensor(list(anchors), dtype=torch.int64),
            anchor_bases=torch.tensor(list(anchors.values()), dtype=torch.int64),
            generator=torch.Generator().manual_seed(plan.recipe.runtime.seed),
            device=find_device(plan.recipe.runtime.device),
            batch_size=plan.batch_size,
            advance=no_progress,
            lexicon=make_lexicon(plan.match, tensor.rows),
            resources=resources,
            rope_thetas=rope_thetas(plan),
        )
        made = _make_missing(plan, tensor, context, data, batches)
    padding = torch.tensor([row for row, origin in enumerate(source) if origin == PADDING], dtype=torch.int64)
    if len(padding):
        # The mean row's logit is the mean logit: never the largest. A zero row's logit is 0, which may be.
        data[padding] = base_rows[base_ids].float().mean(dim=0).to(data.dtype)
    serves_both = tied and tensor.role in (TensorRole.EMBEDDING, TensorRole.HEAD)
    return NewTensor(tensor, data, source, made, serves_both, excluded=excluded, anchors=list(anchors))


def _refuse_infinite(rows: Tensor, ids: Tensor, plan: Plan, tensor: VocabTensor) -> None:
    bad = infinite_rows(rows).nonzero()[:, 0]
    if len(bad):
        token = plan.match.base.tokens.get(int(ids[bad[0]]))
        raise InputError(
            f"{tensor.ref.path}: {tensor.name}[{int(ids[bad[0]])}] ({token.text if token else 'padding'!r}) "
            f"and {len(bad) - 1} more rows are not finite",
            "finite rows",
            "repair the base first",
        )


def _make_missing(
    plan: Plan, tensor: VocabTensor, context: MethodContext, data: Tensor, batches: Batches
) -> MadeRows:
    """Make the rows of ``context.wanted`` and write them into ``data``."""
    ids = context.wanted.tolist()
    made = MadeRows(ids)
    mapped = [index for index in ids if index in plan.match.sources]
    left = ids
    if mapped:
        # What the user spelt has no merges.
        chosen = (p for p in plan.recipe.all_methods if isinstance(p, PiecesParams))
        spell = next((params for params in chosen if params.weighting != "merges"), PiecesParams())
        served = _make_group(plan, tensor, context, data, batches, spell, mapped, made, label="map")
        left = [index for index in ids if index not in served]
    unserved = find_unserved(plan, context.donor_rows, left) if context.donor_rows is not None else set()
    asked = plan.recipe.methods("lm_head" if context.side == "lm_head" else "embedding")
    # The mean row comes last: it needs nothing.
    for params in (*asked, plan.recipe.fallback, MeanParams()):
        needs_donor = "donor" in find_method(params.name).needs
        group = [index for index in left if not (needs_donor and index in unserved)]
        if group:
            served = _make_group(plan, tensor, context, data, batches, params, group, made)
            left = [index for index in left if index not in served]
    return made


def _make_group(
    plan: Plan,
    tensor: VocabTensor,
    context: MethodContext,
    data: Tensor,
    batches: Batches,
    params: MethodParams,
    group: list[int],
    made: MadeRows,
    label: str = "",
) -> set[int]:
    """Let one method make the rows of some ids; returns those that it served."""
    spelling = dict(zip(plan.wanted, plan.pieces, strict=True))
    with progress(f"{params.name}: {tensor.name}", len(group), "tokens") as advance:
        mine = replace(
            context,
            wanted=torch.tensor(group, dtype=torch.int64),
            pieces=[tuple(i for i in spelling[index].ids if i < tensor.rows) for index in group],
            advance=advance,
        )
        part = find_method(params.name).build(params)(replace(mine, runner=batches.runner(params, mine)))
    if part.served is not None:
        at = part.served.cpu().nonzero()[:, 0]
        part = part.take(at)
        group = [group[place] for place in at.tolist()]
    rows = part.rows.to("cpu", data.dtype)
    _refuse_infinite_made(rows, group, plan, tensor)
    data[torch.tensor(group, dtype=torch.int64)] = rows
    made.add(label or params.name, group, part)
    return set(group)


def _refuse_infinite_made(rows: Tensor, ids: list[int], plan: Plan, tensor: VocabTensor) -> None:
    bad = infinite_rows(rows).nonzero()[:, 0].tolist()
    if bad:
        names = some_tokens([plan.match.target.tokens[ids[row]].text for row in bad])
        raise InputError(
            f"{tensor.name}: made rows are not finite in {tensor.ref.dtype}: those of {names}",
            "finite rows",
            "try another method, or a smaller k",
        )


def _side(tensor: VocabTensor, tied: bool) -> Side:
    if tensor.role is TensorRole.PER_LAYER:
        return "embedding"
    if tied:
        return "tied"
    return "lm_head" if tensor.role is TensorRole.HEAD else "embedding"


def _make_bias(plan: Plan, tensor: VocabTensor, head: NewTensor) -> NewTensor:
    """Fill a bias with the coefficients of the lm_head rows, or its mean where there are none."""
    stored = map_tensor(tensor.ref)
    old = token_rows(stored, tensor.axis).float()
    _refuse_infinite(old, torch.arange(len(old)), plan, tensor)
    source = head.source
    new = old.mean(dim=0).expand(plan.rows_of(tensor), -1).clone()
    copied = torch.tensor([row for row, origin in enumerate(source) if origin >= 0], dtype=torch.int64)
    new[copied] = old[torch.tensor([origin for origin in source if origin >= 0], dtype=torch.int64)]
    made = head.made
    if made is not None:
        combined = (made.sources >= 0).any(dim=1) & ~made.corrects
        values = (made.coefs[:, :, None] * old[made.sources.clamp(min=0)]).sum(dim=1)
        new[torch.tensor(made.ids)[combined]] = values[combined]
    data = new.T.reshape(plan.new_shape(tensor)) if tensor.axis else new.reshape(plan.new_shape(tensor))
    note = "new entries: the coefficients of the lm_head rows, else the mean bias"
    return NewTensor(tensor, data.to(stored.dtype).contiguous(), source, note=note)
