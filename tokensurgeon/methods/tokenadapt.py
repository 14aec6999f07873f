"""Pieces of a token and base tokens like it, both weighted by a text encoder.

S. Sharthak et al., "Achieving Tokenizer Flexibility in Language Models through Heuristic Adaptation and
Supertoken Learning", arXiv:2505.09738: a row is ``(1 - weight) local + weight global``. Local are the pieces,
by a softmax of half the sum of the softmax of their similarities to the token and of their shares of its
bytes; global are the most similar base tokens, by a softmax of their similarities. Where one of the two is
missing the other stands alone. The encoder reads a token without the spaces before it, so a word at the start
of a line and the same word inside it are one text. The authors' code embeds fragments of characters as
replacement characters, counts characters instead of bytes, and gives a token without either a random row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokensurgeon.methods.base import InitRows, MethodContext
from tokensurgeon.methods.params import TokenadaptParams
from tokensurgeon.solvers.nearest import build_index

_NONE = float("-inf")

Encode = Callable[[Sequence[str]], Tensor]


class Tokenadapt:
    """Combine pieces with similar base tokens."""

    def __init__(self, params: TokenadaptParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Weigh both; a token that is no text on its own, such as part of a character, is not served."""
        lexicon, resources = context.lexicon, context.resources
        base = Texts.embed(resources.embed_texts, lexicon.base, context.base_ids.tolist())
        target = Texts.embed(resources.embed_texts, lexicon.target, context.wanted.tolist())
        if not len(base.ids) or not len(target.ids):
            none = torch.full((len(context.wanted), 1), -1, dtype=torch.int64)
            return context.in_batches(lambda span: context.combine(none[span], torch.zeros(none[span].shape)))
        near = build_index(base.vectors, device=context.device)
        longest = max(map(len, context.pieces), default=0)

        def solve(span: slice) -> InitRows:
            places = torch.tensor(
                [target.places.get(index, -1) for index in context.wanted[span].tolist()], dtype=torch.int64
            )
            textual = places >= 0
            queries = target.vectors[places.clamp(min=0)]
            pieces, local = self.local(context, span, base, queries, longest)
            found = near.search(queries, self.params.k)
            overall = self.overall(found.similarities.cpu())
            similar = base.ids[found.indices.cpu()]
            share = torch.full((len(places), 1), self.params.weight)
            share = torch.where((local > 0).any(dim=1, keepdim=True), share, 1)
            share = torch.where((overall > 0).any(dim=1, keepdim=True), share, 0)
            coefs = torch.cat([(1 - share) * local, share * overall], dim=1) * textual[:, None]
            sources = torch.where(coefs > 0, torch.cat([pieces, similar], dim=1), -1)
            return context.combine(sources, coefs)

        return context.in_batches(solve)

    def local(
        self, context: MethodContext, span: slice, base: Texts, queries: Tensor, longest: int
    ) -> tuple[Tensor, Tensor]:
        """Pieces of a batch and their weights; one that is no text is similar to nothing.

        Args:
            context: What is wanted.
            span: The batch.
            base: Texts of the base.
            queries: ``(n, d)`` unit vectors of the tokens.
            longest: Most pieces of any token.

        Returns:
            ``(n, longest)`` int64 base ids, -1 where there are fewer, and ``(n, longest)`` float32 weights.
        """
        lexicon = context.lexicon
        pieces = torch.full((len(queries), longest), -1, dtype=torch.int64)
        places, lengths = pieces.clone(), torch.zeros(pieces.shape)
        tokens = context.wanted[span].tolist()
        for row, (index, spelt) in enumerate(zip(tokens, context.pieces[span], strict=True)):
            size = max(len(lexicon.target.get(index, b"")), 1)
            for column, piece in enumerate(spelt):
                pieces[row, column] = piece
                places[row, column] = base.places.get(piece, -1)
                lengths[row, column] = len(lexicon.base.get(piece, b"")) / size
        vectors = base.vectors[places.clamp(min=0)]
        similarities = (vectors * queries[:, None]).sum(dim=2) * (places >= 0)
        used = pieces >= 0
        first = similarities.masked_fill(~used, _NONE).softmax(dim=1).nan_to_num(0.0)
        scores = (first + lengths) / 2 / self.params.temperature
        return pieces, scores.masked_fill(~used, _NONE).softmax(dim=1).nan_to_num(0.0)

    def overall(self, similarities: Tensor) -> Tensor:
        """Weights of similar tokens.

        Args:
            similarities: ``(n, k)`` float32.

        Returns:
            ``(n, k)`` float32, zero below the threshold, and everywhere where all are below it.
        """
        scores = similarities / self.params.temperature
        return scores.masked_fill(similarities < self.params.threshold, _NONE).softmax(dim=1).nan_to_num(0.0)


@dataclass(frozen=True)
class Texts:
    """Tokens that are text, and where the encoder puts them.

    Attributes:
        ids: ``(n,)`` int64, ascending.
        vectors: ``(n, d)`` float32, unit.
        places: Place of each id.
    """

    ids: Tensor
    vectors: Tensor
    places: Mapping[int, int]

    @staticmethod
    def embed(encode: Encode, tokens: Mapping[int, bytes], ids: Sequence[int]) -> Texts:
        """Embed tokens, each text once; those that are blank or no text are left out.

        Args:
            encode: The text encoder.
            tokens: Bytes of tokens.
            ids: Which of them.

        Returns:
            The tokens that are text.
        """
        texts = {index: text for index in sorted(ids) if (text := read(tokens.get(index, b"")))}
        distinct = {text: place for place, text in enumerate(dict.fromkeys(texts.values()))}
        vectors = encode(list(distinct)).to(torch.float32).cpu() if distinct else torch.zeros(0, 1)
        rows = torch.tensor([distinct[text] for text in texts.values()], dtype=torch.int64)
        places = {index: place for place, index in enumerate(texts)}
        return Texts(torch.tensor(list(texts), dtype=torch.int64), vectors[rows], places)


def read(data: bytes) -> str:
    """What the encoder reads of a token: its text without the spaces before it; empty if there is none."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return ""
    return text.lstrip(" ") if text.strip() else ""
