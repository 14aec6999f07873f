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
        title: What it does, in one line.
        paper: Where it comes from.
        needs: What it needs besides the base; ``donor`` is a model trained with the target tokenizer.
        distinct: Whether two tokens with one row are an error; some methods make equal rows by design.
    """

    name: str
    target: str
    params: type[MethodParams]
    title: str
    paper: str
    needs: tuple[str, ...] = ()
    distinct: bool = False

    def build(self, chosen: MethodParams) -> InitMethod:
        """Import the method and give it its parameters."""
        module, _, attribute = self.target.partition(":")
        method: InitMethod = getattr(import_module(module), attribute)(chosen)
        return method


_HERE = "tokensurgeon.methods"

METHODS: dict[str, MethodInfo] = {
    info.name: info
    for info in (
        MethodInfo(
            "omp",
            f"{_HERE}.omp:Omp",
            params.OmpParams,
            "k anchors per token by orthogonal matching pursuit in the donor's space",
            "Goddard & Fernandes Neto 2025, arXiv:2506.06607",
            needs=("donor",),
            distinct=True,
        ),
        MethodInfo(
            "pieces",
            f"{_HERE}.pieces:Pieces",
            params.PiecesParams,
            "the base's own pieces of the token: mean, or last piece in and first piece out",
            "Gee et al. 2022 (FVT), arXiv:2402.09977; Kim et al. 2024 (EEVE), arXiv:2402.14714",
        ),
        MethodInfo(
            "mean",
            f"{_HERE}.mean:Mean",
            params.MeanParams,
            "the mean row of the base",
            "Hewitt 2021, nlp.stanford.edu/~johnhew/vocab-expansion.html",
        ),
        MethodInfo(
            "gaussian",
            f"{_HERE}.gaussian:Gaussian",
            params.GaussianParams,
            "random rows with the base's mean and per-dimension or full covariance, seeded",
            "Hewitt 2021, nlp.stanford.edu/~johnhew/vocab-expansion.html",
            distinct=True,
        ),
        MethodInfo("zero", f"{_HERE}.zero:Zero", params.ZeroParams, "zero rows, as a lower bound", "none"),
    )
}


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
