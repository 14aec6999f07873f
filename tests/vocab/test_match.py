"""Two tokens are the same when they stand for the same bytes, and only then."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensurgeon.vocab.canonical import Kind
from tokensurgeon.vocab.match import Collision, match_edited, match_vocabularies
from tokensurgeon.vocab.special import Origin


def ordinary(match):
    """Printed form of target -> printed form of base, ordinary matches only."""
    return {
        match.target.tokens[index].content: match.base.tokens[twin].content
        for index, twin in match.byte_equal.items()
    }


def key(token):
    return token.data, token.word_start


def group(vocabulary):
    """Number of ordinary tokens by (bytes, word start), worked out without the package's index."""
    counts = {}
    for token in vocabulary:
        if token.kind is not Kind.SPECIAL:
            counts[key(token)] = counts.get(key(token), 0) + 1
    return counts


def test_no_match_has_different_bytes(pair):
    match = match_vocabularies(*pair)
    pairs = [(match.target.tokens[a], match.base.tokens[b]) for a, b in match.byte_equal.items()]
    assert pairs
    assert [(a.content, b.content) for a, b in pairs if key(a) != key(b)] == []
    assert match.false_matches == []


def test_every_token_with_a_free_twin_is_matched(pair):
    target, base = pair
    ours, theirs = group(target), group(base)
    expected = sum(min(ours[k], theirs[k]) for k in ours.keys() & theirs.keys())
    assert len(match_vocabularies(target, base).byte_equal) == expected > 0


def test_a_base_token_is_used_once(pair):
    used = list(match_vocabularies(*pair).byte_equal.values())
    assert len(used) == len(set(used))


def test_every_target_token_is_matched_or_missing(pair):
    match = match_vocabularies(*pair)
    assert sorted([*match.sources, *match.missing]) == list(match.target.tokens)
    assert list(match.sources) == sorted(match.sources)


def test_ordinary_matches_have_one_row_for_both_ends(pair):
    match = match_vocabularies(*pair)
    sources = [match.sources[index] for index in match.byte_equal]
    assert all(source.embedding == source.head and len(source.head) == 1 for source in sources)


def test_a_vocabulary_matched_with_itself_is_the_identity(vocabulary):
    match = match_vocabularies(vocabulary, vocabulary)
    assert match.is_identity
    assert match.missing == []


def test_two_different_vocabularies_are_no_identity(pair):
    assert not match_vocabularies(*pair).is_identity


def test_a_subset_is_no_identity(build):
    more, fewer = build.load(build.byte_level()), build.load(build.byte_level(words=[" the"]))
    assert not match_vocabularies(fewer, more).is_identity
    assert not match_vocabularies(more, fewer).is_identity


@pytest.mark.parametrize(("target", "base"), [("sentencepiece", "byte-level"), ("sentencepiece", "tiktoken")])
def test_white_space_accents_and_ideographs_match_byte_level_tokens(vocabularies, target, base):
    found = ordinary(match_vocabularies(vocabularies[target], vocabularies[base]))
    expected = {
        "▁the": "Ġthe",
        "▁": "Ġ",
        "▁▁": "ĠĠ",
        "▁▁▁▁": "ĠĠĠĠ",
        "\n": "Ċ",
        "\n\n": "ĊĊ",
        "\t": "ĉ",
        "é": "Ã©",
        "日本": "æĹ¥æľ¬",
        "ing": "ing",
    }
    assert {piece: found.get(piece) for piece in expected} == expected


def test_the_first_byte_of_a_letter_is_not_the_letter_that_prints_like_it(build):
    # GPT-2 prints byte 0xE3 as "ã"; a string comparison gives the byte the letter's row.
    target, base = build.load(build.byte_level()), build.load(build.sentencepiece(words=["ã"]))
    assert ordinary(match_vocabularies(target, base))["ã"] == "<0xE3>"
    assert "ã" not in ordinary(match_vocabularies(base, target))


def test_bytes_above_ascii_match_byte_pieces_only(vocabularies):
    match = match_vocabularies(vocabularies["byte-level"], vocabularies["sentencepiece"])
    high = {
        match.target.tokens[a].data: match.base.tokens[b]
        for a, b in match.byte_equal.items()
        if len(match.target.tokens[a].data) == 1 and match.target.tokens[a].data >= b"\x80"
    }
    assert [high[bytes([byte])].content for byte in range(0x80, 0x100)] == [
        f"<0x{byte:02X}>" for byte in range(0x80, 0x100)
    ]


def test_a_byte_piece_matches_the_byte_level_token_of_its_byte(build):
    target = build.load(build.sentencepiece(words=[" the"], added=()))
    found = ordinary(match_vocabularies(target, build.load(build.byte_level())))
    assert found["<0x0A>"] == "Ċ"
    assert found["<0x41>"] == "A"


def test_a_normal_piece_goes_before_the_byte_piece_of_the_same_byte(vocabularies):
    there = ordinary(match_vocabularies(vocabularies["byte-level"], vocabularies["sentencepiece"]))
    back = ordinary(match_vocabularies(vocabularies["sentencepiece"], vocabularies["byte-level"]))
    assert (there["a"], there["Ċ"]) == ("a", "\n")
    assert (back["a"], back["\n"]) == ("a", "Ċ")
    assert "<0x61>" not in back
    assert "<0x0A>" not in back


def test_byte_pieces_match_byte_pieces_of_another_vocabulary(vocabularies):
    found = ordinary(match_vocabularies(vocabularies["unigram-bytes"], vocabularies["sentencepiece"]))
    assert (found["<0x61>"], found["a"]) == ("<0x61>", "a")


def test_a_byte_piece_leaves_the_letter_alone_where_both_are_there(build):
    bytes_alone = build.load(build.sentencepiece(words=[" the"], added=()))
    both = build.load(build.unigram(words=[" cat"], byte_fallback=True))
    assert ordinary(match_vocabularies(bytes_alone, both))["<0x63>"] == "<0x63>"
    there = ordinary(match_vocabularies(both, bytes_alone))
    assert there["<0x63>"] == "<0x63>"
    assert "c" not in there


def test_a_token_that_an_edit_kept_is_the_same_token(build):
    base = build.load(build.byte_level())
    target = build.load(build.byte_level(words=[" zebra"]))
    end = base.by_content["<|endoftext|>"].id
    learnt = base.by_content["a"].id
    stayed = {end: end, learnt: learnt, learnt + 1: len(base) + 5}
    found = match_edited(target, base, stayed).sources
    assert {index: source.origin for index, source in found.items()} == {
        end: Origin.CONTENT,
        learnt: Origin.MATCHED,
    }
    assert found[learnt].embedding == found[learnt].head == (learnt,)


def test_the_users_map_goes_before_what_an_edit_kept(build):
    base = build.load(build.byte_level())
    end, learnt = base.by_content["<|endoftext|>"].id, base.by_content["a"].id
    found = match_edited(base, base, {end: end, learnt: learnt}, {"<|endoftext|>": " the"}).sources
    assert found[end].origin is Origin.MAPPED
    assert found[end].embedding == (base.by_content["Ġthe"].id,)
    assert found[learnt].origin is Origin.MATCHED


def test_the_inside_of_a_word_is_not_its_start(vocabularies):
    found = ordinary(match_vocabularies(vocabularies["wordpiece-uncased"], vocabularies["byte-level"]))
    assert found["the"] == "Ġthe"
    assert found["##ing"] == "ing"
    assert "ing" not in found
    back = ordinary(match_vocabularies(vocabularies["byte-level"], vocabularies["wordpiece-uncased"]))
    assert back["ing"] == "##ing"
    assert back["Ġthe"] == "the"


def test_a_wordpiece_keeps_its_place_in_the_word_in_another_wordpiece(vocabularies):
    found = ordinary(match_vocabularies(vocabularies["wordpiece-uncased"], vocabularies["wordpiece-cased"]))
    assert {piece: found[piece] for piece in ("ing", "##ing", ".", "##.")} == {
        "ing": "ing",
        "##ing": "##ing",
        ".": ".",
        "##.": "##.",
    }


def test_collisions_are_reported_on_both_sides(vocabularies):
    target, base = vocabularies["sentencepiece"], vocabularies["wordpiece-uncased"]
    collisions = match_vocabularies(target, base).collisions
    ids = tuple(target.by_content[piece].id for piece in ("a", "<0x61>"))
    assert Collision("target", b"a", ids) in collisions
    ids = tuple(base.by_content[piece].id for piece in (".", "##."))
    assert Collision("base", b".", ids) in collisions


def test_a_vocabulary_without_repeated_bytes_has_no_collisions(vocabularies):
    assert match_vocabularies(vocabularies["byte-level"], vocabularies["tiktoken"]).collisions == ()


def test_of_two_target_tokens_for_one_base_token_the_second_is_missing(build):
    target = build.load(build.byte_level(added=[" cat"]))
    match = match_vocabularies(target, build.load(build.byte_level()))
    assert ordinary(match)["Ġcat"] == "Ġcat"
    assert [target.tokens[index].content for index in match.missing] == [" cat"]


def test_of_two_spellings_the_one_that_prints_the_same_is_taken(build):
    both = build.load(build.byte_level(added=[" cat"]))
    added, learnt = build.load(build.byte_level([], added=[" cat"])), build.load(build.byte_level())
    assert ordinary(match_vocabularies(added, both))[" cat"] == " cat"
    assert ordinary(match_vocabularies(learnt, both))["Ġcat"] == "Ġcat"


def test_successors_are_the_target_tokens_with_a_base_tokens_head_row(vocabularies):
    match = match_vocabularies(vocabularies["byte-level"], vocabularies["tiktoken"])
    twin = match.base.by_content["Ġthe"].id
    assert match.successors(twin) == [match.target.by_content["Ġthe"].id]
    assert match.successors(match.base.by_content["ĠtheĠcat"].id) == []


words = st.lists(st.text(alphabet="abé日 \n▁Ġ#", min_size=1, max_size=4), max_size=8)


@settings(derandomize=True, max_examples=40, deadline=None)
@given(ours=words, theirs=words)
def test_any_two_byte_level_vocabularies_share_exactly_their_equal_bytes(build, ours, theirs):
    target, base = build.load(build.byte_level(ours)), build.load(build.byte_level(theirs))
    match = match_vocabularies(target, base)
    shared = {t.data for t in target if not t.added} & {t.data for t in base if not t.added}
    assert {target.tokens[index].data for index in match.byte_equal} == shared
    assert all(target.tokens[a].data == base.tokens[b].data for a, b in match.byte_equal.items())
    assert match.is_identity is ([t.content for t in target] == [t.content for t in base])


@settings(derandomize=True, max_examples=25, deadline=None)
@given(ours=words, theirs=words)
def test_a_byte_level_and_a_sentencepiece_vocabulary_never_match_different_bytes(build, ours, theirs):
    target, base = build.load(build.byte_level(ours)), build.load(build.sentencepiece(theirs, added=()))
    found = match_vocabularies(target, base)
    assert {target.tokens[index].data for index in found.byte_equal} == target.by_bytes.keys() & {
        token.data for token in base if token.kind is not Kind.SPECIAL
    }
    assert all(source.origin is not Origin.CHAT for source in found.sources.values())
