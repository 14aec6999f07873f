"""Parameters of the methods that train a predictor."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tokensurgeon.methods.params.core import Cost, MethodParams


class ZettParams(MethodParams):
    """A hypernetwork from a token's pieces to its row, trained over sampled tokenizers of the corpus."""

    name: Literal["zett"] = "zett"
    steps: int = Field(50, ge=1, description="training steps, each with a tokenizer of its own")
    warmup: int = Field(500, ge=0, description="steps on the base's own tokens before them, no body")
    batch: int = Field(8, ge=1, description="texts a step")
    block: int = Field(128, ge=8, description="tokens a text")
    layers: int = Field(2, ge=1)
    hidden: int = Field(512, ge=8)
    pieces: int = Field(7, ge=2, description="pieces read at most")
    sampled_tokens: int = Field(8192, ge=64, description="size of a sampled tokenizer")
    lexical_weight: float = Field(0.5, ge=0, description="of the distance to the rows of known tokens")
    learning_rate: float = Field(3e-4, gt=0)

    def cost(self, tokens: int, anchors: int, width: int, device: str) -> Cost:
        """Features of known tokens and their products; training costs most, and is not known before."""
        features = 3 * width
        fixed = 3 * 4 * 2**15 * features + 3 * 8 * features**2
        return Cost(bytes_per_token=4096 * width, fixed_bytes=fixed, operations=2 * tokens * features * width)
