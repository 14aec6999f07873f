"""The rows of a vocabulary tensor of the output: what they are, and where each came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tokensurgeon.checkpoint.expectation import MADE, row_digests
from tokensurgeon.checkpoint.layout import VocabTensor
from tokensurgeon.methods.base import Agreement, InitRows


class MadeRows:
    """What is known about the rows that methods made for one tensor, in the order of ``ids``.

    Args:
        ids: Target ids, ascending.

    Attributes:
        methods: For each id the method that made its row; ``map`` where the user spelt it out.
        sources: ``(B, k)`` int64 base ids that were combined, -1 where there are fewer.
        coefs: ``(B, k)`` float32 coefficients.
        corrects: ``(B,)`` bool, rows that the combination only corrects; see ``InitRows``.
        residual: ``(B,)`` float32, NaN where the method has none.
        solver: How rows were solved for, such as ``exact``; may be empty.
        agreement: How near an approximate solver came to the exact one, or None.
        primitives: ``(r, d)`` float32 vectors that rows are combinations of, or None.
    """

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids
        self.methods = [""] * len(ids)
        self.sources = torch.full((len(ids), 1), -1, dtype=torch.int64)
        self.coefs = torch.zeros((len(ids), 1))
        self.corrects = torch.zeros(len(ids), dtype=torch.bool)
        self.residual = torch.full((len(ids),), torch.nan)
        self.solver = ""
        self.agreement: Agreement | None = None
        self.primitives: Tensor | None = None

    def add(self, label: str, group: list[int], part: InitRows) -> None:
        """Take over what one method says about its rows.

        Args:
            label: The method's name.
            group: Its target ids.
            part: Its rows.
        """
        at = torch.searchsorted(torch.tensor(self.ids), torch.tensor(group))
        for place in at.tolist():
            self.methods[place] = label
        if part.sources is not None and part.coefs is not None:
            width = part.sources.shape[1]
            wider = (0, max(width - self.sources.shape[1], 0))
            self.sources = torch.nn.functional.pad(self.sources, wider, value=-1)
            self.coefs = torch.nn.functional.pad(self.coefs, wider)
            self.sources[at, :width] = part.sources.cpu()
            self.coefs[at, :width] = part.coefs.cpu()
        if part.corrects is not None:
            self.corrects[at] = part.corrects.cpu()
        if part.residual is not None:
            self.residual[at] = part.residual.cpu()
        self.solver = self.solver or part.solver
        self.agreement = self.agreement or part.agreement
        self.primitives = part.primitives if self.primitives is None else self.primitives


@dataclass(frozen=True)
class NewTensor:
    """One vocabulary tensor of the output.

    Attributes:
        tensor: Its counterpart in the base.
        data: Contents, in the base's dtype and the new shape.
        source: For every row the base row it is a copy of, ``MADE`` (or trained) or ``PADDING``.
        made: Rows that methods made; None for a bias.
        tied: Whether the same rows serve as input embedding and lm_head, stored once or twice.
        equal_to: The tensor it is a copy of, before and after.
        excluded: Target ids that their rows ruled out as anchors, by reason.
        anchors: Target ids of the anchors used, ascending.
        head_scale: What the made rows' distance to the mean row was multiplied with.
        last_pieces: Share of the row of the last base piece that was mixed into a made row, by target id.
        note: What else to know.
        healed: Target ids of the rows that training moved, ascending.
        repeats: Those of the rows that trained that were copies of each other before, ascending.
    """

    tensor: VocabTensor
    data: Tensor
    source: list[int]
    made: MadeRows | None = None
    tied: bool = False
    equal_to: str | None = None
    excluded: dict[str, list[int]] = field(default_factory=dict)
    anchors: list[int] = field(default_factory=list)
    head_scale: float = 1.0
    last_pieces: dict[int, float] = field(default_factory=dict)
    note: str = ""
    healed: list[int] = field(default_factory=list)
    repeats: list[int] = field(default_factory=list)

    @property
    def made_by(self) -> dict[int, str]:
        """The method that made each made row, by target id; ``map`` where the user spelt it out."""
        return dict(zip(self.made.ids, self.made.methods, strict=True)) if self.made else {}

    @property
    def factors_file(self) -> str | None:
        """Where the output holds a factorised form, for methods that have one."""
        if self.made is None or self.made.primitives is None or self.equal_to is not None:
            return None
        return f"factors/{self.tensor.name}.safetensors"


def train_rows(new: NewTensor, ids: Sequence[int], rows: Tensor) -> NewTensor:
    """A tensor after training: rows that moved are no copies any more.

    Args:
        new: As it was.
        ids: ``n`` target ids, ascending.
        rows: ``(n, d)`` their rows now.

    Returns:
        The tensor with those rows, and what has to be said of them.
    """
    data = new.data.clone()
    data[ids] = rows.to("cpu", data.dtype)
    moved = [ids[at] for at in (data[ids] != new.data[ids]).any(dim=1).nonzero()[:, 0].tolist()]
    source = list(new.source)
    for index in moved:
        source[index] = MADE
    digests = list(row_digests(new.data, list(ids)))
    counts = Counter(digests)
    repeats = [index for index, digest in zip(ids, digests, strict=True) if counts[digest] > 1]
    return replace(
        new,
        data=data,
        source=source,
        healed=sorted({*new.healed, *moved}),
        repeats=sorted({*new.repeats, *repeats}),
    )


def follow_twins(tensors: Sequence[NewTensor]) -> list[NewTensor]:
    """Copies of another tensor take its contents, and what is known of them.

    Args:
        tensors: All vocabulary tensors.

    Returns:
        The tensors in their order.
    """
    by_name = {new.tensor.name: new for new in tensors}
    found = []
    for new in tensors:
        twin = by_name.get(new.equal_to or "")
        if twin is not None:
            new = replace(new, data=twin.data, source=twin.source, healed=twin.healed, repeats=twin.repeats)
        found.append(new)
    return found


def mean_row(table: Tensor, ids: Tensor) -> Tensor:
    """The mean of some rows, without a copy of them all.

    Args:
        table: ``(V, d)`` in any dtype.
        ids: ``(n,)`` int64, at least one.

    Returns:
        ``(d,)`` float64.
    """
    total = torch.stack([table[some].double().sum(dim=0) for some in ids.split(8192)]).sum(dim=0)
    return total / len(ids)


def spread_root(table: Tensor, ids: Tensor) -> Tensor:
    """The symmetric root of the covariance of some rows.

    Args:
        table: ``(V, d)`` in any dtype.
        ids: ``(n,)`` int64, at least one.

    Returns:
        ``(d, d)`` float64.
    """
    mean = mean_row(table, ids)
    total = torch.zeros((len(mean), len(mean)), dtype=torch.float64)
    for some in ids.split(8192):
        rows = table[some].double() - mean
        total += rows.mT @ rows
    values, vectors = torch.linalg.eigh(total / len(ids))
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
    return root
