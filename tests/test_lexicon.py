"""What methods are told of two vocabularies: bytes and ids that fit together."""

from dataclasses import replace

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers

from tokensurgeon.lexicon import make_lexicon
from tokensurgeon.vocab.canonical import Kind
from tokensurgeon.vocab.match import match_vocabularies
from tokensurgeon.vocab.vocabulary import load_vocabulary

TEXT = "The children's château;\n\tпривет 日本語 12 ½"


@pytest.fixture(scope="session", params=["sentencepiece", "byte_level", "wordpiece"])
def match(request, byte_level):
    base = load_vocabulary(request.getfixturevalue(request.param))
    return match_vocabularies(load_vocabulary(byte_level), base)


@pytest.fixture(scope="session")
def lexicon(match):
    return make_lexicon(match, match.base.bound)


def test_special_tokens_are_left_out(match, lexicon):
    assert list(lexicon.base) == [token.id for token in match.base if token.kind is not Kind.SPECIAL]
    assert len(lexicon.target) == 416


def test_base_tokens_without_a_row_are_left_out(match):
    few = make_lexicon(match, 300)
    assert max(few.base) == max(index for index in match.base.tokens if index < 300)
    assert all(max(index, *parts) < 300 for index, parts in few.base_parts.items())
    assert max(few.base_of.values()) < 300


def test_parts_spell_their_token(lexicon):
    assert len(lexicon.base_parts) > 20
    for index, parts in lexicon.base_parts.items():
        assert len(parts) > 1
        assert index not in parts
        assert b"".join(lexicon.base[part] for part in parts) == lexicon.base[index]
    for index, (left, right) in lexicon.target_parts.items():
        assert lexicon.target[left] + lexicon.target[right] == lexicon.target[index]
    # 256 single bytes are merged from nothing.
    assert len(lexicon.target_parts) == 416 - 256


def test_shared_tokens_have_equal_bytes(lexicon):
    shared = {index: twin for index, twin in lexicon.base_of.items() if index in lexicon.target}
    assert shared
    for index, twin in shared.items():
        assert lexicon.target[index] == lexicon.base[twin]


def test_a_segmentation_tells_where_tokens_end(lexicon):
    segmentation = lexicon.segment_target(TEXT)
    starts = [0, *segmentation.ends[:-1]]
    data = TEXT.encode()
    for index, start, end in zip(segmentation.ids, starts, segmentation.ends, strict=True):
        assert data[start:end] == lexicon.target[index]
    assert segmentation.ends[-1] == len(data)


def test_a_segmentation_by_an_altering_tokenizer_ends_with_the_text(match, lexicon):
    segmentation = lexicon.segment_base(TEXT)
    assert segmentation.ends == sorted(segmentation.ends)
    if match.base.family != "wordpiece":
        assert b"".join(lexicon.base[index] for index in segmentation.ids) == TEXT.encode()
        assert segmentation.ends[-1] == len(TEXT.encode())


def test_a_token_spelt_by_the_user_in_several_has_no_counterpart(byte_level, sentencepiece):
    target, base = load_vocabulary(byte_level), load_vocabulary(sentencepiece)
    spelt = match_vocabularies(target, base, {"<file_sep>": "the fox"})
    index = target.by_content["<file_sep>"].id
    assert len(spelt.sources[index].embedding) > 1
    assert index not in make_lexicon(spelt, base.bound).base_of


def test_reserved_tokens_of_the_base_are_left_out(byte_level, sentencepiece):
    target, base = load_vocabulary(byte_level), load_vocabulary(sentencepiece)
    unused = replace(base.tokens[7], content="[unused7]")
    base = replace(base, tokens=base.tokens | {7: unused})
    lexicon = make_lexicon(match_vocabularies(target, base), base.bound)
    assert 7 not in lexicon.base
    assert 8 in lexicon.base


def test_a_leading_space_is_not_doubled_by_a_tokenizer_that_brings_its_own(tmp_path):
    words = {"<unk>": 0, "▁": 1, "f": 2, "o": 3, "oo": 4, "foo": 5, "▁foo": 6, "▁a": 7, "a": 8}
    merges = [("o", "o"), ("f", "oo"), ("▁", "foo"), ("▁", "a")]
    tokenizer = Tokenizer(models.BPE(words, merges, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    vocabulary = load_vocabulary(tmp_path)
    lexicon = make_lexicon(match_vocabularies(vocabulary, vocabulary), 9)
    assert lexicon.segment_base("foo") == ([6], [3])
    assert lexicon.segment_base(" foo") == ([6], [4])
    assert lexicon.segment_base(" foo foo") == ([6, 6], [4, 8])


def test_nothing_is_made_before_it_is_asked_for(match, monkeypatch):
    monkeypatch.setattr("tokensurgeon.lexicon._ordinary", None)
    monkeypatch.setattr("tokensurgeon.lexicon._merged_parts", None)
    lexicon = make_lexicon(match, match.base.bound)
    with pytest.raises(TypeError):
        len(lexicon.base_parts)
