"""A union has every token that text can be made to produce, and the special tokens, of both."""

import functools

import grow_kinds as kinds
import pytest
from grow_kinds import KINDS, new_ids, reread, vocabulary
from hypothesis import given, settings

from tokensurgeon.edits.params import UnionParams
from tokensurgeon.edits.union import union
from tokensurgeon.vocab.canonical import Kind
from tokensurgeon.vocab.usable import is_reachable

OTHER = UnionParams(tokenizer="other")
PAIRS = [
    ("byte-level", "sentencepiece"),
    ("sentencepiece", "byte-level"),
    ("tiktoken", "unigram"),
    ("unigram", "byte-level"),
    ("wordpiece", "unigram"),
    ("smollm", "wordpiece"),
]


@functools.cache
def made(pair):
    old, other = map(vocabulary, pair)
    edited = union(old, OTHER, other)
    return old, other, edited, reread(edited)


@pytest.fixture(params=PAIRS, ids="+".join)
def pair(request):
    return made(request.param)


def test_every_token_of_the_other_is_there_or_counted_as_left_out(pair):
    _, other, edited, new = pair
    ordinary = {token.data for token in other if token.kind is not Kind.SPECIAL}
    left_out = sum(entry["count"] for entry in edited.facts["left_out"].values())
    assert edited.facts["added"] + edited.facts["already_there"] + left_out >= len(ordinary)
    assert len(ordinary - new.by_bytes.keys()) <= left_out


def test_special_tokens_of_the_other_are_special(pair):
    old, other, edited, new = pair
    names = [token.content for token in other if token.kind is Kind.SPECIAL]
    assert all(new.by_content[name].kind is Kind.SPECIAL for name in names)
    fresh = [name for name in names if name not in old.by_content]
    assert edited.facts["special_tokens_added"] == len(fresh) > 0
    for name in fresh:
        assert new.encode(f"a{name}b").count(new.by_content[name].id) == 1


def test_old_tokens_keep_their_ids(pair):
    old, _, edited, new = pair
    assert edited.origins == {index: index for index in old.tokens}
    assert {index: new.tokens[index] for index in old.tokens} == old.tokens
    assert sorted(new_ids(edited)) == list(range(old.bound, new.bound))
    assert all(new.tokenizer.token_to_id(token.content) == token.id for token in new)


def test_new_tokens_are_reachable(pair):
    _, _, edited, new = pair
    assert all(is_reachable(new.tokens[index], new) for index in new_ids(edited))


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
@settings(deadline=None, max_examples=50)
@given(text=kinds.texts)
def test_text_without_a_new_token_is_cut_as_before(pair, text):
    old, _, _, new = made(pair)
    ids = new.encode(text)
    if not set(ids) - old.tokens.keys():
        assert ids == old.encode(text)


@pytest.mark.parametrize("kind", KINDS)
def test_the_union_with_itself_adds_nothing(kind):
    old = vocabulary(kind)
    edited = union(old, OTHER, old)
    assert edited.spec["model"] == old.spec["model"]
    assert not new_ids(edited)


def test_where_the_other_one_is_from_is_told():
    assert made(PAIRS[0])[2].facts["of"] == "other"
