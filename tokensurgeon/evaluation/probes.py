"""Small fixed texts that show where tokenizers differ most: numbers and white space."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokensurgeon.evaluation.boundaries import token_ends
from tokensurgeon.evaluation.windows import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CUTS = (
    "7",
    "42",
    "2026",
    "1234567",
    "3.14159",
    "1,000,000",
    "2026-11-26",
    "a b",
    "a  b",
    "a        b",
    "a\tb",
    "a\n\n\nb",
    "a\n    b",
    "a\n        b",
    "a\n\t\tb",
)
"""Texts whose cuts are shown."""


def probe_texts() -> dict[str, str]:
    """Texts that cost most where one thing is cut in a way that a model never saw.

    Returns:
        Text by what it probes, a few hundred bytes each: ``counting``, ``sums``, ``columns`` (runs of
        spaces), ``paragraphs`` (runs of newlines), ``indentation``, ``tabs``.
    """
    # Numbers that look drawn by lot and are the same everywhere.
    drawn = [pow(5, step, 997) for step in range(1, 61)]
    code = "\n\n".join(
        f"def {name}(items):\n    for item in items:\n        if item > {limit}:\n            yield item\n"
        f"        else:\n            continue\n    return"
        for name, limit in (("above", 10), ("large", 200), ("late", 1999))
    )
    return {
        "counting": ", ".join(str(number) for number in range(95, 215)),
        "sums": "\n".join(f"{a} + {b} = {a + b}" for a, b in zip(drawn[::2], drawn[1::2], strict=True)),
        "columns": "\n".join(
            f"{name:<16}{number:>8}{'yes' if number % 2 else 'no':>12}"
            for name, number in zip(
                ("apples", "pears", "plums", "grapes", "cherries") * 3, drawn, strict=False
            )
        ),
        "paragraphs": "\n\n".join(
            f"{'#' * (1 + place % 3)} Part {place}\n\nThis is the text of part {place}."
            for place in range(1, 11)
        ),
        "indentation": code,
        "tabs": code.replace("    ", "\t"),
    }


def show_cut(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    """How a tokenizer cuts a text.

    Args:
        tokenizer: One that gives offsets.
        text: Not empty.

    Returns:
        The parts of the text that its tokens stand for; bytes of a part of a character as escapes.
    """
    data = text.encode()
    encoded = encode(tokenizer, "probe", text)
    ends = token_ends(tokenizer, encoded, data).tolist()
    pieces = [data[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return [piece.decode(errors="backslashreplace") for piece in pieces if piece]
