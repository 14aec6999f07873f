"""The base tokens of the words that are near a token's words.

K. Tran, "From English To Foreign Languages: Transferring Pre-trained Language Models" (RAMEN),
arXiv:2002.07306: each word of the target's language is translated into base words by sparsemax over their
cosines, and a row is the expected row of the base tokens of those words, over the words that hold the token,
by frequency. Here a token of a word that follows a space takes from base words that follow a space as well,
and id zero is a token like any other. The 8,192 most frequent base words are candidates, of which a word
takes at most the 64 nearest, and a row takes at most 64 base tokens, the likeliest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokensurgeon.methods.base import InitRows, MethodContext
from tokensurgeon.methods.params import RamenParams
from tokensurgeon.methods.wordvectors import (
    Holdings,
    TokenVectors,
    bare,
    by_sparsemax,
    combine_near,
    hold,
    once,
    spaced,
    word_spaces,
)
from tokensurgeon.solvers.nearest import build_index

_FORMS = (bare, spaced)
_TRANSLATIONS = 64
_MOST = 64
# Base words a word may be translated to, the most frequent ones.
_CANDIDATES = 8192
_PAIRS = 2**14


@dataclass(frozen=True)
class Translations:
    """Words that hold target tokens, and base words for them.

    Attributes:
        held: For each way to write a word, the words of each target token, by token.
        spelt: For each way to write a word, ``(U, c)`` sparse shares of base tokens in candidate base words.
        bases: ``(U,)`` int64 ids of those base tokens.
        words: ``(w, s)`` int64 candidates for each word, -1 where there are fewer.
        weights: ``(w, s)`` float32, times the word's frequency.
    """

    held: tuple[Holdings, ...]
    spelt: tuple[Tensor, ...]
    bases: Tensor
    words: Tensor
    weights: Tensor


class Ramen:
    """Translate the words of a token, combine the base tokens of the translations."""

    def __init__(self, params: RamenParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Translate words, then combine base tokens."""
        key = ("ramen", self.params.dim, self.params.epochs, len(context.base_ids))
        known = once(context, key, lambda: self.translate(context))
        ids = torch.cat([held.tokens for held in known.held]).unique()
        # No vectors here: only which tokens are in a word at all.
        tokens = TokenVectors(ids, torch.zeros((len(ids), 0)))
        return combine_near(context, tokens, lambda at: weigh(known, ids[at]), min(_MOST, len(known.bases)))

    def translate(self, context: MethodContext) -> Translations:
        """Find base words for every word of the target's language.

        Args:
            context: Where words and tokenizers are.

        Returns:
            The words with their translations.
        """
        targets, bases = word_spaces(context, self.params.dim, self.params.epochs)
        candidates = bases.words[:_CANDIDATES]
        index = build_index(bases.rows[: len(candidates)], device=context.device)
        words, weights = by_sparsemax(targets.rows, index, torch.arange(len(candidates)), _TRANSLATIONS)
        held = (hold(targets.words, context.lexicon.segment_target, (form,)) for form in _FORMS)
        spellings = [[context.lexicon.segment_base(form(word)).ids for word in candidates] for form in _FORMS]
        used = torch.tensor(sorted({i for spelt in spellings for word in spelt for i in word})).long()
        used = used[torch.isin(used, context.base_ids)]
        return Translations(
            tuple(Holdings(*(part[each.tokens.argsort(stable=True)] for part in each)) for each in held),
            tuple(_shares(spelt, used) for spelt in spellings),
            used,
            words,
            # A word without a vector is as near to all others, and says nothing.
            (
                weights * (targets.frequencies * targets.rows.any(dim=1) / targets.frequencies.sum())[:, None]
            ).float(),
        )


def weigh(known: Translations, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Base tokens that a target token is likely to be, and how likely.

    Args:
        known: The words of each token, and their translations.
        tokens: ``(n,)`` int64 target ids.

    Returns:
        ``(n, 64)`` or fewer int64 base ids, the likeliest first, -1 where there are fewer, and float32
        probabilities, which add up to one.
    """
    likely = torch.zeros((len(tokens), len(known.bases)), dtype=torch.float64)
    for held, spelt in zip(known.held, known.spelt, strict=True):
        meant = torch.zeros((len(tokens), spelt.shape[1]), dtype=torch.float64)
        starts = torch.searchsorted(held.tokens, tokens)
        counts = torch.searchsorted(held.tokens, tokens, right=True) - starts
        row = torch.arange(len(tokens)).repeat_interleave(counts)
        place = torch.arange(len(row)) + (starts - counts.cumsum(dim=0) + counts).repeat_interleave(counts)
        for rows, words in zip(row.split(_PAIRS), held.words[place].split(_PAIRS), strict=True):
            at = rows[:, None] * meant.shape[1] + known.words[words].clamp(min=0)
            meant.view(-1).index_add_(0, at.view(-1), known.weights[words].double().view(-1))
        likely += torch.sparse.mm(spelt, meant.mT.contiguous()).mT
    likely /= likely.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    shares, columns = likely.topk(min(_MOST, len(known.bases)), dim=1)
    shares = shares / shares.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where(shares > 0, known.bases[columns], -1), shares.float()


def _shares(spellings: list[list[int]], bases: Tensor) -> Tensor:
    """``(U, c)`` sparse float64: the share that each base token has in each word's spelling."""
    pairs = [
        (index, word, 1 / len(spelling)) for word, spelling in enumerate(spellings) for index in spelling
    ]
    ids, words, shares = torch.tensor(pairs, dtype=torch.float64).reshape(-1, 3).unbind(dim=1)
    kept = torch.isin(ids.long(), bases)
    at = torch.stack([torch.searchsorted(bases, ids.long()[kept]), words.long()[kept]])
    return torch.sparse_coo_tensor(at, shares[kept], (len(bases), len(spellings)), check_invariants=True)
