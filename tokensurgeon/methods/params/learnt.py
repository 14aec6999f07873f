"""Parameters of the methods that train a predictor."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tokensurgeon.methods.params.core import MethodParams


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
