"""Two matched vocabularies -> what methods are told of them: bytes and ids, never a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TypeVar

from tokensurgeon.methods.base import Lexicon, Segmentation
from tokensurgeon.vocab.canonical import Family, Kind
from tokensurgeon.vocab.match import VocabMatch
from tokensurgeon.vocab.usable import is_reserved
from tokensurgeon.vocab.vocabulary import Vocabulary

_Value = TypeVar("_Value")


class _Later(Mapping[int, _Value]):
    """A mapping that is made when it is first looked into: few methods need any."""

    def __init__(self, make: Callable[[], dict[int, _Value]]) -> None:
        self._make = make

    @cached_property
    def _made(self) -> dict[int, _Value]:
        return self._make()

    def __getitem__(self, key: int) -> _Value:
        return self._made[key]

    def __iter__(self) -> Iterator[int]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


def make_lexicon(match: VocabMatch, rows: int) -> Lexicon:
    """Tell methods about two vocabularies.

    Args:
        match: The vocabularies, and what they share.
        rows: Rows of the base's tensor; a token past them is not told of.

    Returns:
        Bytes, parts and segmentations.
    """
    target, base = match.target, match.base
    return Lexicon(
        target=_Later(lambda: _ordinary(target, target.bound)),
        base=_Later(lambda: _ordinary(base, rows, reserved=False)),
        target_parts=_Later(lambda: _merged_parts(target)),
        base_parts=_Later(lambda: _parts(base, rows)),
        base_of=_Later(
            lambda: {
                index: source.embedding[0]
                for index, source in match.sources.items()
                if len(source.embedding) == 1 and source.embedding[0] < rows
            }
        ),
        segment_target=_segmenter(target),
        segment_base=_segmenter(base),
    )


def _segmenter(vocabulary: Vocabulary) -> Callable[[str], Segmentation]:
    first = vocabulary.segment("a")[0][:1]
    adds_space = vocabulary.family is not Family.WORDPIECE and bool(first)
    adds_space = adds_space and vocabulary.tokens[first[0]].data.startswith(b" ")

    def segment(text: str) -> Segmentation:
        # Where the tokenizer brings a space of its own, the text's would be a second one.
        skipped = int(adds_space and text.startswith(" "))
        ids, ends = vocabulary.segment(text[skipped:])
        ends = [end + skipped for end in ends]
        kept = [place for place, index in enumerate(ids) if _is_ordinary(vocabulary, index)]
        return Segmentation([ids[place] for place in kept], [ends[place] for place in kept])

    return segment


def _is_ordinary(vocabulary: Vocabulary, index: int) -> bool:
    token = vocabulary.tokens.get(index)
    return token is not None and token.kind is not Kind.SPECIAL


def _ordinary(vocabulary: Vocabulary, bound: int, reserved: bool = True) -> dict[int, bytes]:
    return {
        token.id: token.data
        for token in vocabulary
        if token.kind is not Kind.SPECIAL and token.id < bound and (reserved or not is_reserved(token))
    }


def _merged_parts(vocabulary: Vocabulary) -> dict[int, tuple[int, int]]:
    """The two halves of each BPE token, by its first merge; empty for other models."""
    found: dict[int, tuple[int, int]] = {}
    learnt = vocabulary.spec["model"].get("vocab")
    for merge in vocabulary.spec["model"].get("merges") or []:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        whole = learnt.get(left + right)
        if whole is not None and left in learnt and right in learnt:
            found.setdefault(whole, (learnt[left], learnt[right]))
    return dict(sorted(found.items()))


def _parts(vocabulary: Vocabulary, bound: int) -> dict[int, tuple[int, ...]]:
    """How tokens would be spelt without themselves: by their merge, else by the longest shorter tokens."""
    merged = _merged_parts(vocabulary)
    ordinary = _ordinary(vocabulary, bound, reserved=False)
    found: dict[int, tuple[int, ...]] = {}
    for index, data in ordinary.items():
        spelt = merged.get(index) or (() if merged else _spell_otherwise(data, vocabulary))
        if len(spelt) > 1 and all(part in ordinary for part in spelt):
            found[index] = tuple(spelt)
    return found


def _spell_otherwise(data: bytes, vocabulary: Vocabulary) -> tuple[int, ...]:
    ids: list[int] = []
    start = 0
    while start < len(data):
        longest = len(data) if start else len(data) - 1
        for end in range(longest, start, -1):
            tokens = vocabulary.by_bytes.get(data[start:end])
            if tokens:
                ids.append(tokens[0].id)
                start = end
                break
        else:
            return ()
    return tuple(ids)
