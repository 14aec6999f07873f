"""A token's mutual nearest neighbour in token vectors, else shared tokens.

T. Pham, K. Le, L. A. Tuan, "UniBridge: A Unified Approach to Cross-Lingual Transfer Learning for Low-Resource
Languages", arXiv:2406.09717 (its FASE): a missing token whose nearest base token has it for its own nearest
token gets that row; another the anchors, by sparsemax over the cosines of fastText vectors. The authors train
the two vocabularies' vectors apart, in spaces that have nothing to do with each other; here one model reads
the corpus cut both ways, and shared tokens, under one name, hold the two together. Sparsemax is over the 256
nearest anchors, which is the same where fewer are taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokensurgeon.methods.base import InitRows, MethodContext
from tokensurgeon.methods.params import UnibridgeParams
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


class Unibridge:
    """Copy mutual nearest neighbours, combine anchors for the rest."""

    def __init__(self, params: UnibridgeParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Train vectors of both vocabularies, then copy or combine."""
        key = ("unibridge", self.params.dim, self.params.epochs, self.params.min_count)
        targets, bases = once(context, key, lambda: self.train(context))
        bases = bases.among(context.base_ids)
        places, found = targets.find(context.anchor_targets)
        shared = context.anchor_bases[found]
        index = build_index(targets.rows[places[found]], device=context.device)
        partners = mutual_neighbours(targets, bases, context.wanted, context.device)
        width = max(1, min(_MOST, len(shared)))

        def weigh(at: Tensor) -> tuple[Tensor, Tensor]:
            near, weights = self.weigh(targets.rows[at], index, shared)
            sources = torch.full((len(at), max(1, near.shape[1])), -1)
            coefs = torch.zeros(sources.shape)
            sources[:, : near.shape[1]] = near
            coefs[:, : near.shape[1]] = weights
            partner = partners[at]
            copied = partner >= 0
            sources[copied], coefs[copied] = -1, 0
            sources[copied, 0], coefs[copied, 0] = partner[copied], 1
            return sources, coefs

        return combine_near(context, targets, weigh, width)

    def train(self, context: MethodContext) -> tuple[TokenVectors, TokenVectors]:
        """Vectors of target tokens and of base tokens, in one space.

        Args:
            context: Where the corpus and the tokenizers are.

        Returns:
            Target tokens, then base tokens, as far as the corpus has them often enough.
        """
        lexicon = context.lexicon
        names = token_names(lexicon.base)
        shared = {index: names[base] for index, base in lexicon.base_of.items() if base in names}
        ours = {index: name for index, name in token_names(lexicon.target).items() if index not in shared}
        # A mark in front tells the three kinds of tokens apart, and leaves other n-grams in common.
        tied = set(shared.values())
        base_names = {index: f"{0 if name in tied else 1}:{name}" for index, name in names.items()}
        target_names = {index: f"0:{name}" for index, name in shared.items()}
        target_names |= {index: f"2:{name}" for index, name in ours.items()}
        lines = [
            [named[index] for index in segment(line).ids if index in named]
            for line in context.resources.corpus
            for named, segment in (
                (target_names, lexicon.segment_target),
                (base_names, lexicon.segment_base),
            )
        ]
        words = train(
            lines,
            dim=self.params.dim,
            epochs=self.params.epochs,
            min_count=self.params.min_count,
            ngrams=(3, 6),
            seed=context.generator.initial_seed(),
        )
        return named_vectors(words, target_names), named_vectors(words, base_names)

    def weigh(self, vectors: Tensor, candidates: NearestIndex, bases: Tensor) -> tuple[Tensor, Tensor]:
        """Combinations of anchors for token vectors.

        Args:
            vectors: ``(n, d)``.
            candidates: ``(m, d)`` vectors of anchors.
            bases: ``(m,)`` int64 base ids of the anchors.

        Returns:
            ``(n, s)`` int64 base ids, -1 where there are fewer, and float32 coefficients.
        """
        return by_sparsemax(vectors, candidates, bases, _MOST, self.params.temperature)


def mutual_neighbours(
    targets: TokenVectors, bases: TokenVectors, wanted: Tensor, device: torch.device
) -> Tensor:
    """Base tokens that are the nearest of a wanted token, and have it for their own nearest target token.

    Args:
        targets: Vectors of target tokens, wanted or not.
        bases: Vectors of base tokens.
        wanted: ``(m,)`` int64 target ids.
        device: Where to compare.

    Returns:
        ``(n,)`` int64 base ids, one a row of ``targets``; -1 where there is none.
    """
    partners = torch.full((len(targets.ids),), -1)
    places, found = targets.find(wanted)
    asking = places[found]
    if not len(asking) or not len(bases.ids):
        return partners
    nearest = build_index(bases.rows, device=device).search(targets.rows[asking], 1).indices[:, 0].cpu()
    chosen, back = nearest.unique(return_inverse=True)
    returned = build_index(targets.rows, device=device).search(bases.rows[chosen], 1).indices[:, 0].cpu()
    mutual = returned[back] == asking
    partners[asking[mutual]] = bases.ids[nearest[mutual]]
    return partners
