"""Measure methods on hidden anchors: the errors of their rows, and what the base loses with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from tokensurgeon.batches import Batches
from tokensurgeon.checkpoint.layout import TensorRole
from tokensurgeon.console import logger, progress
from tokensurgeon.errors import PolicyError
from tokensurgeon.evaluation.bits_per_byte import score_texts
from tokensurgeon.evaluation.loading import load_model
from tokensurgeon.hidden_anchors import (
    ENDS,
    Hidden,
    RowErrors,
    hide_anchors,
    make_hidden,
    put_back,
    row_errors,
)
from tokensurgeon.methods.params import AnyMethod, OmpParams
from tokensurgeon.methods.registry import find_method
from tokensurgeon.parallel import Processes
from tokensurgeon.pipeline import find_resources
from tokensurgeon.plan import make_plan
from tokensurgeon.recipe.schema import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from tokensurgeon.rows import NewTensor


@dataclass(frozen=True)
class Measured:
    """One method on the hidden tokens.

    Attributes:
        name: Of the method.
        parameters: Its parameters.
        errors: Of its rows, by tensor.
        bits: Bits per byte by text, by the ends at which the rows were used; empty without texts.
    """

    name: str
    parameters: dict[str, Any]
    errors: dict[str, RowErrors]
    bits: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """Methods compared on the same hidden tokens.

    Attributes:
        share: Of the anchors, hidden.
        seed: Which ones.
        hidden: How many.
        edges: Quartiles of the missing tokens' cosine to the nearest anchor; empty without a donor.
        base_bits: Bits per byte of the base with its true rows, by text.
        methods: In the order asked for.
    """

    share: float
    seed: int
    hidden: int
    edges: list[float]
    base_bits: dict[str, float]
    methods: list[Measured]


def calibrate(
    recipe: Recipe, names: Sequence[str], texts: dict[str, str], *, share: float, seed: int
) -> Calibration:
    """Measure the recipe's methods, its fallback, plain OMP where there is a donor, and others by name.

    Args:
        recipe: A transplant; nothing of it is written.
        names: More methods, with their defaults.
        texts: Text by name, to score with the made rows.
        share: Of the anchors, hidden.
        seed: Which ones.

    Returns:
        What was found.

    Raises:
        TokensurgeonError: The transplant is impossible, or there are no anchors to hide.
    """
    asked = [_with_defaults(name) for name in names]
    methods = list(dict.fromkeys((*recipe.all_methods, *asked)))
    if any("donor" in find_method(method.name).needs for method in methods):
        methods = list(dict.fromkeys((*methods, OmpParams())))
    plan = make_plan(recipe.model_copy(update={"method": tuple(methods)}))
    if not plan.anchors:
        raise PolicyError(
            "no anchors to hide", "shared tokens", "add a method that takes anchors, such as --method affknn"
        )
    resources = find_resources(plan)
    resources.check()
    hidden = hide_anchors(plan, share, seed)
    made: list[tuple[AnyMethod, list[NewTensor]]] = []
    for method in methods:
        logger.info("Making %d hidden rows with %s", len(hidden.ids), method.name)
        made.append((method, make_hidden(hidden, method, resources, Batches(Processes()))))
    base_bits: dict[str, float] = {}
    bits: list[dict[str, dict[str, float]]] = [{} for _ in made]
    if texts:
        device, trusted = recipe.runtime.device, recipe.trust_remote_code
        model, tokenizer = load_model(str(plan.inputs.base), device=device, trust_remote_code=trusted)
        base_bits = _score(model, tokenizer, texts)
        with progress("scoring", 3 * len(made)) as advance:
            for found, (_, tensors) in zip(bits, made, strict=True):
                for ends in ENDS:
                    with put_back(model, hidden, tensors, ends):
                        found[ends] = _score(model, tokenizer, texts)
                    advance()
    return Calibration(
        share=share,
        seed=seed,
        hidden=len(hidden.ids),
        edges=hidden.edges,
        base_bits=base_bits,
        methods=[
            Measured(method.name, method.model_dump(exclude={"name"}), _errors(hidden, tensors), found)
            for (method, tensors), found in zip(made, bits, strict=True)
        ],
    )


def _with_defaults(name: str) -> AnyMethod:
    method: AnyMethod = TypeAdapter(AnyMethod).validate_python({"name": find_method(name).name})
    return method


def _score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: dict[str, str]
) -> dict[str, float]:
    return {score.text: score.bits_per_byte for score in score_texts(model, tokenizer, texts).scores}


def _errors(hidden: Hidden, tensors: Sequence[NewTensor]) -> dict[str, RowErrors]:
    return {
        new.tensor.name: row_errors(hidden, new)
        for new in tensors
        if new.tensor.role is not TensorRole.BIAS and new.equal_to is None
    }
