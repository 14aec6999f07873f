"""Ids of tokenised data are put into the new vocabulary, or the first ones that cannot be are named."""

import json

import numpy as np
import pytest

from tokensurgeon.edits import remap
from tokensurgeon.edits.remap import remap_ids, remap_jsonl, remap_npy
from tokensurgeon.errors import InputError

ORIGINS = {0: 0, 1: 3, 2: 5, 3: 300}


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.int64, np.uint64])
def test_shape_and_type_stay(kind):
    new = remap_ids(np.array([[3, 0], [300, 5]], dtype=kind), ORIGINS)
    assert new.tolist() == [[1, 0], [3, 2]]
    assert new.dtype == kind


def test_a_type_that_is_too_small_for_a_new_id_grows():
    assert remap_ids(np.array([7], dtype=np.uint16), {70_000: 7}).dtype == np.uint32
    assert remap_ids(np.array([7], dtype=np.uint16), {0: 1}, fill=70_000).tolist() == [70_000]


@pytest.mark.parametrize("stray", [1, 4, 301, -1, 2**40])
def test_an_id_without_counterpart_is_named(stray):
    with pytest.raises(InputError, match=f"2 of 4 token ids have no counterpart, such as {stray}"):
        remap_ids([3, stray, 0, stray], ORIGINS)
    assert remap_ids([3, stray, 0], ORIGINS, fill=9).tolist() == [1, 9, 0]


def test_ignored_labels_stay_with_or_without_fill():
    assert remap_ids([-100, 3], ORIGINS).tolist() == [-100, 1]
    assert remap_ids([-100, 3, 4], ORIGINS, fill=2).tolist() == [-100, 1, 2]


def test_nothing_is_nothing_and_other_types_are_refused():
    assert remap_ids([], ORIGINS).tolist() == []
    with pytest.raises(InputError, match="float64"):
        remap_ids([0.5], ORIGINS)


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_on_disk_is_rewritten_block_by_block(tmp_path, monkeypatch, order):
    monkeypatch.setattr(remap, "_BLOCK", 7)
    rng = np.random.default_rng(0)
    old = np.asarray(rng.choice([0, 3, 5, 300], (5, 11)), dtype=np.uint16, order=order)
    np.save(tmp_path / "old.npy", old)
    assert remap_npy(tmp_path / "old.npy", tmp_path / "new.npy", ORIGINS) == 55
    new = np.load(tmp_path / "new.npy")
    assert new.dtype == np.uint16
    assert np.array_equal(new, remap_ids(old, ORIGINS))


def test_no_file_is_left_where_an_id_has_no_counterpart(tmp_path):
    np.save(tmp_path / "old.npy", np.array([0, 3, 4]))
    with pytest.raises(InputError, match=r"old\.npy: 1 of 3 token ids"):
        remap_npy(tmp_path / "old.npy", tmp_path / "new.npy", ORIGINS)
    (tmp_path / "old.jsonl").write_text('{"ids": [3]}\n{"ids": [4]}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"old\.jsonl, line 2: 1 of 1 token ids"):
        remap_jsonl(tmp_path / "old.jsonl", tmp_path / "new.jsonl", "ids", ORIGINS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.jsonl", "old.npy"]


def test_the_ids_under_a_key_are_rewritten_and_nothing_else(tmp_path):
    records = [{"id": 5, "ids": [3, 5], "text": "é\u2028"}, {"ids": [], "id": 3}]
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (tmp_path / "old.jsonl").write_text(text, encoding="utf-8")
    assert remap_jsonl(tmp_path / "old.jsonl", tmp_path / "new.jsonl", "ids", ORIGINS) == 2
    lines = (tmp_path / "new.jsonl").read_text(encoding="utf-8").split("\n")
    assert json.loads(lines[0]) == {"id": 5, "ids": [1, 2], "text": "é\u2028"}
    assert json.loads(lines[1]) == {"ids": [], "id": 3}


@pytest.mark.parametrize("line", ['{"other": [3]}', "[3]", "nonsense", "3"])
def test_a_line_without_ids_is_named(tmp_path, line):
    (tmp_path / "old.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"line 1: no ids"):
        remap_jsonl(tmp_path / "old.jsonl", tmp_path / "new.jsonl", "ids", ORIGINS)
