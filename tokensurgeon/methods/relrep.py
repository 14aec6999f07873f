"""Base tokens at a similar position relative to shared pivots.

L. Moschella et al., "Relative representations enable zero-shot latent space communication",
arXiv:2209.15430: cosines to the same things are comparable across spaces. With both spaces centred on the
anchors' mean, a row's position is its cosines to pivots, some of the anchors, scaled to unit length. A
missing token takes the ``k`` base tokens whose positions are most similar to its donor row's, weighted by
``softmax(cosine / temperature)``.

The paper gives positions to a decoder that reads them; here they only find neighbours, since a base model
reads rows of its own. All of its ordinary tokens may be neighbours, anchors or not.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokensurgeon.methods.base import InitRows, MethodContext
from tokensurgeon.methods.params import RelrepParams
from tokensurgeon.solvers.nearest import build_index

_BLOCK = 8192


class Relrep:
    """Combine the base tokens nearest in relative position."""

    def __init__(self, params: RelrepParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Place all base tokens, then look for those near each missing token."""
        generator = torch.Generator().manual_seed(context.generator.initial_seed())
        count = len(context.anchor_targets)
        pivots = torch.randperm(count, generator=generator)[: self.params.pivots]
        donor_frame = _Frame(context.donor_anchors(), pivots)
        base_frame = _Frame(context.base_anchors(), pivots)
        ordinary = torch.tensor(list(context.lexicon.base), dtype=torch.int64)
        ordinary = ordinary[torch.isin(ordinary, context.base_ids)]
        places = [base_frame.place(context.base(ids)) for ids in ordinary.split(_BLOCK)]
        index = build_index(torch.cat(places))
        candidates = ordinary.to(context.device)

        def solve(span: slice) -> InitRows:
            place = donor_frame.place(context.donor(context.wanted[span]))
            found = index.search(place, self.params.k)
            coefs = torch.softmax(found.similarities / self.params.temperature, dim=1)
            # A row in the middle of the anchors is nowhere: every token would be as near.
            somewhere = place.any(dim=1, keepdim=True)
            return context.combine(candidates[found.indices].where(somewhere, -1), coefs.where(somewhere, 0))

        return context.in_batches(solve)


class _Frame:
    """What positions in one space are relative to."""

    def __init__(self, anchors: Tensor, pivots: Tensor) -> None:
        self.mean = anchors.mean(dim=0).nan_to_num()
        self.pivots = normalize(anchors[pivots.to(anchors.device)] - self.mean, dim=1)

    def place(self, rows: Tensor) -> Tensor:
        """``(n, pivots)`` unit positions of rows ``(n, d)``; zero where there is none."""
        return normalize(normalize(rows - self.mean, dim=1) @ self.pivots.mT, dim=1)
