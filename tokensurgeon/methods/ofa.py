"""Base tokens whose words are near, combined on a factorised table.

Y. Liu et al., "OFA: A Framework of Initializing Unseen Subword Embeddings", arXiv:2311.08849: the base's
table is coordinates times primitives (its SVD, cut to a rank); a token's coordinates are those of the ``k``
base tokens nearest to the plain mean of its words' vectors, by softmax. Word vectors come from the recipe or
from the corpus instead of ColexNet+. Only rows of missing tokens are made, so only they have the rank; and a
token that no word holds is left to the next method.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tokensurgeon.methods.base import InitRows, MethodContext
from tokensurgeon.methods.params import OfaParams
from tokensurgeon.methods.wordvectors import (
    TokenVectors,
    bare,
    by_softmax,
    capital,
    combine_near,
    hold,
    mean_vectors,
    once,
    spaced,
    spaced_capital,
    word_spaces,
)
from tokensurgeon.solvers.nearest import NearestIndex, build_index

_FORMS = (bare, spaced, capital, spaced_capital)


class Ofa:
    """Combine the coordinates of the base tokens whose words are near."""

    def __init__(self, params: OfaParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Make token vectors out of word vectors, combine base tokens, keep the primitives' span."""
        key = ("ofa", self.params.dim, self.params.epochs)
        targets, bases = once(context, key, lambda: self.token_vectors(context))
        bases = bases.among(context.base_ids)
        index = build_index(bases.rows, device=context.device)
        width = min(self.params.neighbours, len(bases.ids))

        def weigh(at: Tensor) -> tuple[Tensor, Tensor]:
            return self.weigh(targets.rows[at], index, bases.ids)

        if self.params.rank is None:
            return combine_near(context, targets, weigh, width)
        primitives = self.primitives(context)
        span = torch.nn.functional.normalize(primitives.double(), dim=1)

        def project(made: InitRows) -> InitRows:
            # The same as combining coordinates: the weights act on one side of the table, the primitives on
            # the other.
            rows = (made.rows.double() @ span.mT @ span).float()
            assert made.served is not None
            return replace(made, rows=torch.where(made.served[:, None].to(rows.device), rows, made.rows))

        made = combine_near(context, targets, weigh, width, project)
        return replace(made, primitives=primitives)

    def primitives(self, context: MethodContext) -> Tensor:
        """Primitives of the base's table.

        Args:
            context: Where the base's rows are.

        Returns:
            ``(r, d_base)`` float32, orthogonal, the longest first.
        """
        mean = context.base_mean.double()
        gram = (context.base_covariance + mean[:, None] * mean) * len(context.base_ids)
        values, vectors = torch.linalg.eigh(gram)
        longest: Tensor = (vectors * values.clamp(min=0).sqrt()).mT.flip(0)[: self.params.rank or len(gram)]
        return longest.float()

    def token_vectors(self, context: MethodContext) -> tuple[TokenVectors, TokenVectors]:
        """Vectors of target tokens and of base tokens, in one space.

        Args:
            context: Where words and tokenizers are.

        Returns:
            Target tokens, then base tokens.
        """
        lexicon = context.lexicon
        sides = word_spaces(context, self.params.dim, self.params.epochs)
        targets, bases = (
            mean_vectors(hold(side.words, segment, _FORMS), side.rows, torch.ones_like(side.frequencies))
            for side, segment in zip(sides, (lexicon.segment_target, lexicon.segment_base), strict=True)
        )
        return targets, bases

    def weigh(self, vectors: Tensor, candidates: NearestIndex, bases: Tensor) -> tuple[Tensor, Tensor]:
        """Combinations of base tokens for token vectors.

        Args:
            vectors: ``(n, d)``.
            candidates: ``(m, d)`` vectors of base tokens.
            bases: ``(m,)`` int64 base ids of the candidates.

        Returns:
            ``(n, k)`` int64 base ids and float32 coefficients, the nearest first.
        """
        return by_softmax(vectors, candidates, bases, self.params.neighbours, self.params.temperature)
