"""New tokens behind those a tokenizer has: what exists keeps its id, and new ids start at the bound."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from tokenizers import Tokenizer

from tokensurgeon.edits.document import learnt_ids, model_type, open_tokenizer
from tokensurgeon.errors import InputError
from tokensurgeon.vocab.canonical import CHAR_OF_BYTE, Decoder, Family, Kind
from tokensurgeon.vocab.vocabulary import Token, Vocabulary


class Growth:
    """Tokens that are being added to a vocabulary.

    Args:
        vocabulary: What there is.

    Attributes:
        content: Printed form by id, of old and new tokens.
        taken: All printed forms.
        merges: New merges, as printed.
        scores: Scores of new Unigram pieces.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._first = vocabulary.bound
        self.content = {token.id: token.content for token in vocabulary}
        self.taken = set(self.content.values()) | learnt_ids(vocabulary.spec).keys()
        self.merges: list[tuple[str, str]] = []
        self.scores: dict[int, float] = {}
        self._added: list[dict[str, Any]] = []

    @property
    def new(self) -> range:
        """Ids of the new tokens."""
        return range(self._first, self._first + len(self.content) - len(self._vocabulary))

    def add(self, content: str) -> int:
        """Give a printed form the next id.

        Args:
            content: Not there yet.

        Returns:
            Its id.
        """
        index = self.new.stop
        self.content[index] = content
        self.taken.add(content)
        return index

    def add_outside(self, content: str, special: bool) -> int:
        """Add a token that text is searched for before the model sees it.

        Args:
            content: As it stands in text.
            special: Whether decoding may skip it.

        Returns:
            Its id.
        """
        index = self.add(content)
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        self._added.append({"id": index, "content": content, **flags, "special": special})
        return index

    def finish(self) -> Vocabulary:
        """Number the tokens and read them back.

        Returns:
            The old tokens and the new ones, a vocabulary that is not on disk.

        Raises:
            InputError: The ids cannot be kept.
        """
        spec = copy.copy(self._vocabulary.spec)
        spec["model"] = model = dict(spec["model"])
        outside = {entry["id"] for entry in self._added}
        inside = {self.content[index]: index for index in self.new if index not in outside}
        spec["added_tokens"] = sorted(
            [*(spec.get("added_tokens") or []), *self._added], key=lambda e: e["id"]
        )
        if isinstance(model["vocab"], list):
            model["vocab"] = [*model["vocab"], *self._listed(len(model["vocab"]))]
        else:
            model["vocab"] = {**model["vocab"], **inside}
        if self.merges:
            old = model.get("merges") or []
            legacy = bool(old) and isinstance(old[0], str)
            model["merges"] = [*old, *(" ".join(pair) if legacy else list(pair) for pair in self.merges)]
        tokenizer = _seat(spec)
        tokens = dict(self._vocabulary.tokens)
        decode = Decoder(spec, self._vocabulary.path)
        special = {entry["id"]: entry["special"] for entry in self._added}
        for index in self.new:
            content = self.content[index]
            if index in special:
                kind = Kind.SPECIAL if special[index] else Kind.TEXT
                data, word_start = content.encode(), content.startswith(" ")
            else:
                kind, data, word_start = decode(content)
            tokens[index] = Token(index, content, kind, data, word_start, added=index in special)
        return replace(self._vocabulary, tokens=tokens, tokenizer=tokenizer, spec=spec)

    def _listed(self, start: int) -> Iterable[list[Any]]:
        """Unigram pieces are numbered by their place, so those of added tokens in between are listed too."""
        lowest = min(score for _, score in self._vocabulary.spec["model"]["vocab"])
        stop = max(self.scores, default=start - 1) + 1
        for index in range(start, stop):
            if index not in self.content:
                raise InputError(
                    f"{self._vocabulary.path}: no token has id {index}",
                    "ids without holes in a Unigram model, whose pieces are numbered by their place",
                )
            yield [self.content[index], self.scores.get(index, lowest)]


def _seat(spec: dict[str, Any]) -> Tokenizer:
    """List added tokens in the model too where their ids are else given anew when the file is read."""
    entries = spec["added_tokens"]
    tokenizer = open_tokenizer(spec)
    if not _keeps_ids(tokenizer, entries) and isinstance(spec["model"]["vocab"], dict):
        vocab = {**spec["model"]["vocab"], **{entry["content"]: entry["id"] for entry in entries}}
        spec["model"]["vocab"] = dict(sorted(vocab.items(), key=lambda item: item[1]))
        tokenizer = open_tokenizer(spec)
    if not _keeps_ids(tokenizer, entries):
        raise InputError(
            "the added tokens would get other ids when the tokenizer is read",
            "added tokens whose ids follow on the model's",
        )
    return tokenizer


def _keeps_ids(tokenizer: Tokenizer, entries: Iterable[Mapping[str, Any]]) -> bool:
    return all(tokenizer.token_to_id(entry["content"]) == entry["id"] for entry in entries)


def print_form(vocabulary: Vocabulary, data: bytes) -> str | None:
    """How a tokenizer prints a token that stands for these bytes.

    Args:
        vocabulary: The tokenizer.
        data: The bytes; a leading space opens a word.

    Returns:
        Printed form, or None where the tokenizer has none: half a character, or spaces within.
    """
    if vocabulary.family is Family.BYTE_LEVEL:
        return "".join(CHAR_OF_BYTE[byte] for byte in data)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    if vocabulary.family is Family.SENTENCEPIECE:
        return text.replace(" ", "▁")
    if vocabulary.family is Family.WORDPIECE:
        prefix = vocabulary.spec["model"].get("continuing_subword_prefix") or ""
        bare = text.removeprefix(" ")
        if not bare or any(char.isspace() for char in bare):
            return None
        whole = data.startswith(b" ") or Decoder(vocabulary.spec, vocabulary.path)(bare)[1] == data
        return bare if whole else prefix + bare
    return text


def check_model(vocabulary: Vocabulary, known: tuple[str, ...], edit: str) -> str:
    """Refuse a kind of model that an edit cannot change.

    Args:
        vocabulary: The tokenizer.
        known: Types it can change.
        edit: Name of the edit.

    Returns:
        The type.

    Raises:
        InputError: Of another type.
    """
    kind = model_type(vocabulary.spec)
    if kind not in known:
        raise InputError(f"{vocabulary.path}: {edit} of a {kind} model", f"a model of {' or '.join(known)}")
    return kind
