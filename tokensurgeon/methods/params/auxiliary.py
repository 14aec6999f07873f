"""Parameters of the methods that need a corpus, word vectors, parallel text or a text encoder."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tokensurgeon.methods.params.core import Cost, MethodParams


class FocusParams(MethodParams):
    """Shared tokens that are near in fastText vectors of tokens, by sparsemax."""

    name: Literal["focus"] = "focus"
    dim: int = Field(100, ge=1, description="of the token vectors")
    epochs: int = Field(3, ge=1)
    min_count: int = Field(10, ge=1, description="rarer tokens have no vector and are not served")

    def cost(self, tokens: int, anchors: int, width: int, device: str) -> Cost:
        """A product of token vectors with all anchors', and at most 256 of them combined."""
        return Cost(bytes_per_token=8 * min(anchors, 256) * width, operations=2 * anchors * self.dim * tokens)


class WechselParams(MethodParams):
    """Base tokens that are near in aligned word vectors, by softmax."""

    name: Literal["wechsel"] = "wechsel"
    neighbours: int = Field(10, ge=1)
    temperature: float = Field(0.1, gt=0)
    dim: int = Field(100, ge=1, description="of word vectors trained on the corpus")
    epochs: int = Field(20, ge=1, description="of word vectors trained on the corpus")


class OfaParams(MethodParams):
    """WECHSEL's weights over words that hold the token, on a factorised table."""

    name: Literal["ofa"] = "ofa"
    rank: int | None = Field(
        None, ge=1, description="of the factorised table; its factors are written beside the output"
    )
    neighbours: int = Field(10, ge=1)
    temperature: float = Field(0.1, gt=0)
    dim: int = Field(100, ge=1, description="of word vectors trained on the corpus")
    epochs: int = Field(10, ge=1, description="of word vectors trained on the corpus")


class HyperofaParams(MethodParams):
    """A network from the vectors of the words that hold a token to its row."""

    name: Literal["hyperofa"] = "hyperofa"
    hidden: int = Field(256, ge=1)
    steps: int = Field(2000, ge=1)
    batch: int = Field(256, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    context: int = Field(32, ge=1, description="words a token at most")
    dim: int = Field(100, ge=1, description="of word vectors trained on the corpus")
    epochs: int = Field(10, ge=1, description="of word vectors trained on the corpus")

    def cost(self, tokens: int, anchors: int, width: int, device: str) -> Cost:
        """The network on all words of a token, and three times as much a token that it learns from."""
        word = 2 * self.hidden * self.dim
        row = 2 * self.hidden * (self.hidden + width)
        return Cost(
            bytes_per_token=4 * self.context * (self.dim + 3 * self.hidden) + 16 * width,
            operations=(tokens + 3 * self.steps * self.batch) * (self.context * word + row),
        )


class TokenadaptParams(MethodParams):
    """Pieces and similar base tokens, both weighted by a text encoder."""

    name: Literal["tokenadapt"] = "tokenadapt"
    weight: float = Field(0.3, ge=0, le=1, description="of the similar tokens; the pieces have the rest")
    k: int = Field(3, ge=1, description="similar tokens")
    temperature: float = Field(0.3, gt=0)
    threshold: float = Field(0.0, ge=-1, le=1, description="least cosine of a similar token")


class Cw2vParams(MethodParams):
    """Rows inside the convex hull of the base's, by skip-gram on the corpus."""

    name: Literal["cw2v"] = "cw2v"
    rank: int = Field(64, ge=1, description="of the logits of the weights")
    steps: int = Field(1000, ge=1)
    batch: int = Field(512, ge=1, description="token pairs a step")
    window: int = Field(5, ge=1)
    negatives: int = Field(5, ge=1)
    learning_rate: float = Field(1e-2, gt=0)

    def cost(self, tokens: int, anchors: int, width: int, device: str) -> Cost:
        """Up to 64 base rows a token, and the same three times over for each pair that it learns from."""
        learnt = 3 * self.steps * self.batch * (64 + self.negatives)
        return Cost(bytes_per_token=8 * 64 * width, operations=2 * (64 * tokens + learnt) * width)


class TranstokenizerParams(MethodParams):
    """Base tokens aligned with the token in parallel text, or in the same text cut twice."""

    name: Literal["transtokenizer"] = "transtokenizer"
    min_count: float = Field(10, ge=0, description="aligned less often, a token is not served")
    iterations: int = Field(7, ge=1, description="of the word aligner, for parallel text")

    def cost(self, tokens: int, anchors: int, width: int, device: str) -> Cost:
        """Up to 64 base rows a token."""
        return Cost(bytes_per_token=8 * 64 * width, operations=2 * 64 * tokens * width)


class UnibridgeParams(MethodParams):
    """FASE: mutual nearest neighbours copied, the rest by sparsemax over shared tokens."""

    name: Literal["unibridge"] = "unibridge"
    dim: int = Field(100, ge=1, description="of the token vectors; the paper has 300")
    epochs: int = Field(3, ge=1)
    min_count: int = Field(1, ge=1, description="rarer tokens have no vector and are not served")
    temperature: float = Field(1.0, gt=0)

    def cost(self, tokens: int, anchors: int, width: int, device: str) -> Cost:
        """As FOCUS, and a product with all base tokens, taken for as many as wanted, there and back."""
        return Cost(
            bytes_per_token=8 * min(anchors, 256) * width,
            operations=2 * (anchors + 2 * tokens) * self.dim * tokens,
        )


class RamenParams(MethodParams):
    """Base tokens of the words near the token's words, by sparsemax and frequency."""

    name: Literal["ramen"] = "ramen"
    dim: int = Field(100, ge=1, description="of word vectors trained on the corpus")
    epochs: int = Field(10, ge=1, description="of word vectors trained on the corpus")

    def cost(self, tokens: int, anchors: int, width: int, device: str) -> Cost:
        """Probabilities of 8192 base words and about as many base tokens, and 64 rows combined."""
        return Cost(bytes_per_token=2**18 + 512 * width, operations=2**17 * tokens)


class UnksEverywhereParams(MethodParams):
    """A factorised table whose primitives are kept; coordinates from shared tokens and overlapping ones."""

    name: Literal["unks_everywhere"] = "unks_everywhere"
    rank: int = Field(100, ge=1, description="primitives of the base's table")
    min_overlap: int = Field(3, ge=1, description="characters a shared token must have in common")


class TokalignParams(MethodParams):
    """The one base token that stands in the same places of the same text."""

    name: Literal["tokalign"] = "tokalign"
    dim: int = Field(100, ge=1, description="of the GloVe vectors; the paper has 300")
    window: int = Field(15, ge=1)
    epochs: int = Field(15, ge=1)
    min_count: int = Field(5, ge=1, description="rarer tokens have no vector and are not served")
    pivots: int = Field(300, ge=2, description="shared tokens that positions are relative to")
