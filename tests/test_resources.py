"""Corpora, dictionaries, word vectors, encoders: read once, and refused with one clear message."""

from pathlib import Path

import pytest
import torch

from tokensurgeon.errors import InputError
from tokensurgeon.recipe.schema import ResourceRules
from tokensurgeon.resources import FileResources


def resources(**rules):
    return FileResources(ResourceRules.model_validate(rules), Path("no-base"), torch.device("cpu"))


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def test_a_corpus_is_the_lines_of_all_files_without_blank_ones(write):
    found = resources(corpus=[write("a", "one\n\n  \ntwo"), write("b", "drei\r\nvier\n")])
    assert found.corpus == ["one", "two", "drei", "vier"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"caf\xe9", r"byte 3 is not UTF-8\nexpected: a UTF-8 text file\nnext: iconv"),
        (b"", "empty text"),
        (b"\n \n", "blank\nexpected: lines of text"),
    ],
)
def test_a_corpus_that_cannot_be_used_is_refused(write, text, said):
    with pytest.raises(InputError, match=said):
        resources(corpus=[write("corpus.txt", text)]).check()


def test_only_line_feeds_end_a_line(write):
    lines = ["one\u2028two", "thr\x0cee", "four\x85"]
    assert resources(corpus=[write("corpus.txt", "\ufeff" + "\r\n".join(lines))]).corpus == lines


@pytest.mark.parametrize("key", ["corpus", "dictionary", "target_vectors"])
def test_a_missing_file_is_named(key, tmp_path):
    path = str(tmp_path / "nowhere.txt")
    with pytest.raises(InputError, match=r"nowhere\.txt: [Nn]o such file"):
        resources(**{key: [path] if key == "corpus" else path}).check()


def test_parallel_lines_are_paired_and_pairs_with_a_blank_are_left_out(write):
    pair = {"base": write("en", "one\n\nthree\n"), "target": write("de", "eins\nzwei\ndrei\n")}
    assert resources(parallel=[pair]).parallel == [("one", "eins"), ("three", "drei")]


def test_parallel_files_of_different_length_are_refused(write):
    pair = {"base": write("en", "one\ntwo\n"), "target": write("de", "eins\n")}
    with pytest.raises(InputError, match=r"2 lines, .*1 lines\nexpected: as many lines in both"):
        resources(parallel=[pair]).check()


def test_a_dictionary_is_read_and_a_line_without_a_tab_refused(write):
    assert resources(dictionary=write("d", "dog\tHund\n\ncat\tKatze\n")).dictionary == [
        ("dog", "Hund"),
        ("cat", "Katze"),
    ]
    with pytest.raises(InputError, match="line 2 has no tab"):
        resources(dictionary=write("d", "dog\tHund\ncat Katze\n")).check()


def test_word_vectors_are_read_in_their_order(write):
    vectors = resources(target_vectors=write("v.vec", "2 3\nthe 1 2 3\ndog 4 5 6\n")).target_vectors
    assert vectors.words == ["the", "dog"]
    assert vectors.rows.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_a_file_that_holds_no_word_vectors_is_refused(write):
    with pytest.raises(InputError, match="word vectors in word2vec's text format"):
        _ = resources(target_vectors=write("v.vec", "not a header\n")).target_vectors


def test_without_rules_there_is_nothing():
    found = resources()
    found.check()
    assert (found.corpus, found.parallel, found.dictionary) == ([], [], [])
    assert found.base_vectors is None
    assert found.load_hypernetwork() is None
    found.save_hypernetwork({"w": torch.ones(2)})


def test_a_hypernetwork_is_kept(tmp_path):
    found = resources(hypernetwork=str(tmp_path / "new" / "net.safetensors"))
    assert found.load_hypernetwork() is None
    found.save_hypernetwork({"w": torch.ones(2)})
    assert found.load_hypernetwork()["w"].tolist() == [1, 1]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["net.safetensors"]


def test_a_hypernetwork_that_is_none_is_refused(write):
    with pytest.raises(InputError, match="a hypernetwork that tokensurgeon saved"):
        resources(hypernetwork=write("net.safetensors", "nothing")).load_hypernetwork()


def test_the_digest_follows_the_contents(write):
    path = write("corpus.txt", "one")
    before = resources(corpus=[path]).digest
    assert resources(corpus=[path]).digest == before
    write("corpus.txt", "two")
    assert resources(corpus=[path]).digest != before


def test_texts_get_unit_vectors_whatever_is_encoded_with_them(make_model, wordpiece):
    found = resources(encoder=str(make_model("bert", wordpiece)))
    texts = ["The quick brown fox", "dog", "the old oak tree", "dog"]
    vectors = found.embed_texts(texts)
    assert vectors.dtype is torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(vectors[1], vectors[3])
    for text, vector in zip(texts, vectors, strict=True):
        torch.testing.assert_close(found.embed_texts([text])[0], vector, rtol=1e-4, atol=1e-5)


def test_an_encoder_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match="a text encoder that AutoModel and AutoTokenizer can load"):
        resources(encoder=str(tmp_path)).embed_texts(["dog"])


def test_the_body_is_the_base(make_model, byte_level):
    base = make_model("llama", byte_level)
    found = FileResources(ResourceRules(), base=base, device=torch.device("cpu"))
    assert found.load_body() is found.load_body()
    assert found.load_body().get_input_embeddings().weight.shape[0] == 420
