"""Tokenizers sampled from a corpus, and texts cut by them.

B. Minixhofer et al., "Zero-Shot Tokenizer Transfer", arXiv:2405.07883, sample Unigram tokenizers. Here a
sampled token is a run of the base's tokens within a word, so that its pieces are exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

_LINES = 512
_LONGEST_LINE = 2000
_CHARACTERS_A_TOKEN = 8
_OTHERS = 1024

Run = tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Texts in a vocabulary of their own, whose tokens are the numbers from 0.

    Attributes:
        ids: ``(texts, length)`` int64, filled up on the right with any token.
        labels: ``(texts, length)`` int64, the token that comes next; -100 where none is to be predicted.
    """

    ids: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Sizes:
    """Of what is sampled.

    Attributes:
        texts: Texts of a batch.
        block: Tokens of a text.
        pieces: Most base tokens of a sampled token.
        tokens: Tokens of a sampled tokenizer; all base tokens come on top.
    """

    texts: int
    block: int
    pieces: int
    tokens: int


class TokenizerSampler:
    """Draws a tokenizer and texts again and again.

    Args:
        corpus: Lines.
        segment: Cuts a text into base ids.
        known: Bytes of the base tokens that have a row.
        sizes: Of what is sampled.
        generator: Draws lines and noise.
    """

    def __init__(
        self,
        corpus: Sequence[str],
        segment: Callable[[str], Sequence[int]],
        known: Mapping[int, bytes],
        sizes: Sizes,
        generator: torch.Generator,
    ) -> None:
        self._corpus = corpus
        self._segment = segment
        self._bytes = {token: data for token, data in known.items() if data}
        self._others = list(self._bytes)
        self._sizes = sizes
        self._generator = generator

    def batch(self, start: int | None) -> tuple[list[Run], Batch]:
        """Sample a tokenizer, and cut texts with it.

        Args:
            start: Base id put before each text.

        Returns:
            The tokens of the batch, more random base tokens, and the texts by place in that list.
        """
        texts = [self.words(self.text()) for _ in range(self._sizes.texts)]
        drawn = self._draw(len(self._corpus), min(_LINES, len(self._corpus)))
        lines = [self._corpus[place][:_LONGEST_LINE] for place in drawn]
        known = self.tokens(word for text in [*texts, *map(self.words, lines)] for word in text)
        cut = [[run for word in text for run in self.cut(word, known)] for text in texts]
        begin = [] if start is None else [(start,)]
        rows = [[*begin, *runs][: self._sizes.block + 1] for runs in cut]
        places = {run: place for place, run in enumerate(dict.fromkeys(run for row in rows for run in row))}
        for place in self._draw(len(self._others), _OTHERS):
            places.setdefault((self._others[place],), len(places))
        shape = (len(rows), max(1, *(len(row) - 1 for row in rows)))
        ids, labels = torch.zeros(shape, dtype=torch.int64), torch.full(shape, -100)
        for row, runs in enumerate(rows):
            for place, (run, following) in enumerate(pairwise(runs)):
                ids[row, place], labels[row, place] = places[run], places[following]
        return list(places), Batch(ids, labels)

    @property
    def has_words(self) -> bool:
        """Whether there is anything in the corpus to sample from."""
        return any(map(self.words, self._corpus))

    def text(self) -> str:
        """Lines from a random place on, enough for a block."""
        place = self._draw(len(self._corpus), 1)[0]
        wanted = _CHARACTERS_A_TOKEN * self._sizes.block
        text = self._corpus[place]
        while len(text) < wanted and (place := place + 1) < len(self._corpus):
            text += "\n" + self._corpus[place]
        return text[:wanted]

    def words(self, text: str) -> list[Run]:
        """Cut a text into words: a blank begins one, and so does a change between letters, digits and others.

        Args:
            text: Any.

        Returns:
            The base ids of each word; tokens without a row are left out.
        """
        words: list[list[int]] = []
        last = b" "
        for token in self._segment(text):
            data = self._bytes.get(token)
            if data is None:
                last = b" "
                continue
            if data[:1].isspace() or kind(data[:1]) != kind(last):
                words.append([])
            words[-1].append(token)
            last = data[-1:]
        return [tuple(word) for word in words]

    def tokens(self, words: Iterable[Run]) -> set[Run]:
        """Sample a vocabulary: the most frequent runs, up to noise.

        Args:
            words: Base ids of each word.

        Returns:
            Runs of base ids.
        """
        counts: Counter[Run] = Counter()
        for word, count in Counter(words).items():
            for start in range(len(word)):
                for stop in range(start + 1, min(start + self._sizes.pieces, len(word)) + 1):
                    counts[word[start:stop]] += count
        runs = list(counts)
        scores = torch.tensor([float(counts[run]) for run in runs]).log()
        scores += torch.randn(len(runs), generator=self._generator)
        return {runs[place] for place in scores.topk(min(self._sizes.tokens, len(runs))).indices.tolist()}

    def cut(self, word: Run, known: set[Run]) -> list[Run]:
        """Cut a word into the longest known runs, from the left.

        Args:
            word: Base ids.
            known: The sampled vocabulary.

        Returns:
            Runs, of one base token where none is known.
        """
        runs = []
        start = 0
        while start < len(word):
            stops = range(min(start + self._sizes.pieces, len(word)), start + 1, -1)
            stop = next((stop for stop in stops if word[start:stop] in known), start + 1)
            runs.append(word[start:stop])
            start = stop
        return runs

    def _draw(self, count: int, size: int) -> list[int]:
        drawn: list[int] = torch.randint(count, (size,), generator=self._generator).tolist()
        return drawn


def kind(byte: bytes) -> str:
    """What sort of character a byte belongs to.

    Args:
        byte: One.

    Returns:
        A name; bytes beyond ASCII count as letters.
    """
    if byte.isspace():
        return "blank"
    if byte.isdigit():
        return "digit"
    return "letter" if byte.isalpha() or byte >= b"\x80" else "other"
