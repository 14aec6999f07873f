"""Base tokens that a token is aligned with.

F. Remy et al., "Trans-Tokenization and Cross-lingual Vocabulary Transfers", arXiv:2408.04303. With parallel
text, its words are aligned by IBM model 1 with a prior that favours the diagonal (C. Dyer et al., fast_align,
NAACL 2013): half of a word pair's expected count goes from each piece of one word to all pieces of the other,
half to the pieces at the same place in it. Without, every line of the corpus is cut twice, and a token counts
the base tokens it shares bytes with, by their share of its bytes. A row is the mean of the aligned base rows,
weighted by count. A token met too rarely takes the mean of what the largest tokens inside it stand for. The
authors' code drops rare pairs of words instead, rounds counts, and lets smoothed tokens smooth others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokensurgeon.methods.base import InitRows, MethodContext, Segmentation
from tokensurgeon.methods.params import TranstokenizerParams

Ints = NDArray[Any]
Floats = NDArray[Any]
Mixture = dict[int, float]
"""Weights of base ids, which add up to one."""

# Words of a line; a longer one is cut, for all its words are compared with all of the other line.
_LONGEST_LINE = 128
_MOST_SOURCES = 64
_TENSION = 4.0
_NULL = 0.08
_ROUNDING = 1e-6


class Counts(NamedTuple):
    """How often target tokens are aligned with base tokens; a pair may occur more than once.

    Attributes:
        targets: ``(n,)`` target ids.
        bases: ``(n,)`` base ids.
        weights: ``(n,)`` counts.
    """

    targets: Ints
    bases: Ints
    weights: Floats


class Transtokenizer:
    """Combine the base tokens that a token is aligned with."""

    def __init__(self, params: TranstokenizerParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Align, then smooth; a token without any aligned token inside it is not served."""
        parallel = context.resources.parallel
        counts = count_words(context, self.params.iterations) if parallel else count_bytes(context)
        aligned = to_mixtures(counts, self.params.min_count)
        known = known_mixtures(context, aligned)
        longest = max(map(len, known), default=0)
        mixtures = []
        for index in context.wanted.tolist():
            data = context.lexicon.target.get(index, b"")
            mixtures.append(aligned.get(index) or inherit(data, known, longest))
        sources, coefs = to_tensors(mixtures)
        return context.in_batches(lambda span: context.combine(sources[span], coefs[span]))


def find_spans(segmentation: Segmentation, tokens: Mapping[int, bytes]) -> tuple[Ints, Ints, Ints]:
    """Ids, starts and ends in bytes; tokens that end together share one span.

    Args:
        segmentation: A text as tokens.
        tokens: Their bytes. A token starts no earlier than these say: what is left out before it is not its.

    Returns:
        Three arrays ``(n,)``; starts and ends do not fall.
    """
    ids, ends = (np.array(part, dtype=np.int64) for part in segmentation)
    before = np.concatenate([np.zeros(1, np.int64), ends[:-1]])[: len(ends)]
    opens = ends != before
    starts = np.maximum.accumulate(np.where(opens, before, 0))
    alone = opens & np.append(opens[1:], True)[: len(ends)]
    sizes = np.array([len(tokens.get(index, b"")) for index in segmentation.ids], dtype=np.int64)
    return ids, np.where(alone, np.maximum(starts, ends - sizes), starts), ends


def count_bytes(context: MethodContext) -> Counts:
    """Cut every line of the corpus twice and count, for each wanted token, base tokens by shared bytes."""
    lexicon = context.lexicon
    wanted, usable = set(context.wanted.tolist()), set(context.base_ids.tolist())
    parts = [Counts(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for line in context.resources.corpus:
        ids, starts, ends = find_spans(lexicon.segment_target(line), lexicon.target)
        chosen = np.array([index in wanted for index in ids.tolist()], dtype=bool)
        if not chosen.any():
            continue
        bases, base_starts, base_ends = find_spans(lexicon.segment_base(line), lexicon.base)
        kept = np.array([index in usable for index in bases.tolist()], dtype=bool)
        spans = starts[chosen], ends[chosen], base_starts[kept], base_ends[kept]
        parts.append(_overlaps(ids[chosen], bases[kept], *spans))
    return Counts(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _overlaps(targets: Ints, bases: Ints, starts: Ints, ends: Ints, lows: Ints, highs: Ints) -> Counts:
    """Counts of one line; every token that meets a base token counts one in all."""
    first, last = np.searchsorted(highs, starts, "right"), np.searchsorted(lows, ends, "left")
    sizes = np.maximum(last - first, 0)
    token = np.repeat(np.arange(len(targets)), sizes)
    place = np.arange(len(token)) - np.repeat(sizes.cumsum() - sizes, sizes) + first[token]
    shared = np.minimum(ends[token], highs[place]) - np.maximum(starts[token], lows[place])
    shared = np.maximum(shared, 0).astype(np.float64)
    totals = np.bincount(token, shared, len(targets))[token]
    return Counts(targets[token], bases[place], shared / np.where(totals > 0, totals, 1))


def count_words(context: MethodContext, iterations: int) -> Counts:
    """Align the words of parallel text and count pieces with pieces; words are told apart by their pieces.

    Args:
        context: What is wanted.
        iterations: Rounds of the aligner.

    Returns:
        Expected counts of the wanted tokens.
    """
    lexicon = context.lexicon
    usable = set(context.base_ids.tolist())
    base_words: dict[tuple[int, ...], int] = {(): 0}
    target_words: dict[tuple[int, ...], int] = {}
    lines = []
    for base_text, target_text in context.resources.parallel:
        bases = _words(base_text, lexicon.segment_base(base_text), lexicon.base)
        bases = [tuple(index for index in word if index in usable) for word in bases[:_LONGEST_LINE]]
        targets = _words(target_text, lexicon.segment_target(target_text), lexicon.target)[:_LONGEST_LINE]
        lines.append(
            (
                np.array([base_words.setdefault(word, len(base_words)) for word in bases if word], np.int64),
                np.array([target_words.setdefault(word, len(target_words)) for word in targets], np.int64),
            )
        )
    base_word, target_word, counts = align(lines, len(base_words), iterations)
    met = base_word > 0
    found = base_word[met], target_word[met], counts[met]
    return _spread(list(base_words), list(target_words), *found, context.wanted.numpy())


def _words(text: str, segmentation: Segmentation, tokens: Mapping[int, bytes]) -> list[tuple[int, ...]]:
    """The words of a text that are not left out whole, as their tokens; one may belong to several words."""
    ids, starts, ends = find_spans(segmentation, tokens)
    words, low = [], 0
    for place, part in enumerate(re.split(r"(\s+)", text)):
        high = low + len(part.encode())
        if part and place % 2 == 0:
            first, last = np.searchsorted(ends, low, "right"), np.searchsorted(starts, high, "left")
            words.append(tuple(ids[first:last].tolist()))
        low = high
    return [word for word in words if word]


def align(lines: Sequence[tuple[Ints, Ints]], base_words: int, iterations: int) -> tuple[Ints, Ints, Floats]:
    """Expectation maximisation of ``p(target word | base word)`` times a prior of the two places.

    Args:
        lines: Base words, which are not 0, and target words of each pair of lines.
        base_words: How many there are, with 0, which stands for no word.
        iterations: Rounds.

    Returns:
        Base words, target words and expected counts of the pairs that occur, ``(n,)`` each.
    """
    codes, priors, sizes = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)], [np.zeros(0, np.int64)]
    for bases, targets in lines:
        if len(bases) and len(targets):
            codes.append((targets[:, None] * base_words + np.append(0, bases)).ravel())
            priors.append(_prior(len(bases), len(targets)).ravel())
            sizes.append(np.full(len(targets), len(bases) + 1))
    pairs, pair = np.unique(np.concatenate(codes), return_inverse=True)
    prior, size = np.concatenate(priors), np.concatenate(sizes)
    base_word = pairs % base_words
    counts: Floats = np.zeros(len(pairs))
    chances: Floats = np.ones(len(pairs))
    for _ in range(iterations if len(pairs) else 0):
        scores = chances[pair] * prior
        scores /= np.repeat(np.add.reduceat(scores, size.cumsum() - size), size)
        counts = np.bincount(pair, scores, len(pairs))
        chances = counts / np.bincount(base_word, counts)[base_word]
    return base_word, pairs // base_words, counts


def _prior(bases: int, targets: int) -> NDArray[np.float32]:
    """``(targets, 1 + bases)`` chances of each place before the words are known; the first is no word."""
    apart = np.abs(np.arange(1, targets + 1)[:, None] / targets - np.arange(1, bases + 1)[None, :] / bases)
    near = np.exp(-_TENSION * apart)
    near *= (1 - _NULL) / near.sum(axis=1, keepdims=True)
    return np.concatenate([np.full((targets, 1), _NULL), near], axis=1).astype(np.float32)


def _spread(
    base_words: Sequence[tuple[int, ...]],
    target_words: Sequence[tuple[int, ...]],
    base_word: Ints,
    target_word: Ints,
    counts: Floats,
    wanted: Ints,
) -> Counts:
    """From pairs of words to pairs of pieces; each piece of a target word has the word's count in all."""
    base_sizes, target_sizes = (
        np.array([len(word) for word in words]) for words in (base_words, target_words)
    )
    parts = [Counts(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    asked = set(wanted.tolist())
    useful = np.array([not asked.isdisjoint(word) for word in target_words], dtype=bool)[target_word]
    base_word, target_word, counts = base_word[useful], target_word[useful], counts[useful]
    longest = int(base_sizes.max()) + 1
    shapes = target_sizes[target_word] * longest + base_sizes[base_word] if len(counts) else base_word
    # Pairs of one shape at a time, so that their pieces are matrices.
    order = np.argsort(shapes, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(shapes[order])) + 1 if len(order) else []):
        if not len(group):
            continue
        bases = np.array([base_words[word] for word in base_word[group]])[:, None, :]
        targets = np.array([target_words[word] for word in target_word[group]])[:, :, None]
        shares = _shares(targets.shape[1], bases.shape[2])
        weights = counts[group, None, None] * shares
        chosen = np.broadcast_to(np.isin(targets, wanted), weights.shape)
        columns = np.broadcast_to(targets, weights.shape), np.broadcast_to(bases, weights.shape), weights
        parts.append(Counts(*(column[chosen] for column in columns)))
    return Counts(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _shares(targets: int, bases: int) -> Floats:
    """``(targets, bases)``, rows adding up to one: half everywhere, half along the diagonal."""
    rows, columns = np.arange(targets)[:, None], np.arange(bases)[None, :]
    # In units of 1 / (targets * bases), whole numbers.
    low = np.maximum(rows * bases, columns * targets)
    high = np.minimum((rows + 1) * bases, (columns + 1) * targets)
    return np.asarray(0.5 / bases + 0.5 * np.maximum(high - low, 0) / bases)


def to_mixtures(counts: Counts, min_count: float) -> dict[int, Mixture]:
    """Shares of the base tokens for each target token that is aligned often enough.

    Args:
        counts: Aligned tokens.
        min_count: Least count of a token in all.

    Returns:
        By target id; the largest 64 shares each, which add up to one.
    """
    if not len(counts.weights):
        return {}
    width = int(counts.bases.max()) + 1
    pairs, place = np.unique(counts.targets * width + counts.bases, return_inverse=True)
    weights = np.bincount(place, counts.weights, len(pairs))
    targets, starts = np.unique(pairs // width, return_index=True)
    found = {}
    for index, bases, parts in zip(
        targets.tolist(), np.split(pairs % width, starts[1:]), np.split(weights, starts[1:]), strict=True
    ):
        total = float(parts.sum())
        if total > 0 and total + _ROUNDING >= min_count:
            found[index] = _largest(dict(zip(bases.tolist(), parts.tolist(), strict=True)))
    return found


def _largest(weights: Mixture) -> Mixture:
    kept = sorted(((weight, -index) for index, weight in weights.items() if weight > 0), reverse=True)[
        :_MOST_SOURCES
    ]
    total = sum(weight for weight, _ in kept)
    return {-index: weight / total for weight, index in kept}


def known_mixtures(context: MethodContext, aligned: Mapping[int, Mixture]) -> dict[bytes, Mixture]:
    """What is known by bytes: a token's base counterpart or, where there is one, its alignment."""
    usable = set(context.base_ids.tolist())
    known = {}
    for index, base in sorted(context.lexicon.base_of.items()):
        data = context.lexicon.target.get(index)
        if data and base in usable:
            known[data] = {base: 1.0}
    return known | {context.lexicon.target[index]: aligned[index] for index in sorted(aligned)}


def inherit(data: bytes, known: Mapping[bytes, Mixture], longest: int) -> Mixture:
    """The mean of the mixtures of all known substrings that lie inside no other known one.

    Args:
        data: A token.
        known: Mixtures by bytes.
        longest: Length of the longest of them.

    Returns:
        A mixture; empty where no substring is known.
    """
    found: Mixture = {}
    reached = 0
    for start in range(len(data)):
        ends = range(min(len(data), start + longest), reached, -1)
        end = next((end for end in ends if end > start and data[start:end] in known), None)
        if end is not None:
            reached = end
            for base, weight in known[data[start:end]].items():
                found[base] = found.get(base, 0.0) + weight
    return _largest(found)


def to_tensors(mixtures: Sequence[Mixture]) -> tuple[Tensor, Tensor]:
    """Mixtures side by side.

    Args:
        mixtures: One a token.

    Returns:
        ``(n, k)`` int64 base ids, -1 where there are fewer, and ``(n, k)`` float32 coefficients.
    """
    width = max((len(mixture) for mixture in mixtures), default=0)
    sources = torch.full((len(mixtures), max(width, 1)), -1, dtype=torch.int64)
    coefs = torch.zeros(sources.shape)
    for row, mixture in enumerate(mixtures):
        if mixture:
            sources[row, : len(mixture)] = torch.tensor(list(mixture))
            coefs[row, : len(mixture)] = torch.tensor(list(mixture.values()))
    return sources, coefs
