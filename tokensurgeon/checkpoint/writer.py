"""Write a checkpoint beside its final place, then move it there in one rename.

Body tensors are copied as bytes by the kernel, but for those that training changed, which are there one at a
time; a shard without vocabulary tensors or changed ones is copied whole. A run
that ends early, by an error or a kill, leaves no output directory.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from tokensurgeon.checkpoint.configs import dump_config
from tokensurgeon.checkpoint.index import INDEX_NAME, CheckpointIndex, Shard, TensorRef
from tokensurgeon.checkpoint.reader import map_tensor, raw_bytes
from tokensurgeon.checkpoint.stream import BUFFER, REFUSALS, copy_range, hash_tensor, worker_threads
from tokensurgeon.console import Advance, no_progress
from tokensurgeon.errors import PolicyError, ResourceError

# What a user can mend: a disk that is full or broken, a place that cannot be written, or cannot exist.
_DISK_TROUBLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO,
    errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.ELOOP,
}  # fmt: skip
_REPLACED = "replaced"


@contextmanager
def staged_directory(output: Path, force: bool = False) -> Iterator[Path]:
    """A directory beside ``output`` that becomes ``output`` when the block ends without an error.

    One run at a time: whoever comes second is refused at once, not after hours of work. Leftovers of killed
    runs into the same output are removed first, and an output that one of them was about to replace is put
    back.

    Args:
        output: Final place.
        force: Whether an existing output is replaced.

    Yields:
        The directory to write into, on the same file system as ``output``.

    Raises:
        PolicyError: ``output`` exists and ``force`` is not set, or another run is writing it.
        ResourceError: The disk is full, or the parent directory cannot be written.
    """
    refuse_existing(output, force)
    with _disk_trouble_refused(output.parent):
        output.parent.mkdir(parents=True, exist_ok=True)
        with _only_run_into(output):
            _remove_leftovers(output)
            refuse_existing(output, force)
            stage = Path(tempfile.mkdtemp(prefix=_stage_prefix(output), dir=output.parent))
            try:
                yield stage
                _sync(stage)
                refuse_existing(output, force)
                _publish(stage, output)
            finally:
                shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def _only_run_into(output: Path) -> Iterator[None]:
    """Hold the lock of an output; the kernel takes it from a run that is killed."""
    path = output.parent / f".{output.name}.tokensurgeon.lock"
    while True:
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise PolicyError(
                    f"{output}: another run is writing it",
                    "one run at a time into one output",
                    "wait for it, or choose another output",
                ) from error
            # Between both calls the run before this one may have removed the file that was opened.
            if not _is_at(path, file):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def refuse_existing(output: Path, force: bool) -> None:
    """Refuse an output that exists and is not an empty directory.

    Args:
        output: Final place.
        force: Whether it may be replaced.

    Raises:
        PolicyError: It exists and may not be replaced.
        ResourceError: There can be no such place, or it cannot be looked at.
    """
    with _disk_trouble_refused(output):
        if force or not (output.exists() or output.is_symlink()):
            return
        if output.is_dir() and not any(output.iterdir()):
            return
    raise PolicyError(
        f"{output} exists", "a new output directory", "choose another, or pass --force to replace it"
    )


def _stage_prefix(output: Path) -> str:
    return f".{output.name}.tokensurgeon-"


def _is_at(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _remove_leftovers(output: Path) -> None:
    for stale in output.parent.glob(glob.escape(_stage_prefix(output)) + "*"):
        replaced = stale / _REPLACED
        if os.path.lexists(replaced) and not os.path.lexists(output):
            # Killed between the two renames of a forced run: the old output goes back to its place.
            replaced.rename(output)
        shutil.rmtree(stale, ignore_errors=True)


def _publish(stage: Path, output: Path) -> None:
    stage.chmod(0o777 & ~_umask())
    if output.is_symlink() or (output.exists() and (not output.is_dir() or any(output.iterdir()))):
        old = Path(tempfile.mkdtemp(prefix=_stage_prefix(output), dir=output.parent))
        output.rename(old / _REPLACED)
        try:
            stage.rename(output)
        except OSError:
            (old / _REPLACED).rename(output)
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


@contextmanager
def _disk_trouble_refused(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_TROUBLE:
            raise
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
    *,
    changed: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    link: bool = False,
) -> dict[str, str]:
    """Write all weights: vocabulary tensors from memory, everything else as the bytes it was.

    Args:
        base: The base's tensors.
        replaced: New contents by tensor name, in the base's dtype and on the CPU; shapes may differ.
        stage: Directory to write into.
        advance: Called with the number of bytes written.
        changed: Of other tensors that change, how: from the base's to one of the same dtype and shape.
        link: Whether shards without a replaced tensor share the base's file, where both are on one file
            system.

    Returns:
        SHA-256 of every body tensor's bytes by name: as read from the base, or as made by ``changed``.
    """
    changed = changed or {}
    remade: dict[str, str] = {}
    digests: dict[str, Future[str]] = {}
    synced: list[Future[None]] = []
    with worker_threads() as threads:
        for shard in base.shards:
            body = [ref for ref in shard.tensors if ref.name not in replaced and ref.name not in changed]
            # Beside the copy of the same bytes, which are then read from disk once.
            digests |= {ref.name: threads.submit(hash_tensor, ref) for ref in body}
            path = stage / shard.path.name
            if len(body) < len(shard.tensors):
                remade |= _rebuild(shard, replaced, changed, path, advance)
            elif link and _link(shard.path, path):
                for ref in body:
                    digests[ref.name].result()
                    advance(ref.nbytes)
            else:
                _copy(shard, path, advance)
            if shard is not base.shards[-1]:
                # Beside the next shard, so that little is left when the directory is synced.
                synced.append(threads.submit(_fsync, path))
        for future in synced:
            future.result()
        hashes = {name: digest.result() for name, digest in digests.items()} | remade
    if base.index is not None:
        (stage / INDEX_NAME).write_text(dump_config(_index(base, base.index, replaced)), encoding="utf-8")
    return hashes


def _index(base: CheckpointIndex, index: Mapping[str, Any], replaced: Mapping[str, Tensor]) -> dict[str, Any]:
    tensors = base.tensors
    grown = {name: (new.numel(), math.prod(tensors[name].shape)) for name, new in replaced.items()}
    metadata = {
        **index.get("metadata", {}),
        "total_size": sum(_size(ref, replaced) for ref in tensors.values()),
    }
    if "total_parameters" in metadata:
        metadata["total_parameters"] += sum(new - old for new, old in grown.values())
    return {**index, "metadata": metadata}


def _size(ref: TensorRef, replaced: Mapping[str, Tensor]) -> int:
    new = replaced.get(ref.name)
    return ref.nbytes if new is None else new.nbytes


def _link(source: Path, path: Path) -> bool:
    try:
        # A hub cache holds symbolic links; the output shares the file behind one.
        path.hardlink_to(source.resolve())
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        return False
    return True


def _copy(shard: Shard, path: Path, advance: Advance) -> None:
    size = shard.path.stat().st_size
    # From its first byte on, or no blocks could be shared; the header is not part of the progress.
    advance(sum(ref.nbytes for ref in shard.tensors) - size)
    with shard.path.open("rb") as source, path.open("wb") as sink:
        copy_range(source, sink, 0, size, advance)


def _rebuild(
    shard: Shard,
    replaced: Mapping[str, Tensor],
    changed: Mapping[str, Callable[[Tensor], Tensor]],
    path: Path,
    advance: Advance,
) -> dict[str, str]:
    """Write a shard tensor by tensor; gives SHA-256 of the changed ones by name."""
    digests = {}
    with shard.path.open("rb") as source, path.open("wb") as sink:
        sink.write(_header(shard, replaced))
        for ref in shard.tensors:
            if ref.name not in replaced and ref.name not in changed:
                copy_range(source, sink, ref.start, ref.nbytes, advance)
                continue
            if ref.name in replaced:
                data = raw_bytes(replaced[ref.name])
            else:
                data = raw_bytes(changed[ref.name](map_tensor(ref)))
                digests[ref.name] = hashlib.sha256(data).hexdigest()
            for start in range(0, len(data), BUFFER):
                advance(sink.write(data[start : start + BUFFER]))
    return digests


def _header(shard: Shard, replaced: Mapping[str, Tensor]) -> bytes:
    entries: dict[str, object] = {}
    position = 0
    for ref in shard.tensors:
        shape = list(replaced[ref.name].shape) if ref.name in replaced else list(ref.shape)
        end = position + _size(ref, replaced)
        entries[ref.name] = {"dtype": ref.dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    document: dict[str, object] = {"__metadata__": shard.metadata} if shard.metadata else {}
    document |= {name: entries[name] for name in shard.header_order}
    raw = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw
