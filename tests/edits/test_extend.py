"""Extended tokenizers: what is there stays, and what is new is produced from plain text."""

from collections import Counter
from itertools import pairwise

import grow_kinds as kinds
import pytest
from grow_kinds import BPES, FRENCH, KINDS, new_ids, reread, vocabulary
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tokensurgeon.edits.extend import extend, read_token_list
from tokensurgeon.edits.learn import count_words, learn_merges
from tokensurgeon.edits.params import ExtendParams
from tokensurgeon.errors import InputError
from tokensurgeon.vocab.usable import is_reachable

LISTED = ExtendParams(tokens=("list.txt",))
OUTSIDE = ExtendParams(tokens=("list.txt",), placed="added")
WORDS = [" château", " rivière", "passait", " children", " kettles", " the", " brown"]


def corpus(count):
    return ExtendParams(corpus=("fra.txt",), count=count)


def edits(kind):
    """The same tokenizer, extended from a list, from a corpus, and by another tokenizer."""
    old = vocabulary(kind)
    other = vocabulary("wordpiece" if kind != "wordpiece" else "byte-level")
    yield extend(old, LISTED, tokens=WORDS)
    yield extend(old, corpus(60), texts=[FRENCH])
    yield extend(old, ExtendParams(tokenizer="other"), other=other)


@pytest.fixture(scope="module")
def extended():
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = list(edits(kind))
        return made[kind]

    return get


@pytest.mark.parametrize("kind", KINDS)
def test_old_tokens_keep_their_ids_and_new_ones_follow_without_a_gap(kind, extended):
    old = vocabulary(kind)
    for edited in extended(kind):
        new = reread(edited)
        assert edited.origins == {index: index for index in old.tokens}
        assert {index: new.tokens[index] for index in old.tokens} == old.tokens
        assert sorted(new_ids(edited)) == list(range(old.bound, new.bound))
        for token in new:
            assert new.tokenizer.token_to_id(token.content) == token.id


@pytest.mark.parametrize("kind", KINDS)
def test_every_new_token_is_reachable(kind, extended):
    for edited in extended(kind):
        new = reread(edited)
        assert new_ids(edited)
        assert all(is_reachable(new.tokens[index], new) for index in new_ids(edited))


@pytest.mark.parametrize("kind", KINDS)
def test_listed_tokens_come_out_of_plain_text(kind):
    old = vocabulary(kind)
    new = reread(extend(old, LISTED, tokens=[" château", " rivière"]))
    for text in ("le château", "la rivière"):
        assert len(new.encode(text)) == len(new.encode(text.split()[0])) + 1
        assert new.spell(text) == old.spell(text)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=kinds.texts)
def test_text_without_a_new_token_is_cut_as_before(kind, extended, text):
    old = vocabulary(kind)
    for edited in extended(kind):
        new = opened(edited)
        ids = new.encode(text, add_special_tokens=False).ids
        if not set(ids) - old.tokens.keys():
            assert ids == old.encode(text)


_OPENED = {}


def opened(edited):
    if id(edited) not in _OPENED:
        _OPENED[id(edited)] = (edited, reread(edited).tokenizer)
    return _OPENED[id(edited)][1]


@pytest.mark.parametrize("kind", BPES)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=kinds.texts)
def test_new_tokens_are_made_of_the_old_segmentation(kind, extended, text):
    """Taken apart by their merges, new tokens give exactly what the old tokenizer gave."""
    old = vocabulary(kind)
    for edited in extended(kind):
        ids = opened(edited).encode(text, add_special_tokens=False).ids
        assert kinds.expand(ids, edited, old) == old.encode(text)


@pytest.mark.parametrize("kind", KINDS)
def test_post_processor_adds_what_it_added(kind, extended):
    old = vocabulary(kind)
    for edited in extended(kind):
        assert reread(edited).encode("", specials=True) == old.encode("", specials=True)


def test_a_token_in_many_pieces_needs_tokens_in_between_and_they_are_counted():
    old = vocabulary("byte-level")
    edited = extend(old, LISTED, tokens=["zxqvj"])
    contents = [reread(edited).tokens[index].content for index in sorted(new_ids(edited))]
    assert contents == ["zx", "zxq", "zxqv", "zxqvj"]
    assert (edited.facts["added"], edited.facts["intermediates"]) == (1, 3)


def test_chains_are_shared():
    edited = extend(vocabulary("byte-level"), LISTED, tokens=["zxqvj", "zxq", "zxqvw"])
    assert (edited.facts["added"], edited.facts["intermediates"]) == (3, 2)


@pytest.mark.parametrize("text", ["aaaa", "zzzzzzz", "abababab"])
def test_chains_of_repeated_letters_lead_to_the_token(text):
    new = reread(extend(vocabulary("byte-level"), LISTED, tokens=[text]))
    assert [new.tokens[index].content for index in new.encode(text)] == [text]


def test_count_includes_tokens_in_between():
    edited = extend(
        vocabulary("byte-level"), ExtendParams(tokens=("x",), count=5), tokens=["zx", "zxqvj", "vwvwv", "jj"]
    )
    assert 2 <= len(new_ids(edited)) <= 5
    assert edited.facts["added"] + edited.facts["intermediates"] == len(new_ids(edited))


def test_tokens_that_the_pre_tokenizer_cuts_are_named():
    edited = extend(vocabulary("byte-level"), LISTED, tokens=["New York", " château", "a1b"])
    (reason,) = edited.facts["left_out"]
    assert edited.facts["left_out"][reason] == {"count": 2, "first": ["New York", "a1b"]}
    assert "cut" in reason


def test_a_list_of_which_nothing_can_be_added_is_refused():
    with pytest.raises(InputError, match="'New York': text is cut within it"):
        extend(vocabulary("byte-level"), LISTED, tokens=["New York"])


def test_a_token_whose_bytes_another_token_has_is_there_already():
    old = vocabulary("sentencepiece")
    edited = extend(old, LISTED, tokens=[" the", "\n", " château"])
    assert edited.facts["already_there"] == 2


def test_half_characters_of_another_byte_level_tokenizer_are_produced_too():
    old = vocabulary("tiktoken")
    halves = kinds.train_bpe(
        kinds.pre_tokenizers.ByteLevel(add_prefix_space=False), 300, corpus=["한국어 항구"] * 9
    )
    other = kinds.load(halves)
    edited = extend(old, ExtendParams(tokenizer="other"), other=other)
    broken = [t for t in other if "\\x" in t.text and t.data not in old.by_bytes]
    new = reread(edited)
    assert broken
    left_out = sum(entry["count"] for entry in edited.facts["left_out"].values())
    assert sum(t.data in new.by_bytes for t in broken) >= len(broken) - left_out > 0


def test_special_tokens_of_the_other_tokenizer_are_not_added():
    edited = extend(vocabulary("byte-level"), ExtendParams(tokenizer="x"), other=vocabulary("sentencepiece"))
    assert "<bos>" not in reread(edited).by_content


def test_a_line_for_wordpiece_opens_a_word_unless_it_has_the_prefix():
    new = reread(extend(vocabulary("wordpiece"), LISTED, tokens=["foxes", "##foxes"]))
    assert [new.tokens[index].content for index in new.encode("foxes afoxes")] == ["foxes", "a", "##foxes"]


def test_a_mark_is_one_wordpiece_with_a_space_before_it_or_without():
    edited = extend(vocabulary("wordpiece"), LISTED, tokens=["##§", "§", "##xyx"])
    assert edited.facts["added"] == len(new_ids(edited)) == 2
    new = reread(edited)
    assert new.by_content["§"].id in new.encode("a§ §")


def test_letters_that_text_had_bytes_for_become_tokens_on_the_way():
    old = vocabulary("sentencepiece")
    edited = extend(old, LISTED, tokens=[" château"])
    new = reread(edited)
    assert "â" not in old.by_content
    assert new.tokens[old.bound].content == "â"
    assert [new.tokens[index].content for index in new.encode("le château")] == ["le", "▁château"]


def test_a_unigram_with_holes_among_its_ids_is_refused():
    spec = kinds.json.loads(kinds.unigram().to_str())
    spec["added_tokens"][-1]["id"] += 3
    with pytest.raises(InputError, match="no token has id"):
        extend(kinds.load(kinds.json.dumps(spec)), LISTED, tokens=[" château"])


def with_unmerged(*pieces):
    """A tokenizer with tokens that no merge leads to."""
    spec = kinds.json.loads(kinds.smollm().to_str())
    for piece in pieces:
        spec["model"]["vocab"][piece] = len(spec["model"]["vocab"])
    return kinds.load(kinds.json.dumps(spec))


def test_no_merge_leads_to_a_token_that_is_there_but_was_never_produced():
    old = with_unmerged("zx")
    new = reread(extend(old, LISTED, tokens=["zxq"]))
    assert [new.tokens[index].content for index in new.encode("zxq zx")] == ["zxq", "Ġ", "z", "x"]
    learnt = reread(extend(old, corpus(5), texts=["zx zx zx"]))
    assert [learnt.tokens[index].content for index in range(old.bound, learnt.bound)] == ["Ġz", "Ġzx"]
    assert learnt.encode("zx") == old.encode("zx")


def test_a_chain_goes_round_tokens_that_are_there():
    old = with_unmerged("zxq", "qv")
    new = reread(extend(old, LISTED, tokens=["zxqv"]))
    contents = [new.tokens[index].content for index in range(old.bound, new.bound)]
    assert contents == ["xq", "xqv", "zxqv"]
    assert new.tokenizer.encode("zxqv").tokens == ["zxqv"]


def test_a_token_that_can_only_be_built_over_such_tokens_is_left_out():
    with pytest.raises(InputError, match="'zxq': each way to build it passes over"):
        extend(with_unmerged("zx", "xq"), LISTED, tokens=["zxq"])


def test_a_token_that_an_added_token_cuts_is_left_out():
    edited = extend(vocabulary("sentencepiece"), LISTED, tokens=["ab\n\nba", "zxq"])
    assert edited.facts["left_out"]["text is cut within it before the model sees it"]["count"] == 1
    assert edited.facts["added"] == 1
    assert "ab\n\nba" not in reread(edited).by_content


def test_a_unigram_piece_scores_just_above_its_parts():
    pieces = [("<unk>", 0.0), ("▁", -2.0), ("a", -1.0), ("b", -1.5), ("z", -20.0)]
    tokenizer = kinds.Tokenizer(kinds.models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = kinds.pre_tokenizers.Metaspace()
    edited = extend(kinds.load(tokenizer), LISTED, tokens=["aab", "ab"])
    scores = dict(edited.spec["model"]["vocab"])
    assert -2.5 < scores["ab"] < -2.49 and -3.5 < scores["aab"] < -3.49
    new = reread(edited)
    assert new.tokenizer.encode("zabzaab").tokens == ["▁", "z", "ab", "z", "aab"]


def test_merges_keep_the_way_they_are_written():
    spec = kinds.json.loads(kinds.byte_level().to_str())
    spec["model"]["merges"] = [" ".join(pair) for pair in spec["model"]["merges"]]
    edited = extend(kinds.load(kinds.json.dumps(spec)), LISTED, tokens=[" château"])
    assert all(isinstance(merge, str) for merge in edited.spec["model"]["merges"])
    assert b" ch\xc3\xa2teau" in reread(edited).by_bytes


def test_token_lists_know_escapes():
    assert read_token_list("a\n b\n\\n\\n\n\\ta\\\\n\n\na\n") == ["a", " b", "\n\n", "\ta\\n"]


# Added tokens.


@pytest.mark.parametrize("kind", ["byte-level", "tiktoken", "sentencepiece"])
@pytest.mark.parametrize("frame", ["{}", "x{}", "{}x", "x{}x", "x {} x", " {} ", "{}{}"])
def test_added_tokens_keep_round_trips(kind, frame):
    old = vocabulary(kind)
    edited = extend(old, OUTSIDE, tokens=["zxqvj", " zxqw"])
    new = reread(edited)
    assert edited.facts["added"] == 2
    for token in ("zxqvj", " zxqw"):
        text = frame.format(token, token)
        ids = new.encode(text)
        assert new.by_content[token].id in ids
        assert new.tokenizer.decode(ids) == old.tokenizer.decode(old.encode(text)) == text


def test_added_tokens_are_taken_as_they_are():
    edited = extend(vocabulary("byte-level"), OUTSIDE, tokens=["zxqvj"])
    entry = edited.spec["added_tokens"][-1]
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    assert [entry[flag] for flag in flags] == [False] * 5
    assert len(edited.spec["model"]["merges"]) == len(vocabulary("byte-level").spec["model"]["merges"])


def test_added_tokens_are_refused_where_the_text_behind_them_gets_a_space():
    for kind in ("unigram", "wordpiece", "llama2"):
        with pytest.raises(InputError, match="change the text around it"):
            extend(vocabulary(kind), OUTSIDE, tokens=["zxqvj"])


def test_added_tokens_are_refused_where_the_decoder_takes_their_letters_for_bytes():
    edited = extend(vocabulary("byte-level"), OUTSIDE, tokens=["été", "ete"])
    ((_, names),) = edited.facts["left_out"].items()
    assert names == {"count": 1, "first": ["été"]}


# Continued BPE.


def naive(words, first, count):
    """Count all pairs anew for each merge."""
    words, merges = dict(words), []
    while len(merges) < count:
        pairs = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                pairs[pair] += times
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < 2:
            break
        merges.append((*best, first + len(merges)))
        merged = Counter()
        for word, times in words.items():
            joined, place = [], 0
            while place < len(word):
                size = 2 if word[place : place + 2] == best else 1
                joined.append(first + len(merges) - 1 if size == 2 else word[place])
                place += size
            merged[tuple(joined)] += times
        words = merged
    return merges


words = st.dictionaries(
    st.lists(st.integers(0, 4), min_size=2, max_size=9).map(tuple), st.integers(1, 4), min_size=1, max_size=12
)


@settings(deadline=None, max_examples=300)
@given(words=words)
def test_merges_are_those_of_counting_anew_each_time(words):
    counter = iter(range(5, 1000))
    merges, left = learn_merges(words, lambda *_: next(counter), 6)
    assert merges == naive(words, 5, 6)
    assert sum(left.values()) <= sum(len(word) * times for word, times in words.items())


def test_of_equally_frequent_pairs_the_lowest_ids_win():
    merges, _ = learn_merges({(3, 4): 2, (1, 2): 2, (1, 0): 2}, _Counter(), 3)
    assert [pair[:2] for pair in merges] == [(1, 0), (1, 2), (3, 4)]


class _Counter:
    def __init__(self):
        self.last = 8

    def __call__(self, *_):
        self.last += 1
        return self.last


def test_long_texts_are_read_in_blocks_with_the_same_words(monkeypatch):
    old = vocabulary("byte-level")
    whole = count_words(old, [FRENCH], lambda *_: False)
    monkeypatch.setattr("tokensurgeon.edits.learn._BLOCK", 50)
    assert count_words(old, [FRENCH], lambda *_: False) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_learnt_tokens_shorten_text_like_the_corpus(kind):
    old = vocabulary(kind)
    edited = extend(old, corpus(10), texts=[FRENCH])
    assert edited.facts["added"] == len(new_ids(edited))
    assert len(new_ids(edited)) == 10
    held_out = "la rivière passait près du château, et l'été était très vieux"
    assert len(reread(edited).encode(held_out)) < len(old.encode(held_out))


@pytest.mark.parametrize("kind", ["smollm", "sentencepiece", "metaspace"])
def test_single_digits_stay_single(kind):
    edited = extend(vocabulary(kind), corpus(400), texts=[FRENCH])
    new = reread(edited)
    assert not any(digit in new.tokens[index].data for index in new_ids(edited) for digit in b"0123456789")


def test_learnt_groups_of_digits_may_grow():
    edited = extend(vocabulary("byte-level"), corpus(400), texts=[FRENCH])
    assert b" 1848" in reread(edited).by_bytes


@pytest.mark.parametrize("kind", ["sentencepiece", "metaspace", "unigram"])
def test_learnt_tokens_stay_within_words_though_nothing_cuts_the_text(kind):
    edited = extend(vocabulary(kind), corpus(400), texts=[FRENCH])
    new = reread(edited)
    for index in new_ids(edited):
        text = new.tokens[index].text.removeprefix(" ")
        assert text.isalpha() or not any(char.isalpha() for char in text)


def test_list_comes_before_corpus_and_count_is_for_both():
    params = ExtendParams(tokens=("x",), corpus=("y",), count=10)
    edited = extend(vocabulary("smollm"), params, tokens=["zx", "zxq"], texts=[FRENCH])
    new = reread(edited)
    first = vocabulary("smollm").bound
    assert [new.tokens[first + n].content for n in range(2)] == ["zx", "zxq"]
    assert len(new_ids(edited)) == 10


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"corpus": ("a",)},
        {"corpus": ("a",), "count": 5, "placed": "added"},
        {"tokens": ("a",), "size": 3},
    ],
)
def test_parameters_that_say_nothing_or_contradict_are_refused(params):
    with pytest.raises(ValidationError):
        ExtendParams(**params)
