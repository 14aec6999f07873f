"""Write a checkpoint beside its final place, then move it there in one rename.

Body tensors are copied as bytes by the kernel; a shard without vocabulary tensors is copied whole. A run
that ends early, by an error or a kill, leaves no output directory.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from tokensurgeon.checkpoint.configs import dump_config
from tokensurgeon.checkpoint.index import INDEX_NAME, CheckpointIndex, Shard, TensorRef
from tokensurgeon.console import Advance, no_progress
from tokensurgeon.errors import PolicyError, ResourceError

_CHUNK = 1 << 24
_LOCK = ".lock"


@contextmanager
def staged_directory(output: Path, force: bool = False) -> Iterator[Path]:
    """A directory beside ``output`` that becomes ``output`` when the block ends without an error.

    Leftovers of killed runs into the same output are removed first; a running one holds a lock and is
    left alone.

    Args:
        output: Final place.
        force: Whether an existing output is replaced.

    Yields:
        The directory to write into, on the same file system as ``output``.

    Raises:
        PolicyError: ``output`` exists and ``force`` is not set.
        ResourceError: The disk is full, or the parent directory cannot be written.
    """
    refuse_existing(output, force)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(output)
        stage = Path(tempfile.mkdtemp(prefix=_stage_prefix(output), dir=output.parent))
    except OSError as error:
        _refuse_disk_trouble(error, output.parent)
        raise
    lock = (stage / _LOCK).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield stage
            _sync(stage)
            refuse_existing(output, force)
            (stage / _LOCK).unlink()
            _publish(stage, output)
        except OSError as error:
            _refuse_disk_trouble(error, stage)
            raise
    finally:
        lock.close()
        shutil.rmtree(stage, ignore_errors=True)


def refuse_existing(output: Path, force: bool) -> None:
    """Refuse an output that exists and is not an empty directory.

    Args:
        output: Final place.
        force: Whether it may be replaced.

    Raises:
        PolicyError: It exists and may not be replaced.
    """
    if force or not (output.exists() or output.is_symlink()):
        return
    if output.is_dir() and not any(output.iterdir()):
        return
    raise PolicyError(
        f"{output} exists", "a new output directory", "choose another, or pass --force to replace it"
    )


def _stage_prefix(output: Path) -> str:
    return f".{output.name}.tokensurgeon-"


def _remove_leftovers(output: Path) -> None:
    for stale in output.parent.glob(glob.escape(_stage_prefix(output)) + "*"):
        lock_path = stale / _LOCK
        if not lock_path.is_file():
            continue
        with lock_path.open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(stale, ignore_errors=True)


def _publish(stage: Path, output: Path) -> None:
    stage.chmod(0o777 & ~_umask())
    if output.is_symlink() or (output.exists() and (not output.is_dir() or any(output.iterdir()))):
        old = Path(tempfile.mkdtemp(prefix=_stage_prefix(output), dir=output.parent))
        (old / _LOCK).touch()
        output.rename(old / "replaced")
        try:
            stage.rename(output)
        except OSError:
            (old / "replaced").rename(output)
            shutil.rmtree(old)
            raise
        shutil.rmtree(old)
    else:
        stage.rename(output)
    _fsync(output.parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(directory: Path) -> None:
    for path in directory.rglob("*"):
        _fsync(path)
    _fsync(directory)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_disk_trouble(error: OSError, place: Path) -> None:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO):
        raise ResourceError(
            f"{error.filename or place}: {error.strerror}",
            "room and permission to write there",
            "free space, or choose another output",
        ) from error


def free_bytes(output: Path) -> int:
    """Free bytes on the file system that will hold ``output``."""
    place = output.absolute().parent
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def write_weights(
    base: CheckpointIndex,
    replaced: Mapping[str, Tensor],
    stage: Path,
    advance: Advance = no_progress,
) -> dict[str, str]:
    """Write all weights: vocabulary tensors from memory, everything else as the bytes it was.

    Args:
        base: The base's tensors.
        replaced: New contents by tensor name, in the base's dtype, CPU and contiguous; shapes may differ.
        stage: Directory to write into.
        advance: Called with the number of bytes written.

    Returns:
        SHA-256 of every body tensor's bytes as read from the base, by name.
    """
    hashes: dict[str, str] = {}
    total = 0
    for shard in base.shards:
        total += _write_shard(shard, replaced, stage / shard.path.name, hashes, advance)
    if base.index is not None:
        metadata = {**base.index.get("metadata", {}), "total_size": total}
        if "total_parameters" in metadata:
            changed = [base.tensors[name] for name in replaced]
            metadata["total_parameters"] += sum(t.numel() for t in replaced.values()) - sum(
                _numel(ref) for ref in changed
            )
        index = {**base.index, "metadata": metadata}
        (stage / INDEX_NAME).write_text(dump_config(index), encoding="utf-8")
    return hashes


def _numel(ref: TensorRef) -> int:
    count = 1
    for size in ref.shape:
        count *= size
    return count


def _write_shard(
    shard: Shard, replaced: Mapping[str, Tensor], path: Path, hashes: dict[str, str], advance: Advance
) -> int:
    sizes = {
        ref.name: _nbytes(replaced[ref.name]) if ref.name in replaced else ref.nbytes for ref in shard.tensors
    }
    with shard.path.open("rb") as source, path.open("wb") as sink:
        if not sizes.keys() & replaced.keys():
            shutil.copyfileobj(source, sink, _CHUNK)
        else:
            sink.write(_header(shard, replaced, sizes))
            for ref in shard.tensors:
                if ref.name in replaced:
                    sink.write(_bytes_of(replaced[ref.name]))
                else:
                    _copy_range(source, sink, ref)
        for ref in shard.tensors:
            if ref.name not in replaced:
                hashes[ref.name] = hash_tensor(ref, source)
            advance(sizes[ref.name])
    return sum(sizes.values())


def _header(shard: Shard, replaced: Mapping[str, Tensor], sizes: Mapping[str, int]) -> bytes:
    entries: dict[str, object] = {}
    position = 0
    for ref in shard.tensors:
        shape = list(replaced[ref.name].shape) if ref.name in replaced else list(ref.shape)
        end = position + sizes[ref.name]
        entries[ref.name] = {"dtype": ref.dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    document: dict[str, object] = {"__metadata__": shard.metadata} if shard.metadata else {}
    document |= {name: entries[name] for name in shard.header_order}
    raw = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def _copy_range(source: IO[bytes], sink: IO[bytes], ref: TensorRef) -> None:
    sink.flush()
    position, left = ref.start, ref.nbytes
    while left:
        sent = os.sendfile(sink.fileno(), source.fileno(), position, min(left, 1 << 30))
        if sent == 0:
            raise OSError(errno.EIO, "file shrank while it was copied", str(ref.path))
        position, left = position + sent, left - sent
    sink.seek(0, os.SEEK_END)


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(torch.uint8).numpy().data


def hash_tensor(ref: TensorRef, file: IO[bytes]) -> str:
    """SHA-256 of a tensor's bytes.

    Args:
        ref: Where it lies.
        file: Its file, open for reading.

    Returns:
        The digest in hexadecimal.
    """
    digest = hashlib.sha256()
    file.seek(ref.start)
    left = ref.nbytes
    while left:
        chunk = file.read(min(left, _CHUNK))
        digest.update(chunk)
        left -= len(chunk)
        if not chunk:
            break
    return digest.hexdigest()
