"""What two vocabularies share, weighted by how often a text needs it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from tokensurgeon.evaluation.cuts import TextCut, measure_cut
from tokensurgeon.vocab.match import VocabMatch
from tokensurgeon.vocab.scripts import script_of
from tokensurgeon.vocab.vocabulary import Vocabulary

_BANDS = (100, 1000, 10_000)
_EXAMPLES = 20


@dataclass(frozen=True)
class Band:
    """The tokens that a text needs most.

    Attributes:
        tokens: How many of them, the most frequent.
        shared: Those that the base has too.
        occurrences: Of all of them in the text.
        shared_occurrences: Of the shared ones.
    """

    tokens: int
    shared: int
    occurrences: int
    shared_occurrences: int


@dataclass(frozen=True)
class Overlap:
    """The target's tokens of some texts, and whether the base has them.

    Attributes:
        bands: The 100, 1,000 and 10,000 most frequent tokens, and all.
        by_script: All tokens of each writing system, the most occurrences first.
        missing: Target ids that the base lacks with their occurrences, the most frequent first.
    """

    bands: list[Band]
    by_script: dict[str, Band]
    missing: list[tuple[int, int]]


def measure_overlap(match: VocabMatch, texts: Mapping[str, str]) -> Overlap:
    """Count the target's tokens in texts, and those that the base has too.

    Args:
        match: What both share.
        texts: Text by name.

    Returns:
        The counts.
    """
    counts = Counter(index for text in texts.values() for index in match.target.encode(text))
    ordered = sorted(counts, key=lambda index: (-counts[index], index))
    scripts: dict[str, list[int]] = {}
    for index in ordered:
        scripts.setdefault(script_of(match.target.tokens[index]), []).append(index)
    by_script = {script: _band(ids, counts, match) for script, ids in scripts.items()}
    sizes = [size for size in _BANDS if size < len(ordered)]
    return Overlap(
        bands=[_band(ordered[:size], counts, match) for size in [*sizes, len(ordered)]],
        by_script=dict(sorted(by_script.items(), key=lambda item: (-item[1].occurrences, item[0]))),
        missing=[(index, counts[index]) for index in ordered if index not in match.sources][:_EXAMPLES],
    )


def cut_with(vocabulary: Vocabulary, text: str) -> TextCut | None:
    """Measure how a vocabulary's tokenizer cuts a text.

    Args:
        vocabulary: Of the tokenizer.
        text: Not empty.

    Returns:
        The figures; None where it makes no token of the text.
    """
    ids, ends = vocabulary.segment(text)
    if not ids:
        return None
    ends[-1] = len(text.encode())
    return measure_cut(text, ids, ends)


def _band(ids: list[int], counts: Counter[int], match: VocabMatch) -> Band:
    shared = [index for index in ids if index in match.sources]
    return Band(
        tokens=len(ids),
        shared=len(shared),
        occurrences=sum(counts[index] for index in ids),
        shared_occurrences=sum(counts[index] for index in shared),
    )
