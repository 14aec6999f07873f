"""Which tokens a model is likely to have learnt: the others make poor anchors."""

from __future__ import annotations

import re

from tokensurgeon.vocab.canonical import Family, Kind
from tokensurgeon.vocab.vocabulary import Token, Vocabulary

_RESERVED = re.compile(
    r"^[<\[|]+.*(unused|reserved|placeholder|extra_id|dummy|madeup).*[>\]|]+$", re.IGNORECASE
)


def is_reserved(token: Token) -> bool:
    """Whether the name says that the token was kept for later, such as ``<unused7>``."""
    return bool(_RESERVED.match(token.content))


def is_reachable(token: Token, vocabulary: Vocabulary) -> bool:
    """Whether the tokenizer's own model ever produces the token from text.

    A byte piece beside a normal piece for the same byte, or a token whose merges always lose to others, is
    in the vocabulary but was never seen in training.

    Args:
        token: A token of the vocabulary.
        vocabulary: The vocabulary.

    Returns:
        False for a token that is never produced.
    """
    if token.kind is Kind.BYTE:
        return vocabulary.by_bytes[token.data][0] is token
    if token.added or token.kind is Kind.SPECIAL or vocabulary.family is Family.WORDPIECE:
        return True
    return vocabulary.run_model(token.content) == [token.id]
