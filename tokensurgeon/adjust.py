"""What is done to rows after methods made them: norms, lm_head rows by what the base writes, last pieces.

A made lm_head row competes with every other token at every position. How strongly it should depends on the
pair: where few tokens are new, rows a little farther from the mean than the best guess pay (a guess that is
off is right more often when it is louder); where most are new, they take probability from the kept tokens,
and nearer is better. ``head_scale: auto`` looks for the scale at which the output reads best what the base
itself would write.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokensurgeon.checkpoint.layout import TensorRole
from tokensurgeon.checkpoint.reader import map_tensor
from tokensurgeon.console import logger, progress
from tokensurgeon.errors import InputError
from tokensurgeon.evaluation.loading import load_tokenizer
from tokensurgeon.evaluation.states import has_plain_logits
from tokensurgeon.last_pieces import choose_shares, mix_last_pieces, told_shares
from tokensurgeon.lessons import NO_LETTERS, judging_texts, lesson_texts, main_script
from tokensurgeon.notices import some_tokens
from tokensurgeon.plan import Plan
from tokensurgeon.reading import (
    Examples,
    fit_rows,
    group_by_limit,
    read_examples,
    score_written,
    trace_written,
)
from tokensurgeon.resources import FileResources
from tokensurgeon.rows import NewTensor, follow_twins, mean_row, spread_root, train_rows
from tokensurgeon.solvers.softmax import Reads, fit_unigrams
from tokensurgeon.vocab.scripts import script_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_UNIGRAM_PASSES = 2

# A token that occurs a twentieth more or less often than expected keeps its row.
_LEAST_SHIFT = 0.05

_BLOCK = 8192
# What head_scale, and the share of the way to fitted rows, are looked for in.
_SCALE_STEPS, _SHARE_STEPS = (0.1, 0.05), (0.2, 0.1)
_LEAST, _MOST = 0.5, 1.5


def adjust_rows(plan: Plan, tensors: Sequence[NewTensor], resources: FileResources) -> list[NewTensor]:
    """Change made rows as the recipe says; rows the user spelt out stay as they are.

    Args:
        plan: What to do.
        tensors: All vocabulary tensors, with their rows made.
        resources: Where the base's body is.

    Returns:
        The tensors in their order, those whose rows moved with new contents and a note.

    Raises:
        InputError: Rows are to be judged by running a base that cannot be run with other rows.
        RecipeError: A share is told for a token whose row is not made.
    """
    rules = plan.recipe.new_rows
    adjusted = list(tensors)
    if rules.norm == "match":
        adjusted = [_change(new, _match_norms(new)) for new in adjusted]
    if not any(_free_ids(new) for new in adjusted) and not rules.unigrams:
        return follow_twins(adjusted)
    reader = _Reader(plan, resources) if rules.runs_base else None
    scale = rules.head_scale
    if scale == "auto":
        assert reader is not None
        scale, note = _choose_scale(plan, follow_twins(adjusted), reader)
        adjusted = [replace(new, note=note) if _writes(new) else new for new in adjusted]
    if scale != 1.0:
        adjusted = [replace(new, head_scale=scale) if _writes(new) else new for new in adjusted]
        adjusted = scale_heads(plan, adjusted, scale)
    made = adjusted = follow_twins(adjusted)
    if rules.head_fit:
        assert reader is not None
        adjusted = _fit_heads(plan, made, reader)
    if rules.last_piece == "auto":
        assert reader is not None
        # A tied row that followed its fit is read as well as it can be: after it, no token gained surely.
        if not any(new.tied and new.data is not old.data for new, old in zip(adjusted, made, strict=True)):
            adjusted = _choose_last_pieces(plan, adjusted, reader)
    else:
        adjusted = follow_twins(mix_last_pieces(plan, adjusted, told_shares(plan)))
    if rules.unigrams:
        assert reader is not None
        adjusted = _fit_unigrams(plan, adjusted, reader)
    return adjusted


def scale_heads(plan: Plan, tensors: Sequence[NewTensor], scale: float) -> list[NewTensor]:
    """Move made rows that write along the line from the mean row.

    Args:
        plan: What the tensors are for.
        tensors: All vocabulary tensors.
        scale: What their distance to the mean row is multiplied with.

    Returns:
        The tensors in their order; rows that the user spelt out stay as they are.
    """
    return follow_twins([_change(new, _scaled(plan, new, scale)) if _writes(new) else new for new in tensors])


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


class _Reader:
    """The base with new rows, reading text that the base wrote with its own.

    Args:
        plan: What the rows are for.
        resources: Where the base's body is.

    Raises:
        InputError: The base cannot be run with other rows.
    """

    def __init__(self, plan: Plan, resources: FileResources) -> None:
        if any(tensor.role is TensorRole.PER_LAYER for tensor in plan.inputs.layout.tensors):
            raise InputError(
                "new_rows.head_scale: auto, head_fit or last_piece: auto, for a base with a per-layer table",
                "a base that can be run with other rows",
                "give head_scale as a number, head_fit: 0, and last_piece by token or not at all",
            )
        self.model = resources.load_fast_body()
        rules = plan.recipe.new_rows
        # All of it is written before the body gets other rows.
        judges = judging_texts(plan, resources)
        learns = rules.head_fit > 0 or rules.last_piece == "auto" or rules.unigrams
        self.lessons = lesson_texts(plan, resources) if learns else {}
        self.tokenizer = load_target_tokenizer(plan)
        self._judges, self._lessons = (
            group_by_limit(self.tokenizer, texts, plan.match.target.tokens)
            for texts in (judges, self.lessons)
        )
        self._plan, self._resources = plan, resources

    def bits(self, tensors: Sequence[NewTensor]) -> float:
        """Bits per byte of the text with new rows."""
        _install(self.model, tensors)
        return score_written(self.model, self.tokenizer, self._judges)

    def examples(self, tensors: Sequence[NewTensor], name: str) -> Examples | None:
        """What the lm_head sees over other text; None where logits are no products."""
        if not has_plain_logits(self._resources.load_body()):
            logger.warning("%s: the base does more to its logits than multiply; rows left as they were", name)
            return None
        _install(self.model, tensors)
        return read_examples(self.model, self.tokenizer, self._lessons)

    def reads(self, tensors: Sequence[NewTensor]) -> Reads:
        """What moves of rows cost where they are read, over the same text."""
        _install(self.model, tensors)
        return trace_written(self.model, self.tokenizer, self._lessons)

    def choose_shares(self, tensors: Sequence[NewTensor]) -> dict[int, float]:
        """Shares of last pieces with which other text is read better."""
        _install(self.model, tensors)
        reads = next(new for new in tensors if new.tensor.role is TensorRole.EMBEDDING)
        return choose_shares(
            self._plan, reads, self.model, self.tokenizer, self.lessons, writes=_writes(reads)
        )


def load_target_tokenizer(plan: Plan) -> PreTrainedTokenizerFast:
    """The tokenizer that the output will speak.

    Args:
        plan: Of the output.

    Returns:
        As AutoTokenizer reads it, cutting numbers as the plan says.
    """
    tokenizer = load_tokenizer(str(plan.inputs.target), plan.recipe.trust_remote_code)
    if plan.rewritten:
        tokenizer.backend_tokenizer.pre_tokenizer = plan.match.target.tokenizer.pre_tokenizer
    return tokenizer


def _choose_scale(plan: Plan, tensors: Sequence[NewTensor], reader: _Reader) -> tuple[float, str]:
    """The scale with the fewest bits per byte on text that the base wrote, and what to tell of it."""
    with progress("choosing head_scale", 8) as advance:

        def measure(scale: float) -> float:
            found = reader.bits(scale_heads(plan, tensors, scale))
            advance()
            return found

        best, known = climb(measure)
    logger.info("head_scale %.2f: %.4f bits per byte, %.4f at 1", best, known[best], known[1.0])
    note = (
        f"head_scale {best:g}, chosen on text sampled from the base: "
        f"{known[1.0]:.3f} bits per byte at 1, {known[best]:.3f} at {best:g}"
    )
    return best, note


def _choose_last_pieces(plan: Plan, tensors: Sequence[NewTensor], reader: _Reader) -> list[NewTensor]:
    """Rows as they are, or some of them mixed with those of last pieces: what reads better in the end."""
    shares = reader.choose_shares(tensors)
    if not shares:
        return list(tensors)
    mixed = follow_twins(mix_last_pieces(plan, tensors, shares))
    before, after = reader.bits(tensors), reader.bits(mixed)
    helped = after < before
    what = "mixed rows" if helped else "left rows as they were"
    logger.info("last_piece %s: %.4f bits per byte, %.4f without", what, after, before)
    tokens = some_tokens([plan.match.target.tokens[index].text for index in shares])
    note = (
        f"last_piece {what} ({tokens}): text sampled from the base that they were not chosen on takes "
        f"{before:.3f} bits per byte without, {after:.3f} with"
    )
    return [
        _add_note(new, note) if new.tensor.role is TensorRole.EMBEDDING else new
        for new in (mixed if helped else tensors)
    ]


def _fit_heads(plan: Plan, tensors: Sequence[NewTensor], reader: _Reader) -> list[NewTensor]:
    """Rows that write, fitted to what the base wrote if other text is read better.

    Where there are many rows for little text, they learn it by heart: how far to follow, other text tells. A
    tied row moves where it pays for what it writes and for how it is read, together.
    """
    examples = reader.examples(tensors, "head_fit")
    if examples is None:
        return list(tensors)
    before = reader.bits(tensors)
    reads = reader.reads(tensors) if any(new.tied for new in tensors) else None
    fitted = [
        _fitted(plan, new, examples, reads if new.tied else None) if _writes(new) else None for new in tensors
    ]

    def follow(share: float) -> list[NewTensor]:
        return follow_twins(
            [_change(new, _part_way(new, rows, share)) for new, rows in zip(tensors, fitted, strict=True)]
        )

    with progress("following the fit", 6) as advance:

        def measure(share: float) -> float:
            found = reader.bits(follow(share))
            advance()
            return found

        share, known = climb(measure, _SHARE_STEPS)
    did = f"moved rows by {share:g} of the way"
    return _keep_better("head_fit", did, tensors, follow(share), before, known[share])


def _part_way(new: NewTensor, rows: Tensor | None, share: float) -> Tensor | None:
    """Made rows of a tensor moved some of the way to others, or past them."""
    return None if rows is None else torch.lerp(new.data[_free_ids(new)].float(), rows, share)


def _fit_unigrams(plan: Plan, tensors: Sequence[NewTensor], reader: _Reader) -> list[NewTensor]:
    """Rows that write, moved until tokens are expected as often as they occur; kept if that helps.

    Only bytes and letters of systems that the base does not write in by itself: how often others occur in
    what it writes says little of other text in its own system.
    """
    examples = reader.examples(tensors, "unigrams")
    if examples is None:
        return list(tensors)
    before = reader.bits(tensors)
    settled = {main_script(reader.lessons), *NO_LETTERS}
    tokens = plan.match.target.tokens.items()
    foreign = {index for index, token in tokens if script_of(token) not in settled}
    moved = [_balanced(new, foreign, examples) if _writes(new) else new for new in tensors]
    moved = follow_twins(moved)
    did = f"moved {max(len(new.healed) for new in moved):,} rows"
    return _keep_better("unigrams", did, tensors, moved, before, reader.bits(moved))


def _keep_better(
    name: str,
    did: str,
    tensors: Sequence[NewTensor],
    moved: Sequence[NewTensor],
    before: float,
    after: float,
) -> list[NewTensor]:
    """Moved rows, or the tensors as they were if those read better."""
    logger.info("%s: %.4f bits per byte, %.4f before", name, after, before)
    helped = after < before
    note = (
        f"{name} {did if helped else 'left rows as they were'}: text sampled from the base that they were "
        f"not fitted to takes {before:.3f} bits per byte before, {after:.3f} after"
    )
    kept = moved if helped else tensors
    return [_add_note(new, note) if _writes(new) else new for new in kept]


def _balanced(new: NewTensor, tokens: set[int], examples: Examples) -> NewTensor:
    """A tensor with the rows of some tokens moved; rows the user spelt out stay as they are."""
    states, following = examples.states, examples.following
    with progress("fitting unigrams", _UNIGRAM_PASSES * len(states), "tokens") as advance:
        rows = new.data.to(states.device, torch.float32)
        shifts, along = fit_unigrams(states, following, rows, passes=_UNIGRAM_PASSES, advance=advance)
    free = tokens - {index for index, method in new.made_by.items() if method == "map"}
    ids = [i for i in (shifts.abs() > _LEAST_SHIFT).nonzero()[:, 0].tolist() if i in free]
    return train_rows(new, ids, new.data[ids].float() + (shifts[ids, None] * along).cpu())


def _add_note(new: NewTensor, note: str) -> NewTensor:
    return replace(new, note="; ".join(filter(None, (new.note, note))))


def _fitted(plan: Plan, new: NewTensor, examples: Examples, reads: Reads | None) -> Tensor | None:
    """Made rows after the fit; the prior has the shape of the base's own rows."""
    ids = _free_ids(new)
    base = map_tensor(new.tensor.ref)
    used = torch.tensor([i for i in plan.match.base.tokens if i < len(base)], dtype=torch.int64)
    root = spread_root(base, used) * plan.recipe.new_rows.head_fit
    tokens = [plan.match.target.tokens[index] for index in ids]
    return fit_rows(examples, new.data, ids, tokens, root, reads=reads, seed=plan.recipe.runtime.seed)


def climb(
    measure: Callable[[float], float], steps: Sequence[float] = _SCALE_STEPS
) -> tuple[float, dict[float, float]]:
    """Walk from one to the factor with the smallest measure, from a half to one and a half.

    Args:
        measure: Of a factor.
        steps: How far it goes at a time, the last to the hundredth.

    Returns:
        The best factor, and what was measured at each that was tried.
    """
    known: dict[float, float] = {}

    def look(factor: float) -> float:
        factor = round(factor, 2)
        if not _LEAST <= factor <= _MOST:
            return float("inf")
        if factor not in known:
            known[factor] = measure(factor)
        return known[factor]

    best = 1.0
    look(best)
    for step in steps:
        for direction in (-step, step):
            while look(best + direction) < look(best):
                best = round(best + direction, 2)
    return best, known


def _install(model: Any, tensors: Sequence[NewTensor]) -> None:  # noqa: ANN401 - a model of transformers
    """Let a loaded model read and write with new tensors."""
    reads, writes = model.get_input_embeddings(), model.get_output_embeddings()
    for new in tensors:
        rows = torch.nn.Parameter(new.data.to(writes.weight), requires_grad=False)
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
