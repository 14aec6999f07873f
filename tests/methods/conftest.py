"""A small base, a donor of another width, and everything a method is told about them."""

from types import SimpleNamespace

import pytest
import torch

from tokensurgeon.methods.base import Lexicon, MethodContext, Segmentation

LETTERS = "abcdefghij"
SYLLABLES = [f"{one}{two}" for one in " bdf" for two in "aeiouhgj"][:30]
BASE = {index: text.encode() for index, text in enumerate([*LETTERS, *SYLLABLES])}
# Targets 0 to 29 are base tokens 10 to 39; 30 to 49 are two syllables each.
WORDS = [SYLLABLES[index] + SYLLABLES[index + 9] for index in range(20)]
TARGET = {index: text.encode() for index, text in enumerate([*SYLLABLES, *WORDS])}


def random(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def segment(text, tokens):
    """The longest tokens from the left; a byte that no token has is skipped."""
    ids_by_bytes = {data: index for index, data in tokens.items()}
    data, ids, ends, start = text.encode(), [], [], 0
    while start < len(data):
        for end in range(len(data), start, -1):
            if data[start:end] in ids_by_bytes:
                ids.append(ids_by_bytes[data[start:end]])
                ends.append(end)
                break
        else:
            end = start + 1
        start = end
    return Segmentation(ids, ends)


def make_lexicon(**changes):
    told = {
        "target": TARGET,
        "base": BASE,
        "target_parts": {30 + index: (index, index + 9) for index in range(20)},
        # Syllables out of letters, where both letters are tokens.
        "base_parts": {
            10 + place: (LETTERS.index(text[0]), LETTERS.index(text[1]))
            for place, text in enumerate(SYLLABLES)
            if text[0] in LETTERS and text[1] in LETTERS
        },
        "base_of": {index: index + 10 for index in range(30)},
        "segment_target": lambda text: segment(text, TARGET),
        "segment_base": lambda text: segment(text, BASE),
    }
    return Lexicon(**told | changes)


def make_corpus(lines=200, seed=5):
    """Lines of words and syllables, common ones before rare ones."""
    pool = [*WORDS, *SYLLABLES]
    weights = 1 / torch.arange(1.0, len(pool) + 1)
    drawn = torch.multinomial(
        weights, lines * 12, replacement=True, generator=torch.Generator().manual_seed(seed)
    )
    return [
        "".join(pool[index] for index in drawn[12 * line : 12 * line + 12].tolist()) for line in range(lines)
    ]


def make_resources(**changes):
    """What a recipe may bring: only a corpus here; the rest is absent."""
    told = {
        "corpus": make_corpus(),
        "parallel": [],
        "base_vectors": None,
        "target_vectors": None,
        "dictionary": [],
    }
    return SimpleNamespace(**told | changes)


def make_context(**changes):
    """40 base tokens of width 12, 50 target tokens; targets 0 to 29 are base tokens 10 to 39."""
    told = {
        "side": "embedding",
        "base_rows": random(1, 40, 12),
        "base_ids": torch.arange(40),
        "donor_rows": random(2, 50, 20),
        "wanted": torch.arange(30, 50),
        "anchor_targets": torch.arange(30),
        "anchor_bases": torch.arange(10, 40),
        "generator": torch.Generator().manual_seed(0),
        "device": torch.device("cpu"),
        "batch_size": 512,
        "advance": lambda count: None,
        "lexicon": make_lexicon(),
        "resources": make_resources(),
    }
    told |= changes
    told.setdefault("pieces", [(int(index) % 40, int(index) % 7) for index in told["wanted"]])
    return MethodContext(**told)


@pytest.fixture(scope="session")
def context():
    """Makes a context; any field may be given."""
    return make_context


@pytest.fixture(scope="session")
def tools():
    """``random(seed, *shape)``, ``rebuild(made, base_rows)``, and makers of a lexicon and of resources."""

    def rebuild(made, base_rows):
        return (made.coefs[:, :, None] * base_rows.float()[made.sources.clamp(min=0)]).sum(dim=1)

    return SimpleNamespace(
        random=random,
        rebuild=rebuild,
        lexicon=make_lexicon,
        resources=make_resources,
        corpus=make_corpus,
        segment=segment,
    )
