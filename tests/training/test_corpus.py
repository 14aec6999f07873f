"""Texts come from files in pieces; what is no text is refused by name."""

import json
import sys

import pytest

from tokensurgeon.errors import InputError, RecipeError
from tokensurgeon.training import corpus
from tokensurgeon.training.corpus import check_corpus, read_pieces


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_text_file_comes_in_whole_lines_that_add_up_to_it(tmp_path):
    text = "".join(f"line {number} of the text\n" for number in range(50))
    pieces = list(read_pieces([write(tmp_path / "a.txt", text)], size=100))
    assert "".join(pieces) == text
    assert all(len(piece) <= 100 and piece.endswith("\n") for piece in pieces)


def test_a_long_line_is_cut_after_a_word_and_a_long_word_anywhere(tmp_path):
    pieces = list(read_pieces([write(tmp_path / "a.txt", "one two three " + 25 * "x")], size=10))
    assert pieces == ["one two ", "three ", 10 * "x", 10 * "x", 5 * "x"]


def test_a_line_of_jsonl_is_a_text_of_its_own(tmp_path):
    lines = [json.dumps({"text": text, "id": 7}) for text in ("first\nline", "", "second é")]
    path = write(tmp_path / "a.jsonl", "\n".join([*lines, "", ""]))
    assert list(read_pieces([path])) == ["first\nline", "second é"]


def test_files_take_turns(tmp_path):
    paths = [
        write(tmp_path / f"{name}.txt", f"{name}1\n{name}2\n{name}3\n"[:size])
        for name, size in (("a", 6), ("b", 9))
    ]
    assert [piece.strip() for piece in read_pieces(paths, size=3)] == ["a1", "b1", "a2", "b2", "b3"]


def test_a_file_is_read_no_further_than_asked(tmp_path):
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "good"}) + "\nbad\n")
    assert next(read_pieces([path])) == "good"
    check_corpus([path])


def test_blank_pieces_are_left_out(tmp_path):
    path = write(tmp_path / "a.txt", "\ufeffa\n" + " \n" * 20 + "b")
    assert list(read_pieces([path], size=4)) == ["a\n \n", " \nb"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.txt", " \n ", "no text"),
        ("a.jsonl", '{"content": "x"}', r'line 1: {"content": "x"}\nexpected: an object with a "text"'),
        ("a.jsonl", "[1]", "line 1"),
        ("a.jsonl", '{"text": 3}', "text is int"),
        ("gone.txt", None, "No such file"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        write(path, content)
    with pytest.raises(InputError, match=message):
        check_corpus([path])


def test_parquet_needs_a_package(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="pip install pyarrow"):
        check_corpus([write(tmp_path / "a.parquet", b"PAR1")])
    assert "pyarrow" not in sys.modules


def test_parquet_brings_its_text_column(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", None, "two"], "id": [1, 2, 3]}), path)
    assert list(read_pieces([path])) == ["one", "two"]
    pyarrow.parquet.write_table(pyarrow.table({"id": [1]}), path)
    with pytest.raises(InputError, match="`text` column"):
        check_corpus([path])
