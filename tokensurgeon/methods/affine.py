"""One linear map from the donor's space to the base's, fitted to the anchors.

L. Moroni et al. (SAVA), "Optimizing LLMs for Italian: Reducing Token Fertility and Enhancing Efficiency
Through Vocabulary Adaptation", arXiv:2504.17025. With anchors ``A`` and ``B`` centred on their means ``a``
and ``b``, the map ``W`` minimises ``|A W - B|``, and a missing token with donor row ``x`` gets
``(x - a) W + b``. SAVA's fits are least squares, a rotation and gradient descent, on standardised spaces.

On purpose not as in SAVA: ridge regression is the default, since it predicts held-out anchors best; spaces of
different width need no padding; nothing divides by the spread of a constant dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokensurgeon.console import track
from tokensurgeon.methods.base import InitRows, MethodContext
from tokensurgeon.methods.params import AffineParams
from tokensurgeon.solvers.linear import ridge, rotation

_MINIBATCH = 256


class Affine:
    """Map every donor row."""

    def __init__(self, params: AffineParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Fit to the anchors, apply to the missing tokens."""
        generator = torch.Generator().manual_seed(context.generator.initial_seed())
        targets, bases = context.anchor_targets, context.anchor_bases
        if self.params.anchors is not None and self.params.anchors < len(targets):
            order = torch.randperm(len(targets), generator=generator)
            chosen = order[: self.params.anchors].sort().values
            targets, bases = targets[chosen], bases[chosen]
        donor, donor_mean = centre(context.donor(targets))
        base, base_mean = centre(context.base(bases))
        donor_scale, base_scale = donor.new_ones(donor.shape[1]), base.new_ones(base.shape[1])
        if self.params.scaling == "standard":
            donor_scale, base_scale = _scale(donor), _scale(base)
        matrix = self.fit(donor / donor_scale, base / base_scale, generator)
        return map_rows(context, donor_mean, matrix * base_scale / donor_scale[:, None], base_mean)

    def fit(self, features: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """The map between centred anchors.

        Args:
            features: ``(n, f)`` float32.
            targets: ``(n, t)`` float32.
            generator: Chooses the minibatches of gradient descent.

        Returns:
            ``(f, t)`` float32.
        """
        if self.params.fit == "orthogonal":
            return rotation(features, targets)[0]
        if self.params.fit == "sgd":
            return self.descend(features, targets, generator)
        return ridge(features, targets, self.params.ridge if self.params.fit == "ridge" else 0.0)

    def descend(self, features: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """The map after Adam's steps on the mean squared error of minibatches, from zero.

        Args:
            features: ``(n, f)`` float32.
            targets: ``(n, t)`` float32.
            generator: Chooses the minibatches.

        Returns:
            ``(f, t)`` float32.
        """
        matrix = features.new_zeros((features.shape[1], targets.shape[1]))
        # Entries of unit size on both sides: how far a step leads must not depend on a model's units.
        sizes = [float(side.square().mean().sqrt()) for side in (features, targets)]
        if not min(sizes) > 0:
            return matrix
        features, targets = features / sizes[0], targets / sizes[1]
        optimiser = torch.optim.Adam([matrix], lr=self.params.learning_rate)
        for _ in track(range(self.params.steps), "affine: training"):
            drawn = torch.randint(len(features), (min(_MINIBATCH, len(features)),), generator=generator)
            part = features[drawn.to(features.device)]
            error = part @ matrix - targets[drawn.to(features.device)]
            matrix.grad = part.mT @ error * (2 / error.numel())
            optimiser.step()
        return matrix.detach() * (sizes[1] / sizes[0])


def centre(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Move rows so that their mean is zero.

    Args:
        rows: ``(n, d)`` float32, changed in place.

    Returns:
        The same rows and ``(d,)`` their mean; zero of no rows.
    """
    mean = rows.mean(dim=0).nan_to_num()
    return rows.sub_(mean), mean


def map_rows(context: MethodContext, donor_mean: Tensor, matrix: Tensor, base_mean: Tensor) -> InitRows:
    """Rows ``(x - donor_mean) matrix + base_mean`` of the wanted tokens; none served without any anchor.

    Args:
        context: What is wanted.
        donor_mean: ``(d_donor,)`` float32.
        matrix: ``(d_donor, d_base)`` float32.
        base_mean: ``(d_base,)`` float32.

    Returns:
        Rows that are no combination of base rows.
    """

    def solve(span: slice) -> InitRows:
        rows = context.donor(context.wanted[span])
        served = torch.full((len(rows),), len(context.anchor_targets) > 0)
        if not len(context.anchor_targets):
            return InitRows(context.base_mean.repeat(len(rows), 1), served=served)
        return InitRows((rows - donor_mean) @ matrix + base_mean, served=served)

    return context.in_batches(solve)


def _scale(centred: Tensor) -> Tensor:
    """``(d,)`` divisors that give each dimension unit variance and then the rows unit mean norm."""
    spread = centred.square().mean(dim=0).sqrt().nan_to_num()
    spread = torch.where(spread > 0, spread, 1)
    length = (centred / spread).norm(dim=1).mean().nan_to_num()
    return spread * torch.where(length > 0, length, 1)
