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

_BLOCK = 4096


class Gaussian:
    """Draw every row from a normal distribution fitted to the base's rows."""

    def __init__(self, params: GaussianParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Draw rows; the numbers depend on the seed and the end of the model, not on batches or device."""
        count, width = len(context.wanted), context.base_rows.shape[1]
        # One seed for both ends would give a token the same noise twice.
        seed = context.generator.initial_seed() + (context.side == "lm_head")
        generator = torch.Generator().manual_seed(seed)
        covariance = context.base_covariance
        root = covariance.diagonal().sqrt().diag()
        if self.params.covariance == "full":
            root = _square_root(covariance)
        rows = torch.empty((count, width))
        for part in rows.split(_BLOCK):
            # Always a whole block: how many numbers are drawn at a time decides which they are.
            noise = torch.randn((_BLOCK, width), generator=generator, dtype=torch.float64)
            spread = noise[: len(part)].to(context.device) @ root
            part.copy_(context.base_mean + self.params.scale * spread)
            context.advance(len(part))
        return InitRows(rows)


def _square_root(covariance: Tensor) -> Tensor:
    """Symmetric square root; unlike a Cholesky factor it exists for any rank."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
    return root
