"""What an output was made from, kept in it, so that a later run can tell that nothing has changed since.

Every string of a recipe that names a file or a directory is an input; of a directory, what a run may read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from tokensurgeon import __version__
from tokensurgeon.checkpoint.sidefiles import RECORD
from tokensurgeon.checkpoint.source import readable_files, resolve_checkpoint
from tokensurgeon.checkpoint.stream import hash_all, hash_file
from tokensurgeon.console import progress
from tokensurgeon.recipe.schema import ModelRef, Recipe

# Whose weights are read; of any other directory tokenizers and configs are.
_WEIGHTS = {"base": "all", "teacher": "all", "encoder": "all", "donor": "vocabulary", "target": "vocabulary"}
_NO_INPUTS = {"output", "work_dir", "device"}
# People write into a model card, and a run does not read it.
_MAY_CHANGE = {RECORD, "README.md"}


class Record(BaseModel):
    """What an output was made from.

    Attributes:
        schema_version: Of this file.
        tool_version: Of tokensurgeon.
        tokenizer_only: Whether it is a tokenizer without a model.
        recipe: As asked for, before a method was chosen, without where it is written.
        inputs: SHA-256 of each file, by its path as the recipe leads to it.
        outputs: Bytes of each file of the output, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    tool_version: str
    tokenizer_only: bool
    recipe: dict[str, Any]
    inputs: dict[str, str]
    outputs: dict[str, int]


def write_record(
    recipe: Recipe, stage: Path, known: Mapping[str, str] | None = None, *, tokenizer_only: bool = False
) -> None:
    """Write down what a finished output was made from.

    Args:
        recipe: As asked for.
        stage: The output; nothing is added to it any more.
        known: Digests of inputs that are known already, by path.
        tokenizer_only: Whether it is a tokenizer without a model.
    """
    known = known or {}
    files = find_inputs(recipe)
    missing = {name: path for name, path in files.items() if name not in known}
    inputs = {name: known[name] for name in files if name in known} | _hash(missing)
    record = Record(
        tool_version=__version__,
        tokenizer_only=tokenizer_only,
        recipe=recipe.told(),
        inputs=dict(sorted(inputs.items())),
        outputs=_sizes(stage),
    )
    (stage / RECORD).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")


def is_unchanged(recipe: Recipe, *, tokenizer_only: bool = False) -> bool:
    """Whether a recipe's output is there, whole, and made by this version from the same inputs.

    Args:
        recipe: What is asked for.
        tokenizer_only: Whether it is a tokenizer without a model.

    Returns:
        False also where there is no output, or none that says what it was made from.

    Raises:
        InputError: An input of the recipe is gone.
    """
    output = Path(recipe.output).expanduser()
    try:
        record = Record.model_validate_json((output / RECORD).read_bytes())
    except (OSError, ValidationError):
        return False
    asked = (__version__, tokenizer_only, recipe.told(), _sizes(output))
    if asked != (record.tool_version, record.tokenizer_only, record.recipe, record.outputs):
        return False
    files = find_inputs(recipe)
    return files.keys() == record.inputs.keys() and _hash(files) == record.inputs


def model_name(path: str, revision: str | None) -> str:
    """What the paths of a model's files begin with.

    Args:
        path: As in the recipe.
        revision: As in the recipe.

    Returns:
        A name for both.
    """
    return path if revision is None else f"{path}@{revision}"


def _sizes(output: Path) -> dict[str, int]:
    return {
        path.relative_to(output).as_posix(): path.stat().st_size
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.name not in _MAY_CHANGE and not path.name.startswith(".")
    }


def _hash(files: Mapping[str, Path]) -> dict[str, str]:
    with progress("hashing inputs", sum(path.stat().st_size for path in files.values()), "bytes") as advance:
        return dict(zip(files, hash_all(hash_file, files.values(), advance), strict=True))


def find_inputs(recipe: Recipe) -> dict[str, Path]:
    """Every file that a run of a recipe may read.

    Args:
        recipe: Any recipe.

    Returns:
        Where each lies, by its path as the recipe leads to it.

    Raises:
        InputError: A model is not there.
    """
    found: dict[str, Path] = {}
    for key, place in _places(recipe):
        weights = _WEIGHTS.get(key, "none")
        if isinstance(place, ModelRef):
            name, path = (
                model_name(place.path, place.revision),
                resolve_checkpoint(place.path, place.revision, weights),
            )
        else:
            name, path = place, Path(place).expanduser()
        if path.is_dir():
            files = readable_files(path, weights)
            found |= {f"{name}/{file.relative_to(path).as_posix()}": file for file in files}
        elif path.is_file():
            found[name] = path
    return found


def _places(part: Any, key: str = "") -> Iterator[tuple[str, ModelRef | str]]:  # noqa: ANN401 - any value
    """Every string and model of a recipe that may name a place, each with the key that it stands behind."""
    if isinstance(part, ModelRef):
        yield key, part
    elif isinstance(part, str):
        if part:
            yield key, part
    elif isinstance(part, BaseModel):
        for name, field in type(part).model_fields.items():
            value = getattr(part, name)
            if name not in _NO_INPUTS and not (isinstance(value, str) and value in _words(field.annotation)):
                yield from _places(value, name)
    elif isinstance(part, tuple):
        for item in part:
            yield from _places(item, key)


def _words(annotation: Any) -> set[Any]:  # noqa: ANN401 - any type
    """The words that a type spells out: a value that is one of them names no place."""
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    return {word for part in get_args(annotation) for word in _words(part)}
