"""YAML, then dotted overrides, then one frozen recipe; every error at once, with its path."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from tokensurgeon.edits.params import AnyEdit
from tokensurgeon.errors import RecipeError
from tokensurgeon.methods.params import AnyMethod
from tokensurgeon.recipe.schema import PerEnd, Recipe

_METHOD_MODELS = {model.model_fields["name"].default: model for model in get_args(get_args(AnyMethod)[0])}
_EDIT_MODELS = {model.model_fields["operation"].default: model for model in get_args(get_args(AnyEdit)[0])}
_TAGGED: dict[str | None, type[BaseModel]] = {**_METHOD_MODELS, **_EDIT_MODELS}

_SHORTHANDS = {"method": "name", "fallback": "name", "base": "path", "target": "path", "donor": "path"}


# What is wrong with YAML beyond its grammar: numbers that no int() takes, dates that do not exist, nesting.
_NO_YAML = (yaml.YAMLError, ValueError, RecursionError)

# An alias may stand for billions of items: values are shown as far as a person reads them.
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlevel = 3


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that is given twice, where YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.MarkedYAMLError(
                    problem=f"key {key!r} is no plain value", problem_mark=key_node.start_mark
                )
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key!r} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file.

    Args:
        path: A YAML file.
        overrides: ``dotted.key=value`` strings; values are YAML.

    Returns:
        The recipe with the overrides applied.

    Raises:
        RecipeError: The file cannot be read, or any key or value is wrong; all of them are listed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{path}: {error}",
            "a recipe file",
            "`tokensurgeon recipes` lists the ones that come with the tool",
        ) from error
    return build_recipe(_parse(text, str(path)), overrides, str(path))


def build_recipe(document: dict[str, Any], overrides: Sequence[str] = (), where: str = "recipe") -> Recipe:
    """Validate a recipe document.

    Args:
        document: Keys and values as in a recipe file.
        overrides: ``dotted.key=value`` strings; values are YAML.
        where: Name for error messages.

    Returns:
        The recipe.

    Raises:
        RecipeError: Any key or value is wrong; all of them are listed.
    """
    for override in overrides:
        document = _apply(document, override)
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        details = [dict(detail) for detail in error.errors(include_url=False)]
        lines = list(dict.fromkeys(_explain(d, document) for d in details if not _is_echo(d, document)))
        raise RecipeError(
            "\n".join(
                [f"{where}: {len(lines)} error{'s' * (len(lines) > 1)}", *(f"  {line}" for line in lines)]
            )
        ) from error


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        document = yaml.load(text, Loader=_UniqueKeys)
    except _NO_YAML as error:
        raise RecipeError(f"{where}: {error}", "YAML") from error
    if not isinstance(document, dict):
        raise RecipeError(f"{where}: {type(document).__name__}", "a mapping with base, target and output")
    return document


def _apply(document: dict[str, Any], override: str) -> dict[str, Any]:
    path, equals, raw = override.partition("=")
    if not equals or not path:
        raise RecipeError(f"--set {override}", "dotted.key=value")
    try:
        value = yaml.load(raw, Loader=_UniqueKeys)
    except _NO_YAML as error:
        raise RecipeError(f"--set {override[:200]}: {error}", "a YAML value") from error
    keys = path.split(".")
    return {**document, keys[0]: _replace(document.get(keys[0]), keys, 1, value)}


def _shown(value: Any) -> str:  # noqa: ANN401 - any YAML value
    try:
        return _SHORT.repr(value)
    except ValueError:  # a number of more digits than Python writes
        return "a number of thousands of digits"


def _replace(level: Any, keys: list[str], depth: int, value: Any) -> Any:  # noqa: ANN401
    """What stands at ``keys[:depth]`` after the override."""
    if depth == len(keys):
        return value
    # A shorthand such as `method: omp` opens up when one of its fields is set.
    if isinstance(level, str):
        level = {_SHORTHANDS[keys[0]]: level} if keys[0] in _SHORTHANDS else {}
    if not isinstance(level, dict | None):
        where = ".".join(keys[:depth])
        raise RecipeError(
            f"--set {'.'.join(keys)}: {where} is {_shown(level)}", f"a value for all of {where}"
        )
    level = level or {}
    return {**level, keys[depth]: _replace(level.get(keys[depth]), keys, depth + 1, value)}


def _explain(detail: dict[str, Any], document: dict[str, Any]) -> str:
    said = detail["msg"].removeprefix("Value error, ")
    if not detail["loc"]:
        return str(said)
    path, tag = _without_tags(detail["loc"])
    where = ".".join(path)
    if path[0] == "rows":
        return f"rows: {_shown(_get(document, ['rows']))}; expected target, exact, a number, or multiple: N"
    if detail["type"] == "extra_forbidden":
        return f"{where}: unknown key{_nearest(path, _TAGGED.get(tag))}"
    if detail["type"] == "missing":
        return f"{where}: missing"
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found") and path[0] == "edits":
        return f"{where}.operation: {_expected_edit(detail)}"
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return f"{where}.name: {_shown(_get(document, path))}; {_expected_method(detail)}"
    return f"{where}: {_shown(detail['input'])}; {said[:1].lower()}{said[1:]}"


def _without_tags(loc: tuple[Any, ...]) -> tuple[list[str], str | None]:
    """The path as a person wrote it, and the method it is about: pydantic puts names of both in between."""
    path, tag, previous = [str(loc[0])], None, loc[0]
    if loc[0] == "edits":
        return [str(part) for place, part in enumerate(loc) if place != 2], str(loc[2]) if loc[2:] else None
    if loc[0] not in ("method", "fallback"):
        return [str(part) for part in loc], None
    for part in loc[1:]:
        if previous in ("method", "embedding", "lm_head") and part in ("one", "list", "ends"):
            previous = part
            continue
        names_method = tag is None and part in _METHOD_MODELS
        if names_method and (previous in ("one", "fallback") or isinstance(previous, int)):
            tag = str(part)
        else:
            path.append(str(part))
        previous = part
    return path, tag


def _is_echo(detail: dict[str, Any], document: dict[str, Any]) -> bool:
    """Donor and target stand in for each other: report what is wrong with one of them once."""
    missing = {"donor", "target"} - document.keys()
    return bool(detail["loc"]) and detail["loc"][0] in (missing if len(missing) == 1 else {"donor"} & missing)


def _get(document: Any, path: list[str]) -> Any:  # noqa: ANN401
    for key in path:
        if isinstance(document, list) and key.isdigit() and int(key) < len(document):
            document = document[int(key)]
        else:
            document = document.get(key) if isinstance(document, dict) else document
    return document.get("name", document) if isinstance(document, dict) else document


def _expected_method(detail: dict[str, Any]) -> str:
    """The nearest name, or where all of them are told: the list is too long for a line."""
    tag = str(detail.get("ctx", {}).get("tag", ""))
    near = difflib.get_close_matches(tag, _METHOD_MODELS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}`tokensurgeon methods` lists all {len(_METHOD_MODELS)}"


def _expected_edit(detail: dict[str, Any]) -> str:
    """The name that is no edit, and the nearest one that is."""
    tag = detail.get("ctx", {}).get("tag")
    near = difflib.get_close_matches(str(tag), _EDIT_MODELS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    found = "missing" if tag is None else repr(tag)
    return f"{found}; {hint}expected one of {', '.join(_EDIT_MODELS)}"


def _nearest(path: list[str], model: type[BaseModel] | None) -> str:
    """The nearest of the keys that may stand there, or all of them.

    Args:
        path: Of the unknown key.
        model: What it is a key of, where the path does not tell.

    Returns:
        Text to put behind the mistake.
    """
    models = [model] if model is not None else [PerEnd] if path[0] == "method" else [Recipe]
    for part in path[:-1] if model is None and path[0] != "method" else ():
        if not part.isdigit():
            models = [
                inner
                for outer in models
                if part in outer.model_fields
                for inner in _models_in(outer.model_fields[part].annotation)
            ]
    names = list(dict.fromkeys(name for outer in models for name in outer.model_fields))
    near = difflib.get_close_matches(path[-1], names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(names)}"


def _models_in(annotation: Any) -> list[type[BaseModel]]:  # noqa: ANN401 - any type
    """The models that a type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
