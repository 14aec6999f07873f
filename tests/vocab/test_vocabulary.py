"""What a token is, whatever its tokenizer prints."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tokensurgeon.errors import InputError
from tokensurgeon.vocab.canonical import Family, Kind
from tokensurgeon.vocab.vocabulary import load_vocabulary


def canonical(vocabulary, content):
    token = vocabulary.by_content[content]
    return token.kind, token.data, token.word_start


@pytest.mark.parametrize(
    ("kind", "content", "data", "word_start"),
    [
        ("byte-level", "Ġthe", b" the", True),
        ("byte-level", "Ġ", b" ", True),
        ("byte-level", "Ċ", b"\n", False),
        ("byte-level", "ĉ", b"\t", False),
        ("byte-level", "Ã©", "é".encode(), False),
        ("byte-level", "æĹ¥æľ¬", "日本".encode(), False),
        ("byte-level", "æĹ", "日".encode()[:2], False),
        ("byte-level", "Ń", b"\xad", False),
        ("tiktoken", "ĠtheĠcat", b" the cat", True),
        ("sentencepiece", "▁the", b" the", True),
        ("sentencepiece", "▁", b" ", True),
        ("sentencepiece", "▁▁", b"  ", True),
        ("sentencepiece", "é", "é".encode(), False),
        ("sentencepiece", "\n", b"\n", False),
        ("unigram", "▁cat", b" cat", True),
        ("wordpiece-uncased", "the", b" the", True),
        ("wordpiece-uncased", "##ing", b"ing", False),
        ("wordpiece-uncased", "ing", b" ing", True),
        ("wordpiece-uncased", ".", b".", False),
        ("wordpiece-uncased", ",", b",", False),
        ("wordpiece-uncased", "日", "日".encode(), False),
        ("wordpiece-uncased", "é", " é".encode(), True),
        ("wordpiece-uncased", "a", b" a", True),
    ],
)
def test_a_learnt_token_is_the_bytes_it_stands_for(vocabularies, kind, content, data, word_start):
    assert canonical(vocabularies[kind], content) == (Kind.TEXT, data, word_start)


@pytest.mark.parametrize("kind", ["sentencepiece", "unigram-bytes"])
def test_a_byte_fallback_piece_is_its_byte(vocabularies, kind):
    assert canonical(vocabularies[kind], "<0x0A>") == (Kind.BYTE, b"\n", False)
    assert canonical(vocabularies[kind], "<0xE3>") == (Kind.BYTE, b"\xe3", False)


def test_what_looks_like_a_byte_piece_is_text_without_byte_fallback(build):
    vocabulary = build.load(build.unigram(words=["<0x0A>"]))
    assert canonical(vocabulary, "<0x0A>") == (Kind.TEXT, b"<0x0A>", False)


def test_a_piece_between_byte_piece_brackets_that_is_no_number_is_text(build):
    vocabulary = build.load(build.unigram(words=["<0xyz>"], byte_fallback=True))
    assert canonical(vocabulary, "<0xyz>") == (Kind.TEXT, b"<0xyz>", False)


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        ("byte-level", Family.BYTE_LEVEL),
        ("tiktoken", Family.BYTE_LEVEL),
        ("sentencepiece", Family.SENTENCEPIECE),
        ("unigram", Family.SENTENCEPIECE),
        ("wordpiece-cased", Family.WORDPIECE),
    ],
)
def test_the_family_is_read_from_the_parts_of_the_tokenizer(vocabularies, kind, family):
    assert vocabularies[kind].family is family


def test_the_bytes_of_all_byte_level_tokens_of_one_character_are_the_256_bytes(vocabularies):
    singles = [t.data for t in vocabularies["byte-level"] if t.kind is Kind.TEXT and len(t.content) == 1]
    assert sorted(singles) == [bytes([byte]) for byte in range(256)]


def test_the_bytes_of_the_tokens_of_a_text_are_the_text(vocabularies):
    text = " the cat\n\n\tnaïve 日本 é☃  </s.\u00a0🙂"
    for kind in ("byte-level", "tiktoken", "sentencepiece"):
        vocabulary = vocabularies[kind]
        assert b"".join(vocabulary.tokens[index].data for index in vocabulary.encode(text)) == text.encode()


def test_a_token_shows_undecodable_bytes_as_escapes(vocabularies):
    assert vocabularies["byte-level"].by_content["æĹ"].text == "\\xe6\\x97"
    assert vocabularies["byte-level"].by_content["Ã©"].text == "é"


def test_a_special_token_is_its_name(vocabularies):
    vocabulary = vocabularies["tiktoken"]
    assert canonical(vocabulary, "<|begin_of_text|>") == (Kind.SPECIAL, b"<|begin_of_text|>", False)


def test_a_token_that_only_the_config_names_is_special(build):
    tokenizer = build.byte_level(specials=(), added=["<turn>", "<tool>", "<image>", "<plain>"])
    vocabulary = build.load(
        tokenizer,
        eos_token="<turn>",
        additional_special_tokens=[{"content": "<tool>"}],
        extra_special_tokens={"image_token": "<image>"},
    )
    special = [token.content for token in vocabulary if token.kind is Kind.SPECIAL]
    assert special == ["<turn>", "<tool>", "<image>"]


def test_a_learnt_marker_that_the_config_names_is_special(build):
    vocabulary = build.load(build.byte_level(words=["<e>"]), eos_token="<e>")
    assert canonical(vocabulary, "<e>") == (Kind.SPECIAL, b"<e>", False)


def test_a_role_does_not_make_an_ordinary_piece_special(build):
    vocabulary = build.load(build.byte_level(), pad_token="!")
    assert canonical(vocabulary, "!") == (Kind.TEXT, b"!", False)
    assert vocabulary.tokens[vocabulary.roles["pad"]].content == "!"


def test_the_special_tokens_map_names_roles_too(build):
    directory = build.write(build.byte_level(words=["<cat>"]))
    (directory / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": "<|endoftext|>", "additional_special_tokens": ["<cat>"]}), encoding="utf-8"
    )
    vocabulary = load_vocabulary(directory)
    assert vocabulary.roles == {"eos": 0}
    assert vocabulary.by_content["<cat>"].kind is Kind.SPECIAL


def test_an_added_token_that_is_not_special_is_text_as_it_stands(build):
    vocabulary = build.load(build.byte_level(added=["Ġé", " indented"]))
    assert canonical(vocabulary, "Ġé") == (Kind.TEXT, "Ġé".encode(), False)
    assert canonical(vocabulary, " indented") == (Kind.TEXT, b" indented", True)
    assert vocabulary.by_content["Ġé"].added
    assert not vocabulary.by_content["Ġcat"].added


def test_a_learnt_run_of_spaces_among_the_added_tokens_is_spaces(vocabularies):
    token = vocabularies["sentencepiece"].by_content["▁▁"]
    assert token.added
    assert (token.kind, token.data) == (Kind.TEXT, b"  ")


def test_an_unknown_token_is_special_without_the_config_saying_so(build):
    unigram = build.load(build.unigram())
    wordpiece = build.load(build.wordpiece())
    assert unigram.by_content["<unk>"].kind is Kind.SPECIAL
    assert wordpiece.by_content["[UNK]"].kind is Kind.SPECIAL
    assert "unk" not in unigram.roles


def test_an_unknown_token_outside_the_added_tokens_is_special(build):
    tokenizer = Tokenizer(models.Unigram([("▁", -1.0), ("<?>", 0.0)], unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    vocabulary = build.load(tokenizer)
    assert [(token.kind, token.added) for token in vocabulary] == [(Kind.TEXT, False), (Kind.SPECIAL, False)]


@pytest.mark.parametrize(
    ("kind", "unknown"),
    [("unigram", "<unk>"), ("sentencepiece", "<unk>"), ("wordpiece-cased", "[UNK]"), ("byte-level", None)],
)
def test_the_unknown_token_is_the_one_the_model_gives(vocabularies, kind, unknown):
    vocabulary = vocabularies[kind]
    expected = None if unknown is None else vocabulary.by_content[unknown].id
    assert vocabulary.unknown == expected


def test_a_token_that_only_the_config_calls_unk_is_not_what_the_model_gives(build):
    vocabulary = build.load(build.byte_level(), unk_token="<|endoftext|>")
    assert vocabulary.roles == {"unk": 0}
    assert vocabulary.unknown is None


def test_roles_are_read_from_strings_and_from_dicts(build):
    tokenizer = build.sentencepiece()
    vocabulary = build.load(
        tokenizer, bos_token="<bos>", eos_token={"content": "<eos>", "lstrip": False}, pad_token=None
    )
    assert vocabulary.roles == {"bos": 2, "eos": 1}


def test_a_role_whose_token_does_not_exist_is_no_role(build):
    assert build.load(build.byte_level(), bos_token="<bos>", eos_token="<|endoftext|>").roles == {"eos": 0}


def test_ids_may_have_holes_and_rows_reach_the_highest(build):
    directory = build.write(build.byte_level())
    path = directory / "tokenizer.json"
    spec = json.loads(path.read_text(encoding="utf-8"))
    spec["model"]["vocab"]["Ġcat"] = 500
    path.write_text(json.dumps(spec), encoding="utf-8")
    vocabulary = load_vocabulary(directory)
    assert vocabulary.bound == 501
    assert len(vocabulary) < 501
    assert 499 not in vocabulary.tokens
    assert list(vocabulary.tokens) == sorted(vocabulary.tokens)


def test_of_several_tokens_with_the_same_bytes_text_comes_before_byte_pieces(vocabularies):
    vocabulary = vocabularies["sentencepiece"]
    assert [token.content for token in vocabulary.by_bytes[b"a"]] == ["a", "<0x61>"]
    assert [token.content for token in vocabulary.by_bytes[b"\n"]] == ["\n", "<0x0A>"]


def test_of_several_tokens_with_the_same_bytes_learnt_comes_before_added(build):
    tokenizer = Tokenizer(models.BPE(vocab={" a": 0, "Ġ": 1, "a": 2, "Ġa": 3}, merges=[("Ġ", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.add_tokens([" a"])
    group = build.load(tokenizer).by_bytes[b" a"]
    assert [(token.content, token.id) for token in group] == [("Ġa", 3), (" a", 0)]


def test_special_tokens_spell_no_bytes(vocabulary):
    names = {token.data for token in vocabulary if token.kind is Kind.SPECIAL}
    assert names
    assert not names & set(vocabulary.by_bytes)


def test_the_model_segments_a_piece_without_pre_tokenizer(vocabularies):
    vocabulary = vocabularies["sentencepiece"]
    pieces = [vocabulary.tokens[index].content for index in vocabulary.run_model("▁the▁cat")]
    assert pieces == ["▁the", "▁cat"]


def test_encode_adds_special_tokens_only_when_asked(build):
    from tokenizers.processors import TemplateProcessing

    tokenizer = build.sentencepiece()
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    vocabulary = build.load(tokenizer, bos_token="<bos>")
    plain = vocabulary.encode(" cat")
    assert vocabulary.encode(" cat", specials=True) == [2, *plain]
    assert 2 not in plain


def test_padding_and_truncation_stored_in_the_file_are_ignored(build):
    tokenizer = build.byte_level()
    tokenizer.enable_padding(length=16)
    tokenizer.enable_truncation(2)
    vocabulary = build.load(tokenizer)
    assert [vocabulary.tokens[index].content for index in vocabulary.encode("abc")] == ["a", "b", "c"]


class TestChatTemplate:
    def load(self, build, files, **config):
        directory = build.write(build.byte_level(), **config)
        for name, text in files.items():
            (directory / name).write_text(text, encoding="utf-8")
        return load_vocabulary(directory).chat_template

    def test_it_is_none_when_there_is_none(self, build):
        assert self.load(build, {}) is None

    def test_it_may_stand_in_the_config(self, build):
        assert self.load(build, {}, chat_template="inline") == "inline"

    def test_it_may_be_the_default_of_several(self, build):
        named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
        assert self.load(build, {}, chat_template=named) == "plain"

    def test_it_may_have_a_json_file(self, build):
        assert self.load(build, {"chat_template.json": '{"chat_template": "json"}'}) == "json"

    def test_its_own_file_goes_first(self, build):
        files = {"chat_template.jinja": "own file", "chat_template.json": '{"chat_template": "json"}'}
        assert self.load(build, files, chat_template="inline") == "own file"


class TestErrors:
    def test_a_missing_tokenizer_json_is_named_with_its_directory(self, tmp_path):
        (tmp_path / "vocab.txt").write_text("the\n")
        with pytest.raises(InputError, match=rf"{tmp_path.name}: no tokenizer\.json[\s\S]*convert it first"):
            load_vocabulary(tmp_path)

    def test_broken_json_is_named_with_its_place(self, build):
        directory = build.write(build.byte_level())
        (directory / "tokenizer.json").write_text('{"model": ')
        with pytest.raises(InputError, match=r"tokenizer\.json: Expecting value: line 1"):
            load_vocabulary(directory)

    def test_a_file_that_is_no_text_is_bad_input(self, build):
        directory = build.write(build.byte_level())
        (directory / "tokenizer.json").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(InputError, match=r"tokenizer\.json: 'utf-8' codec can't decode"):
            load_vocabulary(directory)

    @pytest.mark.parametrize(
        ("document", "said"),
        [("[1, 2]", "list"), ("{}", "tokenizer.json"), ('{"model": {"type": "BPE"}}', "tokenizer.json")],
    )
    def test_json_that_is_no_tokenizer_is_bad_input(self, tmp_path, document, said):
        (tmp_path / "tokenizer.json").write_text(document)
        with pytest.raises(InputError, match=said):
            load_vocabulary(tmp_path)

    def test_broken_json_beside_the_tokenizer_is_named(self, build):
        directory = build.write(build.byte_level())
        (directory / "tokenizer_config.json").write_text("{,}")
        with pytest.raises(InputError, match=r"tokenizer_config\.json: Expecting property name"):
            load_vocabulary(directory)

    def test_a_vocabulary_that_marks_word_ends_is_refused(self, build):
        tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "a</w>": 1}, merges=[], end_of_word_suffix="</w>"))
        tokenizer.decoder = decoders.BPEDecoder()
        with pytest.raises(InputError, match=r"tokenizer\.json: end_of_word_suffix '</w>'"):
            build.load(tokenizer)

    def test_a_continuation_prefix_outside_wordpiece_is_refused(self, build):
        tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "##a": 1}, merges=[], continuing_subword_prefix="##"))
        with pytest.raises(InputError, match="continuing_subword_prefix '##' in a BPE model"):
            build.load(tokenizer)

    def test_a_tokenizer_without_tokens_is_refused(self, build):
        with pytest.raises(InputError, match="no tokens"):
            build.load(Tokenizer(models.BPE()))
