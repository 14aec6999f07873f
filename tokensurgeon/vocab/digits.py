"""How a tokenizer cuts numbers; models calculate badly after the cut has changed (arXiv:2506.06607)."""

from __future__ import annotations

from tokensurgeon.vocab.canonical import Kind
from tokensurgeon.vocab.vocabulary import Vocabulary

_NUMBERS = tuple(str(seed)[:length] for seed in (739182645, 250416893, 986174302) for length in range(1, 10))


def digit_scheme(vocabulary: Vocabulary) -> str:
    """Classify a tokenizer by how it cuts numbers of one to nine digits.

    Args:
        vocabulary: Any vocabulary.

    Returns:
        ``single digits``, ``groups of N from the left``, ``groups of N from the right`` or ``learnt groups``;
        ``no digits`` when it cannot spell numbers.
    """
    cuts = {number: _cut(number, vocabulary) for number in _NUMBERS}
    if any(sum(cut) != len(number) for number, cut in cuts.items()):
        return "no digits"
    longest = max(max(cut) for cut in cuts.values())
    if longest == 1:
        return "single digits"
    for name, order in (("left", 1), ("right", -1)):
        if all(cut == _groups(len(number), longest)[::order] for number, cut in cuts.items()):
            return f"groups of {longest} from the {name}"
    return "learnt groups"


def _groups(length: int, size: int) -> list[int]:
    """Lengths of groups filled from the left."""
    return [min(size, length - start) for start in range(0, length, size)]


def _cut(number: str, vocabulary: Vocabulary) -> list[int]:
    tokens = [vocabulary.tokens[index] for index in vocabulary.encode(number)]
    lengths = [len(token.data.strip()) for token in tokens if token.kind is not Kind.SPECIAL]
    return [length for length in lengths if length]
