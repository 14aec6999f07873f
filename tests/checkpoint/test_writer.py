"""Body tensors are copied as bytes, and an output directory appears whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_files import entry, write_index, write_raw
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tokensurgeon.checkpoint import stream, writer
from tokensurgeon.checkpoint.index import TensorRef, read_index
from tokensurgeon.checkpoint.stream import hash_tensor
from tokensurgeon.checkpoint.writer import free_bytes, staged_directory, write_weights
from tokensurgeon.errors import PolicyError, ResourceError

BODY = {
    "codes": torch.arange(-3, 4, dtype=torch.int8),
    "norm": torch.tensor([1.5, -2.5, 3.0], dtype=torch.bfloat16),
    "scale": torch.tensor([0.1], dtype=torch.float32),
    "half": torch.tensor([[0.5, 2.0]], dtype=torch.float16),
    "empty": torch.empty(0, dtype=torch.float32),
}


def rows(count: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(count * 3, dtype=torch.float32).reshape(count, 3).to(dtype)


def make_single(directory: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    directory.mkdir()
    tensors = {**BODY, "embed.weight": rows(5, dtype), "bias": rows(1, dtype)[:, :1]}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt", "note": "é"})
    return directory


def make_sharded(directory: Path) -> Path:
    directory.mkdir()
    save_file({"embed.weight": rows(5, torch.float16), "norm": BODY["norm"]}, directory / "one.safetensors")
    save_file({"codes": BODY["codes"], "scale": BODY["scale"]}, directory / "two.safetensors")
    weight_map = {"codes": "two.safetensors", "embed.weight": "one.safetensors"}
    weight_map |= {"norm": "one.safetensors", "scale": "two.safetensors"}
    metadata = {"total_parameters": 26, "total_size": 47, "note": "kept"}
    write_index(directory, weight_map, metadata=metadata)
    return directory


def refuse(code: int) -> Callable[..., int]:
    """A system call that always fails."""

    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    place = tmp_path / "stage"
    place.mkdir()
    return place


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_same_rows_give_a_byte_identical_file(dtype, tmp_path, stage):
    base = make_single(tmp_path / "base", dtype)
    replaced = {"embed.weight": rows(5, dtype), "bias": rows(1, dtype)[:, :1]}
    write_weights(read_index(base), replaced, stage)
    assert (stage / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


def test_no_replacement_gives_a_byte_identical_file(tmp_path, stage):
    base = make_single(tmp_path / "base")
    write_weights(read_index(base), {}, stage)
    assert (stage / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


@pytest.mark.parametrize("count", [1, 4, 9, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_changed_number_of_rows_reads_back_with_the_right_values(dtype, count, tmp_path, stage):
    base = make_single(tmp_path / "base", dtype)
    new = {"embed.weight": rows(count, dtype) + 1, "bias": rows(1, dtype)[:, :1]}
    write_weights(read_index(base), new, stage)
    found = load_file(stage / "model.safetensors")
    assert found.keys() == BODY.keys() | new.keys()
    for name, wanted in (BODY | new).items():
        assert found[name].dtype == wanted.dtype
        assert torch.equal(found[name], wanted)
    with safe_open(stage / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "note": "é"}


def test_a_transposed_view_is_written_by_its_values(tmp_path, stage):
    base = make_single(tmp_path / "base", torch.float32)
    view = rows(4, torch.float32).repeat(1, 2)[:, ::2]
    write_weights(read_index(base), {"embed.weight": view}, stage)
    assert torch.equal(load_file(stage / "model.safetensors")["embed.weight"], view)


def test_tensors_keep_the_order_of_their_bytes_in_a_file_of_any_order(tmp_path, stage):
    data = bytes(range(12))
    header = {"z": entry([4], 8, 12), "a": entry([2, 2], 0, 8, "F16"), "__metadata__": {"format": "pt"}}
    write_raw(tmp_path / "model.safetensors", header, data)
    new = torch.tensor([[1.0, 2.0]], dtype=torch.float16)
    write_weights(read_index(tmp_path), {"a": new}, stage)
    index = read_index(stage)
    assert [ref.name for ref in index.shards[0].tensors] == ["a", "z"]
    assert index.shards[0].header_order == ("z", "a")
    found = load_file(stage / "model.safetensors")
    assert torch.equal(found["a"], new)
    assert found["z"].tolist() == [8, 9, 10, 11]


def test_untouched_shards_are_byte_identical(tmp_path, stage):
    base = make_sharded(tmp_path / "base")
    write_weights(read_index(base), {"embed.weight": rows(7, torch.float16)}, stage)
    assert (stage / "two.safetensors").read_bytes() == (base / "two.safetensors").read_bytes()
    assert (stage / "one.safetensors").read_bytes() != (base / "one.safetensors").read_bytes()
    assert torch.equal(load_file(stage / "one.safetensors")["norm"], BODY["norm"])


def test_the_index_counts_bytes_and_parameters_of_the_output(tmp_path, stage):
    base = make_sharded(tmp_path / "base")
    write_weights(read_index(base), {"embed.weight": rows(7, torch.float16)}, stage)
    old, new = (json.loads((place / "model.safetensors.index.json").read_text()) for place in (base, stage))
    tensors = load_file(stage / "one.safetensors") | load_file(stage / "two.safetensors")
    assert new["metadata"] == {
        "total_parameters": sum(tensor.numel() for tensor in tensors.values()),
        "total_size": sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        "note": "kept",
    }
    assert new["weight_map"] == old["weight_map"]
    assert list(new["weight_map"]) == list(old["weight_map"])
    read_index(stage)


def test_an_index_without_metadata_gains_its_size_only(tmp_path, stage):
    base = make_sharded(tmp_path / "base")
    path = base / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": json.loads(path.read_text())["weight_map"]}))
    write_weights(read_index(base), {}, stage)
    assert json.loads((stage / path.name).read_text())["metadata"] == {"total_size": 47}


def test_hashes_are_those_of_the_body_tensors(tmp_path, stage):
    base = make_single(tmp_path / "base")
    hashes = write_weights(read_index(base), {"embed.weight": rows(9, torch.bfloat16)}, stage)
    assert hashes.keys() == BODY.keys() | {"bias"}
    for name, tensor in BODY.items():
        raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert hashes[name] == hashlib.sha256(raw).hexdigest()
    for name, digest in hashes.items():
        assert hash_tensor(read_index(stage).tensors[name]) == digest


def test_progress_counts_every_byte_written(tmp_path, stage):
    base = make_sharded(tmp_path / "base")
    steps: list[int] = []
    write_weights(read_index(base), {"embed.weight": rows(7, torch.float16)}, stage, steps.append)
    assert sum(steps) == sum(ref.nbytes for ref in read_index(stage).tensors.values())


def test_progress_of_a_large_tensor_comes_in_pieces(tmp_path, stage, monkeypatch):
    monkeypatch.setattr(writer, "BUFFER", 100)
    monkeypatch.setattr(stream, "_PIECE", 100)
    base = make_single(tmp_path / "base")
    new = rows(50, torch.bfloat16)
    steps: list[int] = []
    write_weights(read_index(base), {"embed.weight": new}, stage, steps.append)
    assert steps.count(100) == 3
    assert sum(steps) == new.nbytes + sum(t.nbytes for t in (*BODY.values(), rows(1, torch.bfloat16)[:, :1]))
    assert torch.equal(load_file(stage / "model.safetensors")["embed.weight"], new)


@pytest.mark.parametrize("name", ["embed.weight", "none"])
def test_a_base_that_shrinks_during_the_copy_is_an_error(name, tmp_path, stage):
    base = make_single(tmp_path / "base")
    index = read_index(base)
    path = base / "model.safetensors"
    os.truncate(path, index.tensors["codes"].start)
    replaced = {name: rows(9, torch.bfloat16)} if name in index.tensors else {}
    with pytest.raises(OSError, match="file shrank while it was"):
        write_weights(index, replaced, stage)


def test_an_error_in_hashing_reaches_the_caller(tmp_path, stage, monkeypatch):
    def fail(ref: TensorRef) -> str:
        raise OSError(errno.EIO, f"cannot read {ref.name}")

    monkeypatch.setattr(writer, "hash_tensor", fail)
    with pytest.raises(OSError, match="cannot read"):
        write_weights(read_index(make_sharded(tmp_path / "base")), {}, stage)


# Shards that are linked.


def inodes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in directory.glob("*.safetensors")}


def test_only_untouched_shards_are_linked(tmp_path, stage):
    base = make_sharded(tmp_path / "base")
    hashes = write_weights(read_index(base), {"embed.weight": rows(7, torch.float16)}, stage, link=True)
    assert inodes(stage)["two.safetensors"] == inodes(base)["two.safetensors"]
    assert inodes(stage)["one.safetensors"] != inodes(base)["one.safetensors"]
    (tmp_path / "copy").mkdir()
    copied = write_weights(read_index(base), {"embed.weight": rows(7, torch.float16)}, tmp_path / "copy")
    assert hashes == copied
    for path in stage.iterdir():
        assert path.read_bytes() == (tmp_path / "copy" / path.name).read_bytes()


def test_shards_are_not_linked_unless_asked_for(tmp_path, stage):
    base = make_sharded(tmp_path / "base")
    write_weights(read_index(base), {}, stage)
    assert inodes(stage).items().isdisjoint(inodes(base).items())


def test_behind_a_symbolic_link_the_file_itself_is_linked(tmp_path, stage):
    base = make_sharded(tmp_path / "blobs")
    cache = tmp_path / "snapshot"
    cache.mkdir()
    for path in base.iterdir():
        (cache / path.name).symlink_to(path)
    write_weights(read_index(cache), {}, stage, link=True)
    assert not any(path.is_symlink() for path in stage.iterdir())
    assert inodes(stage) == inodes(base)


def test_progress_counts_linked_bytes_too(tmp_path, stage):
    base = make_sharded(tmp_path / "base")
    steps: list[int] = []
    write_weights(read_index(base), {"embed.weight": rows(7, torch.float16)}, stage, steps.append, link=True)
    assert sum(steps) == sum(ref.nbytes for ref in read_index(stage).tensors.values())


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_a_shard_that_cannot_be_linked_is_copied(code, tmp_path, stage, monkeypatch):
    monkeypatch.setattr(Path, "hardlink_to", refuse(code))
    base = make_sharded(tmp_path / "base")
    write_weights(read_index(base), {}, stage, link=True)
    assert inodes(stage).items().isdisjoint(inodes(base).items())
    for path in base.glob("*.safetensors"):
        assert (stage / path.name).read_bytes() == path.read_bytes()


def test_a_disk_in_trouble_while_a_shard_is_linked_is_an_error(tmp_path, stage, monkeypatch):
    monkeypatch.setattr(Path, "hardlink_to", refuse(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        write_weights(read_index(make_sharded(tmp_path / "base")), {}, stage, link=True)


def test_a_linked_shard_survives_an_error_and_its_own_output(tmp_path):
    base = make_sharded(tmp_path / "base")
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    with pytest.raises(ValueError, match="stop"), staged_directory(tmp_path / "out") as stage:
        write_weights(read_index(base), {}, stage, link=True)
        raise ValueError("stop")
    for _ in range(2):
        with staged_directory(tmp_path / "out", force=True) as stage:
            write_weights(read_index(base), {}, stage, link=True)
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before


# The directory.


def listing(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def make_output(directory: Path, text: str = "old") -> Path:
    directory.mkdir()
    (directory / "file").write_text(text)
    return directory


def test_a_finished_block_publishes_what_it_wrote(tmp_path):
    output = tmp_path / "parent" / "out"
    with staged_directory(output) as stage:
        (stage / "sub").mkdir()
        (stage / "sub" / "file").write_text("new")
        assert stage.parent == output.parent
        assert not output.exists()
    assert listing(output) == ["sub"]
    assert (output / "sub" / "file").read_text() == "new"
    assert listing(output.parent) == ["out"]


def test_the_output_is_readable_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        with staged_directory(tmp_path / "out"):
            pass
        assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_nothing(error, tmp_path):
    with pytest.raises(error, match="stop"), staged_directory(tmp_path / "out") as stage:
        (stage / "file").write_text("new")
        raise error("stop")
    assert listing(tmp_path) == []


def test_an_existing_output_is_refused_before_anything_is_done(tmp_path):
    output = make_output(tmp_path / "out")
    with pytest.raises(PolicyError, match=r"out exists\n(.|\n)*--force"), staged_directory(output):
        pytest.fail("the block ran")
    assert (output / "file").read_text() == "old"
    assert listing(tmp_path) == ["out"]


def test_an_existing_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("old")
    with pytest.raises(PolicyError, match="out exists"), staged_directory(tmp_path / "out"):
        pytest.fail("the block ran")


def test_an_output_that_appeared_meanwhile_is_not_replaced(tmp_path):
    output = tmp_path / "out"
    with pytest.raises(PolicyError, match="out exists"), staged_directory(output):
        make_output(output, "another run's")
    assert (output / "file").read_text() == "another run's"
    assert listing(tmp_path) == ["out"]


def test_an_empty_directory_is_accepted(tmp_path):
    (tmp_path / "out").mkdir()
    with staged_directory(tmp_path / "out") as stage:
        (stage / "file").write_text("new")
    assert listing(tmp_path / "out") == ["file"]


def test_force_replaces_the_old_output_after_success(tmp_path):
    output = make_output(tmp_path / "out")
    (output / "stale").touch()
    with staged_directory(output, force=True) as stage:
        (stage / "file").write_text("new")
        assert (output / "file").read_text() == "old"
    assert listing(output) == ["file"]
    assert (output / "file").read_text() == "new"
    assert listing(tmp_path) == ["out"]


def test_force_keeps_the_old_output_on_an_error(tmp_path):
    output = make_output(tmp_path / "out")
    with pytest.raises(ValueError, match="stop"), staged_directory(output, force=True):
        raise ValueError("stop")
    assert (output / "file").read_text() == "old"
    assert listing(tmp_path) == ["out"]


def test_force_puts_the_old_output_back_when_the_new_one_cannot_be_moved(tmp_path, monkeypatch):
    output = make_output(tmp_path / "out")
    rename = Path.rename

    def refuse(path: Path, place: Path) -> Path:
        if path.name.startswith(".out.tokensurgeon-"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(path, place)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ResourceError, match="No space left"), staged_directory(output, force=True):
        pass
    assert (output / "file").read_text() == "old"
    assert listing(tmp_path) == ["out"]


def test_force_replaces_a_link_and_leaves_what_it_points_to(tmp_path):
    place = make_output(tmp_path / "elsewhere")
    (tmp_path / "out").symlink_to(place)
    with staged_directory(tmp_path / "out", force=True) as stage:
        (stage / "file").write_text("new")
    assert not (tmp_path / "out").is_symlink()
    assert (tmp_path / "out" / "file").read_text() == "new"
    assert (place / "file").read_text() == "old"


def test_a_link_to_an_empty_directory_becomes_the_output(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    with staged_directory(tmp_path / "out") as stage:
        (stage / "file").write_text("new")
    assert (tmp_path / "out" / "file").read_text() == "new"
    assert listing(tmp_path) == ["elsewhere", "out"]


def leave_behind(output: Path) -> Path:
    """What a killed run leaves: its stage, and a lock file that nobody holds."""
    stale = output.parent / f".{output.name}.tokensurgeon-dead"
    stale.mkdir()
    (output.parent / f".{output.name}.tokensurgeon.lock").touch()
    (stale / "model.safetensors").write_text("half")
    return stale


@pytest.mark.parametrize("name", ["out", "model[v2]", "a*"])
def test_leftovers_of_a_dead_run_are_removed(name, tmp_path):
    leave_behind(tmp_path / name)
    with staged_directory(tmp_path / name):
        pass
    assert listing(tmp_path) == [name]


def test_an_output_that_a_killed_run_was_replacing_is_put_back(tmp_path):
    output = tmp_path / "out"
    make_output(leave_behind(output) / "replaced")
    with pytest.raises(PolicyError, match="out exists"), staged_directory(output):
        pytest.fail("the block ran")
    assert (output / "file").read_text() == "old"
    assert listing(tmp_path) == ["out"]


@pytest.mark.parametrize("force", [False, True])
def test_a_second_run_into_an_output_is_refused_at_once(force, tmp_path):
    with staged_directory(tmp_path / "out", force) as slow:
        (slow / "file").write_text("slow")
        with (
            pytest.raises(PolicyError, match=r"out: another run is writing it\n(.|\n)*next: wait"),
            staged_directory(tmp_path / "out", force),
        ):
            pytest.fail("the block ran")
        with staged_directory(tmp_path / "out2"):
            pass
    assert (tmp_path / "out" / "file").read_text() == "slow"
    assert listing(tmp_path) == ["out", "out2"]
    with staged_directory(tmp_path / "out", force=True):
        pass


def test_a_lock_file_that_was_removed_meanwhile_is_no_lock(tmp_path, monkeypatch):
    path = tmp_path / ".out.tokensurgeon.lock"
    calls = []

    def lock(file, flags):
        calls.append(flags)
        if len(calls) == 1:
            path.unlink()
            path.touch()

    monkeypatch.setattr(writer.fcntl, "flock", lock)
    with staged_directory(tmp_path / "out"):
        pass
    assert len(calls) == 2
    assert listing(tmp_path) == ["out"]


@pytest.mark.parametrize("force", [False, True])
def test_a_place_that_cannot_exist_is_a_resource_error(force, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for place in ("file/out", "x" * 300, "loop/out"):
        output = tmp_path / place
        with (
            pytest.raises(ResourceError, match="next: free space, or choose"),
            staged_directory(output, force),
        ):
            pytest.fail("the block ran")
    assert listing(tmp_path) == ["file", "loop"]


def test_leftovers_of_another_output_are_left_alone(tmp_path):
    other = leave_behind(tmp_path / "other")
    with staged_directory(tmp_path / "out"):
        pass
    assert other.is_dir()


@pytest.mark.parametrize(
    "code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EIO]
)
def test_disk_trouble_inside_the_block_is_a_resource_error(code, tmp_path):
    with (
        pytest.raises(ResourceError, match=rf"{os.strerror(code)}\n(.|\n)*next: free space"),
        staged_directory(tmp_path / "out"),
    ):
        raise OSError(code, os.strerror(code))
    assert listing(tmp_path) == []


def test_a_full_disk_while_weights_are_written_is_a_resource_error(tmp_path, monkeypatch):
    base = make_single(tmp_path / "base")

    monkeypatch.setattr(stream.os, "copy_file_range", refuse(errno.ENOSPC))
    with (
        pytest.raises(ResourceError, match="No space left on device"),
        staged_directory(tmp_path / "out") as stage,
    ):
        write_weights(read_index(base), {"embed.weight": rows(9, torch.bfloat16)}, stage)
    assert listing(tmp_path) == ["base"]


def test_a_full_disk_while_files_are_synced_is_a_resource_error(tmp_path, monkeypatch):
    monkeypatch.setattr(writer.os, "fsync", refuse(errno.ENOSPC))
    with pytest.raises(ResourceError, match="No space left on device"), staged_directory(tmp_path / "out"):
        pass
    assert listing(tmp_path) == []


def test_a_full_disk_while_a_shard_is_synced_is_an_error(tmp_path, stage, monkeypatch):
    monkeypatch.setattr(writer.os, "fsync", refuse(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left on device"):
        write_weights(read_index(make_sharded(tmp_path / "base")), {}, stage)


def test_a_parent_that_cannot_be_made_is_a_resource_error(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "no"))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with (
        pytest.raises(ResourceError, match="no: Permission denied"),
        staged_directory(tmp_path / "no" / "out"),
    ):
        pytest.fail("the block ran")


def test_other_system_errors_pass_through(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"), staged_directory(tmp_path / "out"):
        (tmp_path / "nowhere").read_text()
    assert listing(tmp_path) == []


def test_free_space_is_that_of_the_nearest_existing_directory(tmp_path, monkeypatch):
    asked: list[Path] = []

    def usage(place: Path) -> os.terminal_size:
        asked.append(place)
        return type("Usage", (), {"free": 123})()

    monkeypatch.setattr(writer.shutil, "disk_usage", usage)
    assert free_bytes(tmp_path / "a" / "b" / "out") == 123
    assert asked == [tmp_path]


def test_changed_tensors_are_made_one_by_one_from_the_base_and_hashed_as_they_are_written(tmp_path, stage):
    base = make_sharded(tmp_path / "base")
    changed = {"scale": lambda stored: stored + 1}
    hashes = write_weights(read_index(base), {}, stage, changed=changed)
    assert (stage / "one.safetensors").read_bytes() == (base / "one.safetensors").read_bytes()
    found = load_file(stage / "two.safetensors")
    assert torch.equal(found["scale"], BODY["scale"] + 1)
    assert found["scale"].dtype == BODY["scale"].dtype
    assert torch.equal(found["codes"], BODY["codes"])
    assert hashes.keys() == read_index(stage).tensors.keys()
    for name, digest in hashes.items():
        assert hash_tensor(read_index(stage).tensors[name]) == digest
