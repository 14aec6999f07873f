"""The edits of a recipe, one after the other: from a tokenizer's directory to another one."""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokensurgeon.checkpoint.sidefiles import ID_MAP
from tokensurgeon.edits.directory import write_tokenizer
from tokensurgeon.edits.document import Edited
from tokensurgeon.edits.extend import extend, read_token_list
from tokensurgeon.edits.params import (
    AnyEdit,
    ExtendParams,
    SupertokensParams,
    TrainParams,
    TrimParams,
)
from tokensurgeon.edits.supertokens import supertokens
from tokensurgeon.edits.train import train
from tokensurgeon.edits.trim import count_tokens, trim
from tokensurgeon.edits.union import union
from tokensurgeon.errors import InputError
from tokensurgeon.evaluation.texts import read_texts
from tokensurgeon.vocab.vocabulary import Vocabulary, load_vocabulary


@dataclass(frozen=True)
class Step:
    """One edit as it was done.

    Attributes:
        params: What was asked for.
        before: Tokens before it.
        after: Tokens after it.
        facts: What the edit tells of itself.
    """

    params: AnyEdit
    before: int
    after: int
    facts: dict[str, Any]


@dataclass(frozen=True)
class EditedTokenizer:
    """What the edits of a recipe made of a tokenizer.

    Attributes:
        source: Directory of the tokenizer before them.
        folder: Directory of the one after them; it lasts as long as this object does.
        before: The vocabulary before them.
        after: The vocabulary after them.
        origins: Id after them to id before, of the tokens both have, ascending.
        steps: The edits.
        files: What became of each tokenizer file.
    """

    source: Path
    folder: Path
    before: Vocabulary = field(repr=False)
    after: Vocabulary = field(repr=False)
    origins: dict[int, int] = field(repr=False)
    steps: list[Step]
    files: dict[str, str]

    @property
    def keeps_ids(self) -> bool:
        """Whether every token there was is still there, under its id."""
        return self.origins == {index: index for index in self.before.tokens}


def edit_tokenizer(source: Path, edits: Sequence[AnyEdit]) -> EditedTokenizer:
    """Edit a tokenizer.

    Args:
        source: Its directory.
        edits: At least one, in their order.

    Returns:
        The tokenizer that came out, in a directory of its own.

    Raises:
        InputError: A file that an edit names cannot be read, or a tokenizer cannot be edited like that.
        RecipeError: An edit asks for what cannot be.
    """
    work = Path(tempfile.mkdtemp(prefix="tokensurgeon-"))
    try:
        result = _edit_in(work, source, edits)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    weakref.finalize(result, shutil.rmtree, work, ignore_errors=True)
    return result


def _edit_in(work: Path, source: Path, edits: Sequence[AnyEdit]) -> EditedTokenizer:
    before = vocabulary = load_vocabulary(source)
    origins = {index: index for index in before.tokens}
    place, steps = source, []
    files: dict[str, str] = {}
    for number, params in enumerate(edits):
        edited = apply_edit(vocabulary, params)
        folder = work / str(number)
        told = write_tokenizer(place, edited, folder)
        files = {name: _worse(files.get(name, "as it was"), what) for name, what in told.items()} | {
            name: what for name, what in files.items() if name not in told
        }
        after = load_vocabulary(folder)
        steps.append(Step(params, len(vocabulary), len(after), edited.facts))
        origins = {new: origins[old] for new, old in edited.origins.items() if old in origins}
        place, vocabulary = folder, after
    return EditedTokenizer(source, place, before, vocabulary, origins, steps, files)


def dump_id_map(edited: EditedTokenizer) -> str:
    """The text of an ``id_map.json``: for each new id the old one, null for a token that is new.

    Args:
        edited: What edits made.

    Returns:
        One JSON document.
    """
    places = range(edited.after.bound)
    return json.dumps({"new_to_old": [edited.origins.get(index) for index in places]}) + "\n"


def read_id_map(directory: Path) -> dict[int, int]:
    """Read the ``id_map.json`` of an output.

    Args:
        directory: The output.

    Returns:
        New id to old id of the tokens that stayed.

    Raises:
        InputError: There is none, or it is no id map.
    """
    path = directory / ID_MAP
    expected = "the output of a recipe with edits"
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))["new_to_old"]
        return {new: int(old) for new, old in enumerate(ids) if old is not None}
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", expected) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no id map", expected) from error


def apply_edit(vocabulary: Vocabulary, params: AnyEdit) -> Edited:
    """Do one edit, with the files it names.

    Args:
        vocabulary: The tokenizer to edit.
        params: What is asked for.

    Returns:
        The tokenizer that came out.

    Raises:
        InputError: A file cannot be read, or the tokenizer cannot be edited like that.
        RecipeError: What is asked for cannot be.
    """
    if isinstance(params, TrimParams):
        return trim(vocabulary, params, count_tokens(vocabulary, _read(params.corpus)))
    if isinstance(params, ExtendParams):
        lines = [line for text in _read(params.tokens) for line in read_token_list(text)]
        other = load_vocabulary(Path(params.tokenizer).expanduser()) if params.tokenizer else None
        return extend(vocabulary, params, _read(params.corpus), lines, other)
    if isinstance(params, SupertokensParams):
        texts = _read(params.corpus)

        def shrink(larger: Vocabulary, size: int) -> Edited:
            rules = TrimParams(size=size, exact_size=True)
            return trim(larger, rules, count_tokens(larger, texts))

        return supertokens(vocabulary, params, texts, shrink)
    if isinstance(params, TrainParams):
        return train(vocabulary, params, _read(params.corpus))
    return union(vocabulary, params, load_vocabulary(Path(params.tokenizer).expanduser()))


def _read(paths: Sequence[str]) -> list[str]:
    return list(read_texts([Path(path).expanduser() for path in paths]).values())


def _worse(first: str, then: str) -> str:
    return first if then == "as it was" else then
