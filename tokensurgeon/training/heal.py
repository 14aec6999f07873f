"""Rows of a vocabulary trained through a body, a few of them as a small parameter of their own.

The body is frozen, but for adapters of its linear layers where there are some.

A row is ``start + reach * move @ root``. With ``root`` a multiple of a square root of the covariance of the
base's rows, and a cost of ``|move|^2 / 2`` beside the sum of all losses, the answer is the posterior mode for
rows that are thought to be off as the base's rows differ from each other. Steps are Adam's (D. Kingma, J. Ba,
arXiv:1412.6980). Whatever is random is a function of seed and step, so that a run which goes on where a
killed one was ends where that would have ended.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tokensurgeon.console import logger, progress
from tokensurgeon.errors import InputError, ResourceError
from tokensurgeon.parallel import Processes
from tokensurgeon.training.lora import Adapters
from tokensurgeon.training.objectives import Body, Example, NextToken, Objective

_BETAS = (0.9, 0.99)
# Keeps the step of a coordinate of a row small whose gradient is.
_DAMPING = 0.1
# Of adapters no coordinate is more likely to be right than another.
_ALMOST_NONE = 1e-8
# The learning rate rises over one step in so many.
_RISE = 10
# Held-out text is scored so often in a run.
_SCORES = 10
# A held-out loss that is so many times the first one will not come back.
_LOST = 2.0


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        steps: At most so many.
        minutes: At most so long.
        batch_tokens: Student's tokens of a step.
        part_tokens: Of those that are read at once; what a text has is never divided.
        learning_rate: The largest; it rises over the first tenth of ``steps``, and falls to zero at the last.
        patience: Scores without a gain before it ends.
        seed: Of the order of texts.
    """

    steps: int
    minutes: float
    batch_tokens: int
    part_tokens: int
    learning_rate: float
    patience: int
    seed: int


class Table:
    """One vocabulary tensor, some of whose rows train.

    Args:
        names: The parameters of the model that it stands for; two where ends are tied.
        rows: ``(V, d)`` float32.
        free: ``(F,)`` int64 rows that train, each once.
        root: ``(d, d)`` float32, what moves are multiplied with; or a number, and then moves cost nothing.
        dtype: In which the rows will be written.
        reach: ``(F,)`` float32, how far each of them goes by the same move; None for 1. A row that is less
            likely to be off has a shorter one, and makes shorter steps.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        rows: Tensor,
        free: Tensor,
        root: Tensor | float,
        dtype: torch.dtype = torch.float32,
        reach: Tensor | None = None,
    ) -> None:
        self.names = names
        self.free = free
        self._all = rows
        self._start = rows[free]
        self._root = root
        self._dtype = dtype
        self._reach = 1.0 if reach is None else reach[:, None]
        self.moves = torch.zeros_like(self._start).requires_grad_()

    @property
    def has_prior(self) -> bool:
        """Whether moves cost something."""
        return isinstance(self._root, Tensor)

    def rows(self) -> Tensor:
        """``(F, d)`` float32, the rows that train as they are now."""
        moved = self.moves @ self._root if isinstance(self._root, Tensor) else self.moves * self._root
        return self._start + self._reach * moved

    def full(self) -> Tensor:
        """``(V, d)`` float32, all rows as they are now."""
        return self._all.index_copy(0, self.free, self.rows())

    def as_written(self) -> Tensor:
        """``(V, d)`` float32, all rows as a file will hold them."""
        return self._all.index_copy(0, self.free, self.rows().to(self._dtype).float())


@dataclass
class Healed:
    """What came of it.

    Attributes:
        steps: That were made.
        best_step: After which held-out text was read best; 0 if never better than before.
        losses: Mean loss of each step.
        held_out: Steps made, and then bits per byte of held-out text; the first before any step.
        tokens: Student's tokens in all steps.
        ended: ``steps``, ``minutes``, ``patience`` or ``diverged``.
        seconds: That it took.
    """

    steps: int = 0
    best_step: int = 0
    losses: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    tokens: int = 0
    ended: str = "steps"
    seconds: float = 0.0

    @property
    def before(self) -> float:
        """Bits per byte of held-out text before."""
        return self.held_out[0][1]

    @property
    def after(self) -> float:
        """Bits per byte of held-out text with the best rows."""
        return dict(self.held_out)[self.best_step]


class Healer:
    """Trains tables of one student, and its adapters.

    Args:
        student: The frozen body; reads with the tables.
        tables: What trains; may be none where there are adapters.
        fixed: Other parameters that the student needs instead of its own, by name.
        objective: What for.
        settings: How.
        processes: Who shares the texts of a step.
        folder: Where the state is kept, so that a killed run goes on; None keeps nothing.
        clock: Seconds from any moment on.
        adapters: Of the student's layers; None for none.
    """

    def __init__(
        self,
        student: Body,
        tables: Sequence[Table],
        fixed: dict[str, Tensor],
        objective: Objective,
        settings: Settings,
        processes: Processes | None = None,
        folder: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        adapters: Adapters | None = None,
    ) -> None:
        self._student = student
        self._tables = tables
        self._fixed = fixed
        self._objective = objective
        self._settings = settings
        self._processes = processes or Processes()
        self._path = None if folder is None else folder / "heal.safetensors"
        self._clock = clock
        self._adapters = adapters
        moves = [table.moves for table in tables]
        groups: list[dict[str, Any]] = []
        if moves:
            groups.append({"params": moves, "lr": settings.learning_rate, "eps": _DAMPING})
        if adapters is not None:
            groups.append({"params": adapters.leaves, "lr": adapters.learning_rate, "eps": _ALMOST_NONE})
        self._leaves: list[Tensor] = [leaf for group in groups for leaf in group["params"]]
        self._best = [leaf.detach().clone() for leaf in self._leaves]
        self._peaks = [group["lr"] for group in groups]
        self._optimizer = torch.optim.Adam(groups, betas=_BETAS, fused=True)
        self._told = Healed()

    def train(self, examples: Sequence[Example], held_out: Sequence[Example]) -> Healed:
        """Train, and leave the tables with the rows that read held-out text best.

        Args:
            examples: Texts to learn from, at least one.
            held_out: Texts to judge by, at least one.

        Returns:
            What came of it.

        Raises:
            InputError: The student cannot read the held-out text.
            ResourceError: The state cannot be written.
        """
        told = self._told = self._load() or Healed()
        started = self._clock() - told.seconds
        total = sum(map(self._objective.items, examples))
        every = -(-self._settings.steps // _SCORES)
        if not told.held_out:
            self._judge(held_out)
        batches = _batches(examples, self._settings)
        self._objective.group(self._first_parts(examples))
        with progress("healing", self._settings.steps) as advance:
            for step, batch in enumerate(batches):
                if step < told.steps:
                    advance()
                    continue  # made by a run that was killed
                if told.ended != "steps" or step == self._settings.steps:
                    break
                if not self._step(batch, total):
                    told.ended = "diverged"
                    break
                told.seconds = self._processes.exchange(self._clock() - started)[0]
                if told.seconds > 60 * self._settings.minutes:
                    told.ended = "minutes"
                last = told.ended != "steps" or told.steps == self._settings.steps
                if last or told.steps % every == 0:
                    self._judge(held_out)
                    self._save()
                advance()
        with torch.no_grad():
            for leaf, best in zip(self._leaves, self._best, strict=True):
                leaf.copy_(best)
        return told

    def _first_parts(self, examples: Sequence[Example]) -> list[list[Example]]:
        """What is read at once while every text comes for the first time."""
        parts: list[list[Example]] = []
        left = len(examples)
        batches = _batches(examples, self._settings)
        while left:
            batch = next(batches)
            left -= len(batch)
            parts += _parts(batch, self._settings.part_tokens)
        return parts

    def _step(self, batch: Sequence[Example], total: int) -> bool:
        """Make one step; False, and nothing moved, if its loss or slope is no number."""
        settings, told = self._settings, self._told
        parts = _parts(batch, settings.part_tokens)
        self._optimizer.zero_grad()
        loss = 0.0
        # Made once for all parts, and led back to the moves once.
        made = [table.full() for table in self._tables]
        used = [rows.detach().requires_grad_() for rows in made]
        tables = dict(self._fixed)
        for table, rows in zip(self._tables, used, strict=True):
            tables |= dict.fromkeys(table.names, rows)
        if self._adapters is not None:
            tables |= self._adapters.parameters()
        for part in parts[self._processes.rank :: self._processes.count]:
            found = self._objective.loss(self._student, tables, part)
            found.backward()
            loss += float(found.detach())
        for rows, leaf in zip(made, used, strict=True):
            if leaf.grad is not None:
                rows.backward(leaf.grad)
        items = max(sum(map(self._objective.items, batch)), 1)
        loss = self._share(loss) / items
        for table in self._tables:
            assert table.moves.grad is not None
            # As if every text had been read, beside which a move has its cost.
            table.moves.grad *= total / items
            if table.has_prior:
                table.moves.grad += table.moves.detach()
        for leaf in self._adapters.leaves if self._adapters is not None else ():
            assert leaf.grad is not None
            leaf.grad /= items
        slopes = [leaf.grad for leaf in self._leaves if leaf.grad is not None]
        if not (math.isfinite(loss) and all(slope.isfinite().all() for slope in slopes)):
            return False
        rise = min(1.0, (told.steps + 1) * _RISE / settings.steps)
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * rise * (1 - told.steps / settings.steps)
        self._optimizer.step()
        told.steps += 1
        told.losses.append(loss)
        told.tokens += sum(len(example.ids) for example in batch)
        return True

    def _share(self, loss: float) -> float:
        """Sum losses and slopes over all processes, in the order of their ranks."""
        for leaf in self._leaves:
            if leaf.grad is None:
                leaf.grad = torch.zeros_like(leaf)
        if self._processes.count == 1:
            return loss
        told = self._processes.exchange(
            (loss, [leaf.grad.cpu() for leaf in self._leaves if leaf.grad is not None])
        )
        for place, leaf in enumerate(self._leaves):
            leaf.grad = torch.stack([slopes[place] for _, slopes in told]).sum(dim=0).to(leaf.device)
        return sum(loss for loss, _ in told)

    @torch.no_grad()
    def _judge(self, held_out: Sequence[Example]) -> None:
        """Score held-out text with what a file will hold, and keep that if it is read best."""
        told = self._told
        tables = dict(self._fixed)
        for table in self._tables:
            tables |= dict.fromkeys(table.names, table.as_written())
        if self._adapters is not None:
            tables |= self._adapters.as_written()
        parts = _parts(held_out, self._settings.part_tokens)
        nats = [
            float(NextToken().loss(self._student, tables, part))
            for part in parts[self._processes.rank :: self._processes.count]
        ]
        shared = self._processes.exchange(math.fsum(nats))
        bits = sum(shared) / math.log(2) / sum(example.bytes for example in held_out)
        known = [score for _, score in told.held_out]
        if not math.isfinite(bits):
            if not known:
                raise InputError("held-out text: probabilities are not finite", "a model that can read it")
            told.ended = "diverged"
            return
        told.held_out.append((told.steps, bits))
        logger.info("heal: step %d, %.4f bits per byte of held-out text", told.steps, bits)
        if bits < min(known, default=math.inf):
            told.best_step = told.steps
            self._best = [leaf.detach().clone() for leaf in self._leaves]
        scores = [step for step, _ in told.held_out if step > told.best_step]
        if bits > _LOST * told.before:
            told.ended = "diverged"
        elif len(scores) >= self._settings.patience and told.ended == "steps":
            told.ended = "patience"

    def _save(self) -> None:
        if self._path is None or not self._processes.is_main:
            return
        tensors: dict[str, Tensor] = {}
        for place, (leaf, best) in enumerate(zip(self._leaves, self._best, strict=True)):
            state = self._optimizer.state[leaf]
            tensors |= {f"{place}.leaf": leaf.detach(), f"{place}.best": best}
            tensors |= {f"{place}.{key}": state[key] for key in ("exp_avg", "exp_avg_sq", "step")}
        unfinished = self._path.with_suffix(f".{os.getpid()}")
        try:
            save_file(
                {name: part.cpu().contiguous() for name, part in tensors.items()},
                unfinished,
                metadata={"told": json.dumps(asdict(self._told))},
            )
            unfinished.rename(self._path)
        except (OSError, SafetensorError) as error:
            raise ResourceError(f"{self._path}: {error}", "room for the state of healing") from error

    def _load(self) -> Healed | None:
        """What a killed run kept; None if there is nothing that can be read."""
        if self._path is None or not self._path.is_file():
            return None
        try:
            with safe_open(self._path, framework="pt") as file:
                told: dict[str, Any] = json.loads(file.metadata()["told"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except SafetensorError:
            return None
        for place, leaf in enumerate(self._leaves):
            mine = {
                key.partition(".")[2]: part for key, part in tensors.items() if key.startswith(f"{place}.")
            }
            with torch.no_grad():
                leaf.copy_(mine.pop("leaf"))
            self._best[place] = mine.pop("best").to(leaf.device)
            self._optimizer.state[leaf] = {key: part.to(leaf.device) for key, part in mine.items()}
        logger.info("heal: goes on after step %d", told["steps"])
        told["held_out"] = [(step, bits) for step, bits in told["held_out"]]
        return Healed(**told)


def fingerprint(
    tables: Sequence[Table], examples: Sequence[Example], facts: object, adapters: Adapters | None = None
) -> str:
    """A digest of what a state depends on.

    Args:
        tables: What trains, at its start.
        examples: All texts.
        facts: Whatever else, with a stable ``repr``.
        adapters: What trains of the body, at its start.

    Returns:
        Letters and digits.
    """
    digest = hashlib.sha256(repr(facts).encode())
    for table in tables:
        for part in (table.free, table.full().detach()):
            digest.update(part.cpu().numpy().tobytes())
    for leaf in adapters.leaves if adapters is not None else ():
        digest.update(leaf.detach().cpu().numpy().tobytes())
    for example in examples:
        digest.update(example.ids.numpy().tobytes())
        digest.update(example.teacher_ids.numpy().tobytes())
    return digest.hexdigest()[:32]


def _batches(examples: Sequence[Example], settings: Settings) -> Iterator[list[Example]]:
    """Texts of each step, without end; all of them before one comes again.

    Texts of all kinds in every step, in order of their length: neighbours, read at once, waste little.
    """
    epoch = 0
    while True:
        generator = torch.Generator().manual_seed(settings.seed + 7919 * epoch)
        order = torch.randperm(len(examples), generator=generator).tolist()
        for batch in _parts([examples[place] for place in order], settings.batch_tokens):
            yield sorted(batch, key=lambda example: len(example.ids))
        epoch += 1


def _parts(examples: Sequence[Example], tokens: int) -> list[list[Example]]:
    """Texts in their order, together as long as they fit; a longer one alone."""
    parts: list[list[Example]] = []
    size = 0
    for example in examples:
        size += len(example.ids)
        if not parts or size > tokens:
            parts.append([])
            size = len(example.ids)
        parts[-1].append(example)
    return parts
