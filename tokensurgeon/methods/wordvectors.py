"""Vectors of words and of tokens, for the methods that compare tokens by how a corpus uses them.

P. Bojanowski et al., "Enriching Word Vectors with Subword Information" (fastText), arXiv:1607.04606, by
gensim, on one thread and seeded: two runs give one table. A rotation joins two spaces by a dictionary.
"""

from __future__ import annotations

import logging
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tokensurgeon.errors import InputError
from tokensurgeon.methods.base import InitRows, MethodContext, Segmentation, WordVectors
from tokensurgeon.solvers.linear import rotation
from tokensurgeon.solvers.nearest import NearestIndex
from tokensurgeon.solvers.sparsemax import sparsemax

T = TypeVar("T")

_MOST_WORDS = 200_000
# fastText's default; a rarer word's vector is noise.
_MIN_COUNT = 5
_MOST_BUCKETS = 200_000
# A line is cut here: gensim ignores what is beyond 10,000, fastText cuts at 1,024.
_LINE = 1000
_BLOCK = 2**16

_KEPT: WeakKeyDictionary[Any, dict[Hashable, Any]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Words:
    """Words of one language, in a space that another side may share.

    Attributes:
        words: The most frequent word first.
        rows: ``(n, d)`` float32.
        frequencies: ``(n,)`` float64, in any unit.
    """

    words: list[str]
    rows: Tensor
    frequencies: Tensor


@dataclass(frozen=True)
class TokenVectors:
    """Unit vectors of the tokens that have one.

    Attributes:
        ids: ``(n,)`` int64, ascending.
        rows: ``(n, d)`` float32.
    """

    ids: Tensor
    rows: Tensor

    def find(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Where tokens are.

        Args:
            ids: ``(m,)`` int64, in any order.

        Returns:
            ``(m,)`` int64 rows, zero for tokens without a vector, and ``(m,)`` bool, those with one.
        """
        if not len(self.ids):
            return torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        places = torch.searchsorted(self.ids, ids).clamp(max=len(self.ids) - 1)
        found = self.ids[places] == ids
        return torch.where(found, places, 0), found

    def among(self, ids: Tensor) -> TokenVectors:
        """Those whose token is one of ``(m,)`` ids."""
        kept = torch.isin(self.ids, ids)
        return TokenVectors(self.ids[kept], self.rows[kept])


class Holdings(NamedTuple):
    """Which words hold which tokens, each pair once.

    Attributes:
        tokens: ``(m,)`` int64 ids.
        words: ``(m,)`` int64 places of words.
    """

    tokens: Tensor
    words: Tensor


def once(context: MethodContext, key: Hashable, make: Callable[[], T]) -> T:
    """What the embedding and the lm_head of one run both need: made once, kept as long as its resources.

    Args:
        context: Its resources, seed and lexicon are part of the key.
        key: Names what is made, with all options it depends on.
        make: Makes it.

    Returns:
        What was made, now or before; made anew where resources cannot be a key.
    """
    try:
        kept = _KEPT.setdefault(context.resources, {})
    except TypeError:
        kept = {}
    lexicon = context.lexicon
    told = hash(tuple(tuple(part.items()) for part in (lexicon.target, lexicon.base, lexicon.base_of)))
    full = (key, told, context.generator.initial_seed())
    if full not in kept:
        kept[full] = make()
    made: T = kept[full]
    return made


def train(
    sentences: Sequence[list[str]],
    *,
    dim: int,
    epochs: int,
    min_count: int,
    ngrams: tuple[int, int],
    seed: int,
) -> Words:
    """FastText vectors by continuous bag of words; 10 negatives, the rest as fastText has it.

    Args:
        sentences: Lists of words.
        dim: Width of the vectors.
        epochs: Times the sentences are read.
        min_count: Rarer words are left out.
        ngrams: Least and greatest length of the character n-grams.
        seed: Two runs with one seed give one table.

    Returns:
        At most 200,000 words with their counts.
    """
    counts = Counter(word for sentence in sentences for word in sentence)
    kept = [pair for pair in counts.most_common(_MOST_WORDS) if pair[1] >= min_count]
    words = [word for word, _ in kept]
    frequencies = torch.tensor([count for _, count in kept], dtype=torch.float64)
    if not words:
        return Words(words, torch.zeros((0, dim)), frequencies)
    from gensim.models.fasttext import FastText  # type: ignore[import-untyped, unused-ignore]

    lines = [line[start : start + _LINE] for line in sentences for start in range(0, len(line), _LINE)]
    log = logging.getLogger("gensim")
    level = log.level
    # It warns that small corpora train badly, which the size of the corpus says as well.
    log.setLevel(logging.ERROR)
    try:
        model = FastText(
            vector_size=dim,
            alpha=0.05,
            window=5,
            min_count=1,
            sample=1e-4,
            negative=10,
            min_n=ngrams[0],
            max_n=ngrams[1],
            # Few words need few buckets: an empty one costs as much as a full one.
            bucket=min(_MOST_BUCKETS, 64 * len(words)),
            workers=1,
            seed=seed % 2**32,
            hashfxn=lambda word: zlib.crc32(word.encode()),
            sorted_vocab=0,
        )
        model.build_vocab_from_freq(dict(kept), corpus_count=len(lines))
        model.train(lines, total_examples=len(lines), epochs=epochs)
    finally:
        log.setLevel(level)
    return Words(words, torch.from_numpy(model.wv.vectors[: len(words)].copy()), frequencies)


def token_names(tokens: Mapping[int, bytes]) -> dict[int, str]:
    """A string for each token, no two alike, that shares its letters with those of similar tokens.

    Args:
        tokens: Bytes by id.

    Returns:
        Names by id; a space is written as ▁.
    """
    names: dict[int, str] = {}
    taken: set[str] = set()
    for index, data in tokens.items():
        name = data.decode("utf-8", "backslashreplace").replace(" ", "▁")
        names[index] = f"{name}\0{index}" if name in taken else name
        taken.add(names[index])
    return names


def named_vectors(words: Words, names: Mapping[int, str]) -> TokenVectors:
    """Unit vectors of tokens that are words of a corpus themselves.

    Args:
        words: From ``train``, on names.
        names: Names by id.

    Returns:
        Vectors of the tokens whose name has one.
    """
    at = {word: place for place, word in enumerate(words.words)}
    pairs = [(index, at[name]) for index, name in sorted(names.items()) if name in at]
    ids, places = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(dim=1)
    return mean_vectors(Holdings(ids, places), words.rows, torch.ones(len(words.words), dtype=torch.float64))


def word_spaces(context: MethodContext, dim: int, epochs: int) -> tuple[Words, Words]:
    """Words of the target's language and of the base's, in one space.

    The recipe's vectors where it brings any, the target's turned into the base's space by the dictionary;
    else vectors trained on the corpus, for both sides the same. Given words occur by Zipf's law, in their
    order.

    Args:
        context: Where the resources are.
        dim: Width of trained vectors.
        epochs: Of training.

    Returns:
        Target words, then base words.

    Raises:
        InputError: The two sides' vectors cannot be brought together.
    """
    resources = context.resources

    def train_on_words() -> Words:
        seed = context.generator.initial_seed()
        lines = [line.split() for line in resources.corpus]
        return train(lines, dim=dim, epochs=epochs, min_count=_MIN_COUNT, ngrams=(5, 5), seed=seed)

    given, other = resources.target_vectors, resources.base_vectors
    target = _given(given) if given is not None else once(context, ("words", dim, epochs), train_on_words)
    if other is None:
        return target, target
    base = _given(other)
    if resources.dictionary:
        turned = target.rows @ align(target, base, resources.dictionary)
        return replace(target, rows=turned), base
    width, expected = target.rows.shape[1], base.rows.shape[1]
    if given is None or width != expected:
        origin = "trained on the corpus" if given is None else "given"
        raise InputError(
            f"word vectors of the target ({origin}, {width} wide) and of the base ({expected} wide)",
            "given vectors of both in one space, or a dictionary that turns one into the other",
            "name resources.dictionary",
        )
    return target, base


def _given(vectors: WordVectors) -> Words:
    words = vectors.words[:_MOST_WORDS]
    return Words(words, vectors.rows[: len(words)].float(), 1 / torch.arange(1.0, len(words) + 1).double())


def align(target: Words, base: Words, dictionary: Sequence[tuple[str, str]]) -> Tensor:
    """The rotation of target words onto the base words that they translate, all of unit length.

    Args:
        target: Words to turn.
        base: Words to turn them onto.
        dictionary: Base words and their translations; both are looked up in lower and title case as well.

    Returns:
        ``(d_target, d_base)`` float32.

    Raises:
        InputError: No pair has vectors on both sides.
    """
    here, there = ({word: place for place, word in enumerate(side.words)} for side in (base, target))
    pairs = {
        (here[one], there[two]): None
        for word, translation in dictionary
        for one in (word, word.lower(), word.title())
        for two in (translation, translation.lower(), translation.title())
        if one in here and two in there
    }
    if not pairs:
        raise InputError(
            f"dictionary of {len(dictionary)} pairs, of which none has word vectors on both sides",
            "base words and their translations, in that order, among the words with vectors",
            "look at resources.dictionary",
        )
    bases, targets = torch.tensor(list(pairs)).unbind(dim=1)
    unit = torch.nn.functional.normalize
    turn, _ = rotation(unit(target.rows[targets], dim=1), unit(base.rows[bases], dim=1))
    return turn


def bare(word: str) -> str:
    """The word."""
    return word


def spaced(word: str) -> str:
    """The word after a space, as most words of a text stand."""
    return " " + word


def capital(word: str) -> str:
    """The word with a capital."""
    return word[:1].upper() + word[1:]


def spaced_capital(word: str) -> str:
    """The word with a capital, after a space."""
    return spaced(capital(word))


def hold(
    words: Sequence[str], segment: Callable[[str], Segmentation], forms: Sequence[Callable[[str], str]]
) -> Holdings:
    """Cut every word, in every form, into tokens.

    Args:
        words: Any number of them.
        segment: Cuts a text into tokens.
        forms: Ways to write a word.

    Returns:
        Each token of each word once, in whatever forms it is in it.
    """
    tokens, places = array("q"), array("q")
    for place, word in enumerate(words):
        held = sorted({index for text in {form(word) for form in forms} for index in segment(text).ids})
        tokens.extend(held)
        places.extend([place] * len(held))
    return Holdings(torch.tensor(tokens.tolist(), dtype=torch.int64), torch.tensor(places.tolist()).long())


def mean_vectors(holdings: Holdings, rows: Tensor, weights: Tensor) -> TokenVectors:
    """Directions of the mean of the words that hold a token.

    Args:
        holdings: The words of each token.
        rows: ``(n, d)`` vectors of the words.
        weights: ``(n,)`` float64 weights of the words.

    Returns:
        Tokens with a mean that is not zero.
    """
    ids, places = holdings.tokens.unique(return_inverse=True)
    sums = torch.zeros((len(ids), rows.shape[1]), dtype=torch.float64)
    for at, words in zip(places.split(_BLOCK), holdings.words.split(_BLOCK), strict=True):
        sums.index_add_(0, at, rows[words].double() * weights[words, None])
    norms = sums.norm(dim=1)
    kept = (norms > 0) & torch.isfinite(norms)
    return TokenVectors(ids[kept], (sums[kept] / norms[kept, None]).float())


def by_softmax(
    vectors: Tensor, candidates: NearestIndex, bases: Tensor, k: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """The nearest candidates by cosine, by softmax.

    Args:
        vectors: ``(n, d)`` of tokens.
        candidates: ``(m, d)`` of base tokens.
        bases: ``(m,)`` int64 base ids of the candidates.
        k: Candidates a token.
        temperature: Of the softmax.

    Returns:
        ``(n, min(k, m))`` int64 base ids and float32 coefficients, which add up to one.
    """
    near = candidates.search(vectors, k)
    weights = (near.similarities.cpu().double() / temperature).softmax(dim=1)
    return bases[near.indices.cpu()], weights.float()


def by_sparsemax(
    vectors: Tensor, candidates: NearestIndex, bases: Tensor, k: int, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The nearest candidates by cosine, by sparsemax.

    Args:
        vectors: ``(n, d)`` of tokens.
        candidates: ``(m, d)`` of base tokens.
        bases: ``(m,)`` int64 base ids of the candidates.
        k: Candidates a token at most; where fewer are taken, sparsemax over all would take the same.
        temperature: Cosines are divided by it.

    Returns:
        ``(n, s)`` int64 base ids, -1 where there are fewer, and float32 coefficients, which add up to one.
    """
    near = candidates.search(vectors, k)
    if not near.indices.shape[1]:
        return near.indices.cpu(), near.similarities.cpu()
    columns, weights = sparsemax(near.similarities.cpu().double() / temperature)
    chosen = bases[near.indices.cpu().gather(1, columns.clamp(min=0))]
    return torch.where(columns >= 0, chosen, -1), weights.float()


def combine_near(
    context: MethodContext,
    vectors: TokenVectors,
    weigh: Callable[[Tensor], tuple[Tensor, Tensor]],
    width: int,
    finish: Callable[[InitRows], InitRows] = lambda made: made,
) -> InitRows:
    """Rows of the wanted tokens that have a vector, batch by batch.

    Args:
        context: What is wanted.
        vectors: Of target tokens.
        weigh: Base ids ``(n, s)`` and coefficients for rows ``(n,)`` of the vectors, ``s`` at most ``width``.
        width: Base tokens a row at most.
        finish: Changes the rows of a batch.

    Returns:
        Rows with no more columns of sources than the fullest of them needs.
    """

    def solve(span: slice) -> InitRows:
        places, found = vectors.find(context.wanted[span])
        near, weights = weigh(places[found])
        sources = torch.full((len(found), width), -1)
        coefs = torch.zeros((len(found), width))
        sources[found, : near.shape[1]] = near
        coefs[found, : near.shape[1]] = weights
        # Few tokens need the whole width, and combining takes memory for each column.
        most = _count_columns(sources)
        made = context.combine(sources[:, :most], coefs[:, :most])
        return finish(replace(made, sources=sources, coefs=coefs))

    made = context.in_batches(solve)
    assert made.sources is not None and made.coefs is not None
    most = _count_columns(made.sources)
    return replace(made, sources=made.sources[:, :most].clone(), coefs=made.coefs[:, :most].clone())


def _count_columns(sources: Tensor) -> int:
    """Columns that have a source; at least one, if there are any."""
    return max(int((sources >= 0).sum(dim=1).max()) if sources.numel() else 0, min(1, sources.shape[1]))
