"""Every method by name. Adding one is a line here; its module is imported when it is used."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from tokensurgeon.errors import RecipeError
from tokensurgeon.methods import params
from tokensurgeon.methods.params import MethodParams

if TYPE_CHECKING:
    from tokensurgeon.methods.base import InitMethod


@dataclass(frozen=True)
class MethodInfo:
    """One line of the registry.

    Attributes:
        name: As in a recipe.
        target: ``module:Class`` of the implementation.
        params: Its parameter model.
        title: What a missing token's row is, in one line.
        paper: Where it comes from.
        needs: What it needs besides the base: keys of ``NEEDS``, or two of them joined by " or ".
        anchors: Whether rows are built from anchors, of which a run then needs enough.
        distinct: Whether two tokens with one row are an error; some methods make equal rows by design.
        extra: Optional dependencies of the package that it needs.
    """

    name: str
    target: str
    params: type[MethodParams]
    title: str
    paper: str
    needs: tuple[str, ...] = ()
    anchors: bool = False
    distinct: bool = False
    extra: str = ""

    def build(self, chosen: MethodParams) -> InitMethod:
        """Import the method and give it its parameters."""
        module, _, attribute = self.target.partition(":")
        method: InitMethod = getattr(import_module(module), attribute)(chosen)
        return method


NEEDS = {
    "donor": "donor",
    "corpus": "resources.corpus",
    "word vectors": "resources.target_vectors",
    "parallel text": "resources.parallel",
    "text encoder": "resources.encoder",
    "forward passes": "",
    "training": "",
}
"""What a method may need, and the key of the recipe that brings it; empty where nothing has to be brought."""

EXTRAS = {"vectors": "gensim"}
"""Optional dependencies of the package, and the module each must bring."""


def _line(
    params: type[MethodParams],
    title: str,
    paper: str,
    needs: tuple[str, ...] = (),
    anchors: bool | None = None,
    distinct: bool = False,
    extra: str = "",
) -> MethodInfo:
    """A line whose module and class are called like the method."""
    name = params.model_fields["name"].default
    class_name = "".join(part.capitalize() for part in name.split("_"))
    if anchors is None:
        anchors = "donor" in needs
    target = f"tokensurgeon.methods.{name}:{class_name}"
    return MethodInfo(name, target, params, title, paper, needs, anchors, distinct, extra)


_LINES = (
    _line(
        params.OmpParams,
        "at most k anchors, found in the donor's space by orthogonal matching pursuit",
        "Goddard & Fernandes Neto 2025, arXiv:2506.06607",
        ("donor",),
        distinct=True,
    ),
    _line(
        params.NearestParams,
        "the k nearest anchors in the donor's space, interpolated",
        "mergekit's common_interpolation; Goddard & Fernandes Neto 2025, arXiv:2506.06607",
        ("donor",),
    ),
    _line(
        params.AffknnParams,
        "a ridge map of the donor's row, and what the map misses at the nearest anchors",
        "this project; its affine half is SAVA's, arXiv:2504.17025",
        ("donor",),
        distinct=True,
    ),
    _line(
        params.AffompParams,
        "a ridge map of the donor's row, and what the map misses at k anchors found by matching pursuit",
        "this project; OMP as in Goddard & Fernandes Neto 2025, arXiv:2506.06607",
        ("donor",),
        distinct=True,
    ),
    _line(
        params.AffmixParams,
        "a ridge map of the donor's row, and what the map misses at anchors by matching pursuit and nearby",
        "this project; OMP as in Goddard & Fernandes Neto 2025, arXiv:2506.06607",
        ("donor",),
        distinct=True,
    ),
    _line(
        params.AffineParams,
        "a linear map of the donor's row, fitted to the anchors",
        "Moroni et al. 2025 (SAVA), arXiv:2504.17025",
        ("donor",),
        distinct=True,
    ),
    _line(
        params.ProcrustesParams,
        "the donor's row, rotated",
        "Schönemann 1966, doi:10.1007/BF02289451",
        ("donor",),
        distinct=True,
    ),
    _line(
        params.LandmarkPcaParams,
        "the donor's row, rotated from one set of principal components to the other",
        "mergekit's landmark_pca; Schönemann 1966, doi:10.1007/BF02289451",
        ("donor",),
    ),
    _line(
        params.StbParams,
        "the donor's row in a basis of sparse combinations of anchors, rebuilt from the base's",
        "mergekit's stb; Goddard & Fernandes Neto 2025, arXiv:2506.06607",
        ("donor",),
    ),
    _line(
        params.MpRopeParams,
        "at most k anchors, each rotated to a position of its own by both models' rotary embeddings",
        "mergekit's mp_rope; Su et al. 2021 (RoPE), arXiv:2104.09864",
        ("donor",),
    ),
    _line(
        params.RelrepParams,
        "the base tokens whose similarities to shared pivots are the donor's",
        "Moschella et al. 2022, arXiv:2209.15430",
        ("donor",),
    ),
    _line(
        params.ClpParams,
        "all anchors, weighted by similarity in the donor's space; or few, by sparsemax",
        "Ostendorff & Rehm 2023 (CLP-Transfer), arXiv:2301.09626; Yamaguchi et al. 2024 (CLP+), "
        "arXiv:2402.10712",
        ("donor",),
    ),
    _line(
        params.CarryParams,
        "the row of a donor that is another version of the base, moved as shared rows moved",
        "Ilharco et al. 2022 (task arithmetic), arXiv:2212.04089; Minixhofer et al. 2024 (ZeTT), "
        "arXiv:2405.07883",
        ("donor",),
    ),
    _line(
        params.PiecesParams,
        "the base's own pieces of it, weighted in one of eight ways",
        "Gee et al. 2022 (FVT), arXiv:2402.09977; Kim et al. 2024 (EEVE), arXiv:2402.14714; Nakash et al. "
        "2025 (AdaptiVocab), arXiv:2503.19693; Yamaguchi et al. 2024 (merges), arXiv:2406.11477",
    ),
    _line(
        params.PieceRegressionParams,
        "a linear map of its pieces, learnt from the base's own tokens",
        "this project; ZeTT's hypernetwork (arXiv:2405.07883) as one matrix",
    ),
    _line(
        params.DetokenizeParams,
        "the base's hidden state after reading its pieces, mapped back to a row",
        "Kaplan et al. 2024 (From Tokens to Words), arXiv:2410.05864",
        ("forward passes",),
    ),
    _line(params.MeanParams, "the mean row", "Hewitt 2021, nlp.stanford.edu/~johnhew/vocab-expansion.html"),
    _line(
        params.GaussianParams,
        "random, with the base's mean and per-dimension or full covariance, seeded",
        "Hewitt 2021, nlp.stanford.edu/~johnhew/vocab-expansion.html",
        distinct=True,
    ),
    _line(params.ZeroParams, "zero; a lower bound, not a choice", "none"),
    _line(
        params.FocusParams,
        "shared tokens that are near in token vectors of the corpus, by sparsemax",
        "Dobler & de Melo 2023 (FOCUS), arXiv:2305.14481",
        ("corpus",),
        anchors=True,
        extra="vectors",
    ),
    _line(
        params.WechselParams,
        "the base tokens that are near in aligned word vectors",
        "Minixhofer et al. 2022 (WECHSEL), arXiv:2112.06598",
        ("word vectors or corpus",),
        extra="vectors",
    ),
    _line(
        params.OfaParams,
        "the base tokens whose words are near, on a factorised table",
        "Liu et al. 2024 (OFA), arXiv:2311.08849",
        ("word vectors or corpus",),
        extra="vectors",
    ),
    _line(
        params.HyperofaParams,
        "what a small network predicts from the vectors of its words",
        "Özeren et al. 2025 (HyperOFA), arXiv:2504.21018",
        ("word vectors or corpus", "training"),
        extra="vectors",
    ),
    _line(
        params.TokenadaptParams,
        "its pieces and the most similar base tokens, both weighted by a text encoder",
        "Sharthak et al. 2025 (TokenAdapt), arXiv:2505.09738",
        ("text encoder",),
    ),
    _line(
        params.Cw2vParams,
        "a point in the convex hull of the base's rows, by skip-gram on the corpus",
        "Mundra et al. 2024 (CW2V), arXiv:2407.05841",
        ("corpus", "training"),
        anchors=True,
    ),
    _line(
        params.TranstokenizerParams,
        "the base tokens aligned with it in parallel text, or in the corpus cut twice",
        "Remy et al. 2024 (Trans-Tokenization), arXiv:2408.04303",
        ("parallel text or corpus",),
    ),
    _line(
        params.UnibridgeParams,
        "its mutual nearest neighbour in token vectors, else shared tokens by sparsemax",
        "Pham et al. 2024 (UniBridge), arXiv:2406.09717",
        ("corpus",),
        anchors=True,
        extra="vectors",
    ),
    _line(
        params.RamenParams,
        "the base tokens of the words nearest to its words, by sparsemax and frequency",
        "Tran 2020 (RAMEN), arXiv:2002.07306",
        ("word vectors or corpus",),
        extra="vectors",
    ),
    _line(
        params.UnksEverywhereParams,
        "coordinates of shared tokens that overlap in letters, on the base's primitives",
        "Pfeiffer et al. 2021 (UNKs Everywhere), arXiv:2012.15562",
        anchors=True,
    ),
    _line(
        params.TokalignParams,
        "the one base token in the same places of the same text",
        "Li et al. 2025 (TokAlign), arXiv:2506.03523",
        ("corpus",),
        anchors=True,
    ),
    _line(
        params.ZettParams,
        "what a hypernetwork, trained over sampled tokenizers, reads out of its pieces",
        "Minixhofer et al. 2024 (ZeTT), arXiv:2405.07883",
        ("corpus", "forward passes", "training"),
    ),
)

METHODS: dict[str, MethodInfo] = {info.name: info for info in _LINES}


def find_method(name: str) -> MethodInfo:
    """Look a method up.

    Args:
        name: As in a recipe.

    Returns:
        Its line in the registry.

    Raises:
        RecipeError: There is none of that name.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise RecipeError(
            f"method {name!r}", f"one of {', '.join(METHODS)}", f"{hint}see `tokensurgeon methods`"
        )
    return METHODS[name]
