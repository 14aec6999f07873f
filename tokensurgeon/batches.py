"""Batches of missing tokens: shared among processes, and kept in a folder so that a killed run can go on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tokensurgeon import __version__
from tokensurgeon.checkpoint.reader import raw_bytes
from tokensurgeon.errors import ResourceError
from tokensurgeon.methods.base import BatchRunner, InitRows, MethodContext, Solve, batch_spans, collect
from tokensurgeon.methods.params import MethodParams
from tokensurgeon.parallel import Processes


class Batches:
    """Shares the batches of a run, and keeps finished ones until the output is published.

    Args:
        processes: Who takes part.
        work_dir: Where finished batches are kept; None keeps nothing.
        resources: A digest of what methods read besides the models.
    """

    def __init__(self, processes: Processes, work_dir: Path | None = None, resources: str = "") -> None:
        self._processes = processes
        self._resources = resources
        self._work_dir = work_dir
        self._used: set[Path] = set()

    def runner(self, method: MethodParams, context: MethodContext) -> BatchRunner:
        """What works through the batches of one method for one tensor.

        Args:
            method: The method's parameters.
            context: What it works on.

        Returns:
            The runner; it looks for finished batches by everything that their rows depend on.

        Raises:
            ResourceError: The folder cannot be made.
        """
        if self._work_dir is None:
            return _Rounds(self._processes, None)
        return _Rounds(self._processes, self.folder(_fingerprint(method, context, self._resources)))

    def folder(self, name: str) -> Path | None:
        """A folder of the run's own for what else is kept until the output is published.

        Args:
            name: Says everything that its contents depend on.

        Returns:
            The folder; None for a run that keeps nothing.

        Raises:
            ResourceError: It cannot be made.
        """
        if self._work_dir is None:
            return None
        folder = self._work_dir / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(f"{folder}: {error.strerror}", "a folder that can be written") from error
        self._used.add(folder)
        return folder

    def clear(self) -> None:
        """Remove what this run kept, and the folder itself if nothing else is in it."""
        for folder in self._used:
            shutil.rmtree(folder, ignore_errors=True)
        if self._work_dir is not None and self._work_dir.is_dir() and not any(self._work_dir.iterdir()):
            self._work_dir.rmdir()


@dataclass(frozen=True)
class _Rounds:
    """Works through batches in rounds: in each, every process solves one and gives it to the others.

    Attributes:
        processes: Who takes part.
        folder: Where finished batches are kept, or None.
    """

    processes: Processes
    folder: Path | None

    def __call__(self, count: int, batch_size: int, solve: Solve, advance: Callable[[int], None]) -> InitRows:
        """Solve ``count`` tokens and put the batches together, in every process."""
        return collect(count, self._rounds(batch_spans(count, batch_size), solve, advance))

    def _rounds(
        self, spans: list[slice], solve: Solve, advance: Callable[[int], None]
    ) -> Iterator[tuple[slice, InitRows]]:
        for start in range(0, len(spans), self.processes.count):
            shared = spans[start : start + self.processes.count]
            mine = shared[self.processes.rank] if self.processes.rank < len(shared) else None
            parts = self.processes.exchange(None if mine is None else self._find_or_solve(mine, solve))
            for span, part in zip(shared, parts[: len(shared)], strict=True):
                assert part is not None
                yield span, part
                advance(span.stop - span.start)

    def _find_or_solve(self, span: slice, solve: Solve) -> InitRows:
        if self.folder is None:
            return _to_cpu(solve(span))
        path = self.folder / f"{span.start}.safetensors"
        if path.is_file():
            try:
                return InitRows(**load_file(path))
            except (SafetensorError, TypeError):
                path.unlink()
        part = _to_cpu(solve(span))
        unfinished = path.with_suffix(f".{os.getpid()}")
        try:
            save_file(part.tensors(), unfinished)
            unfinished.rename(path)
        except OSError as error:
            raise ResourceError(f"{path}: {error.strerror}", "room for finished batches") from error
        return part


def _to_cpu(part: InitRows) -> InitRows:
    tensors: dict[str, Any] = {name: values.cpu().contiguous() for name, values in part.tensors().items()}
    return replace(part, **tensors)


def _fingerprint(method: MethodParams, context: MethodContext, resources: str) -> str:
    """A digest of everything the rows of a batch depend on."""
    digest = hashlib.sha256()
    facts = {
        "versions": [__version__, torch.__version__],
        "method": method.model_dump(mode="json"),
        "side": context.side,
        "seed": context.generator.initial_seed(),
        "device": [context.device.type, torch.backends.cpu.get_cpu_capability()],
        "batch_size": context.batch_size,
        "pieces": context.pieces,
        "rope": context.rope_thetas,
        "resources": resources,
    }
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for tensor in (
        context.base_rows,
        context.base_ids,
        context.wanted,
        context.anchor_targets,
        context.anchor_bases,
        context.donor_rows,
    ):
        if tensor is not None:
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(raw_bytes(tensor))
    return digest.hexdigest()[:32]
