"""Parameters of the methods that need nothing but the base."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tokensurgeon.methods.params.core import Cost, MethodParams


class PiecesParams(MethodParams):
    """The base's own spelling of the token."""

    name: Literal["pieces"] = "pieces"
    weighting: Literal[
        "mean", "last_first", "eeve", "length", "position", "similarity", "exponential", "merges"
    ] = Field(
        "mean",
        description="last_first: last piece for the embedding, decaying from the first for the lm_head; "
        "eeve: mean, and first for the lm_head; length: by bytes; position: 1, 2, 3, and reversed for the "
        "lm_head; similarity: attention of the mean piece (tokenizer-adapter); exponential: AdaptiVocab; "
        "merges: halves of the target's merges",
    )
    decay: float = Field(
        0.5, ge=0, le=1, description="weight of each further piece in the lm_head row of last_first"
    )


class PieceRegressionParams(MethodParams):
    """A linear map from the pieces' rows, learnt from base tokens that are spelt without themselves."""

    name: Literal["piece_regression"] = "piece_regression"
    ridge: float = Field(0.01, ge=0, description="in units of the mean variance of the features")

    def cost(self, tokens: int, anchors: int, width: int, device: str) -> Cost:
        """Three rows a token as features, centred and as they are, and products of all of them."""
        features = 3 * width + 2
        fixed = 2 * 4 * 2**15 * features + 3 * 8 * features**2
        return Cost(bytes_per_token=64 * width, fixed_bytes=fixed, operations=2 * tokens * features * width)


class DetokenizeParams(MethodParams):
    """What the base has in mind after reading the pieces, mapped back to its vocabulary."""

    name: Literal["detokenize"] = "detokenize"
    layer: float | None = Field(
        None, ge=0, le=1, description="depth to read at, a share; by default the best of the first two thirds"
    )
    sample: int = Field(8192, ge=16, description="base tokens the map back is fitted to")
    ridge: float = Field(0.1, ge=0, description="in units of the mean variance of the hidden states")

    def cost(self, tokens: int, anchors: int, width: int, device: str) -> Cost:
        """A forward pass a token; the body counts about 12 matrices of its width a layer, 24 layers."""
        states = 4 * self.sample * width * 24
        return Cost(
            bytes_per_token=4096 * width, fixed_bytes=states, operations=8 * 24 * 24 * width**2 * tokens
        )


class MeanParams(MethodParams):
    """The mean row of the base."""

    name: Literal["mean"] = "mean"


class GaussianParams(MethodParams):
    """Random rows with the base's mean and spread."""

    name: Literal["gaussian"] = "gaussian"
    covariance: Literal["diagonal", "full"] = Field("diagonal", description="per dimension, or multivariate")
    scale: float = Field(
        1.0, gt=0, description="factor on the standard deviation; Hewitt uses 0.00316 with full"
    )


class ZeroParams(MethodParams):
    """Zero rows."""

    name: Literal["zero"] = "zero"
