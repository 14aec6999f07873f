"""How a tokenizer cuts a text, in figures: fertility, bytes per token, Rényi efficiency.

A *word* is a run of characters between white space; in scripts that are written without spaces (CJK, Kana,
Thai and the like) every character is one, so the words of a text are the same for every tokenizer. A token
belongs to the word that its first byte of more than white space lies in, so the tokens of all writing systems
together are those of the text. Fertility as in Rust et al. 2021 (arXiv:2012.15613), Rényi efficiency as in
Zouhar et al. 2023 (arXiv:2306.16842).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokensurgeon.vocab.scripts import script_of_text

ALPHA = 2.5

WHITESPACE = "Whitespace"
_UNSPACED = {"CJK", "Kana", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan", "Javanese", "Balinese"}


@dataclass(frozen=True)
class Share:
    """The part of a text that is in one writing system.

    Attributes:
        script: As ``script_of_text`` names it; ``Whitespace`` for tokens of nothing else.
        words: How many; 0 for white space.
        tokens: That belong to them.
        bytes: Of those tokens.
    """

    script: str
    words: int
    tokens: int
    bytes: int

    @property
    def fertility(self) -> float | None:
        """Tokens a word; None where there is no word."""
        return self.tokens / self.words if self.words else None

    @property
    def bytes_per_token(self) -> float | None:
        """None where there is no token."""
        return self.bytes / self.tokens if self.tokens else None


@dataclass(frozen=True)
class TextCut:
    """How a text was cut.

    Attributes:
        words: Of the text.
        tokens: Of the text.
        bytes: Of the text, in UTF-8.
        types: Different tokens that occur.
        renyi_efficiency: Of the distribution of the tokens, 0 to 1; None where only one token occurs.
        by_script: Writing systems, the most words first.
    """

    words: int
    tokens: int
    bytes: int
    types: int
    renyi_efficiency: float | None
    by_script: list[Share]

    @property
    def fertility(self) -> float | None:
        """Tokens a word; None for a text of white space."""
        return self.tokens / self.words if self.words else None

    @property
    def bytes_per_token(self) -> float:
        """How much text a token carries."""
        return self.bytes / self.tokens


def measure_cut(text: str, ids: Sequence[int], ends: Sequence[int] | NDArray[np.int64]) -> TextCut:
    """Measure how a text was cut.

    Args:
        text: Not empty.
        ids: Its ``n`` tokens, at least one.
        ends: ``(n,)`` ascending positions of the byte after each token, the last the text's length.

    Returns:
        The figures.
    """
    stops = np.asarray(ends, dtype=np.int64)
    word_of_byte, scripts = _find_words(text)
    names = list(dict.fromkeys([*scripts, WHITESPACE]))
    number = {name: place for place, name in enumerate(names)}
    script_of_word = np.array([number[name] for name in scripts] + [number[WHITESPACE]], dtype=np.int64)
    # The first byte of a word at or after each byte; a token that ends before it is white space.
    in_word = np.flatnonzero(word_of_byte >= 0)
    starts = np.append(0, stops[:-1])
    at = np.searchsorted(in_word, starts)
    first = np.append(in_word, len(word_of_byte))[at]
    blank = first >= stops
    word = np.where(blank, -1, np.append(word_of_byte, -1)[first])
    script = script_of_word[word]
    tokens = np.bincount(script, minlength=len(names)).tolist()
    sizes = np.bincount(script, weights=stops - starts, minlength=len(names)).astype(int).tolist()
    words = Counter(scripts)
    shares = [Share(name, words[name], tokens[place], sizes[place]) for place, name in enumerate(names)]
    counts = Counter(ids)
    return TextCut(
        words=len(scripts),
        tokens=len(ids),
        bytes=len(word_of_byte),
        types=len(counts),
        renyi_efficiency=renyi_efficiency(list(counts.values())),
        by_script=sorted(
            (share for share in shares if share.words or share.tokens),
            key=lambda share: (-share.words, -share.tokens, share.script),
        ),
    )


def renyi_efficiency(counts: Sequence[int], alpha: float = ALPHA) -> float | None:
    """Rényi entropy of a distribution over the largest it could be: ``log2(sum p^a) / (1 - a) / log2 n``.

    Args:
        counts: Of each of the ``n`` tokens that occur; as in the authors' own scorer, others do not count.
        alpha: Order of the entropy, not 1.

    Returns:
        1 where all occur equally often; None where there is nothing to distribute.
    """
    if len(counts) < 2:
        return None
    total = sum(counts)
    power = math.fsum((count / total) ** alpha for count in counts)
    return math.log2(power) / (1 - alpha) / math.log2(len(counts))


def _find_words(text: str) -> tuple[NDArray[np.int64], list[str]]:
    """Word of each byte, -1 for white space, and the script of each word."""
    word_of_byte: list[int] = []
    scripts: list[str] = []
    for piece, is_space in _pieces(text):
        size = len(piece.encode())
        if is_space:
            word_of_byte += [-1] * size
        else:
            word_of_byte += [len(scripts)] * size
            scripts.append(script_of_text(piece))
    return np.array(word_of_byte, dtype=np.int64), scripts


def _pieces(text: str) -> Iterator[tuple[str, bool]]:
    """Words and runs of white space, in order."""
    start, kinds = 0, [_kind(char) for char in text]
    for place in range(1, len(text) + 1):
        if place == len(text) or kinds[place] != kinds[start] or kinds[start] == "alone":
            yield text[start:place], kinds[start] == "space"
            start = place


def _kind(char: str) -> str:
    if char.isspace():
        return "space"
    # An ASCII character, and there are many, needs no look into the tables.
    return "alone" if char > "\u0e00" and script_of_text(char) in _UNSPACED else "word"
