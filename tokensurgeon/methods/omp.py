"""Transplantation by Orthogonal Matching Pursuit.

C. Goddard, F. Fernandes Neto, "Training-Free Tokenizer Transplantation via Orthogonal Matching
Pursuit", arXiv:2506.06607: the donor row of a missing token is written as a sparse combination of the
donor rows of shared tokens, and the same coefficients are applied to the base rows of those tokens.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tokensurgeon.methods.base import Agreement, InitRows, MethodContext
from tokensurgeon.methods.params import OmpParams
from tokensurgeon.solvers.dictionary import Dictionary
from tokensurgeon.solvers.omp import Mode, OmpResult, omp

_SAMPLE = 256


class Omp:
    """Combine at most ``k`` anchors per token."""

    def __init__(self, params: OmpParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Solve in the donor's space, apply in the base's."""
        dictionary = Dictionary.prepare(context.donor_anchors(), self.params.normalize_atoms)
        base = context.base_anchors()
        bases = context.anchor_bases.to(context.device)
        atoms, width = dictionary.rows.shape
        mode = self.params.choose_mode(len(context.wanted), atoms, width, context.device.type)

        def solve(span: slice, mode: Mode = mode) -> InitRows:
            result = self.solve(context, dictionary, context.wanted[span], mode)
            places = result.indices.clamp(min=0)
            # A sum of products, not a matrix product, which rounds otherwise for a single row.
            rows = (base[places] * result.coefs[:, :, None]).sum(dim=1)
            sources = torch.where(result.indices >= 0, bases[places], -1)
            return InitRows(rows, sources, result.coefs, result.residual, proven=result.proven)

        made = replace(context.in_batches(solve), solver=mode)
        if mode == "exact":
            return made
        return replace(made, agreement=self.compare(context, dictionary, made))

    def solve(self, context: MethodContext, dictionary: Dictionary, ids: Tensor, mode: Mode) -> OmpResult:
        """Combinations of anchors for target ids.

        Args:
            context: Where the donor rows are.
            dictionary: The anchors.
            ids: ``(n,)`` int64 target ids.
            mode: The solver's mode.

        Returns:
            The combinations, indices into the anchors.
        """
        return omp(
            context.donor(ids),
            dictionary,
            self.params.k,
            mode=mode,
            tolerance=self.params.tolerance,
            batch_size=context.batch_size,
        )

    def compare(self, context: MethodContext, dictionary: Dictionary, made: InitRows) -> Agreement:
        """Solve a sample again exactly.

        Args:
            context: What was wanted.
            dictionary: The anchors.
            made: The screened rows.

        Returns:
            How much the two differ.
        """
        assert made.sources is not None and made.residual is not None and made.proven is not None
        count = len(context.wanted)
        sample = torch.linspace(0, count - 1, min(_SAMPLE, count)).long().unique()
        exact = self.solve(context, dictionary, context.wanted[sample], "exact")
        shared = []
        for theirs, ours in zip(exact.indices.cpu(), made.sources[sample], strict=True):
            taken = context.anchor_bases[theirs[theirs >= 0]]
            if len(taken):
                shared.append(float(torch.isin(taken, ours).float().mean()))
        return Agreement(
            sample=len(sample),
            residual=float(made.residual[sample].mean()),
            exact_residual=float(exact.residual.mean()),
            shared_anchors=sum(shared) / max(len(shared), 1),
            proven=float(made.proven.sum() / (made.sources >= 0).sum().clamp(min=1)),
        )
