"""Parameters of the methods that read a donor's rows."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tokensurgeon.methods.params.core import Cost, MethodParams

# Multiplications and additions that mode auto still spends on an exact answer: about two minutes on two CPU
# cores with bfloat16 units, under a minute on a GPU.
_EXACT_UP_TO = {"cpu": 5e13, "cuda": 1e16}


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


class _AllAnchors(MethodParams):
    """Base of methods that compare every token with every anchor once."""

    def cost(self, tokens: int, anchors: int, width: int, device: str) -> Cost:
        """One product of the donor rows with all anchors."""
        return Cost(bytes_per_token=8 * anchors + 64 * width, operations=2 * anchors * width * tokens)


class NearestParams(_AllAnchors):
    """Interpolation of the nearest anchors (mergekit's common_interpolation)."""

    name: Literal["nearest"] = "nearest"
    k: int = Field(64, ge=1, description="anchors a token")
    metric: Literal["euclidean", "cosine"] = Field("euclidean", description="what near means")
    weighting: Literal["distance", "barycentric", "least_squares"] = Field(
        "distance",
        description="inverse distance; the best combination that adds up to one; the best combination",
    )

    def cost(self, tokens: int, anchors: int, width: int, device: str) -> Cost:
        """A product with all anchors, and the chosen ones in float32 and float64."""
        k = min(self.k, anchors)
        return Cost(
            bytes_per_token=8 * anchors + 20 * k * width + 32 * k * k,
            operations=2 * tokens * (anchors * width + k * k * (width + 8 * k)),
        )


class AffknnParams(_AllAnchors):
    """A ridge map between the spaces, plus what it misses at the nearest anchors."""

    name: Literal["affknn"] = "affknn"
    k: int = Field(16, ge=1, description="anchors whose residuals are averaged")
    temperature: float = Field(0.1, gt=0, description="of the softmax over their cosines")
    ridge: float = Field(0.01, ge=0, description="in units of the mean variance of the donor's dimensions")


class AffompParams(MethodParams):
    """A ridge map between the spaces, plus what it misses at a sparse combination of anchors."""

    name: Literal["affomp"] = "affomp"
    k: int = Field(8, ge=1, description="anchors a token; cut to the rank of the anchors")
    ridge: float = Field(0.01, ge=0, description="in units of the mean variance of the donor's dimensions")

    def cost(self, tokens: int, anchors: int, width: int, device: str) -> Cost:
        """Products of the residuals with all anchors, as in exact OMP."""
        return OmpParams(k=self.k, mode="exact").cost(tokens, anchors, width, device)


class AffmixParams(MethodParams):
    """A ridge map between the spaces, plus what it misses at chosen anchors and at the nearest ones."""

    name: Literal["affmix"] = "affmix"
    k: int = Field(8, ge=1, description="anchors by matching pursuit; cut to the rank of the anchors")
    neighbours: int = Field(16, ge=1, description="nearest anchors whose residuals are averaged")
    temperature: float = Field(0.1, gt=0, description="of the softmax over their cosines")
    nearest: float = Field(0.5, ge=0, le=1, description="share of the correction that is theirs")
    ridge: float = Field(0.01, ge=0, description="in units of the mean variance of the donor's dimensions")

    def cost(self, tokens: int, anchors: int, width: int, device: str) -> Cost:
        """What both halves take; their memory at once, as one batch has both."""
        omp = AffompParams(k=self.k).cost(tokens, anchors, width, device)
        near = AffknnParams(k=self.neighbours).cost(tokens, anchors, width, device)
        return Cost(
            bytes_per_token=omp.bytes_per_token + near.bytes_per_token,
            operations=omp.operations + near.operations,
        )


class _OneMap(MethodParams):
    """Base of methods that fit one matrix to the anchors and apply it to every token."""

    def cost(self, tokens: int, anchors: int, width: int, device: str) -> Cost:
        """Products of the anchors with one another, and of the matrix with every row."""
        return Cost(
            bytes_per_token=16 * width, operations=2 * width**2 * (2 * anchors + tokens) + 40 * width**3
        )


class AffineParams(_OneMap):
    """One map between the spaces for all tokens."""

    name: Literal["affine"] = "affine"
    fit: Literal["ridge", "least_squares", "orthogonal", "sgd"] = Field(
        "ridge", description="the last three are SAVA's"
    )
    scaling: Literal["centre", "standard"] = Field(
        "centre", description="standard: unit variance a dimension and unit mean norm on both sides, as SAVA"
    )
    ridge: float = Field(0.01, ge=0, description="in units of the mean variance of the donor's dimensions")
    anchors: int | None = Field(None, ge=1, description="fit to that many random anchors; SAVA takes 5000")
    steps: int = Field(1000, ge=1, description="of sgd")
    learning_rate: float = Field(1e-3, gt=0, description="of sgd")


class CarryParams(_OneMap):
    """The donor's rows, for a base that is a fine-tune of what the donor was made of."""

    name: Literal["carry"] = "carry"
    ridge: float = Field(
        1e-2,
        ge=0,
        description="of the map that predicts moves, in units of the mean variance of its dimensions",
    )


class ProcrustesParams(_OneMap):
    """A rotation between the centred spaces."""

    name: Literal["procrustes"] = "procrustes"
    scale: bool = Field(True, description="fit one factor as well")


class LandmarkPcaParams(_OneMap):
    """A rotation between the principal components of the anchors."""

    name: Literal["landmark_pca"] = "landmark_pca"
    components: int | None = Field(None, ge=1, description="by default all that both spaces have")
    scale: bool = Field(True, description="fit one factor as well; mergekit does not")


class StbParams(_OneMap):
    """A basis of the donor's space, each vector sparse in anchors, rebuilt in the base's space."""

    name: Literal["stb"] = "stb"
    k: int = Field(64, ge=1, description="anchors a basis vector")
    components: int | None = Field(None, ge=1, description="basis vectors; by default the smaller width")

    def cost(self, tokens: int, anchors: int, width: int, device: str) -> Cost:
        """The map's, and matching pursuit for every basis vector."""
        vectors = min(self.components or width, width)
        pursuit = OmpParams(k=self.k).cost(vectors, anchors, width, device)
        both = super().cost(tokens, anchors, width, device)
        return Cost(bytes_per_token=both.bytes_per_token, operations=both.operations + pursuit.operations)


class MpRopeParams(MethodParams):
    """Matching pursuit over anchors rotated like keys at an estimated position."""

    name: Literal["mp_rope"] = "mp_rope"
    k: int = Field(64, ge=1, description="anchors a token")

    def cost(self, tokens: int, anchors: int, width: int, device: str) -> Cost:
        """A product of the residuals with all anchors at each step, and 64 anchors turned."""
        k = min(self.k, anchors, width)
        return Cost(
            bytes_per_token=8 * anchors + (16 * k + 24 * min(64, anchors)) * width,
            operations=2 * k * (anchors + 64 * 20) * width * tokens,
        )


class RelrepParams(_AllAnchors):
    """Base tokens with a similar position relative to shared pivots."""

    name: Literal["relrep"] = "relrep"
    pivots: int = Field(300, ge=2, description="random anchors that positions are relative to")
    k: int = Field(10, ge=1, description="base tokens a row")
    temperature: float = Field(0.1, gt=0, description="of the softmax over their similarities")


class ClpParams(_AllAnchors):
    """All anchors, weighted by similarity (CLP-Transfer), or few of them by sparsemax (CLP+)."""

    name: Literal["clp"] = "clp"
    weighting: Literal["proportional", "sparsemax"] = Field(
        "proportional", description="to the cosine, where it is positive; sparsemax: CLP+"
    )

    def cost(self, tokens: int, anchors: int, width: int, device: str) -> Cost:
        """Products with all anchors on one side, and for proportional weights on the other as well."""
        once = super().cost(tokens, anchors, width, device)
        if self.weighting == "proportional":
            return Cost(bytes_per_token=once.bytes_per_token, operations=2 * once.operations)
        taken = min(256, anchors)
        return Cost(bytes_per_token=once.bytes_per_token + 12 * taken * width, operations=once.operations)
