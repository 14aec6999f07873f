"""The directories of a run: found, fetched, refused where policy says so, and their headers read."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokensurgeon.checkpoint.configs import read_config, refuse_remote_code
from tokensurgeon.checkpoint.index import CheckpointIndex, find_weights, read_index
from tokensurgeon.checkpoint.layout import Layout, find_layout, is_vocab_name
from tokensurgeon.checkpoint.source import resolve_checkpoint
from tokensurgeon.checkpoint.untie import untie
from tokensurgeon.errors import PolicyError, RecipeError
from tokensurgeon.evaluation.texts import read_texts
from tokensurgeon.methods.registry import EXTRAS, NEEDS, MethodInfo, find_method
from tokensurgeon.recipe.schema import Recipe

_EXAMPLES = "`tokensurgeon recipes` lists recipes with all of them"


@dataclass(frozen=True)
class Inputs:
    """The three directories of a run and what their headers say.

    Attributes:
        base: The model that is kept.
        target: The tokenizer the output will speak.
        donor: The model trained with it, or None when the method needs none.
        base_config: ``config.json`` of the base.
        base_index: Its tensors.
        layout: Its vocabulary tensors.
        donor_layout: Vocabulary tensors of the donor, or None.
        untied: Whether the base is tied and the output shall not be; its ends then count as stored apart.
        teacher: The base of an earlier transplant that is to be healed, or None.
        added: Names of the tensors in ``base_index`` and ``layout`` that it does not store for that reason.
        served: The model that the output shall be a draft of, if any.
    """

    base: Path
    target: Path
    donor: Path | None
    base_config: dict[str, Any] = field(repr=False)
    base_index: CheckpointIndex = field(repr=False)
    layout: Layout
    donor_layout: Layout | None
    untied: bool = False
    added: tuple[str, ...] = ()
    served: Path | None = None
    teacher: Path | None = None


def read_inputs(recipe: Recipe) -> Inputs:
    """Find the inputs, fetch what is missing, and read their headers.

    Args:
        recipe: Names them.

    Returns:
        Directories, headers and layouts.

    Raises:
        InputError: One of them cannot be used.
        PolicyError: One of them brings code or pickles, or the output overlaps with one of them.
    """
    read_texts([Path(text) for text in recipe.report.texts], recipe.report.max_bytes)
    methods = [find_method(params.name) for params in recipe.all_methods]
    needs_donor = any("donor" in method.needs for method in methods)
    for method in methods:
        refuse_unready(method, recipe)
    base = resolve_checkpoint(recipe.base.path, recipe.base.revision, "all")
    target = resolve_checkpoint(
        recipe.target.path,
        recipe.target.revision,
        "vocabulary" if needs_donor and recipe.donor == recipe.target else "none",
    )
    donor = None
    if needs_donor:
        donor = resolve_checkpoint(recipe.donor.path, recipe.donor.revision, "vocabulary")
    served = None
    if recipe.match_vocab_of is not None:
        served = resolve_checkpoint(recipe.match_vocab_of.path, recipe.match_vocab_of.revision, "none")
    asked = recipe.heal.teacher if recipe.heal else None
    teacher = resolve_checkpoint(asked.path, asked.revision, "all") if asked else None
    directories = {path for path in (base, target, donor, served, teacher) if path is not None}
    output = Path(recipe.output)
    _refuse_overlapping_paths("output", output, {"input": directories})
    if recipe.runtime.work_dir is not None:
        work_dir = Path(recipe.runtime.work_dir)
        _refuse_overlapping_paths("work folder", work_dir, {"input": directories, "output": {output}})
    for directory in directories:
        if not recipe.trust_remote_code:
            refuse_remote_code(directory)
    base_config = read_config(base)
    base_index = read_index(base)
    overrides = {key: name for key, name in recipe.layout.model_dump().items() if name is not None}
    layout = find_layout(base_index, base_config, overrides)
    runs_base = any("forward passes" in method.needs for method in methods)
    if runs_base or (recipe.runs_base and not recipe.may_choose_blindly):
        from tokensurgeon.evaluation.loading import check_architecture

        check_architecture(str(base), base_config.get("architectures"), base_config.get("auto_map"))
    donor_layout = None
    if donor is not None:
        names, index = find_weights(donor)
        if index is not None:
            names = sorted({file for name, file in index["weight_map"].items() if is_vocab_name(name)})
        donor_layout = find_layout(read_index(donor, names), read_config(donor))
    inputs = Inputs(
        base, target, donor, base_config, base_index, layout, donor_layout, served=served, teacher=teacher
    )
    if not recipe.untie:
        return inputs
    apart = untie(base_index, layout, base_config, recipe.trust_remote_code)
    return replace(
        inputs, base_index=apart.index, layout=apart.layout, untied=apart.was_tied, added=apart.added
    )


def refuse_unready(method: MethodInfo, recipe: Recipe) -> None:
    """Refuse a method whose package or resources are missing, before anything is read.

    Args:
        method: One of the recipe's methods.
        recipe: The recipe.

    Raises:
        RecipeError: Something is missing.
    """
    if method.extra and find_spec(EXTRAS[method.extra]) is None:
        raise RecipeError(
            f"method {method.name} needs {EXTRAS[method.extra]}, which is not installed",
            next_step=f"pip install 'tokensurgeon[{method.extra}]'",
        )
    given = recipe.resources.model_dump()
    for need in method.needs:
        keys = [NEEDS[option] for option in need.split(" or ")]
        asked = [key.removeprefix("resources.") for key in keys if key.startswith("resources.")]
        if asked and not any(given[key] for key in asked):
            raise RecipeError(
                f"method {method.name} without {need}", f"{' or '.join(keys)} in the recipe", _EXAMPLES
            )


def _refuse_overlapping_paths(name: str, path: Path, others: dict[str, set[Path]]) -> None:
    place = path.expanduser().resolve()
    for other, directories in others.items():
        for directory in sorted(directories):
            origin = directory.expanduser().resolve()
            if place == origin or origin in place.parents or place in origin.parents:
                relation = "is" if place == origin else "is inside" if origin in place.parents else "contains"
                raise PolicyError(
                    f"{name} {path} {relation} the {other} {directory}", f"a {name} apart from every {other}"
                )
