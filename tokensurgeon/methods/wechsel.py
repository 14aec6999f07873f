"""Base tokens that are near in a space of words of both languages.

B. Minixhofer, F. Paischer, N. Rekabsaz, "WECHSEL: Effective initialization of subword embeddings for
cross-lingual transfer of monolingual language models", arXiv:2112.06598: a token's vector is the mean of the
vectors of the words that hold it, by frequency; a row is the ``k`` nearest base tokens, by the softmax of
their cosines. Unlike the authors' package, the word pairs behind the rotation are of unit length, a word
counts once however often it holds a token, and a token that no word holds is left to the next method.
"""

from __future__ import annotations

from torch import Tensor

from tokensurgeon.methods.base import InitRows, MethodContext
from tokensurgeon.methods.params import WechselParams
from tokensurgeon.methods.wordvectors import (
    TokenVectors,
    bare,
    by_softmax,
    combine_near,
    hold,
    mean_vectors,
    once,
    spaced,
    word_spaces,
)
from tokensurgeon.solvers.nearest import NearestIndex, build_index


class Wechsel:
    """Combine the base tokens whose words are near."""

    def __init__(self, params: WechselParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Make token vectors out of word vectors, then combine base tokens."""
        key = ("wechsel", self.params.dim, self.params.epochs)
        targets, bases = once(context, key, lambda: self.token_vectors(context))
        bases = bases.among(context.base_ids)
        index = build_index(bases.rows, device=context.device)
        width = min(self.params.neighbours, len(bases.ids))

        def weigh(at: Tensor) -> tuple[Tensor, Tensor]:
            return self.weigh(targets.rows[at], index, bases.ids)

        return combine_near(context, targets, weigh, width)

    def token_vectors(self, context: MethodContext) -> tuple[TokenVectors, TokenVectors]:
        """Vectors of target tokens and of base tokens, in one space.

        Args:
            context: Where words and tokenizers are.

        Returns:
            Target tokens, then base tokens.
        """
        targets, bases = word_spaces(context, self.params.dim, self.params.epochs)
        lexicon = context.lexicon
        held = hold(targets.words, lexicon.segment_target, (bare, spaced))
        held_by_base = hold(bases.words, lexicon.segment_base, (bare, spaced))
        return (
            mean_vectors(held, targets.rows, targets.frequencies),
            mean_vectors(held_by_base, bases.rows, bases.frequencies),
        )

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
