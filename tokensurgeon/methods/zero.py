"""Zero rows: what a model does without the missing tokens. A lower bound, not a choice for use."""

from __future__ import annotations

from tokensurgeon.methods.base import InitRows, MethodContext
from tokensurgeon.methods.params import ZeroParams


class Zero:
    """Give every token the zero row."""

    def __init__(self, params: ZeroParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Repeat the zero row."""
        context.advance(len(context.wanted))
        return InitRows(context.base_mean.new_zeros((len(context.wanted), context.base_rows.shape[1])))
