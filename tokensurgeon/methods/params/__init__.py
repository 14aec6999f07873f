"""Parameters of every method: one small model each, the only home of their defaults. Imports no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tokensurgeon.methods.params.auxiliary import (
    Cw2vParams,
    FocusParams,
    HyperofaParams,
    OfaParams,
    RamenParams,
    TokalignParams,
    TokenadaptParams,
    TranstokenizerParams,
    UnibridgeParams,
    UnksEverywhereParams,
    WechselParams,
)
from tokensurgeon.methods.params.base_only import (
    DetokenizeParams,
    GaussianParams,
    MeanParams,
    PieceRegressionParams,
    PiecesParams,
    ZeroParams,
)
from tokensurgeon.methods.params.core import Cost, MethodParams
from tokensurgeon.methods.params.learnt import ZettParams
from tokensurgeon.methods.params.with_donor import (
    AffineParams,
    AffknnParams,
    AffmixParams,
    AffompParams,
    CarryParams,
    ClpParams,
    LandmarkPcaParams,
    MpRopeParams,
    NearestParams,
    OmpParams,
    ProcrustesParams,
    RelrepParams,
    StbParams,
)

AnyMethod = Annotated[
    OmpParams
    | NearestParams
    | AffknnParams
    | AffompParams
    | AffmixParams
    | AffineParams
    | ProcrustesParams
    | LandmarkPcaParams
    | StbParams
    | MpRopeParams
    | RelrepParams
    | ClpParams
    | CarryParams
    | PiecesParams
    | PieceRegressionParams
    | DetokenizeParams
    | MeanParams
    | GaussianParams
    | ZeroParams
    | FocusParams
    | WechselParams
    | OfaParams
    | HyperofaParams
    | TokenadaptParams
    | Cw2vParams
    | TranstokenizerParams
    | UnibridgeParams
    | RamenParams
    | UnksEverywhereParams
    | TokalignParams
    | ZettParams,
    Field(discriminator="name"),
]

__all__ = [
    "AffineParams",
    "AffknnParams",
    "AffmixParams",
    "AffompParams",
    "AnyMethod",
    "CarryParams",
    "ClpParams",
    "Cost",
    "Cw2vParams",
    "DetokenizeParams",
    "FocusParams",
    "GaussianParams",
    "HyperofaParams",
    "LandmarkPcaParams",
    "MeanParams",
    "MethodParams",
    "MpRopeParams",
    "NearestParams",
    "OfaParams",
    "OmpParams",
    "PieceRegressionParams",
    "PiecesParams",
    "ProcrustesParams",
    "RamenParams",
    "RelrepParams",
    "StbParams",
    "TokalignParams",
    "TokenadaptParams",
    "TranstokenizerParams",
    "UnibridgeParams",
    "UnksEverywhereParams",
    "WechselParams",
    "ZeroParams",
    "ZettParams",
]
