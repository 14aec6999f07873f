"""``method: auto``: which method, measured on the pair at hand.

A share of the shared tokens is hidden, each candidate makes their rows again, and the base reads text that it
wrote itself with those rows put back. For a base that is not tied, one method is chosen for its embedding and
one for its lm_head. The scale of lm_head rows is then chosen on the transplant itself, whose rows compete
with one another as hidden ones do not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokensurgeon.adjust import scale_heads
from tokensurgeon.batches import Batches
from tokensurgeon.checkpoint.layout import TensorRole
from tokensurgeon.console import logger, progress
from tokensurgeon.hidden_anchors import Ends, Hidden, hide_anchors, make_hidden, put_back, row_errors
from tokensurgeon.lessons import JUDGES, judging_texts
from tokensurgeon.methods.params import AnyMethod
from tokensurgeon.parallel import Processes
from tokensurgeon.plan import Plan
from tokensurgeon.reading import group_by_limit, score_written
from tokensurgeon.recipe.schema import Auto, PerEnd, Recipe
from tokensurgeon.resources import FileResources
from tokensurgeon.rows import NewTensor

# Standard deviation of the error of a made row, in units of the base's rows. scripts/bench_hidden.py measures
# what it saves; row errors of 0.3 to 0.8 are usual, and half of that root is on the safe side.
HEAD_FIT = 0.35
# Some methods shrink their rows; all are compared at the better of these scales.
_SCALES = (1.0, 1.1)
# So many times the bits of the best are as good. What is measured comes before the fit of rows, which evens
# out as much: for Gemma 3 with rows from SmolLM2 the first candidate was behind by .0015 before it, and ahead
# after it on every text.
_TOSS_UP = 1.002
# Methods that ``auto`` is never worse than.
_PLAIN = {"omp", "pieces"}
# What follows the choice: readings of the judging text for head_scale, for how far rows follow their fit, for
# last pieces and unigrams; of every lesson, to fit rows and for unigrams. Written, lessons are as many times
# as long as they are more texts.
_READINGS_TO_JUDGE, _READINGS_TO_FIT = 18, 8


@dataclass(frozen=True)
class Tried:
    """One candidate on the hidden tokens.

    Attributes:
        method: Its parameters.
        ends: Where its rows were used.
        row_error: Weighted squared distance to the true rows, 1 for the mean row.
        bits: Bits per byte of what the base wrote, by the scale of its lm_head rows.
        chosen: Whether nothing was better by more than a toss-up.
    """

    method: AnyMethod
    ends: Ends
    row_error: float
    bits: dict[float, float]
    chosen: bool = False

    @property
    def best(self) -> float:
        """The scale with the fewest bits."""
        return min(self.bits, key=lambda scale: (self.bits[scale], scale))

    @property
    def fewest(self) -> float:
        """The bits at that scale."""
        return min(self.bits.values())


@dataclass(frozen=True)
class Choice:
    """What ``auto`` tried and chose.

    Attributes:
        hidden: Tokens that were hidden.
        share: Of the anchors.
        seed: Of the hidden tokens and the text.
        bytes: Text the base wrote.
        base_bits: Bits per byte of it with the true rows.
        tried: Candidates, by where their rows were used.
        untried: Methods that there was no time for.
        lessons: Texts that there is time to fit rows to; None if there is no limit.
    """

    hidden: int
    share: float
    seed: int
    bytes: int
    base_bits: float
    tried: list[Tried]
    untried: list[AnyMethod]
    lessons: int | None

    def chosen(self, ends: Ends) -> Tried | None:
        """The candidate chosen for some ends; None if they were not asked about."""
        return next((tried for tried in self.tried if tried.chosen and tried.ends == ends), None)


def settle(recipe: Recipe, choice: Choice | None) -> Recipe:
    """The recipe with what was chosen in place of ``auto``.

    Args:
        recipe: One whose method is auto.
        choice: What was chosen; None for the first candidate as it is.

    Returns:
        One that chooses no method. Unless nothing may be measured, or no time is left, head_scale and
        last_piece are still to be chosen and lm_head rows are fitted and moved, if the recipe does not say
        otherwise.
    """
    if choice is None:
        return recipe.model_copy(update={"method": recipe.methods("embedding")[0]})
    both, reads, writes = (choice.chosen(ends) for ends in ("both", "embedding", "lm_head"))
    changes: dict[str, Any] = {}
    if both is not None:
        changes["method"] = both.method
    if reads is not None and writes is not None:
        same = reads.method == writes.method
        changes["method"] = reads.method if same else PerEnd(embedding=reads.method, lm_head=writes.method)
    given = recipe.new_rows.model_fields_set
    ours: dict[str, Any] = {
        "head_scale": "auto",
        "head_fit": HEAD_FIT,
        "last_piece": "auto",
        "unigrams": True,
    }
    if choice.lessons == 0:
        ours = {"head_scale": next(found.best for found in (both, writes) if found is not None)}
    missing = {key: value for key, value in ours.items() if key not in given}
    if choice.lessons:
        missing["head_texts"] = min(choice.lessons, recipe.new_rows.head_texts)
    return recipe.model_copy(update=changes | {"new_rows": recipe.new_rows.model_copy(update=missing)})


def choose_method(plan: Plan, resources: FileResources) -> Choice:
    """Measure the candidates of ``method: auto`` on hidden anchors; those there is time for, one at least.

    Args:
        plan: A transplant with anchors.
        resources: Where the base's body is.

    Returns:
        What was tried, with the best marked.

    Raises:
        InputError: Too few anchors, or a base that writes no text.
    """
    rules = plan.recipe.method
    assert isinstance(rules, Auto)
    seed = plan.recipe.runtime.seed
    end = time.monotonic() + 60 * (rules.minutes or math.inf)
    hidden = hide_anchors(plan, rules.share, seed)
    started = time.monotonic()
    texts = judging_texts(plan, resources)
    writing = time.monotonic() - started
    model, tokenizer = resources.load_fast_body(), resources.load_base_tokenizer()
    written = group_by_limit(tokenizer, texts, plan.match.base.tokens)

    def read() -> float:
        return score_written(model, tokenizer, written)

    started = time.monotonic()
    base_bits = read()
    reading = time.monotonic() - started
    tried: list[Tried] = []
    untried: list[AnyMethod] = []
    with progress("choosing a method", len(rules.tried), "methods") as advance:
        for method in rules.tried:
            if tried and time.monotonic() >= end:
                untried.append(method)
                continue
            made = make_hidden(hidden, method, resources, Batches(Processes()))
            asked: tuple[Ends, ...] = ("both",) if made[0].tied else ("embedding", "lm_head")
            for ends in asked:
                bits = {}
                for scale in (1.0,) if ends == "embedding" else _SCALES:
                    with put_back(model, hidden, scale_heads(hidden.plan, made, scale), ends):
                        bits[scale] = read()
                tried.append(Tried(method, ends, _row_error(hidden, made, ends), bits))
                logger.info("%s as %s: %.4f bits per byte", method.name, ends, min(bits.values()))
            advance()
    return Choice(
        hidden=len(hidden.ids),
        share=rules.share,
        seed=seed,
        bytes=sum(len(text.encode()) for text in texts.values()),
        base_bits=base_bits,
        tried=mark_chosen(tried),
        untried=untried,
        lessons=None if rules.minutes is None else _lessons(end - time.monotonic(), writing, reading),
    )


def _lessons(left: float, writing: float, reading: float) -> int:
    """Texts that rows can be fitted to in some seconds, by what writing and reading judging texts took."""
    count = JUDGES * (left - _READINGS_TO_JUDGE * reading) / (writing + _READINGS_TO_FIT * reading)
    # Fewer teach less than they mislead.
    return int(count) if count >= JUDGES else 0


def _row_error(hidden: Hidden, made: Sequence[NewTensor], ends: Ends) -> float:
    role = TensorRole.HEAD if ends == "lm_head" else TensorRole.EMBEDDING
    return row_errors(hidden, next(new for new in made if new.tensor.role is role)).weighted


def mark_chosen(tried: Sequence[Tried]) -> list[Tried]:
    """Mark the candidate to take for each end: the first that is as good as the best.

    The text is short, and the order of the candidates says what is good on other pairs: a toss-up is no
    reason to leave it. But none is taken that came out worse than plain OMP or pieces did.

    Args:
        tried: Candidates in their order, for each end.

    Returns:
        The same, one for each end with ``chosen`` set.
    """
    chosen = set()
    for ends in {one.ends for one in tried}:
        asked = [one for one in tried if one.ends == ends]
        plain = [one.fewest for one in asked if one.method.name in _PLAIN]
        bar = min([_TOSS_UP * min(one.fewest for one in asked), *plain])
        chosen.add(id(next(one for one in asked if one.fewest <= bar)))
    return [replace(one, chosen=id(one) in chosen) for one in tried]
