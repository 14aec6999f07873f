"""A checkpoint's headers are read as safetensors reads them, and anything damaged is refused by file name."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from checkpoint_files import entry, write_index, write_raw
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from tokensurgeon.checkpoint.index import find_weights, read_index, read_shard
from tokensurgeon.checkpoint.reader import map_tensor
from tokensurgeon.errors import InputError, PolicyError

TENSORS = {
    "embed.weight": torch.arange(12, dtype=torch.float32).reshape(4, 3),
    "norm": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "half": torch.tensor([[0.25]], dtype=torch.float16),
    "codes": torch.tensor([1, -2, 3], dtype=torch.int8),
    "scalar": torch.tensor(7.0, dtype=torch.float64),
    "nothing": torch.empty(0, 3, dtype=torch.float32),
}


@pytest.fixture
def single(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save_file({"a": torch.ones(2), "b": torch.zeros(3)}, tmp_path / "one.safetensors")
    save_file({"c": torch.full((4,), 2.0)}, tmp_path / "two.safetensors")
    write_index(tmp_path, {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"})
    return tmp_path


def test_every_tensor_is_where_safetensors_finds_it(single):
    index = read_index(single)
    raw = (single / "model.safetensors").read_bytes()
    with safe_open(single / "model.safetensors", "pt") as file:
        assert set(index.tensors) == set(file.keys())
        for name, ref in index.tensors.items():
            wanted = file.get_slice(name)
            assert (ref.dtype, list(ref.shape)) == (wanted.get_dtype(), wanted.get_shape())
            tensor = file.get_tensor(name)
            stored = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
            assert raw[ref.start : ref.end] == stored
            assert ref.nbytes == len(stored)
    assert index.shards[0].metadata == {"format": "pt"}
    assert index.index is None


@pytest.mark.parametrize("name", ["embed.weight", "norm", "half", "scalar"])
def test_a_mapped_tensor_equals_the_loaded_one(name, single):
    mapped = map_tensor(read_index(single).tensors[name])
    assert mapped.dtype == TENSORS[name].dtype
    assert torch.equal(mapped, TENSORS[name])


def test_a_mapped_tensor_cannot_change_the_file(single):
    before = (single / "model.safetensors").read_bytes()
    map_tensor(read_index(single).tensors["embed.weight"]).zero_()
    assert (single / "model.safetensors").read_bytes() == before


def test_tensors_come_in_the_order_of_their_bytes(single):
    refs = read_shard(single / "model.safetensors").tensors
    assert [ref.start for ref in refs] == sorted(ref.start for ref in refs)
    assert all(one.end == other.start for one, other in pairwise(refs))


def test_shards_are_read_in_name_order(sharded):
    index = read_index(sharded)
    assert [shard.path.name for shard in index.shards] == ["one.safetensors", "two.safetensors"]
    assert set(index.tensors) == {"a", "b", "c"}
    assert index.tensors["c"].path == sharded / "two.safetensors"
    assert index.index["weight_map"]["c"] == "two.safetensors"


def test_chosen_shards_can_be_read_without_the_others(sharded):
    (sharded / "one.safetensors").unlink()
    assert set(read_index(sharded, ["two.safetensors"]).tensors) == {"c"}


def test_a_missing_shard_is_named(sharded):
    (sharded / "two.safetensors").unlink()
    with pytest.raises(InputError, match=r"two\.safetensors: missing shard"):
        read_index(sharded)


@pytest.mark.parametrize("left", [0, 1, 7])
def test_a_file_too_short_for_a_header_length_is_refused(left, single):
    path = single / "model.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(InputError, match=r"model\.safetensors: the header is \d+ bytes long, the file \d"):
        read_index(single)


def test_a_file_cut_inside_its_header_is_refused(single):
    path = single / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"the header is \d+ bytes long, the file 100"):
        read_index(single)


@pytest.mark.parametrize("lost", [1, 3, 40])
def test_a_file_cut_inside_its_data_is_refused(lost, single):
    path = single / "model.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw[:-lost])
    with pytest.raises(InputError, match=rf"{len(raw) - lost} bytes\nexpected: {len(raw)} bytes"):
        read_index(single)


def test_a_file_with_bytes_after_its_data_is_refused(single):
    path = single / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(InputError, match="as its header says"):
        read_index(single)


def test_a_header_length_past_the_file_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    with pytest.raises(InputError, match=f"the header is {1 << 60} bytes long, the file 10"):
        read_shard(path)


DAMAGED = {
    "overlap": ({"a": entry([4], 0, 4), "b": entry([4], 2, 6)}, 6, "b starts at byte"),
    "gap": ({"a": entry([4], 0, 4), "b": entry([4], 6, 10)}, 10, "b starts at byte"),
    "late start": ({"a": entry([4], 2, 6)}, 6, "a starts at byte"),
    "too many bytes": ({"a": entry([4], 0, 6)}, 6, r"a has 6 bytes\nexpected: the bytes of U8 \[4\]"),
    "wrong dtype": ({"a": entry([4], 0, 4, "F32")}, 4, r"a has 4 bytes\nexpected: the bytes of F32 \[4\]"),
    "backwards": ({"a": entry([4], 4, 0)}, 4, "a has -4 bytes"),
    "negative size": ({"a": entry([-2, -2], 0, 4)}, 4, "a has 4 bytes"),
    "unknown dtype": ({"a": entry([4], 0, 4, "Q4_K")}, 4, "a has dtype Q4_K"),
    "size as text": ({"a": {**entry([4], 0, 4), "shape": ["4"]}}, 4, "damaged header .*whole number"),
    "offset as float": ({"a": {**entry([4], 0, 4), "data_offsets": [0, 4.0]}}, 4, "damaged header"),
    "infinite size": ({"a": {**entry([4], 0, 4), "shape": [float("inf")]}}, 4, "damaged header"),
    "three offsets": ({"a": {**entry([4], 0, 4), "data_offsets": [0, 2, 4]}}, 4, "damaged header"),
    "no dtype": ({"a": {"shape": [4], "data_offsets": [0, 4]}}, 4, "damaged header .*'dtype'"),
    "entry is a list": ({"a": [4]}, 4, "damaged header"),
    "header is a list": ([1, 2], 0, "damaged header"),
    "header is text": ("model", 0, "damaged header"),
    "metadata is a number": ({"__metadata__": 5}, 0, "damaged header"),
    "metadata is nested": ({"__metadata__": {"a": {"b": "c"}}}, 0, "more than strings"),
    "no JSON": (b"{not json", 0, "damaged header"),
    "no UTF-8": (b'{"\xff": 1}', 0, "damaged header"),
    "too deep": (b"[" * 200_000, 0, "damaged header"),
    "a name twice": (b'{"a":%b,"a":%b}' % ((json.dumps(entry([1], 0, 1)).encode(),) * 2), 1, "a twice"),
}


@pytest.mark.parametrize(("header", "size", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_header_is_refused(header, size, message, tmp_path):
    path = write_raw(tmp_path / "model.safetensors", header, bytes(size))
    with pytest.raises(InputError, match=rf"model\.safetensors: .*{message}"):
        read_shard(path)


def test_a_tensor_in_two_shards_is_refused(sharded):
    save_file({"a": torch.ones(2), "c": torch.ones(4)}, sharded / "two.safetensors")
    with pytest.raises(InputError, match=r"two\.safetensors: tensor a is also in one\.safetensors"):
        read_index(sharded)


def test_an_index_naming_a_tensor_that_its_file_lacks_is_refused(sharded):
    write_index(sharded, {"a": "one.safetensors", "c": "two.safetensors", "d": "two.safetensors"})
    with pytest.raises(InputError, match=r"two\.safetensors: no tensor d"):
        read_index(sharded)


def test_an_index_naming_the_wrong_file_is_refused(sharded):
    write_index(sharded, {"a": "two.safetensors", "b": "one.safetensors"})
    with pytest.raises(InputError, match=r"two\.safetensors: no tensor a"):
        read_index(sharded)


@pytest.mark.parametrize("name", ["../one.safetensors", "/etc/passwd", "sub/one.safetensors", "."])
def test_a_shard_name_with_a_path_in_it_is_refused(name, sharded):
    write_index(sharded, {"a": name})
    with pytest.raises(InputError, match="expected: file names without a directory"):
        find_weights(sharded)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "null",
        "{}",
        '{"weight_map": ["a"]}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": null}}',
        '{"weight_map": {"a": {}}}',
        '{"weight_map": {"a": "one.safetensors"}, "metadata": null}',
        '{"weight_map": {"a": "one.safetensors"}, "metadata": []}',
        "[" * 200_000,
    ],
    ids=lambda text: text[:60],
)
def test_a_damaged_shard_index_is_refused(text, sharded):
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match=r"index\.json: .*\nexpected: a shard index with a weight_map"):
        find_weights(sharded)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
def test_pickles_are_refused_by_policy(name, tmp_path):
    (tmp_path / name).write_bytes(b"cos\nsystem\n")
    with pytest.raises(PolicyError, match=f"only pickled weights \\({name}\\)"):
        find_weights(tmp_path)


def test_pickles_beside_safetensors_do_not_matter(single):
    (single / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    assert find_weights(single) == (["model.safetensors"], None)


def test_an_adapter_is_refused_with_the_step_that_helps(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").touch()
    with pytest.raises(InputError, match=r"an adapter, not a model\n.*\nnext: merge the adapter"):
        find_weights(tmp_path)


@pytest.mark.parametrize("name", ["latest", "mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00.pt"])
def test_a_deepspeed_checkpoint_is_refused_with_the_step_that_helps(name, tmp_path):
    (tmp_path / name).write_text("global_step10")
    with pytest.raises(InputError, match=r"a DeepSpeed checkpoint\n.*\nnext: run its zero_to_fp32"):
        find_weights(tmp_path)


def test_a_directory_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"no model\.safetensors and no model\.safetensors\.index\.json"):
        find_weights(tmp_path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-8, 16) | st.floats() | st.sampled_from(["", "U8", "F32", "4"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)
KEYS = st.sampled_from(["a", "b", "__metadata__"])
FIELDS = st.sampled_from(["dtype", "shape", "data_offsets"])
MUTATED = st.dictionaries(KEYS, VALUES | st.dictionaries(FIELDS, VALUES, max_size=3), max_size=3)
SHARED = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def reads_or_refuses(path: Path) -> None:
    """Either the file is refused by name, or what was read covers it to the last byte."""
    try:
        shard = read_shard(path)
    except InputError as error:
        assert str(path) in error.found
    else:
        raw = path.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        assert sum(ref.nbytes for ref in shard.tensors) == len(raw) - start


@SHARED
@given(MUTATED, st.integers(0, 8))
@example({"a": entry([4], 0, 4)}, 4)
def test_any_header_is_read_or_refused(tmp_path, header, size):
    reads_or_refuses(write_raw(tmp_path / "model.safetensors", header, bytes(size)))


@SHARED
@given(st.data())
def test_any_flipped_or_lost_byte_is_read_or_refused(tmp_path, data):
    header = {"__metadata__": {"format": "pt"}, "a": entry([2, 2], 0, 4), "b": entry([1], 4, 8, "F32")}
    raw = bytearray(write_raw(tmp_path / "model.safetensors", header, bytes(8)).read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "model.safetensors").write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    reads_or_refuses(tmp_path / "model.safetensors")
