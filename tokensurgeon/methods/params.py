"""Parameters of every method: one small model each, the only home of their defaults. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class MethodParams(BaseModel):
    """Base of all parameter models."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class OmpParams(MethodParams):
    """Sparse combinations of anchors, found in the donor's space."""

    name: Literal["omp"] = "omp"
    k: int = Field(64, ge=1, description="anchors a token; cut to the rank of the anchors")
    tolerance: float = Field(1e-4, ge=0, lt=1, description="stop at this share of the donor row's norm")
    normalize_atoms: bool = Field(True, description="choose anchors by angle, not by length")


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
