"""A tokenizer as a list of tokens, each in a canonical form that two tokenizers can be compared by.

The printed form of a token is an accident of its tokenizer: ``Ġé`` in one vocabulary is ``▁é`` in the
next. What a token *is* are the bytes it stands for, so every token is read from ``tokenizer.json``
(model, decoder, pre-tokenizer, added tokens) into (kind, bytes, word start). Class names are not used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tokensurgeon.errors import InputError
from tokensurgeon.vocab.canonical import Decoder, Family, Kind

_MARKER = re.compile(r"[<\[].*[>\]]$")

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


@dataclass(frozen=True, slots=True)
class Token:
    """One token in canonical form.

    Attributes:
        id: Row of the token.
        content: Printed form, as in ``tokenizer.json``.
        kind: Text, byte or special.
        data: The bytes it stands for; for a special token the UTF-8 of its name.
        word_start: Whether it opens a word, that is, brings its own leading space.
        added: Whether it is listed under ``added_tokens``.
    """

    id: int
    content: str
    kind: Kind
    data: bytes
    word_start: bool
    added: bool

    @property
    def text(self) -> str:
        """The bytes as text, undecodable ones as backslash escapes."""
        return self.data.decode("utf-8", errors="backslashreplace")


@dataclass(frozen=True)
class Vocabulary:
    """All tokens of one tokenizer, in id order.

    Attributes:
        path: Directory it was read from.
        family: How it prints bytes.
        tokens: Token by id, ascending; ids may have holes.
        roles: Role (``bos``, ``eos``, ...) to id, as the tokenizer's files say.
        chat_template: Jinja source, or None.
        tokenizer: The ``tokenizers`` object of ``tokenizer.json``.
        spec: ``tokenizer.json``, parsed.
    """

    path: Path
    family: Family
    tokens: dict[int, Token]
    roles: dict[str, int]
    chat_template: str | None
    tokenizer: Tokenizer = field(repr=False)
    spec: dict[str, Any] = field(repr=False)

    @property
    def bound(self) -> int:
        """One more than the highest id: the number of rows the tokenizer needs."""
        return next(reversed(self.tokens)) + 1

    def with_pre_tokenizer(self, node: dict[str, Any]) -> Vocabulary:
        """The same tokens with another pre-tokenizer.

        Args:
            node: As in ``tokenizer.json``.

        Returns:
            A vocabulary that is not on disk.
        """
        spec = {**self.spec, "pre_tokenizer": node}
        tokenizer = Tokenizer.from_str(json.dumps(spec))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return replace(self, tokenizer=tokenizer, spec=spec)

    def dump(self) -> str:
        """The text of a ``tokenizer.json``."""
        return json.dumps(self.spec, indent=2, ensure_ascii=False) + "\n"

    def spell(self, text: str) -> bytes:
        """The bytes that the tokens of a text stand for, put together."""
        return b"".join(self.tokens[index].data for index in self.encode(text))

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[Token]:
        return iter(self.tokens.values())

    @cached_property
    def by_content(self) -> dict[str, Token]:
        """Token by printed form; an added token hides a learnt one of the same form."""
        found: dict[str, Token] = {}
        for token in self:
            if token.content not in found or token.added:
                found[token.content] = token
        return found

    @cached_property
    def by_bytes(self) -> dict[bytes, tuple[Token, ...]]:
        """Ordinary tokens by the bytes they stand for, the preferred one first.

        Several tokens may spell the same bytes. Text goes before byte pieces, learnt tokens before
        added ones, then the lowest id.
        """
        groups: dict[bytes, list[Token]] = {}
        for token in self:
            if token.kind is not Kind.SPECIAL:
                groups.setdefault(token.data, []).append(token)
        return {
            data: tuple(sorted(group, key=lambda t: (t.kind is Kind.BYTE, t.added, t.id)))
            for data, group in groups.items()
        }

    @cached_property
    def _model(self) -> Any:  # noqa: ANN401 - tokenizers has no public model type
        return self.tokenizer.model

    @cached_property
    def unknown(self) -> int | None:
        """Id the model gives to text it cannot spell, whatever the config calls unk; None without one."""
        model = self.spec["model"]
        if model.get("unk_token") is not None:
            token = self.by_content.get(model["unk_token"])
            return token.id if token else None
        unk_id: int | None = model.get("unk_id")
        return unk_id

    def run_model(self, piece: str) -> list[int]:
        """Segment an already normalised piece with the model alone, no pre-tokenizer, no added tokens.

        Args:
            piece: Text as the model sees it.

        Returns:
            Ids; empty when the model cannot write the piece and has no unknown token.
        """
        try:
            return [token.id for token in self._model.tokenize(piece)]
        except Exception:  # noqa: BLE001 - tokenizers raises nothing narrower
            return []

    def encode(self, text: str, specials: bool = False) -> list[int]:
        """Encode text with the raw tokenizer.

        Args:
            text: Any text.
            specials: Whether the post-processor adds BOS and the like.

        Returns:
            Ids; empty when the tokenizer cannot write the text and has no unknown token.
        """
        try:
            ids: list[int] = self.tokenizer.encode(text, add_special_tokens=specials).ids
        except Exception:  # noqa: BLE001 - tokenizers raises nothing narrower
            return []
        return ids

    def segment(self, text: str) -> tuple[list[int], list[int]]:
        """Encode text, and tell where each token ends.

        Args:
            text: Any text.

        Returns:
            Ids as `encode` gives them, and for each the offset of the UTF-8 byte after it; tokens that share
            a character of an altered text end together.
        """
        try:
            encoding = self.tokenizer.encode(text, add_special_tokens=False)
        except Exception:  # noqa: BLE001 - tokenizers raises nothing narrower
            return [], []
        ids: list[int] = encoding.ids
        spelt = [self.tokens[index].data if index in self.tokens else b"" for index in ids]
        if b"".join(spelt) == text.encode():
            return ids, list(accumulate(map(len, spelt)))
        # A normaliser changed the text: the tokenizer still knows which characters a token stands for.
        sizes = list(accumulate((len(char.encode()) for char in text), initial=0))
        return ids, [sizes[end] for _, end in encoding.offsets]


def load_vocabulary(directory: Path) -> Vocabulary:
    """Read a tokenizer from a directory that holds ``tokenizer.json``.

    Args:
        directory: A checkpoint or a tokenizer on its own.

    Returns:
        Its tokens in canonical form.

    Raises:
        InputError: ``tokenizer.json`` is missing, unreadable, or of a kind that cannot be compared by bytes.
    """
    path = directory / "tokenizer.json"
    spec = _read_json(path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise InputError(
            f"{path}: {error}", "a tokenizer.json that the tokenizers library can read"
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    config = _read_json(directory / "tokenizer_config.json", optional=True)
    named_map = _read_json(directory / "special_tokens_map.json", optional=True)
    names = _special_names(config, named_map)
    decode = Decoder(spec, path)
    tokens = _read_tokens(spec, decode, set(names.values()) | _listed_specials(config, named_map))
    if not tokens:
        raise InputError(f"{path}: no tokens", "a model with a vocabulary")
    ids = {token.content: token.id for token in tokens.values()}
    roles = {role: ids[names[role]] for role in ROLES if names.get(role) in ids}
    return Vocabulary(
        path=directory,
        family=decode.family,
        tokens=tokens,
        roles=roles,
        chat_template=read_chat_template(directory, config),
        tokenizer=tokenizer,
        spec=spec,
    )


def token_bytes(spec: dict[str, Any], path: Path, specials: bool = True) -> dict[int, bytes]:
    """What the tokens of a tokenizer stand for, where there is no directory to load a vocabulary from.

    Args:
        spec: ``tokenizer.json``, parsed.
        path: Where it is from, for messages.
        specials: Whether special tokens are among them, with the bytes of their names.

    Returns:
        Bytes by id.

    Raises:
        InputError: The tokenizer is of a kind that cannot be compared by bytes.
    """
    tokens = _read_tokens(spec, Decoder(spec, path), set())
    return {
        index: token.data for index, token in tokens.items() if specials or token.kind is not Kind.SPECIAL
    }


def read_chat_template(directory: Path, config: dict[str, Any]) -> str | None:
    """Find the default chat template: its own file first, then the inline form.

    Args:
        directory: Where the tokenizer lies.
        config: Its ``tokenizer_config.json``.

    Returns:
        Jinja source, or None.

    Raises:
        InputError: The file cannot be read.
    """
    path = directory / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: {error}", "a template in UTF-8") from error
    template = _read_json(directory / "chat_template.json", optional=True).get("chat_template")
    template = config.get("chat_template", template)
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[-1].get("template") if named else None
    return template if isinstance(template, str) else None


def _read_json(path: Path, optional: bool = False) -> dict[str, Any]:
    if not path.is_file():
        if optional:
            return {}
        raise InputError(
            f"{path.parent}: no {path.name}",
            "a tokenizer in the format of the tokenizers library",
            f"convert it first: AutoTokenizer.from_pretrained({str(path.parent)!r}).save_pretrained(...)",
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {error}", "a JSON document") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "a file that can be read") from error
    if not isinstance(document, dict):
        raise InputError(f"{path}: {type(document).__name__}", "a JSON object")
    return document


def _special_names(config: dict[str, Any], named_map: dict[str, Any]) -> dict[str, str]:
    names = {}
    for role in ROLES:
        value = config.get(f"{role}_token", named_map.get(f"{role}_token"))
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            names[role] = value
    return names


def _listed_specials(config: dict[str, Any], named_map: dict[str, Any]) -> set[str]:
    listed: list[Any] = []
    for source in (config, named_map):
        for key in ("additional_special_tokens", "extra_special_tokens"):
            value = source.get(key)
            listed += value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    names = (entry.get("content") if isinstance(entry, dict) else entry for entry in listed)
    return {name for name in names if isinstance(name, str)}


def _read_tokens(spec: dict[str, Any], decode: Decoder, special_names: set[str]) -> dict[int, Token]:
    model = spec["model"]
    vocab = model["vocab"]
    # Unigram lists [piece, score] by id; the others map piece to id.
    learnt = {piece: index for index, (piece, _) in enumerate(vocab)} if isinstance(vocab, list) else vocab
    has_unk_id = isinstance(model.get("unk_id"), int) and isinstance(vocab, list)
    # A role may point at an ordinary piece ("pad": "!"), which stays ordinary.
    unknown = {model.get("unk_token")} | ({vocab[model["unk_id"]][0]} if has_unk_id else set())
    controls = {name for name in special_names if _MARKER.match(name)} | unknown
    tokens = {}
    for content, index in learnt.items():
        kind, data, word_start = (
            (Kind.SPECIAL, content.encode(), False) if content in controls else decode(content)
        )
        tokens[index] = Token(index, content, kind, data, word_start, added=False)
    for entry in spec.get("added_tokens") or []:
        content, index = entry["content"], entry["id"]
        if entry.get("special") or content in special_names | unknown:
            kind, data, word_start = Kind.SPECIAL, content.encode(), False
        elif decode.family is Family.SENTENCEPIECE and learnt.get(content) == index:
            # Gemma lists runs of "▁" as added tokens too; plain text still reaches them as spaces.
            kind, data, word_start = decode(content)
        else:
            kind, data, word_start = Kind.TEXT, content.encode(), content.startswith(" ")
        tokens[index] = Token(index, content, kind, data, word_start, added=True)
    return dict(sorted(tokens.items()))
