"""The mean row of the base: logits of a new token equal the mean logit (J. Hewitt, 2021)."""

from __future__ import annotations

from tokensurgeon.methods.base import InitRows, MethodContext
from tokensurgeon.methods.params import MeanParams


class Mean:
    """Give every token the mean row."""

    def __init__(self, params: MeanParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Repeat the mean row."""
        context.advance(len(context.wanted))
        return InitRows(context.base_mean.expand(len(context.wanted), -1))
