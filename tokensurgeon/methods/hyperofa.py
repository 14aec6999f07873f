"""What a small network reads out of the vectors of a token's words.

E. Özeren, Y. Liu, H. Schütze, "HyperOFA: Expanding LLM Vocabulary to New Languages via Hypernetwork-Based
Embedding Initialization", arXiv:2504.21018: a network learns to predict the rows of base tokens from the set
of vectors of the words that hold them, by 0.1 times a contrastive and 0.9 times a normalised L1 loss, and
then predicts the rows of missing tokens. Unlike the authors', the network pools a set by attention, learns
in minutes and predicts standardised rows; words are dropped with the probability the paper gives, not its
complement; and tokens that no word holds are left to the next method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, gelu, linear, normalize

from tokensurgeon.console import track
from tokensurgeon.methods.base import InitRows, MethodContext
from tokensurgeon.methods.params import HyperofaParams
from tokensurgeon.methods.wordvectors import Holdings, bare, hold, once, spaced, word_spaces

_FORMS = (bare, spaced)
_CONTRAST = 0.25
_SHARES = (0.1, 0.9)


@dataclass(frozen=True)
class WordSets:
    """The most frequent words of each token that has any.

    Attributes:
        ids: ``(n,)`` int64, ascending.
        words: ``(n, context)`` int64 places of words, -1 where there are fewer.
        vectors: ``(w, d)`` float32 vectors of the words, of the length of a standard normal one.
    """

    ids: Tensor
    words: Tensor
    vectors: Tensor


class Hyperofa:
    """Learn rows of base tokens from their words, then predict others."""

    def __init__(self, params: HyperofaParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Train on the base's tokens, predict the wanted ones that have words."""
        key = ("hyperofa", self.params.dim, self.params.epochs, self.params.context)
        targets, bases = once(context, key, lambda: self.word_sets(context))
        known = torch.isin(bases.ids, context.base_ids)
        learnt = WordSets(bases.ids[known], bases.words[known], bases.vectors)
        predict = self.train(context, learnt) if len(learnt.ids) else None
        places = {index: place for place, index in enumerate(targets.ids.tolist())}

        def solve(span: slice) -> InitRows:
            at = torch.tensor([places.get(index, -1) for index in context.wanted[span].tolist()]).long()
            served = (at >= 0) & (predict is not None)
            rows = context.base_mean.repeat(len(at), 1)
            if predict is not None and served.any():
                with torch.no_grad():
                    rows[served.to(rows.device)] = predict(targets.words[at[served]], targets.vectors)
            return InitRows(rows, served=served)

        return context.in_batches(solve)

    def word_sets(self, context: MethodContext) -> tuple[WordSets, WordSets]:
        """Words of target tokens and of base tokens, in one space.

        Args:
            context: Where words and tokenizers are.

        Returns:
            Target tokens, then base tokens.
        """
        lexicon = context.lexicon
        sides = word_spaces(context, self.params.dim, self.params.epochs)
        sets = []
        for side, segment in zip(sides, (lexicon.segment_target, lexicon.segment_base), strict=True):
            ids, words = gather(hold(side.words, segment, _FORMS), self.params.context)
            sets.append(WordSets(ids, words, normalize(side.rows, dim=1) * sqrt(side.rows.shape[1])))
        return sets[0], sets[1]

    def train(self, context: MethodContext, sets: WordSets) -> Callable[[Tensor, Tensor], Tensor]:
        """Learn to predict base rows.

        Args:
            context: Where the base's rows are; its generator's seed makes the run repeatable.
            sets: Words of at least one base token.

        Returns:
            A function from ``(n, c)`` places of words and ``(w, d)`` vectors to ``(n, d_base)`` float32 rows.
        """
        generator = torch.Generator().manual_seed(context.generator.initial_seed())
        rows = context.base(sets.ids)
        mean = rows.mean(dim=0)
        # A dimension that never changes is its mean, whatever is predicted.
        spread = rows.std(dim=0, correction=0)
        standard = (rows - mean) / torch.where(spread > 0, spread, 1)
        sizes = (sets.vectors.shape[1], self.params.hidden, rows.shape[1])
        weights = start_network(*sizes, generator, context.device)
        optimizer = torch.optim.Adam(list(weights.values()), lr=self.params.learning_rate)
        order = torch.empty(0, dtype=torch.int64)
        for step in track(range(self.params.steps), "hyperofa: training"):
            optimizer.param_groups[0]["lr"] = self.params.learning_rate * (1 - step / self.params.steps)
            if not len(order):
                order = torch.randperm(len(sets.ids), generator=generator)
            batch, order = order[: self.params.batch], order[self.params.batch :]
            words = drop_words(sets.words[batch], generator)
            predicted = run_network(weights, *look_up(words, sets.vectors, context.device))
            loss = measure(predicted, standard[batch.to(standard.device)])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        def predict(words: Tensor, vectors: Tensor) -> Tensor:
            return run_network(weights, *look_up(words, vectors, context.device)) * spread + mean

        return predict


def gather(holdings: Holdings, most: int) -> tuple[Tensor, Tensor]:
    """The first words of each token.

    Args:
        holdings: Words by falling frequency, and their tokens.
        most: Words a token.

    Returns:
        ``(n,)`` int64 ids, ascending, and ``(n, most)`` int64 places of words, -1 where there are fewer.
    """
    order = holdings.tokens.argsort(stable=True)
    ids, counts = holdings.tokens[order].unique_consecutive(return_counts=True)
    starts = counts.cumsum(dim=0) - counts
    column = torch.arange(len(order)) - starts.repeat_interleave(counts)
    words = torch.full((len(ids), most), -1)
    row = torch.arange(len(ids)).repeat_interleave(counts)
    kept = column < most
    words[row[kept], column[kept]] = holdings.words[order][kept]
    return ids, words


def drop_words(words: Tensor, generator: torch.Generator) -> Tensor:
    """Random subsets: with even chances a token of more than four words keeps 50 to 100 % of them.

    Args:
        words: ``(n, c)`` int64, -1 where there are fewer.
        generator: Random numbers.

    Returns:
        ``(n, c)`` int64, -1 for dropped words as well.
    """
    counts = (words >= 0).sum(dim=1)
    share = 0.5 + 0.5 * torch.rand(len(words), generator=generator)
    drops = (torch.rand(len(words), generator=generator) < 0.5) & (counts > 4)
    keep = torch.where(drops, (share * counts).ceil().long(), counts)
    score = torch.rand(words.shape, generator=generator).masked_fill(words < 0, 2)
    place = score.argsort(dim=1).argsort(dim=1)
    return torch.where(place < keep[:, None], words, -1)


def look_up(words: Tensor, vectors: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Vectors ``(n, c, d)`` of words ``(n, c)``, and which of them are words ``(n, c)``."""
    return vectors[words.clamp(min=0)].to(device), (words >= 0).to(device)


def start_network(
    width: int, hidden: int, out: int, generator: torch.Generator, device: torch.device
) -> dict[str, Tensor]:
    """Weights of a network that is yet to learn.

    Args:
        width: Of word vectors.
        hidden: Of the hidden layers.
        out: Of the rows.
        generator: Random numbers.
        device: Where the weights shall be.

    Returns:
        Weights by name, which want gradients.
    """
    shapes = {"word": (hidden, width), "query": (1, hidden), "middle": (hidden, hidden), "row": (out, hidden)}
    weights = {}
    for name, shape in shapes.items():
        drawn = torch.randn(shape, generator=generator) / sqrt(shape[1])
        weights[name] = drawn.to(device).requires_grad_()
        weights[f"{name}_bias"] = torch.zeros(shape[0], device=device, requires_grad=True)
    return weights


def run_network(weights: dict[str, Tensor], vectors: Tensor, is_word: Tensor) -> Tensor:
    """Predict standardised rows: a layer a word, attention by a learnt query, two layers.

    Args:
        weights: From ``start_network``.
        vectors: ``(n, c, d)``.
        is_word: ``(n, c)`` bool, at least one in each row.

    Returns:
        ``(n, d_base)`` float32.
    """
    words = gelu(linear(vectors, weights["word"], weights["word_bias"]))
    score = linear(words, weights["query"])[:, :, 0].masked_fill(~is_word, -torch.inf)
    pooled = (words * score.softmax(dim=1)[:, :, None]).sum(dim=1)
    return linear(
        gelu(linear(pooled, weights["middle"], weights["middle_bias"])), weights["row"], weights["row_bias"]
    )


def measure(predicted: Tensor, truth: Tensor) -> Tensor:
    """0.1 times InfoNCE over the batch plus 0.9 times L1 in units of the mean absolute entry.

    Args:
        predicted: ``(n, d)``.
        truth: ``(n, d)``.

    Returns:
        The loss, a scalar.
    """
    scores = normalize(predicted, dim=1) @ normalize(truth, dim=1).mT / _CONTRAST
    contrast = cross_entropy(scores, torch.arange(len(truth), device=truth.device))
    size = truth.abs().mean().clamp(min=torch.finfo(torch.float32).tiny)
    return _SHARES[0] * contrast + _SHARES[1] * (predicted - truth).abs().mean() / size
