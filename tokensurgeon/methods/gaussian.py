"""Random rows with the base's mean and spread.

J. Hewitt, "Initializing New Word Embeddings for Pretrained Language Models", 2021, draws from a
multivariate normal with a hundred-thousandth of the covariance (``covariance: full``, ``scale: 0.00316``);
FOCUS and WECHSEL fall back on independent dimensions (``covariance: diagonal``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokensurgeon.methods.base import InitRows, MethodContext
from tokensurgeon.methods.params import GaussianParams


class Gaussian:
    """Draw every row from a normal distribution fitted to the base's rows."""

    def __init__(self, params: GaussianParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Draw rows; the numbers depend on the seed and the tensor, not on batches or device."""
        shape = (len(context.wanted), context.base_rows.shape[1])
        noise = torch.randn(shape, generator=context.generator, dtype=torch.float64).to(context.device)
        centred = context.base_used.to(torch.float64) - context.base_mean
        if self.params.covariance == "diagonal":
            spread = noise * centred.std(dim=0, correction=0)
        else:
            spread = noise @ _square_root(centred.mT @ centred / len(centred))
        context.advance(len(context.wanted))
        return InitRows((context.base_mean + self.params.scale * spread).to(torch.float32))


def _square_root(covariance: Tensor) -> Tensor:
    """Symmetric square root; unlike a Cholesky factor it exists for any rank."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
    return root
