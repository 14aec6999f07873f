"""A tokenizer learnt anew is of the same make: special tokens, digits and normalisation stay."""

import functools

import grow_kinds as kinds
import pytest
from grow_kinds import CORPUS, ENGLISH, FRENCH, KINDS, reread, vocabulary
from hypothesis import given, settings
from pydantic import ValidationError

from tokensurgeon.edits.document import read_merges
from tokensurgeon.edits.params import TrainParams
from tokensurgeon.edits.train import train
from tokensurgeon.errors import InputError
from tokensurgeon.vocab.canonical import Kind
from tokensurgeon.vocab.digits import digit_scheme

TEXTS = [FRENCH, ENGLISH, *CORPUS]


def params(**changes):
    return TrainParams(corpus=("x",), **changes)


SIZES = {
    "unigram": 300,
    "wordpiece": 350,
    "sentencepiece": 460,
    "metaspace": 460,
    "metaspace-first": 460,
    "llama2": 460,
}


@functools.cache
def made(kind):
    return train(vocabulary(kind), params(size=SIZES.get(kind, 400)), TEXTS)


@functools.cache
def learnt(kind):
    return reread(made(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_compact_and_the_size_is_as_asked(kind):
    new = learnt(kind)
    assert list(new.tokens) == list(range(len(new)))
    assert len(new) <= SIZES.get(kind, 400)
    assert len(new) == made(kind).facts["size"] >= 130
    assert all(new.tokenizer.token_to_id(token.content) == token.id for token in new)


@pytest.mark.parametrize("kind", ["byte-level", "tiktoken", "smollm", "sentencepiece", "metaspace"])
def test_the_size_is_reached_where_the_corpus_gives_enough(kind):
    assert len(learnt(kind)) == SIZES.get(kind, 400)


@pytest.mark.parametrize("kind", KINDS)
def test_special_and_added_tokens_come_first_in_their_order(kind):
    old, new = vocabulary(kind), learnt(kind)
    names = [token.content for token in old if token.added or token.kind is Kind.SPECIAL]
    assert [new.tokens[index].content for index in range(len(names))] == names
    for name in names:
        token = new.by_content[name]
        assert (token.kind, token.added) == (old.by_content[name].kind, old.by_content[name].added)
        assert made(kind).origins[token.id] == old.by_content[name].id


@pytest.mark.parametrize("kind", KINDS)
def test_the_post_processor_adds_the_same_tokens(kind):
    old, new = vocabulary(kind), learnt(kind)
    for text in ("", "."):
        names = [[v.tokens[i].content for i in v.encode(text, specials=True)] for v in (old, new)]
        assert names[0] == names[1]


@pytest.mark.parametrize("kind", KINDS)
def test_everything_but_the_pieces_is_as_it_was(kind):
    old, new = vocabulary(kind).spec, made(kind).spec
    for part in ("normalizer", "pre_tokenizer", "decoder", "truncation"):
        assert old[part] == new[part]
    assert {k: v for k, v in old["model"].items() if k not in ("vocab", "merges", "unk_id")} == {
        k: v for k, v in new["model"].items() if k not in ("vocab", "merges", "unk_id")
    }


@pytest.mark.parametrize("kind", KINDS)
def test_origins_are_the_same_kind_bytes_and_word_start(kind):
    old, new = vocabulary(kind), learnt(kind)
    for index, before in made(kind).origins.items():
        ours, theirs = new.tokens[index], old.tokens[before]
        assert (ours.kind, ours.data, ours.word_start) == (theirs.kind, theirs.data, theirs.word_start)
    known = {(t.kind, t.data, t.word_start) for t in old}
    assert len(made(kind).origins) == sum((t.kind, t.data, t.word_start) in known for t in new)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_and_their_fallback_pieces_stay(kind):
    old, new = vocabulary(kind), learnt(kind)
    single = {
        (t.kind, t.data) for t in old if t.kind is Kind.BYTE or (len(t.data) == 1 and len(t.content) == 1)
    }
    single = {
        (k, d) for k, d in single if d.isascii() or k is Kind.BYTE or kind in ("byte-level", "tiktoken")
    }
    assert single <= {(t.kind, t.data) for t in new}


@pytest.mark.parametrize("kind", ["byte-level", "tiktoken", "smollm", "sentencepiece"])
@settings(deadline=None, max_examples=100)
@given(text=kinds.texts)
def test_texts_round_trip(kind, text):
    old, new = (
        v.tokenizer.decode(v.encode(text), skip_special_tokens=False)
        for v in (vocabulary(kind), learnt(kind))
    )
    # SentencePiece takes a "▁" in text for a space.
    assert new == old == (text.replace("▁", " ") if kind == "sentencepiece" else text)


@pytest.mark.parametrize("kind", ["smollm", "sentencepiece", "metaspace"])
def test_single_digits_stay_single(kind):
    assert digit_scheme(vocabulary(kind)) == digit_scheme(learnt(kind)) == "single digits"
    assert made(kind).facts["digits"] == {"before": "single digits", "after": "single digits"}


def test_single_digits_of_a_wordpiece_stay_single():
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    model = kinds.models.WordPiece(vocab={name: i for i, name in enumerate(names)}, unk_token="[UNK]")
    tokenizer = kinds.Tokenizer(model)
    tokenizer.pre_tokenizer = kinds.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = kinds.decoders.WordPiece()
    edited = train(kinds.load(tokenizer), params(size=300), ["in 1848 and 1848 and 2026 and 2026 "] * 9)
    assert digit_scheme(reread(edited)) == "single digits"
    assert b" and" in reread(edited).by_bytes


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece", "unigram", "wordpiece"])
def test_text_like_the_corpus_is_shorter_than_before(kind):
    held_out = "The quick dog passait sous le château at the end of the day, et la rivière était old."
    assert len(learnt(kind).encode(held_out)) < len(vocabulary(kind).encode(held_out))


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_all_parts_of_merges_are_tokens(kind):
    vocab = made(kind).spec["model"]["vocab"]
    merges = read_merges(made(kind).spec)
    assert merges
    assert all({left, right, left + right} <= vocab.keys() for left, right in merges)


def test_names_of_special_tokens_are_not_learnt_from():
    texts = [f"<|late|>word {text}" for text in TEXTS] * 5
    new = reread(train(vocabulary("byte-level"), params(size=500), texts))
    assert not any("late" in token.text for token in new if token.kind is Kind.TEXT)


@pytest.mark.parametrize("kind", ["byte-level", "unigram", "wordpiece"])
def test_without_a_size_growth_says_when_to_stop(kind):
    sizes = {}
    for growth in (0.2, 0.01):
        facts = train(vocabulary(kind), params(growth=growth), [(FRENCH + ENGLISH) * 2]).facts
        sizes[growth] = facts["size"]
        tried = [entry["size"] for entry in facts["sizes_tried"]]
        assert ("log_likelihood" if kind == "unigram" else "bytes_per_token") in facts["sizes_tried"][0]
        assert tried == sorted(tried)
    assert sizes[0.2] <= sizes[0.01]


def test_a_large_growth_stops_at_the_first_step():
    facts = train(vocabulary("byte-level"), params(growth=9.0), TEXTS * 3).facts
    assert facts["size"] == facts["sizes_tried"][0]["size"]
    assert len(facts["sizes_tried"]) <= 2


def test_a_size_that_special_tokens_fill_is_refused():
    with pytest.raises(InputError, match="of which special tokens and single bytes take"):
        train(vocabulary("sentencepiece"), params(size=300), TEXTS)


@pytest.mark.parametrize("changes", [{"size": 299}, {"growth": 0}])
def test_parameters_out_of_range_are_refused(changes):
    with pytest.raises(ValidationError):
        params(**changes)


def test_a_post_processor_that_adds_an_ordinary_token_is_refused():
    tokenizer = kinds.smollm()
    tokenizer.post_processor = kinds.processors.TemplateProcessing(
        single="Ġdog $A", pair="Ġdog $A $B", special_tokens=[("Ġdog", tokenizer.token_to_id("Ġdog"))]
    )
    with pytest.raises(InputError, match="adds 'Ġdog', which is no special token"):
        train(kinds.load(tokenizer), params(size=400), ["x y z"])
