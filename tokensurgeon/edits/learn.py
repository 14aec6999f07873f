"""Merges learnt from a corpus on top of a tokenizer's present segmentation: continued BPE."""

from __future__ import annotations

import heapq
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count, pairwise

from tokensurgeon.console import progress
from tokensurgeon.errors import InputError
from tokensurgeon.vocab.canonical import Kind
from tokensurgeon.vocab.vocabulary import Vocabulary

Pair = tuple[int, int]
Word = tuple[int, ...]

_BLOCK = 1 << 16
_GAP, _DEAD = -1, -2
_LEAST = 2
"""Times a pair has to occur."""


class _Sequences:
    """Words as one chain of symbols in which pairs are counted and merged in place."""

    def __init__(self, words: Mapping[Word, int]) -> None:
        self.symbols, self.weights = [_GAP], [0]
        for word, times in words.items():
            self.symbols += [*word, _GAP]
            self.weights += [times] * (len(word) + 1)
        size = len(self.symbols)
        self._following = list(range(1, size + 1))
        self._previous = list(range(-1, size - 1))
        self.counts: Counter[Pair] = Counter()
        self._places: defaultdict[Pair, list[int]] = defaultdict(list)
        for place, pair in enumerate(pairwise(self.symbols)):
            self._count(pair, place, self.weights[place])

    def _count(self, pair: Pair, place: int, times: int) -> None:
        if _GAP not in pair:
            self.counts[pair] += times
            self._places[pair].append(place)

    def merge(self, pair: Pair, product: int) -> set[Pair]:
        """Put the product for the pair, from the left, and return the pairs that it came into."""
        left, right = pair
        grown = set()
        for place in sorted(self._places.pop(pair)):
            after = self._following[place]
            if self.symbols[place] != left or self.symbols[after] != right:
                continue
            times, before, beyond = self.weights[place], self._previous[place], self._following[after]
            first, last = self.symbols[before], self.symbols[beyond]
            self.counts[first, left] -= times
            self.counts[right, last] -= times
            self._count((first, product), before, times)
            self._count((product, last), place, times)
            grown |= {(first, product), (product, last)}
            self.symbols[place], self.symbols[after] = product, _DEAD
            self._following[place], self._previous[beyond] = beyond, place
        self.counts[pair] = 0
        return grown


def learn_merges(
    words: Mapping[Word, int], join: Callable[[int, int], int | None], most: int
) -> tuple[list[tuple[int, int, int]], Counter[int]]:
    """Merge the most frequent pair of neighbours, again and again; of equal ones, the lowest pair of ids.

    Args:
        words: Sequences of ids, and how often each occurs.
        join: Called with a pair that is about to be merged; gives the id of the product, or None where the
            pair must not be merged.
        most: Merges at most.

    Returns:
        Merges as left, right, product, in their order, and how often each id is left in the end.
    """
    sequences = _Sequences(words)
    counts = sequences.counts
    heap = [(-times, pair) for pair, times in counts.items() if times >= _LEAST]
    heapq.heapify(heap)
    merges: list[tuple[int, int, int]] = []
    with progress("learning merges", most, "merges") as advance:
        while heap and len(merges) < most:
            promised, pair = heapq.heappop(heap)
            if counts[pair] != -promised:
                # Counts of pairs that wait only fall: the entry was an upper bound.
                if counts[pair] >= _LEAST:
                    heapq.heappush(heap, (-counts[pair], pair))
                continue
            product = join(*pair)
            if product is None:
                continue
            merges.append((*pair, product))
            advance()
            for other in sequences.merge(pair, product):
                if counts[other] >= _LEAST:
                    heapq.heappush(heap, (-counts[other], other))
    left_over: Counter[int] = Counter()
    for symbol, times in zip(sequences.symbols, sequences.weights, strict=True):
        if symbol >= 0:
            left_over[symbol] += times
    return merges, left_over


def read_words(
    vocabulary: Vocabulary,
    texts: Iterable[str],
    cut: Callable[[int, int], bool],
    joined: Vocabulary | None = None,
) -> Iterator[tuple[int, Word]]:
    """The words of texts as the tokenizer segments them.

    Args:
        vocabulary: The tokenizer.
        texts: What to read.
        cut: Whether a word ends between two neighbours of one pre-tokenised piece.
        joined: The tokenizer with a pre-tokenizer that cuts less; it must give the same ids.

    Yields:
        Number of the piece of ``joined`` (or of the tokenizer) that a word is of, and the word's ids.

    Raises:
        InputError: The two give different ids.
    """
    cuts: dict[Pair, bool] = {}
    pieces = count()
    for block in _blocks(texts):
        encoding = vocabulary.tokenizer.encode(block, add_special_tokens=False)
        numbers = encoding.word_ids
        wider = numbers
        if joined is not None:
            other = joined.tokenizer.encode(block, add_special_tokens=False)
            if other.ids != encoding.ids:
                raise InputError(
                    f"{vocabulary.path}: words that are not cut apart are segmented in another way",
                    "a tokenizer whose merges stay within words",
                )
            wider = other.word_ids
        word: list[int] = []
        piece = next(pieces)
        last: tuple[int | None, int | None] = (None, None)
        for index, number, wide in zip(encoding.ids, numbers, wider, strict=True):
            if word:
                pair = (word[-1], index)
                if pair not in cuts:
                    cuts[pair] = cut(*pair)
                if number != last[0] or cuts[pair]:
                    yield piece, tuple(word)
                    word = []
            if wide != last[1]:
                piece = next(pieces)
            word.append(index)
            last = (number, wide)
        if word:
            yield piece, tuple(word)


def count_words(
    vocabulary: Vocabulary, texts: Iterable[str], cut: Callable[[int, int], bool]
) -> Counter[Word]:
    """Words as the tokenizer segments them, and how often each occurs; other tokens than text stand alone.

    Args:
        vocabulary: The tokenizer.
        texts: What to read.
        cut: As for ``read_words``.

    Returns:
        Times by ids.
    """
    plain = plain_ids(vocabulary)

    def ends(left: int, right: int) -> bool:
        return not plain.issuperset((left, right)) or cut(left, right)

    return Counter(word for _, word in read_words(vocabulary, texts, ends))


def word_ends(before: str, after: str) -> bool:
    """Whether SentencePiece ends a word here: letters, digits, marks and line ends stay among themselves.

    Args:
        before: Text up to the place.
        after: Text from there.

    Returns:
        True also where a space follows a word; spaces belong to the word they open.
    """
    if before.strip(" "):
        return _char_class(before[-1]) != _char_class(after[0])
    return _char_class(after[0]) == "\n"


def _char_class(char: str) -> str:
    if char.isspace():
        return " " if char == " " else "\n"
    if char.isnumeric():
        return "9"
    return "a" if unicodedata.category(char)[0] in "LM" else "."


def plain_ids(vocabulary: Vocabulary) -> set[int]:
    """Ids of the tokens that merges may be made of: learnt ones that stand for text."""
    return {token.id for token in vocabulary if token.kind is Kind.TEXT and not token.added}


def _blocks(texts: Iterable[str]) -> Iterator[str]:
    """Texts in pieces that are quick to encode, cut where a line ends and the next opens without a space.

    How far their reader is is shown.
    """
    line_end = re.compile(r"\n(?=\S)")
    texts = list(texts)
    with progress("reading the corpus", sum(map(len, texts)), "characters") as advance:
        for text in texts:
            start = 0
            while (found := line_end.search(text, start + _BLOCK)) is not None:
                yield text[start : found.end()]
                advance(found.end() - start)
                start = found.end()
            yield text[start:]
            advance(len(text) - start)
