"""From printed forms to bytes: how each family of tokenizers writes what a token stands for."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

from tokensurgeon.errors import InputError

_BYTE_PIECE = re.compile("<0x[0-9A-Fa-f]{2}>")


class Kind(StrEnum):
    """What a token stands for."""

    TEXT = "text"
    BYTE = "byte"
    """A byte-fallback piece such as ``<0x0A>``."""
    SPECIAL = "special"
    """A control token; its bytes are those of its name and never occur in text."""


class Family(StrEnum):
    """How a tokenizer prints bytes."""

    BYTE_LEVEL = "byte-level"
    SENTENCEPIECE = "sentencepiece"
    WORDPIECE = "wordpiece"
    PLAIN = "plain"


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: character to byte."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in kept}
    others = [byte for byte in range(256) if byte not in set(kept)]
    table.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return table


BYTE_OF_CHAR = _byte_alphabet()
CHAR_OF_BYTE = {byte: char for char, byte in BYTE_OF_CHAR.items()}


class Decoder:
    """Printed form of a learnt token -> (kind, bytes, word start).

    Args:
        spec: ``tokenizer.json``, parsed.
        path: Its file, for messages.

    Raises:
        InputError: The tokenizer is of a kind that cannot be compared by bytes.
    """

    def __init__(self, spec: dict[str, Any], path: Path) -> None:
        model = spec.get("model")
        if not isinstance(model, dict) or "vocab" not in model:
            raise InputError(f"{path}: no model.vocab", "a tokenizers file with a learnt vocabulary")
        if model.get("end_of_word_suffix"):
            raise InputError(
                f"{path}: end_of_word_suffix {model['end_of_word_suffix']!r}",
                "a vocabulary that marks where words start, not where they end",
            )
        nodes = list(_nodes([spec.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")]))
        self._byte_fallback = bool(model.get("byte_fallback")) or any(
            node["type"] == "ByteFallback" for node in nodes
        )
        self._prefix = model.get("continuing_subword_prefix") or ""
        self._isolates = any(node["type"] in ("BertPreTokenizer", "BertNormalizer") for node in nodes)
        self._model_type = model.get("type") or ("Unigram" if isinstance(model["vocab"], list) else "BPE")
        self.family = self._find_family(nodes)
        if self.family is not Family.WORDPIECE and self._prefix:
            raise InputError(
                f"{path}: continuing_subword_prefix {self._prefix!r} in a {self._model_type} model",
                "this prefix in WordPiece models only",
            )

    def _find_family(self, nodes: list[dict[str, Any]]) -> Family:
        if self._model_type == "WordPiece":
            return Family.WORDPIECE
        if any(node["type"] == "ByteLevel" for node in nodes):
            return Family.BYTE_LEVEL
        if any(node["type"] == "Metaspace" or _replaces_space(node) for node in nodes):
            return Family.SENTENCEPIECE
        return Family.PLAIN

    def __call__(self, content: str) -> tuple[Kind, bytes, bool]:
        """Read one printed form."""
        if self.family is Family.BYTE_LEVEL:
            if all(char in BYTE_OF_CHAR for char in content):
                data = bytes(BYTE_OF_CHAR[char] for char in content)
            else:
                data = content.encode()
            return Kind.TEXT, data, data.startswith(b" ")
        if self.family is Family.WORDPIECE:
            return self._wordpiece(content)
        if self._byte_fallback and _BYTE_PIECE.fullmatch(content):
            data = bytes.fromhex(content[3:5])
            return Kind.BYTE, data, data == b" "
        if self.family is Family.SENTENCEPIECE:
            content = content.replace("▁", " ")
        return Kind.TEXT, content.encode(), content.startswith(" ")

    def _wordpiece(self, content: str) -> tuple[Kind, bytes, bool]:
        if self._prefix and content.startswith(self._prefix) and len(content) > len(self._prefix):
            return Kind.TEXT, content[len(self._prefix) :].encode(), False
        if self._isolates and len(content) == 1 and stands_alone(content):
            # BERT cuts punctuation and CJK characters off whatever precedes them: no space is implied.
            return Kind.TEXT, content.encode(), False
        return Kind.TEXT, b" " + content.encode(), True


def stands_alone(char: str) -> bool:
    """Whether BERT's pre-tokenizer makes a word of its own from this character."""
    code = ord(char)
    ascii_symbol = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    cjk = 0x4E00 <= code <= 0x9FFF or 0x3400 <= code <= 0x4DBF or 0x20000 <= code <= 0x2FA1F
    cjk = cjk or 0xF900 <= code <= 0xFAFF
    return ascii_symbol or cjk or unicodedata.category(char).startswith("P")


def _replaces_space(node: dict[str, Any]) -> bool:
    if node["type"] != "Replace":
        return False
    pattern = node.get("pattern")
    pattern = pattern.get("String") if isinstance(pattern, dict) else pattern
    return {pattern, node.get("content")} == {" ", "▁"}


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - a JSON tree
    """Every ``{"type": ...}`` node in a part of ``tokenizer.json``."""
    if isinstance(tree, dict):
        if isinstance(tree.get("type"), str):
            yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)
