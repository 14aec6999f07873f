"""Tokens of several words: produced from plain text, and made of what the words were cut into before."""

import functools
import json

import grow_kinds as kinds
import pytest
from grow_kinds import BPES, CORPUS, ENGLISH, new_ids, reread, vocabulary
from hypothesis import given, settings
from pydantic import ValidationError

from tokensurgeon.edits.document import Edited
from tokensurgeon.edits.params import SupertokensParams
from tokensurgeon.edits.supertokens import join_words, supertokens
from tokensurgeon.errors import InputError

TEXTS = [ENGLISH, *CORPUS]


def params(**changes):
    return SupertokensParams(corpus=("english.txt",), **{"count": 40, **changes})


@functools.cache
def made(kind):
    return supertokens(vocabulary(kind), params(), TEXTS)


@functools.cache
def tokenizer(kind):
    return reread(made(kind)).tokenizer


@pytest.mark.parametrize("kind", BPES)
@settings(deadline=None, max_examples=200)
@given(text=kinds.texts)
def test_supertokens_are_made_of_the_old_segmentation(kind, text):
    """Taken apart by their merges they give just what the old tokenizer gave; text without is as before."""
    old = vocabulary(kind)
    ids = tokenizer(kind).encode(text, add_special_tokens=False).ids
    assert kinds.expand(ids, made(kind), old) == old.encode(text)


@pytest.mark.parametrize("kind", BPES)
@settings(deadline=None, max_examples=100)
@given(text=kinds.texts)
def test_joining_words_alone_changes_no_segmentation(kind, text):
    old = vocabulary(kind)
    joined = join_words(old)
    assert joined.encode(text) == old.encode(text)
    ends = [end for _, end in pieces(old, text)]
    assert {end for _, end in pieces(joined, text)} <= set(ends)


def pieces(vocabulary, text):
    pre_tokenizer = vocabulary.tokenizer.pre_tokenizer
    if pre_tokenizer is None:
        return []
    if vocabulary.tokenizer.normalizer is not None:
        text = vocabulary.tokenizer.normalizer.normalize_str(text)
    return [span for _, span in pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize("kind", BPES)
def test_plain_text_produces_every_supertoken(kind):
    new = reread(made(kind))
    assert new_ids(made(kind))
    for index in new_ids(made(kind)):
        text = new.tokens[index].text
        assert any(index in new.encode(before + text) for before in ("", "a", "dog"))


@pytest.mark.parametrize("kind", BPES)
def test_old_tokens_keep_their_ids(kind):
    old, new = vocabulary(kind), reread(made(kind))
    assert made(kind).origins == {index: index for index in old.tokens}
    assert {index: new.tokens[index] for index in old.tokens} == old.tokens
    assert sorted(new_ids(made(kind))) == list(range(old.bound, new.bound))


@pytest.mark.parametrize("kind", BPES)
def test_supertokens_hold_whole_words_no_digits_and_no_line_ends(kind):
    new = reread(made(kind))
    texts = [new.tokens[index].text for index in new_ids(made(kind))]
    assert " the old" in texts
    assert all(" " in text[1:] for text in texts)
    assert not any(text.startswith(("s ", "n ")) for text in texts)
    assert not any(char.isdigit() or char == "\n" for text in texts for char in text)


def test_a_comma_belongs_to_the_words_behind_it():
    texts = [token.text for token in reread(made("byte-level"))]
    assert ", the" in texts
    assert not any(text.endswith(",") for text in texts if " " in text[1:])


@pytest.mark.parametrize("most", [2, 3])
def test_no_supertoken_spans_more_words_than_allowed(most):
    edited = supertokens(vocabulary("byte-level"), params(most_words=most, count=500), TEXTS)
    new = reread(edited)
    spans = {len([w for w in new.tokens[i].text.split() if w.strip(",.")]) for i in new_ids(edited)}
    assert max(spans) == most


def test_count_is_kept():
    assert len(new_ids(supertokens(vocabulary("byte-level"), params(count=7), TEXTS))) == 7


def drop_last_leaves(vocabulary, size):
    """A trim: the highest old ids that no merge needs make room."""
    spec = json.loads(json.dumps(vocabulary.spec))
    vocab, merges = spec["model"]["vocab"], spec["model"]["merges"]
    while len(vocab) > size - 1:  # one special token is not among the model's
        parts = {part for merge in merges for part in merge}
        victim = max(
            (p for p in vocab if p not in parts and len(p) > 1 and "Ġ" not in p[1:] and "<|" not in p),
            key=vocab.get,
        )
        merges[:] = [merge for merge in merges if "".join(merge) != victim]
        del vocab[victim]
    names = [*sorted(vocab, key=vocab.get)]
    origins = {new: vocab[name] for new, name in enumerate(names)}
    spec["model"]["vocab"] = {name: new for new, name in enumerate(names)}
    for entry in spec["added_tokens"]:
        entry["id"] = spec["model"]["vocab"].get(entry["content"], len(names))
    return Edited(spec, origins, {})


def test_replacing_keeps_the_number_of_tokens():
    old = kinds.load(kinds.smollm())
    asked = []

    def trim(vocabulary, size):
        asked.append((len(vocabulary), size))
        return drop_last_leaves(vocabulary, size + 1)

    edited = supertokens(old, params(replace=True, count=20), TEXTS, trim)
    new = reread(edited)
    assert asked == [(len(old) + 20, len(old))]
    assert len(new) == len(old)
    assert (edited.facts["removed"], edited.facts["kept"]) == (20, 20)
    assert all(new.tokens[index].data == old.tokens[before].data for index, before in edited.origins.items())


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
def test_other_models_are_refused_by_name(kind):
    name = {"unigram": "Unigram", "wordpiece": "WordPiece"}[kind]
    with pytest.raises(InputError, match=f"supertokens of a {name} model"):
        supertokens(vocabulary(kind), params(), TEXTS)


def changed(**parts):
    spec = json.loads(kinds.byte_level().to_str())
    spec.update(parts)
    return kinds.load(json.dumps(spec))


@pytest.mark.parametrize(
    ("node", "name"),
    [
        (
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "ByteLevel",
        ),
        (
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Whitespace"},
                    {
                        "type": "ByteLevel",
                        "add_prefix_space": False,
                        "trim_offsets": True,
                        "use_regex": False,
                    },
                ],
            },
            "Whitespace",
        ),
    ],
)
def test_pre_tokenizers_that_cannot_be_rewritten_are_refused(node, name):
    with pytest.raises(InputError, match=f"a pre-tokenizer of {name}"):
        supertokens(changed(pre_tokenizer=node), params(), TEXTS)


def test_a_merge_that_would_reach_over_words_is_refused():
    spec = json.loads(kinds.byte_level().to_str())
    spec["model"]["vocab"]["eĠ"] = 420
    spec["model"]["merges"].append(["e", "Ġ"])
    spec["added_tokens"] = spec["added_tokens"][:2]
    spec["post_processor"] = None
    with pytest.raises(InputError, match="reaches over a space"):
        supertokens(kinds.load(json.dumps(spec)), params(), TEXTS)


def test_a_merge_that_would_reach_from_a_word_to_a_comma_keeps_commas_apart():
    spec = json.loads(kinds.byte_level().to_str())
    spec["model"]["vocab"]["y,"] = 420
    spec["model"]["merges"].append(["y", ","])
    spec["added_tokens"] = spec["added_tokens"][:2]
    spec["post_processor"] = None
    old = kinds.load(json.dumps(spec))
    new = reread(supertokens(old, params(), TEXTS))
    assert ", the" not in [token.text for token in new]
    assert new.encode("they, the") == old.encode("they, the")


def test_words_are_not_joined_behind_a_line_end_that_belongs_to_the_word():
    split = kinds.pre_tokenizers.Split(kinds.Regex(r" ?\p{L}+\n?|\s+|[^\s\p{L}]"), "isolated")
    whole = kinds.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = kinds.train_bpe(kinds.pre_tokenizers.Sequence([split, whole]))
    spec = json.loads(tokenizer.to_str())
    spec["model"]["vocab"]["ĊĠ"] = len(spec["model"]["vocab"])
    spec["model"]["merges"].append(["Ċ", "Ġ"])
    old = kinds.load(json.dumps(spec))
    text = "the\n dog and the dog\n and\n  the"
    assert join_words(old).encode(text) == old.encode(text)
    assert len(pieces(join_words(old), text)) < len(pieces(old, text))


def test_tokens_that_are_only_looked_up_whole_are_refused():
    spec = json.loads(kinds.tiktoken().to_str())
    spec["model"]["vocab"]["Ġzxq"] = 422
    with pytest.raises(InputError, match="'Ġzxq' is looked up whole"):
        supertokens(kinds.load(json.dumps(spec)), params(), TEXTS)


def test_texts_without_a_pair_of_words_are_refused():
    with pytest.raises(InputError, match="no two words"):
        supertokens(vocabulary("byte-level"), params(), ["one"])


@pytest.mark.parametrize("changes", [{"most_words": 1}, {"count": 0}])
def test_parameters_out_of_range_are_refused(changes):
    with pytest.raises(ValidationError):
        params(**changes)
