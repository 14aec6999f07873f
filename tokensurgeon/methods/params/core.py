"""What all parameter models share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class MethodParams(BaseModel):
    """Base of all parameter models; each gives its name a default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str

    def cost(self, tokens: int, anchors: int, width: int, device: str) -> Cost:
        """What it takes to make rows, before any is read.

        Args:
            tokens: Missing tokens.
            anchors: Anchors.
            width: Dimension of the space the method works in.
            device: Type of the device, ``cpu`` or ``cuda``.

        Returns:
            Memory and operations.
        """
        return Cost(bytes_per_token=64 * width, operations=64 * tokens * width)


class Cost(BaseModel):
    """What making rows takes.

    Attributes:
        bytes_per_token: Memory of one token of a batch.
        fixed_bytes: Memory that does not depend on the batch: examples to learn from, sums of products.
        operations: Floating-point operations of all tokens.
    """

    model_config = ConfigDict(frozen=True)

    bytes_per_token: int
    fixed_bytes: int = 0
    operations: int
