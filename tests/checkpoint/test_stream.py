"""Parts of files are copied by whatever the kernel offers, and hashed on threads."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from pathlib import Path

import pytest

from tokensurgeon.checkpoint import stream
from tokensurgeon.checkpoint.index import TensorRef
from tokensurgeon.checkpoint.stream import copy_range, hash_all, hash_file, hash_tensor, worker_threads

DATA = bytes(range(256)) * 16
CALLS = ["copy_file_range", "sendfile"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(DATA)
    return path


def copy(source: Path, start: int, count: int) -> tuple[bytes, list[int]]:
    """What stands in a file after a head is written, a range copied and a tail written; the steps."""
    target = source.with_name("target")
    steps: list[int] = []
    with source.open("rb") as reader, target.open("wb") as writer:
        writer.write(b"head")
        copy_range(reader, writer, start, count, steps.append)
        writer.write(b"tail")
    return target.read_bytes(), steps


def disable(monkeypatch: pytest.MonkeyPatch, call: str, code: int) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, refuse)


@pytest.mark.parametrize("missing", [CALLS[:0], CALLS[:1], CALLS[:2]])
@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP])
@pytest.mark.parametrize(("start", "count"), [(0, len(DATA)), (0, 0), (7, 1000), (4095, 1)])
def test_a_range_is_copied_whatever_the_kernel_refuses(start, count, code, missing, source, monkeypatch):
    for call in missing:
        disable(monkeypatch, call, code)
    copied, steps = copy(source, start, count)
    assert copied == b"head" + DATA[start : start + count] + b"tail"
    assert sum(steps) == count


def test_a_call_that_copies_nothing_is_a_refusal(source, monkeypatch):
    monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    copied, _ = copy(source, 0, len(DATA))
    assert copied == b"head" + DATA + b"tail"


def test_a_call_that_copies_a_part_is_called_again(source, monkeypatch):
    whole = os.copy_file_range
    monkeypatch.setattr(os, "copy_file_range", lambda a, b, count, start: whole(a, b, min(count, 999), start))
    copied, steps = copy(source, 1, 3000)
    assert copied == b"head" + DATA[1:3001] + b"tail"
    assert steps == [999, 999, 999, 3]


def test_progress_is_told_piece_by_piece(source, monkeypatch):
    monkeypatch.setattr(stream, "_PIECE", 1000)
    assert copy(source, 0, 3500)[1] == [1000, 1000, 1000, 500]


def test_a_disk_in_trouble_is_no_refusal(source, monkeypatch):
    disable(monkeypatch, "copy_file_range", errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        copy(source, 0, 10)


@pytest.mark.parametrize("missing", [CALLS[:0], CALLS[:1], CALLS[:2]])
def test_a_source_that_ends_too_early_is_an_error(missing, source, monkeypatch):
    for call in missing:
        disable(monkeypatch, call, errno.ENOSYS)
    with pytest.raises(OSError, match="file shrank while it was copied"):
        copy(source, len(DATA) - 10, 11)


# Hashes.


def tensor_at(path: Path, start: int, end: int) -> TensorRef:
    return TensorRef("tensor", "U8", (end - start,), path, start, end)


@pytest.mark.parametrize(("start", "end"), [(0, 0), (0, 1), (10, 30), (5, len(DATA))])
def test_a_hash_is_that_of_the_bytes_as_a_whole(start, end, source, monkeypatch):
    monkeypatch.setattr(stream, "BUFFER", 16)
    assert hash_tensor(tensor_at(source, start, end)) == hashlib.sha256(DATA[start:end]).hexdigest()


def test_hashes_come_in_the_order_of_what_is_hashed(tmp_path):
    paths = [tmp_path / str(number) for number in range(50)]
    for path in paths:
        path.write_text(path.name * 1000)
    assert hash_all(hash_file, paths) == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def test_a_file_that_ends_too_early_is_an_error_of_whoever_asked(source):
    refs = [tensor_at(source, 0, 10), tensor_at(source, 10, len(DATA) + 1)]
    with pytest.raises(OSError, match="file shrank while it was hashed"):
        hash_all(hash_tensor, refs)


def test_an_error_drops_what_waits_to_be_hashed():
    with pytest.raises(ValueError, match="stop"), worker_threads() as threads:
        waiting = [threads.submit(time.sleep, 0.01) for _ in range(100)]
        raise ValueError("stop")
    assert waiting[-1].cancelled()
