"""What two vocabularies share of a text."""

from collections import Counter

import pytest

from tokensurgeon.evaluation.overlap import cut_with, measure_overlap
from tokensurgeon.vocab.match import match_vocabularies
from tokensurgeon.vocab.vocabulary import load_vocabulary

TEXTS = {"one": "The quick brown fox\nПривет, мир! " * 4, "two": "def add(first, second):\n    return 1\n"}


@pytest.fixture(scope="module")
def match(request):
    target, base = request.getfixturevalue("tiny_pair")
    return match_vocabularies(target, base)


@pytest.fixture(scope="module")
def tiny_pair(tmp_path_factory, tokenizers):
    found = []
    for kind in ("byte-level", "bytes"):
        directory = tmp_path_factory.mktemp(kind)
        tokenizers[kind].save_pretrained(directory)
        found.append(load_vocabulary(directory))
    return found


def test_the_last_band_is_all_of_the_texts(match):
    found = measure_overlap(match, TEXTS)
    counts = Counter(index for text in TEXTS.values() for index in match.target.encode(text))
    shared = {index for index in counts if index in match.sources}
    band = found.bands[-1]
    assert (band.tokens, band.occurrences) == (len(counts), counts.total())
    assert band.shared == len(shared)
    assert band.shared_occurrences == sum(counts[index] for index in shared)
    assert 0 < band.shared < band.tokens


def test_writing_systems_add_up_to_all(match):
    found = measure_overlap(match, TEXTS)
    for name in ("tokens", "shared", "occurrences", "shared_occurrences"):
        assert sum(getattr(part, name) for part in found.by_script.values()) == getattr(found.bands[-1], name)


def test_what_is_missing_comes_with_how_often_it_is_needed(match):
    found = measure_overlap(match, TEXTS)
    times = [count for _, count in found.missing]
    assert times == sorted(times, reverse=True)
    assert all(len(match.target.tokens[index].data) > 1 for index, _ in found.missing)
    assert sum(times) == found.bands[-1].occurrences - found.bands[-1].shared_occurrences


def test_nothing_is_missing_from_the_same_vocabulary(tiny_pair):
    target, _ = tiny_pair
    found = measure_overlap(match_vocabularies(target, target), TEXTS)
    assert found.missing == []
    assert all(band.shared == band.tokens for band in found.bands)


def test_a_text_is_cut_as_the_tokenizer_does(tiny_pair):
    _, plain = tiny_pair
    found = cut_with(plain, "the fox")
    assert (found.tokens, found.bytes, found.words) == (7, 7, 2)
