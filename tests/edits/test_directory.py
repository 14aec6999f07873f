"""A trimmed tokenizer is read as it was written, and no file of its directory holds an old id."""

import json

import pytest

from tokensurgeon.edits.directory import write_tokenizer
from tokensurgeon.edits.document import Edited, open_tokenizer
from tokensurgeon.edits.params import TrimParams
from tokensurgeon.edits.trim import count_tokens, trim
from tokensurgeon.vocab.vocabulary import load_vocabulary

CORPUS = [
    "The quick brown fox jumps over the lazy dog; the dog sleeps under the old oak tree.",
    "It's the children's kettle, isn't it? Le château était très élevé, où l'été passait déjà.",
    "def add(first, second):\n    return first + second\n\n\nprint(add(1, 2))\n",
]
TEXTS = [*CORPUS, "The lazy dog sleeps; they're sure.", " two  spaces", "été déjà", "日本", "ab c 12"]
STALE = ["tokenizer.model", "tokenizer.model.v3", "spiece.model", "sentencepiece.bpe.model", "tekken.json"]
STALE += ["qwen.tiktoken"]


def learn_unigram(head, tail=()):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(CORPUS * 4, trainers.UnigramTrainer(vocab_size=200, show_progress=False))
    learnt = [tuple(entry) for entry in json.loads(tokenizer.to_str())["model"]["vocab"]]
    return [*((piece, 0.0) for piece in head), *learnt, *((piece, 0.0) for piece in tail)]


def save(name, directory, *arguments, **options):
    import transformers

    getattr(transformers, name)(*arguments, **options).save_pretrained(directory)


def copied(fixture, name):
    """A learnt tokenizer in a directory that says this class."""

    def make(request, directory):
        for path in request.getfixturevalue(fixture).iterdir():
            (directory / path.name).write_bytes(path.read_bytes())
        config = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
        config |= {"tokenizer_class": name, "do_lower_case": False}
        (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")

    return make


def xlm_roberta(_, directory):
    vocab = learn_unigram(["<s>", "<pad>", "</s>", "<unk>"], ["<mask>"])
    save("XLMRobertaTokenizer", directory, vocab=vocab)


def t5(_, directory):
    vocab = learn_unigram(["<pad>", "</s>", "<unk>"], [f"<extra_id_{index}>" for index in range(99, -1, -1)])
    save("T5Tokenizer", directory, vocab=vocab)


CLASSES = {
    "GPT2Tokenizer": copied("byte_level", "GPT2Tokenizer"),
    "PreTrainedTokenizerFast": copied("sentencepiece", "PreTrainedTokenizerFast"),
    "GemmaTokenizer": copied("sentencepiece", "GemmaTokenizer"),
    "XLMRobertaTokenizer": xlm_roberta,
    "T5Tokenizer": t5,
    "BertTokenizer": copied("wordpiece", "BertTokenizer"),
}


@pytest.fixture(params=CLASSES)
def source(request, tmp_path):
    """A directory with every file that a tokenizer of its class may come with."""
    directory = tmp_path / "source"
    directory.mkdir()
    CLASSES[request.param](request, directory)
    spec = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = spec["model"]["vocab"]
    vocab = {piece: index for index, (piece, _) in enumerate(vocab)} if isinstance(vocab, list) else vocab
    config = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["added_tokens_decoder"] = {
        str(entry["id"]): {key: value for key, value in entry.items() if key != "id"}
        for entry in spec["added_tokens"]
    }
    files = {
        "tokenizer_config.json": json.dumps(config),
        "vocab.json": json.dumps(vocab),
        "vocab.txt": "".join(f"{piece}\n" for piece in vocab),
        "added_tokens.json": "{}",
        "special_tokens_map.json": json.dumps({"eos_token": "</s>"})
        if request.param == "T5Tokenizer"
        else "{}",
        "chat_template.jinja": "{{ messages }}",
        **dict.fromkeys(STALE, "stale"),
    }
    if "merges" in spec["model"]:
        files["merges.txt"] = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in spec["model"]["merges"])
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool.jinja").write_text("{{ tools }}", encoding="utf-8")
    (directory / "config.json").write_text("{}", encoding="utf-8")
    return directory


@pytest.fixture
def made(source, tmp_path):
    """What was made, where, and what was told."""
    vocabulary = load_vocabulary(source)
    edited = trim(vocabulary, TrimParams(corpus=("any",)), count_tokens(vocabulary, CORPUS[:2]))
    folder = tmp_path / "new"
    return vocabulary, edited, folder, write_tokenizer(source, edited, folder)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_autotokenizer_reads_what_was_written(made):
    from transformers import AutoTokenizer

    vocabulary, edited, folder, _ = made
    raw, loaded = open_tokenizer(edited.spec), AutoTokenizer.from_pretrained(folder)
    assert len(edited.origins) < len(vocabulary)
    for text in TEXTS:
        assert loaded.encode(text) == raw.encode(text).ids
        assert loaded.encode(text, add_special_tokens=False) == raw.encode(text, add_special_tokens=False).ids
    for text in CORPUS[:2]:
        assert [edited.origins[index] for index in loaded.encode(text)] == vocabulary.encode(
            text, specials=True
        )


def test_every_file_has_the_ids_of_one_map(made):
    vocabulary, edited, folder, _ = made
    again = load_vocabulary(folder)
    contents = {index: token.content for index, token in again.tokens.items()}
    assert contents == {new: vocabulary.tokens[old].content for new, old in edited.origins.items()}
    assert again.roles.keys() == vocabulary.roles.keys()
    decoder = read(folder / "tokenizer_config.json")["added_tokens_decoder"]
    assert {int(index): entry["content"] for index, entry in decoder.items()} == {
        token.id: token.content for token in again if token.added
    }
    learnt = read(folder / "vocab.json")
    assert {index: piece for piece, index in learnt.items()}.items() <= contents.items()
    assert (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1] == sorted(
        learnt, key=learnt.get
    )
    assert read(folder / "added_tokens.json") == {
        token.content: token.id for token in again if token.added and token.content not in learnt
    }


def test_what_holds_the_old_vocabulary_is_left_out(made, source):
    _, edited, folder, told = made
    for name in STALE:
        assert not (folder / name).exists()
        assert told[name].startswith("left out")
    assert not (folder / "config.json").exists()
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert written == {name for name, words in told.items() if not words.startswith("left out")}
    assert told["tokenizer.json"] == told["vocab.json"] == "rewritten"
    for name in ("special_tokens_map.json", "chat_template.jinja", "additional_chat_templates/tool.jinja"):
        assert told[name] == "as it was"
        assert (folder / name).read_bytes() == (source / name).read_bytes()
    if "merges" in edited.spec["model"]:
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
        assert lines[0] == "#version: 0.2"
        assert [line.split(" ") for line in lines[1:-1]] == [list(m) for m in edited.spec["model"]["merges"]]


def test_only_files_that_were_there_are_written(byte_level, tmp_path):
    vocabulary = load_vocabulary(byte_level)
    told = write_tokenizer(byte_level, trim(vocabulary, TrimParams(size=300), {}), tmp_path)
    assert told == {"tokenizer.json": "rewritten", "tokenizer_config.json": "as it was"}
    assert {path.name for path in tmp_path.iterdir()} == set(told)
    before, after = ((place / "tokenizer_config.json").read_bytes() for place in (byte_level, tmp_path))
    assert before == after


def test_a_new_added_token_is_listed_with_the_others(byte_level, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    spec = read(byte_level / "tokenizer.json")
    options = {key: value for key, value in spec["added_tokens"][0].items() if key != "id"}
    config = {"pad_token_id": 7, "added_tokens_decoder": {"0": {**options, "content": "<|endoftext|>"}}}
    (source / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    (source / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    spec["added_tokens"].append({"id": 420, **options, "content": "<new>"})
    origins = {index: index - 1 if index == 8 else index for index in range(420) if index != 7}
    write_tokenizer(source, Edited(spec, origins), tmp_path / "new")
    assert read(tmp_path / "new" / "tokenizer_config.json") == {
        "pad_token_id": 8,
        "added_tokens_decoder": {
            "0": {**options, "content": "<|endoftext|>"},
            "420": {**options, "content": "<new>"},
        },
    }


@pytest.mark.parametrize(
    ("name", "pieces", "merges"),
    [("merges.txt", {"a ": 0, "b": 1, "a b": 2}, [["a ", "b"]]), ("vocab.txt", {"a": 0, "b": 2}, [])],
)
def test_a_format_that_cannot_hold_the_vocabulary_is_left_out(tmp_path, name, pieces, merges):
    (tmp_path / name).write_text("", encoding="utf-8")
    edited = Edited({"added_tokens": [], "model": {"type": "BPE", "vocab": pieces, "merges": merges}}, {})
    told = write_tokenizer(tmp_path, edited, tmp_path / "new")
    assert told == {name: "left out: its format cannot hold this vocabulary"}
    assert not (tmp_path / "new" / name).exists()
