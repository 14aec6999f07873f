"""Warnings with stable codes, so that CI can allow or deny them by name."""

from __future__ import annotations

from dataclasses import dataclass

from tokensurgeon.codes import CODES


@dataclass(frozen=True)
class Notice:
    """One warning.

    Attributes:
        code: One of ``CODES`` that begins with TS.
        detail: What exactly was found.
    """

    code: str
    detail: str

    @property
    def text(self) -> str:
        """Title and detail."""
        title = CODES[self.code].title
        return f"{title}: {self.detail}" if self.detail else title
