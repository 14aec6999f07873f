"""How a tokenizer cuts white space: most of what a swap costs on code sits there."""

from __future__ import annotations

from dataclasses import dataclass

from tokensurgeon.vocab.canonical import Kind
from tokensurgeon.vocab.vocabulary import Vocabulary

_MOST = 64


@dataclass(frozen=True)
class WhitespaceScheme:
    """What becomes of white space between letters.

    Attributes:
        spaces: Longest run of spaces in one token, at most 64; 0 where spaces are dropped.
        newlines: The same of newlines.
        tabs: The same of tabs.
        joins_indentation: Whether a newline and the spaces after it can be one token.
        opens_words: Whether the space before a word is part of the word's token.
    """

    spaces: int
    newlines: int
    tabs: int
    joins_indentation: bool
    opens_words: bool

    def __str__(self) -> str:
        if not self.spaces:
            return "dropped"
        return ", ".join(
            [
                f"up to {self.spaces} spaces, {self.newlines} newlines, {self.tabs} tabs in a token",
                "newline and indentation " + ("in one" if self.joins_indentation else "apart"),
                "space " + ("in the word's" if self.opens_words else "alone"),
            ]
        )


def whitespace_scheme(vocabulary: Vocabulary) -> WhitespaceScheme:
    """Find out how a tokenizer cuts runs of spaces, newlines and tabs, and the space before a word.

    Args:
        vocabulary: Any vocabulary.

    Returns:
        What encoding a few texts shows.
    """
    indented = (_cut(vocabulary, f"a\n{' ' * size}b") for size in range(1, 17))
    return WhitespaceScheme(
        spaces=_longest(vocabulary, " "),
        newlines=_longest(vocabulary, "\n"),
        tabs=_longest(vocabulary, "\t"),
        joins_indentation=any(b"\n " in piece for pieces in indented for piece in pieces),
        opens_words=any(piece.startswith(b" t") for piece in _cut(vocabulary, "at the the the")),
    )


def _longest(vocabulary: Vocabulary, char: str) -> int:
    runs = (_cut(vocabulary, f"a{char * size}b") for size in range(1, _MOST + 1))
    sizes = (len(piece) for pieces in runs for piece in pieces if piece and not piece.strip(char.encode()))
    return max(sizes, default=0)


def _cut(vocabulary: Vocabulary, text: str) -> list[bytes]:
    tokens = (vocabulary.tokens.get(index) for index in vocabulary.encode(text))
    return [token.data for token in tokens if token is not None and token.kind is not Kind.SPECIAL]
