"""Parameters of every method: one small model each, the only home of their defaults. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

# Multiplications and additions that mode auto still spends on an exact answer: about two minutes on two CPU
# cores with bfloat16 units, under a minute on a GPU.
_EXACT_UP_TO = {"cpu": 5e13, "cuda": 1e16}


class MethodParams(BaseModel):
    """Base of all parameter models."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def cost(self, tokens: int, anchors: int, width: int, device: str) -> Cost:
        """What it takes to make rows, before any is read.

        Args:
            tokens: Missing tokens.
            anchors: Anchors.
            width: Dimension of the space the method works in.
            device: Type of the device, ``cpu`` or ``cuda``.

        Returns:
            Memory and operations.
        """
        return Cost(bytes_per_token=64 * width, operations=64 * tokens * width)


class Cost(BaseModel):
    """What making rows takes.

    Attributes:
        bytes_per_token: Memory of one token of a batch.
        operations: Floating-point operations of all tokens.
    """

    model_config = ConfigDict(frozen=True)

    bytes_per_token: int
    operations: int


class OmpParams(MethodParams):
    """Sparse combinations of anchors, found in the donor's space."""

    name: Literal["omp"] = "omp"
    k: int = Field(64, ge=1, description="anchors a token; cut to the rank of the anchors")
    tolerance: float = Field(1e-4, ge=0, lt=1, description="stop at this share of the donor row's norm")
    normalize_atoms: bool = Field(True, description="choose anchors by angle, not by length")
    mode: Literal["auto", "exact", "screened"] = Field(
        "auto",
        description="screened: look at all anchors every few steps only; auto: when exact would take long",
    )

    def choose_mode(self, tokens: int, anchors: int, width: int, device: str) -> Literal["exact", "screened"]:
        """Exact, unless that was not asked for or would take long.

        Args:
            tokens: Missing tokens.
            anchors: Anchors.
            width: Dimension of the donor's rows.
            device: Type of the device.

        Returns:
            The solver's mode.
        """
        if self.mode != "auto":
            return self.mode
        work = 2 * tokens * anchors * width * min(self.k, anchors, width)
        return "exact" if work <= _EXACT_UP_TO.get(device, _EXACT_UP_TO["cpu"]) else "screened"

    def cost(self, tokens: int, anchors: int, width: int, device: str) -> Cost:
        """Products of the residuals with all anchors, of which screened mode makes few."""
        from tokensurgeon.solvers.omp import bytes_per_target, count_products

        products = count_products(self.k, self.choose_mode(tokens, anchors, width, device))
        return Cost(
            bytes_per_token=bytes_per_target(anchors, width, self.k),
            operations=2 * products * anchors * width * tokens,
        )


class PiecesParams(MethodParams):
    """The base's own spelling of the token."""

    name: Literal["pieces"] = "pieces"
    weighting: Literal["mean", "last_first"] = Field(
        "mean",
        description="last_first: last piece for the embedding, decaying from the first for the lm_head",
    )
    decay: float = Field(0.5, ge=0, le=1, description="weight of each further piece in the lm_head row")


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


AnyMethod = Annotated[
    OmpParams | PiecesParams | MeanParams | GaussianParams | ZeroParams, Field(discriminator="name")
]
