"""How a tokenizer cuts numbers; models calculate badly after the cut has changed (arXiv:2506.06607)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from typing import Any

from tokensurgeon.errors import InputError
from tokensurgeon.vocab.canonical import Kind
from tokensurgeon.vocab.probe import probe_texts
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


def keep_digits(target: Vocabulary, base: Vocabulary) -> Vocabulary:
    """Let a target tokenizer cut numbers as the base does, and nothing else in another way.

    A split at ASCII digits goes in front of the target's pre-tokenizer, or behind it where each piece would
    else be given a space.

    Args:
        target: The vocabulary to change.
        base: The vocabulary whose way of cutting numbers is taken.

    Returns:
        The target with another pre-tokenizer; the target itself if it cuts numbers like that already.

    Raises:
        InputError: The base follows no rule, or the target cannot follow it.
    """
    scheme = digit_scheme(base)
    size = _group_size(scheme)
    if size is None:
        raise InputError(
            f"keep_digits: the base cuts numbers into {scheme}",
            "single digits, or groups of one size from the left or the right",
            "leave keep_digits out",
        )
    if digit_scheme(target) == scheme:
        return target
    lacking = next((text for text in _numbers(size) if text.encode() not in target.by_bytes), None)
    if lacking is not None:
        raise InputError(
            f"keep_digits: the base cuts numbers into {scheme}, the target has no token {lacking!r}",
            f"a target with a token for every number of up to {size} digits",
            "leave keep_digits out, or choose another target",
        )
    split = _split(size, from_right=scheme.endswith("right"))
    present = _parts(target.spec.get("pre_tokenizer"))
    for parts in ([split, *present], [*present, split]):
        patched = target.with_pre_tokenizer({"type": "Sequence", "pretokenizers": parts})
        if digit_scheme(patched) == scheme and _changes_numbers_only(patched, target, size):
            return patched
    raise InputError(
        f"keep_digits: the target cannot cut numbers into {scheme} without changing what its tokens spell",
        "a target whose tokens join without spaces, and whose model makes one token of every such group",
        "leave keep_digits out, or choose another target",
    )


def _group_size(scheme: str) -> int | None:
    found = re.match(r"groups of (\d+) from", scheme)
    return int(found[1]) if found else 1 if scheme == "single digits" else None


def _numbers(size: int) -> Iterator[str]:
    """Every string of up to ``size`` digits, the shorter ones first."""
    for length in range(1, size + 1):
        yield from map("".join, product("0123456789", repeat=length))


def _split(size: int, from_right: bool) -> dict[str, Any]:
    pattern = f"[0-9]{{1,{size}}}"
    if from_right:
        pattern += f"(?=(?:[0-9]{{{size}}})*(?![0-9]))"
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _parts(node: dict[str, Any] | None) -> list[dict[str, Any]]:
    if node is None:
        return []
    return list(node["pretokenizers"]) if node["type"] == "Sequence" else [node]


def _changes_numbers_only(patched: Vocabulary, target: Vocabulary, size: int) -> bool:
    """Whether every group is one token, texts spell what they spelt, and those without digits do so alike."""
    texts = [*probe_texts(target), *_NUMBERS, "a1b22c333", "x = 1000 + 20, 3"]
    return (
        all(_cut(number, patched) == [len(number)] for number in _numbers(size))
        and all(patched.spell(text) == target.spell(text) for text in texts)
        and all(patched.encode(text) == target.encode(text) for text in texts if not re.search("[0-9]", text))
    )


def _groups(length: int, size: int) -> list[int]:
    """Lengths of groups filled from the left."""
    return [min(size, length - start) for start in range(0, length, size)]


def _cut(number: str, vocabulary: Vocabulary) -> list[int]:
    tokens = [vocabulary.tokens[index] for index in vocabulary.encode(number)]
    lengths = [len(token.data.strip()) for token in tokens if token.kind is not Kind.SPECIAL]
    return [length for length in lengths if length]
