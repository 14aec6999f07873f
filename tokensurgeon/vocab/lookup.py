"""A token by what a person calls it."""

from __future__ import annotations

import difflib

from tokensurgeon.errors import InputError
from tokensurgeon.vocab.vocabulary import Token, Vocabulary

_LIKE_LENGTH = 2


def find_token(vocabulary: Vocabulary, text: str) -> Token:
    """Find a token by the text it stands for, or by its printed form.

    Args:
        vocabulary: Where to look.
        text: Such as ``" the"`` or ``Ġthe``.

    Returns:
        The preferred token of that text.

    Raises:
        InputError: There is none.
    """
    same = vocabulary.by_bytes.get(text.encode())
    if same:
        return same[0]
    if text in vocabulary.by_content:
        return vocabulary.by_content[text]
    pieces = [
        vocabulary.tokens[index].text for index in vocabulary.encode(text) if index in vocabulary.tokens
    ]
    cut = f"; it is cut into {' | '.join(map(repr, pieces))}" if pieces else ""
    near = _find_near(vocabulary, text)
    raise InputError(
        f"{vocabulary.path}: no token {text!r}{cut}",
        "the text of one token, with its leading space if it has one, or --id N",
        f"did you mean {' or '.join(map(repr, near))}?" if near else "",
    )


def token_at(vocabulary: Vocabulary, index: int) -> Token:
    """Find a token by its id.

    Args:
        vocabulary: Where to look.
        index: Its id.

    Returns:
        The token.

    Raises:
        InputError: There is none.
    """
    if index not in vocabulary.tokens:
        raise InputError(f"{vocabulary.path}: no token with id {index}", f"an id below {vocabulary.bound}")
    return vocabulary.tokens[index]


def _find_near(vocabulary: Vocabulary, text: str) -> list[str]:
    """Texts of tokens that look like a text; first those that differ by blanks or case only."""
    plain = text.strip().casefold()
    texts = list(dict.fromkeys(token.text for token in vocabulary))
    twins = [other for other in texts if plain and other.strip().casefold() == plain]
    if twins:
        return twins[:3]
    alike = [other for other in texts if abs(len(other) - len(text)) <= _LIKE_LENGTH]
    return difflib.get_close_matches(text, alike, n=2, cutoff=0.75)
