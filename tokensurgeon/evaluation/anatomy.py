"""Where the loss of a transplant sits: excess bits by how a text is cut, by script, by content, by new rows.

Two tokenizers cut one text differently, so their losses cannot be compared token by token. But both ends
of a *chunk*, the text between two neighbouring byte positions at which a token ends in both, are seen by
both models, and the bits each spends on it are those of the same event given the same past. A chunk has one
class of each split, so the classes of a split add up to the whole difference.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tokensurgeon.evaluation.boundaries import shared_ends
from tokensurgeon.vocab.scripts import script_of_text

if TYPE_CHECKING:
    from tokensurgeon.evaluation.bits_per_byte import TextScore, TokenLosses

CONTEXT_TOKENS = 8

SAME = "same token"
AFTER = "after a re-segmented one"
SPLIT = "split"
MERGED = "merged"
DIFFERENT = "cut differently"
MISSING = "missing"
NUMBERS = "numbers"
INDENTATION = "line breaks and indentation"
SPACES = "runs of spaces, tabs"
OTHER = "the rest"
CONTENTS = (NUMBERS, INDENTATION, SPACES, OTHER)
_CONTENT_OF_BYTES = (
    (SPACES, re.compile(rb"[ \t]{2,}|\t")),
    (INDENTATION, re.compile(rb"[ \t\r]*\n\s*")),
    (NUMBERS, re.compile(rb"[0-9]+")),
)

CUTS = (SAME, AFTER, SPLIT, MERGED, DIFFERENT, MISSING)

PREDICTED = "a new row is predicted"
IN_CONTEXT = f"a new row among the {CONTEXT_TOKENS} tokens before"
NO_NEW_ROW = "neither"
NEARNESS = (PREDICTED, IN_CONTEXT, NO_NEW_ROW)


@dataclass(frozen=True)
class LossClass:
    """The chunks of one class.

    Attributes:
        name: Of the class.
        chunks: How many.
        byte_share: Their share of the text's bytes, 0 to 1.
        base: Bits the base spends on them, per byte of the whole text.
        output: Bits the output spends on them, per byte of the whole text.
        excess: ``output - base``.
    """

    name: str
    chunks: int
    byte_share: float
    base: float
    output: float
    excess: float


@dataclass(frozen=True)
class Anatomy:
    """The loss of one text in parts. The classes of each split add up to all of it.

    Attributes:
        chunks: Pieces of text between byte positions at which a token ends in both.
        excess: Bits per byte of the output minus those of the base.
        by_cut: By how base and target cut the chunk; a chunk that holds a token with a made row is
            ``missing``, whatever its cut. Without ``missing`` where it is not known which rows were made.
        by_script: By the script of the chunk's first letter, the most text first.
        by_content: By what tokenizers cut most differently: chunks with a digit, then those with a line
            break, its indentation or the blanks before it, then those with another run of blanks.
        by_new_rows: By whether a made row is predicted in the chunk, or lies shortly before it. None where
            it is not known which rows were made.
    """

    chunks: int
    excess: float
    by_cut: list[LossClass]
    by_script: list[LossClass]
    by_content: list[LossClass]
    by_new_rows: list[LossClass] | None


def find_anatomy(text: str, base: TextScore, output: TextScore, made: Set[int] | None) -> Anatomy:
    """Take the loss of an output apart.

    Args:
        text: What both models scored.
        base: Its score by the base with its own tokenizer, losses kept.
        output: Its score by the output with the target's, losses kept.
        made: Target ids whose rows a method made; None if that is not known.

    Returns:
        The excess in classes. A model that could not score its first character, for want of a BOS, spends
        nothing on it.

    Raises:
        ValueError: The losses were not kept.
    """
    if base.losses is None or output.losses is None:
        raise ValueError(f"{base.text}: scored without keep_losses")
    ends = shared_ends(base.losses.ends, output.losses.ends)
    sides = _Side(base, base.losses, ends), _Side(output, output.losses, ends)
    is_made = np.isin(sides[1].ids, list(made or ()))
    has_made = np.bincount(sides[1].chunk, weights=is_made) > 0
    scripts = np.array(_scripts(text.encode(), ends))
    sizes = np.diff(ends, prepend=0)
    by_size = Counter[str]()
    for script, size in zip(scripts.tolist(), sizes.tolist(), strict=True):
        by_size[script] += size
    return Anatomy(
        chunks=len(ends),
        excess=output.bits_per_byte - base.bits_per_byte,
        by_cut=_classes(_cuts(*sides, has_made), CUTS if made is not None else CUTS[:-1], sizes, *sides),
        by_script=_classes(scripts, [name for name, _ in by_size.most_common()], sizes, *sides),
        by_content=_classes(_contents(text.encode(), ends), CONTENTS, sizes, *sides),
        by_new_rows=None
        if made is None
        else _classes(_nearness(sides[1], is_made, has_made), NEARNESS, sizes, *sides),
    )


class _Side:
    """One model's tokens, each in its chunk.

    Args:
        score: Of the text.
        losses: Its ``n`` tokens.
        ends: ``(c,)`` ascending ends of the chunks, a subset of the tokens' ends.
    """

    def __init__(self, score: TextScore, losses: TokenLosses, ends: NDArray[np.int64]) -> None:
        self.ids = losses.ids
        self.chunk = np.searchsorted(ends, losses.ends)  # (n,)
        self.tokens = np.bincount(self.chunk)  # (c,)
        self._bits = losses.bits
        self._bytes = score.bytes

    def spend(self, chosen: NDArray[np.bool_]) -> float:
        """Bits on the chosen chunks, ``(c,)``, per byte of the whole text."""
        return math.fsum(self._bits[chosen[self.chunk]]) / self._bytes


def _classes(
    labels: NDArray[np.str_], names: Sequence[str], sizes: NDArray[np.int64], base: _Side, output: _Side
) -> list[LossClass]:
    found = []
    for name in names:
        chosen = labels == name
        before, after = base.spend(chosen), output.spend(chosen)
        share = int(sizes[chosen].sum()) / int(sizes.sum())
        found.append(LossClass(name, int(chosen.sum()), share, before, after, after - before))
    return found


def _cuts(base: _Side, output: _Side, has_made: NDArray[np.bool_]) -> NDArray[np.str_]:
    """Class of each chunk by how it is cut."""
    one, one_new = base.tokens == 1, output.tokens == 1
    same = one & one_new
    after = same & np.append(False, ~same[:-1])
    return np.select([has_made, after, same, one, one_new], [MISSING, AFTER, SAME, SPLIT, MERGED], DIFFERENT)


def _nearness(output: _Side, is_made: NDArray[np.bool_], has_made: NDArray[np.bool_]) -> NDArray[np.str_]:
    """Class of each chunk by the made rows in it and shortly before its first token."""
    made_before = np.append(0, np.cumsum(is_made))  # made tokens among the first n
    first = np.append(0, np.cumsum(output.tokens)[:-1])
    in_context = made_before[first] > made_before[np.maximum(first - CONTEXT_TOKENS, 0)]
    return np.select([has_made, in_context], [PREDICTED, IN_CONTEXT], NO_NEW_ROW)


def _contents(data: bytes, ends: NDArray[np.int64]) -> NDArray[np.str_]:
    """Class of each chunk by what it holds."""
    rank = np.zeros(len(data), dtype=np.int64)
    for place, (_, pattern) in enumerate(_CONTENT_OF_BYTES, start=1):
        for found in pattern.finditer(data):
            rank[found.start() : found.end()] = place
    highest = np.maximum.reduceat(rank, np.append(0, ends[:-1]))
    return np.array([OTHER, *(name for name, _ in _CONTENT_OF_BYTES)])[highest]


def _scripts(data: bytes, ends: NDArray[np.int64]) -> list[str]:
    """Script of each chunk; one that ends inside a character counts as the whole of it."""
    opens_character = (np.frombuffer(data, dtype=np.uint8) & 0xC0) != 0x80
    character = np.cumsum(opens_character) - 1  # of each byte
    firsts = character[np.append(0, ends[:-1])]
    lasts = character[ends - 1]
    text = data.decode()
    return [
        script_of_text(text[first : last + 1])
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True)
    ]
