"""A target tokenizer cuts numbers like the base's, and everything else as before."""

import itertools

import pytest
from tokenizers import Regex, pre_tokenizers

from tokensurgeon.errors import InputError
from tokensurgeon.vocab.digits import digit_scheme, keep_digits
from tokensurgeon.vocab.probe import probe_texts

GROUPS = ["".join(digits) for size in (2, 3) for digits in itertools.product("0123456789", repeat=size)]
DIGITS = tuple("0123456789")
PATTERNS = {
    "single digits": r"\d",
    "groups of 2 from the left": r"\d{1,2}",
    "groups of 3 from the left": r"\d{1,3}",
    "groups of 3 from the right": r"\d{1,3}(?=(?:\d{3})*\b)",
}
SENTENCE = "The year 2024 had 366 days, x1234567y and 1,000,000 more."


@pytest.fixture(scope="module")
def bases(build):
    """A base of every scheme that is a rule."""

    def grouped(pattern):
        parts = [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
        pre_tokenizer = pre_tokenizers.Sequence(parts)
        return build.load(build.byte_level(GROUPS, pre_tokenizer=pre_tokenizer, ignore_merges=True))

    made = {scheme: grouped(pattern) for scheme, pattern in PATTERNS.items()}
    assert all(digit_scheme(base) == scheme for scheme, base in made.items())
    return made


@pytest.fixture(scope="module")
def targets(build):
    """Targets of every family that cut numbers as they learnt to, and have every group."""
    words = [" the", " year", *GROUPS, "2024", " 36"]
    spelling = build.unigram([*words, *DIGITS, *"Thyearhdsx,.moni "], byte_fallback=True)
    made = {
        "byte-level": build.load(build.byte_level(words, ignore_merges=True)),
        "byte-level, spaces put in front": build.load(
            build.byte_level(
                words, ignore_merges=True, pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)
            )
        ),
        "unigram": build.load(spelling),
        "tiktoken": build.load(build.tiktoken([*words, " the"])),
    }
    assert digit_scheme(made["byte-level"]) == "learnt groups"
    return made


@pytest.mark.parametrize("scheme", PATTERNS)
@pytest.mark.parametrize("kind", ["byte-level", "byte-level, spaces put in front", "tiktoken"])
def test_numbers_are_cut_as_in_the_base(kind, scheme, targets, bases):
    target, base = targets[kind], bases[scheme]
    kept = keep_digits(target, base)
    assert digit_scheme(kept) == scheme
    for text in probe_texts(target):
        assert kept.spell(text) == target.spell(text)
        if not any(digit in text for digit in DIGITS):
            assert kept.encode(text) == target.encode(text)
    assert kept.spell(SENTENCE) == target.spell(SENTENCE)


def test_the_first_digits_stand_apart_in_running_text(targets, bases):
    kept = keep_digits(targets["byte-level"], bases["groups of 3 from the right"])
    tokens = [kept.tokens[index].data for index in kept.encode("in 1234567, x12y")]
    numbers = [data for data in tokens if data.isdigit()]
    assert numbers == [b"1", b"234", b"567", b"12"]


def test_pieces_of_sentencepiece_may_be_split_too(build, bases):
    words = [" the", " year", "73", "2504", *DIGITS]
    target = build.load(build.sentencepiece(words))
    assert digit_scheme(target) == "learnt groups"
    kept = keep_digits(target, bases["single digits"])
    assert digit_scheme(kept) == "single digits"
    assert kept.spell(SENTENCE) == target.spell(SENTENCE)


def test_no_spaces_come_between_the_pieces_of_metaspace(targets, bases):
    kept = keep_digits(targets["unigram"], bases["single digits"])
    assert digit_scheme(kept) == "single digits"
    assert kept.spell("x12 = 3") == targets["unigram"].spell("x12 = 3")


def test_the_written_tokenizer_is_the_one_that_was_checked(build, targets, bases, tmp_path):
    from tokensurgeon.vocab.vocabulary import load_vocabulary

    kept = keep_digits(targets["byte-level"], bases["single digits"])
    (tmp_path / "tokenizer.json").write_text(kept.dump(), encoding="utf-8")
    read = load_vocabulary(tmp_path)
    assert read.encode(SENTENCE) == kept.encode(SENTENCE)
    assert digit_scheme(read) == "single digits"
    assert {**read.spec, "pre_tokenizer": None} == {**targets["byte-level"].spec, "pre_tokenizer": None}


def test_a_target_that_cuts_numbers_alike_stays_as_it_is(bases):
    base = bases["groups of 3 from the left"]
    assert keep_digits(base, base) is base


def test_a_base_without_a_rule_is_refused(targets, bases):
    with pytest.raises(InputError, match="the base cuts numbers into learnt groups"):
        keep_digits(bases["single digits"], targets["byte-level"])


def test_a_target_without_the_groups_is_refused_by_the_first_that_lacks(build, bases):
    target = build.load(build.byte_level(["73", "2504"]))
    with pytest.raises(InputError, match=r"groups of 3 from the left, the target has no token '00'"):
        keep_digits(target, bases["groups of 3 from the left"])


def test_a_target_that_joins_words_with_spaces_is_refused(build, bases):
    pieces = [*DIGITS, *(f"##{digit}" for digit in DIGITS), "x", "73"]
    target = build.load(build.wordpiece(pieces=pieces))
    with pytest.raises(InputError, match="without changing what its tokens spell"):
        keep_digits(target, bases["single digits"])


def test_a_group_that_the_merges_never_make_is_refused(build, bases):
    """The token 921 is there, but 2 1 comes before 9 2, and 9 21 is no merge."""
    target = build.load(build.byte_level(GROUPS))
    assert len(target.encode("921")) == 2
    with pytest.raises(InputError, match="without changing what its tokens spell"):
        keep_digits(target, bases["groups of 3 from the left"])
