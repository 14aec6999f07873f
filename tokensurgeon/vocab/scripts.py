"""Which writing system a token or a piece of text belongs to."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable

from tokensurgeon.vocab.canonical import Kind
from tokensurgeon.vocab.vocabulary import Token

_FOLDED = {
    "HIRAGANA": "Kana",
    "KATAKANA": "Kana",
    "IDEOGRAPHIC": "CJK",
    "FULLWIDTH": "Latin",
    "HALFWIDTH": "Kana",
}


def script_of(token: Token) -> str:
    """Name a token's writing system by its first letter.

    Args:
        token: Any token.

    Returns:
        Such as ``Latin`` or ``CJK``; ``Digits``, ``Whitespace``, ``Symbols``, ``Bytes`` (no valid UTF-8) or
        ``Special`` where there is no letter.
    """
    if token.kind is Kind.SPECIAL:
        return "Special"
    try:
        return script_of_text(token.data.decode())
    except UnicodeDecodeError:
        return "Bytes"


def script_of_text(text: str) -> str:
    """Name the writing system of a piece of text by its first letter.

    Args:
        text: Any text.

    Returns:
        As ``script_of``: a script; ``Digits``, ``Whitespace`` or ``Symbols`` where there is no letter.
    """
    for char in text:
        if char.isalpha():
            name = unicodedata.name(char, "Other").split()[0].split("-")[0]
            return _FOLDED.get(name, "CJK" if name == "CJK" else name.capitalize())
    if any(char.isdigit() for char in text):
        return "Digits"
    return "Whitespace" if text.isspace() else "Symbols"


def count_scripts(tokens: Iterable[Token]) -> dict[str, int]:
    """Count tokens by writing system, the largest first.

    Args:
        tokens: Any tokens.

    Returns:
        Number of tokens by writing system.
    """
    counts = Counter(script_of(token) for token in tokens)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
