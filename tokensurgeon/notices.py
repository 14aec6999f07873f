"""Warnings with stable codes, so that CI can allow or deny them by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokensurgeon.codes import CODES

# Tokens that a warning names.
_NAMED = 3


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


def some_tokens(texts: Sequence[str]) -> str:
    """How many tokens a warning is about, and the first of them.

    Args:
        texts: Their text, at least one.

    Returns:
        As in ``16 tokens, such as '<file_sep>', '<gh_stars>'``; quoted, as tokens may be white space.
    """
    return f"{len(texts):,} tokens, such as {', '.join(map(repr, texts[:_NAMED]))}"
