"""The base's table in few primitives, and a token's coordinates from shared tokens that look like it.

J. Pfeiffer et al., "UNKs Everywhere: Adapting Multilingual Language Models to New Scripts",
arXiv:2012.15562: the table ``E`` is factorised as ``F G``, the primitives ``G`` are kept, and only
coordinates ``F`` are made. Here ``G`` holds the leading right singular vectors of the centred table, and the
coordinates of a token are a mean of those of its overlapping anchors, so that its row is the mean row plus
the projection on ``G`` of the centred mean of theirs. The paper copies coordinates of equal tokens only and
trains the rest.

An anchor's weight is the length of the run of characters it has in common with the token, letter case apart.
It is taken to be the number of distinct n-grams of ``min_overlap`` characters they share, plus
``min_overlap`` less one: exact where these form one run. Of a frequent n-gram only the longest anchors are
looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokensurgeon.methods.base import InitRows, MethodContext
from tokensurgeon.methods.params import UnksEverywhereParams

_MOST_SOURCES = 10
_MOST_PER_NGRAM = 256


class UnksEverywhere:
    """Put the mean of overlapping anchors on the primitives of the base's table."""

    def __init__(self, params: UnksEverywhereParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Find overlapping anchors and project their mean; a token without any is not served."""
        mean = context.base_mean
        basis = primitives(context, self.params.rank)
        tokens = context.lexicon.target
        overlaps = Overlaps.index(
            [normalise(tokens.get(index, b"")) for index in context.anchor_targets.tolist()],
            self.params.min_overlap,
        )

        def solve(span: slice) -> InitRows:
            texts = [normalise(tokens.get(index, b"")) for index in context.wanted[span].tolist()]
            places, coefs = overlaps.find(texts)
            if len(context.anchor_bases):
                sources = torch.where(places >= 0, context.anchor_bases[places.clamp(min=0)], -1)
            else:
                sources = places
            made = context.combine(sources, coefs)
            rows = mean + (made.rows - mean) @ basis.mT @ basis
            return InitRows(rows, sources, coefs, served=made.served)

        return context.in_batches(solve)


def normalise(data: bytes) -> str:
    """Text of a token without its letter case; bytes that are no text are left out."""
    return data.decode(errors="ignore").casefold()


def primitives(context: MethodContext, rank: int) -> Tensor:
    """Directions in which the base's rows differ most from their mean.

    Args:
        context: Where the rows are.
        rank: How many directions; cut to the rank of the table.

    Returns:
        ``(r, d_base)`` float32, orthonormal.
    """
    values, vectors = torch.linalg.eigh(context.base_covariance)
    kept = int((values > 1e-10 * values[-1]).sum())
    leading: Tensor = vectors[:, len(values) - min(rank, kept) :].mT.to(torch.float32)
    return leading


@dataclass(frozen=True)
class Overlaps:
    """Anchors by the n-grams they contain.

    Attributes:
        size: Characters of an n-gram.
        lengths: ``(A,)`` int64, characters of each anchor.
        places: For every n-gram the anchors that contain it, the longest first and then the earliest.
    """

    size: int
    lengths: NDArray[np.int64]
    places: Mapping[str, NDArray[np.int64]]

    @staticmethod
    def index(texts: Sequence[str], size: int) -> Overlaps:
        """Index anchors.

        Args:
            texts: Their texts.
            size: Characters of an n-gram.

        Returns:
            The index.
        """
        lists: dict[str, list[int]] = {}
        for place in sorted(range(len(texts)), key=lambda place: (-len(texts[place]), place)):
            for gram in _ngrams(texts[place], size):
                found = lists.setdefault(gram, [])
                if len(found) < _MOST_PER_NGRAM:
                    found.append(place)
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        return Overlaps(size, lengths, {gram: np.array(found) for gram, found in lists.items()})

    def find(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The ten anchors that share most with each text; of equals the shorter, then the earlier.

        Args:
            texts: Any number of texts.

        Returns:
            ``(n, 10)`` int64 places, -1 where there are fewer, and ``(n, 10)`` float32 weights, which add up
            to one where there is any.
        """
        places = torch.full((len(texts), _MOST_SOURCES), -1, dtype=torch.int64)
        coefs = torch.zeros(places.shape)
        for row, text in enumerate(texts):
            lists = [self.places[gram] for gram in _ngrams(text, self.size) if gram in self.places]
            if not lists:
                continue
            found, shared = np.unique(np.concatenate(lists), return_counts=True)
            best = np.lexsort((found, self.lengths[found], -shared))[:_MOST_SOURCES]
            weights = (shared[best] + self.size - 1).astype(np.float64)
            places[row, : len(best)] = torch.from_numpy(found[best])
            coefs[row, : len(best)] = torch.from_numpy(weights / weights.sum())
        return places, coefs


def _ngrams(text: str, size: int) -> list[str]:
    """Distinct n-grams in the order of the text."""
    return list(dict.fromkeys(text[start : start + size] for start in range(len(text) - size + 1)))
