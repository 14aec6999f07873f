"""Large parts of files: copied by the kernel, hashed on threads."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

from tokensurgeon.checkpoint.index import TensorRef
from tokensurgeon.console import Advance, no_progress

REFUSALS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
"""What a file system answers when it cannot do a thing this way; another way may do."""

BUFFER = 1 << 20
"""Bytes that pass through this process at a time; they stay in the processor's cache."""

_PIECE = 1 << 26
_MAX_THREADS = 8
_Hashed = TypeVar("_Hashed")
_WAYS: tuple[Callable[[int, int, int, int], int], ...] = (
    lambda source, sink, start, count: os.copy_file_range(source, sink, count, start),
    lambda source, sink, start, count: os.sendfile(sink, source, start, count),
    lambda source, sink, start, count: os.write(sink, os.pread(source, min(count, BUFFER), start)),
)


def copy_range(
    source: IO[bytes], sink: IO[bytes], start: int, count: int, advance: Advance = no_progress
) -> None:
    """Append a part of one file to another; the two share their blocks where the file system can do that.

    Args:
        source: File to read.
        sink: File to write, at its end.
        start: Offset of the first byte in ``source``.
        count: Number of bytes.
        advance: Called with the number of bytes copied, piece by piece.

    Raises:
        OSError: ``source`` ends too early, or the disk is in trouble.
    """
    sink.flush()
    while count:
        copied = _copy_piece(source.fileno(), sink.fileno(), start, min(count, _PIECE))
        if not copied:
            raise OSError(errno.EIO, "file shrank while it was copied", source.name)
        advance(copied)
        start, count = start + copied, count - copied
    sink.seek(0, os.SEEK_END)


def _copy_piece(source: int, sink: int, start: int, count: int) -> int:
    """Copy some bytes the best way that works here; 0 at the end of ``source``."""
    for way in _WAYS:
        try:
            copied = way(source, sink, start, count)
        except OSError as error:
            if error.errno not in REFUSALS or way is _WAYS[-1]:
                raise
        else:
            # Some file systems refuse by copying nothing.
            if copied:
                return copied
    return 0


@contextmanager
def worker_threads() -> Iterator[ThreadPoolExecutor]:
    """Threads that hash and sync while the caller copies; none of it holds the interpreter's lock.

    Yields:
        The threads; work they have not begun when the block ends is dropped.
    """
    threads = ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS))
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


def hash_all(
    hash_one: Callable[[_Hashed, Advance], str], things: Iterable[_Hashed], advance: Advance = no_progress
) -> list[str]:
    """Hash tensors or files on threads.

    Args:
        hash_one: ``hash_tensor`` or ``hash_file``.
        things: What to hash.
        advance: Called with the number of bytes hashed, piece by piece, from any thread.

    Returns:
        Their digests, in their order.
    """
    with worker_threads() as threads:
        return list(threads.map(lambda thing: hash_one(thing, advance), things))


def hash_file(path: Path, advance: Advance = no_progress) -> str:
    """SHA-256 of a file.

    Args:
        path: The file.
        advance: Called with the number of bytes hashed, piece by piece.

    Returns:
        The digest in hexadecimal.
    """
    return _hash_range(path, 0, path.stat().st_size, advance)


def hash_tensor(ref: TensorRef, advance: Advance = no_progress) -> str:
    """SHA-256 of a tensor's bytes.

    Args:
        ref: Where it lies.
        advance: Called with the number of bytes hashed, piece by piece.

    Returns:
        The digest in hexadecimal.

    Raises:
        OSError: The file ends too early.
    """
    return _hash_range(ref.path, ref.start, ref.nbytes, advance)


def _hash_range(path: Path, start: int, left: int, advance: Advance) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(left, BUFFER)))
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while left:
            count = file.readinto(buffer[:left])
            if not count:
                raise OSError(errno.EIO, "file shrank while it was hashed", str(path))
            digest.update(buffer[:count])
            advance(count)
            left -= count
    return digest.hexdigest()
