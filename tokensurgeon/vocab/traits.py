"""What a tokenizer does to every text, in a few facts."""

from __future__ import annotations

from dataclasses import dataclass

from tokensurgeon.vocab.chat import render_chat
from tokensurgeon.vocab.digits import digit_scheme
from tokensurgeon.vocab.vocabulary import Vocabulary
from tokensurgeon.vocab.whitespace import WhitespaceScheme, whitespace_scheme


@dataclass(frozen=True)
class Traits:
    """Facts of one tokenizer.

    Attributes:
        digits: How it cuts numbers, as ``digit_scheme`` says.
        whitespace: How it cuts white space.
        normalizer: Type of its normaliser, or ``none``.
        bos: BOS tokens in front of a plain prompt.
        bos_chat: BOS tokens in front of a rendered chat; None without a template.
    """

    digits: str
    whitespace: WhitespaceScheme
    normalizer: str
    bos: int
    bos_chat: int | None


def read_traits(vocabulary: Vocabulary) -> Traits:
    """Find out what a tokenizer does.

    Args:
        vocabulary: Any vocabulary.

    Returns:
        Its traits.
    """
    chat = render_chat(vocabulary)
    return Traits(
        digits=digit_scheme(vocabulary),
        whitespace=whitespace_scheme(vocabulary),
        normalizer=_normalizer(vocabulary),
        bos=_leading_bos(vocabulary, "Hello"),
        bos_chat=None if chat is None else _leading_bos(vocabulary, chat),
    )


def _leading_bos(vocabulary: Vocabulary, text: str) -> int:
    bos = vocabulary.roles.get("bos")
    count = 0
    for index in vocabulary.encode(text, specials=True):
        if index != bos:
            break
        count += 1
    return count


def _normalizer(vocabulary: Vocabulary) -> str:
    node = vocabulary.spec.get("normalizer")
    if not node:
        return "none"
    if node["type"] == "Sequence":
        return ", ".join(part["type"] for part in node["normalizers"])
    return str(node["type"])
