"""Shared tokens that are near in token vectors of the target's language.

K. Dobler, G. de Melo, "FOCUS: Effective Embedding Initialization for Monolingual Specialization of
Multilingual Models", arXiv:2305.14481: a row is the combination of anchors by sparsemax over the cosines of
fastText vectors, trained on the corpus cut into target tokens. Unlike deepfocus, tokens are told apart by
their bytes and never by what they decode to; sparsemax is over the 256 nearest anchors, which is the same
where fewer are taken; and a rare token is left to the next method instead of a random row.
"""

from __future__ import annotations

from torch import Tensor

from tokensurgeon.methods.base import InitRows, MethodContext
from tokensurgeon.methods.params import FocusParams
from tokensurgeon.methods.wordvectors import (
    TokenVectors,
    by_sparsemax,
    combine_near,
    named_vectors,
    once,
    token_names,
    train,
)
from tokensurgeon.solvers.nearest import NearestIndex, build_index

_MOST = 256


class Focus:
    """Combine the anchors that the corpus uses alike."""

    def __init__(self, params: FocusParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Train token vectors, then combine anchors."""
        key = ("focus", self.params.dim, self.params.epochs, self.params.min_count)
        vectors = once(context, key, lambda: self.train(context))
        places, found = vectors.find(context.anchor_targets)
        bases = context.anchor_bases[found]
        index = build_index(vectors.rows[places[found]], device=context.device)
        width = min(_MOST, len(bases))
        return combine_near(context, vectors, lambda at: self.weigh(vectors.rows[at], index, bases), width)

    def train(self, context: MethodContext) -> TokenVectors:
        """Vectors of target tokens.

        Args:
            context: Where the corpus is.

        Returns:
            Vectors of the tokens the corpus has often enough.
        """
        names = token_names(context.lexicon.target)
        segment = context.lexicon.segment_target
        lines = [[names[i] for i in segment(line).ids if i in names] for line in context.resources.corpus]
        words = train(
            lines,
            dim=self.params.dim,
            epochs=self.params.epochs,
            min_count=self.params.min_count,
            ngrams=(3, 6),
            seed=context.generator.initial_seed(),
        )
        return named_vectors(words, names)

    def weigh(self, vectors: Tensor, candidates: NearestIndex, bases: Tensor) -> tuple[Tensor, Tensor]:
        """Combinations of anchors for token vectors.

        Args:
            vectors: ``(n, d)``.
            candidates: ``(m, d)`` vectors of anchors.
            bases: ``(m,)`` int64 base ids of the anchors.

        Returns:
            ``(n, s)`` int64 base ids, -1 where there are fewer, and float32 coefficients.
        """
        return by_sparsemax(vectors, candidates, bases, _MOST)
