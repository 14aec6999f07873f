"""Nearest rows of a dictionary, by cosine or by inner product: one meaning, three ways to find them.

M. Douze et al., "The Faiss library", arXiv:2401.08281, is the work behind the two FAISS back ends.

A back end proposes a few more atoms than were asked for, by float32 products whose rounding depends on the
library, the device and the shape of the batch. Proposals are compared again in float64, and a query whose
proposals may lack one of its nearest, given what rounding can do, is asked again for more. So all exact back
ends give one answer, for any split of the queries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import sqrt
from typing import Literal, Protocol

import torch
from torch import Tensor

Similarity = Literal["cosine", "dot"]
Backend = Literal["auto", "torch", "faiss", "faiss-ivf"]

# Proposals beyond k: with them few queries are asked twice.
_SPARE = 8
# Numbers in float64 at a time; larger pieces leave the cache and take three times as long.
_PIECE = 2**20
# FAISS asks for so many rows a list, and complains on stderr when it gets fewer.
_ROWS_A_LIST = 39
_MOST_LISTS = 2**14


@dataclass(frozen=True)
class Neighbours:
    """The atoms most similar to each query, the most similar first, of equally similar ones the lowest index.

    Attributes:
        indices: ``(B, k)`` int64.
        similarities: ``(B, k)`` float32, computed in float64.
    """

    indices: Tensor
    similarities: Tensor


class NearestIndex(Protocol):
    """Built from atoms ``(N, D)``; finds those most similar to a query."""

    def search(self, queries: Tensor, k: int) -> Neighbours:
        """Find the ``min(k, N)`` atoms most similar to each of the queries ``(B, D)``."""


def build_index(
    atoms: Tensor,
    *,
    similarity: Similarity = "cosine",
    device: torch.device | str | None = None,
    backend: Backend = "auto",
) -> NearestIndex:
    """Build an index of the named kind.

    Args:
        atoms: ``(N, D)``, any floating dtype, finite.
        similarity: ``cosine``, where a zero row is 0 to everything, or ``dot``.
        device: Where to compute and answer; None stays with the atoms.
        backend: ``torch`` and ``faiss`` are exact, ``faiss-ivf`` is not. ``auto`` is torch: on
            embeddings (scripts/bench_nearest.py) FAISS is as fast for thousands of queries and several times
            slower for a hundred, and its lists are slower than the exact search at 262,144 atoms.

    Returns:
        The index.

    Raises:
        ValueError: The atoms are no matrix of floating numbers, or FAISS is asked for on a GPU.
    """
    device = torch.device(device or atoms.device)
    if backend in ("auto", "torch"):
        return TorchNearest(atoms, similarity=similarity, device=device)
    if device.type != "cpu":
        raise ValueError(f"backend {backend} on {device}: FAISS searches on the CPU only")
    return (FaissFlat if backend == "faiss" else FaissIvf)(atoms, similarity=similarity)


class _Index(ABC):
    """What the back ends share: everything but the proposals.

    Args:
        atoms: ``(N, D)``, any floating dtype, finite.
        similarity: ``cosine``, where a zero row is 0 to everything, or ``dot``.
        device: Where to compute and answer; None stays with the atoms.

    Raises:
        ValueError: The atoms are no matrix of floating numbers.
    """

    _exact = True

    def __init__(
        self, atoms: Tensor, *, similarity: Similarity = "cosine", device: torch.device | str | None = None
    ) -> None:
        if atoms.ndim != 2 or not atoms.is_floating_point():
            raise ValueError(f"atoms are {tuple(atoms.shape)} {atoms.dtype}, expected floating (N, D)")
        self._atoms = atoms.to(device)
        self._similarity = similarity
        self._keys, self._norms = self._comparable(self._atoms)

    def search(self, queries: Tensor, k: int) -> Neighbours:
        """Find the ``min(k, N)`` atoms most similar to each query.

        Args:
            queries: ``(B, D)``, any floating dtype, finite.
            k: Atoms a query.

        Returns:
            The atoms, on the device of the index.

        Raises:
            ValueError: Shapes do not fit, or ``k`` is negative.
        """
        count, width = self._atoms.shape
        if queries.ndim != 2 or queries.shape[1] != width or not queries.is_floating_point():
            shape = tuple(queries.shape)
            raise ValueError(f"queries are {shape} {queries.dtype}, expected floating (B, {width})")
        if k < 0:
            raise ValueError(f"k is {k}, expected 0 or more")
        k = min(k, count)
        queries = queries.to(self._atoms.device)
        # A zero query is 0 to everything, so no number of proposals would settle it.
        indices = torch.arange(k, device=queries.device).repeat(len(queries), 1)
        similarities = torch.zeros(indices.shape, device=queries.device)
        asked = queries.any(dim=1).nonzero()[:, 0]
        proposals = k + _SPARE
        while k and len(asked):
            proposals = min(proposals, count)
            indices[asked], similarities[asked], unsure = self._answer(queries[asked], k, proposals)
            asked = asked[unsure]
            proposals *= 8
        return Neighbours(indices, similarities)

    @abstractmethod
    def _propose(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The ``count`` largest products ``(B, count)`` with the keys, in any order, and their indices."""

    def _answer(self, queries: Tensor, k: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The best ``k`` of ``count`` proposals, and which queries ``(B,)`` may have better atoms."""
        keys, norms = self._comparable(queries)
        products, proposals = self._propose(keys, count)
        # By index first: the stable sort then leaves ties in that order.
        proposals = proposals.sort(dim=1).values
        values, order = self._compare(queries, norms, proposals).sort(dim=1, descending=True, stable=True)
        values, indices = values[:, :k], proposals.gather(1, order[:, :k])
        if not self._exact or count == len(self._atoms):
            return indices, values, torch.zeros_like(norms, dtype=torch.bool)
        # D products summed in any order are off by at most D roundings of half an eps; twice that is assumed.
        lengths = 1.0 if self._similarity == "cosine" else norms * self._norms.max()
        error = (queries.shape[1] + 8) * torch.finfo(torch.float32).eps * lengths
        return indices, values, values[:, -1] <= products.amin(dim=1) + error

    def _comparable(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Float32 rows, of unit norm for cosine, and the float64 norms ``(n,)`` of the rows as given."""
        keys = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
        norms = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
        size = _PIECE // max(1, rows.shape[1]) + 1
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            exact = rows[part].to(torch.float64)
            norms[part] = exact.norm(dim=1)
            keys[part] = exact / _divisor(norms[part])[:, None] if self._similarity == "cosine" else exact
        return keys, norms

    def _compare(self, queries: Tensor, norms: Tensor, indices: Tensor) -> Tensor:
        """Similarity of each query ``(B, D)`` to the atoms ``(B, n)`` proposed for it."""
        exact = torch.empty(indices.shape, dtype=torch.float64, device=queries.device)
        columns = _PIECE // max(1, queries.shape[1]) + 1
        rows = columns // indices.shape[1] + 1
        for row in range(0, len(queries), rows):
            query = queries[row : row + rows, None].to(torch.float64)
            for column in range(0, indices.shape[1], columns):
                part = slice(row, row + rows), slice(column, column + columns)
                # No matrix product here: it may round equal atoms differently.
                exact[part] = (self._atoms[indices[part]].to(torch.float64) * query).sum(dim=2)
        if self._similarity == "cosine":
            exact /= _divisor(norms)[:, None] * _divisor(self._norms)[indices]
        return exact.to(torch.float32)


def _divisor(norms: Tensor) -> Tensor:
    return torch.where(norms > 0, norms, 1)


class TorchNearest(_Index):
    """Exact search by blocked matrix products, on any device.

    Assumes that torch's ``float32_matmul_precision`` is highest, as it is by default.

    Args:
        atoms: ``(N, D)``, any floating dtype, finite.
        similarity: ``cosine``, where a zero row is 0 to everything, or ``dot``.
        device: Where to compute and answer; None stays with the atoms.
        memory: Bytes of products held at a time; those of one query are always held.

    Raises:
        ValueError: The atoms are no matrix of floating numbers.
    """

    def __init__(
        self,
        atoms: Tensor,
        *,
        similarity: Similarity = "cosine",
        device: torch.device | str | None = None,
        memory: int = 2**28,
    ) -> None:
        super().__init__(atoms, similarity=similarity, device=device)
        self._memory = memory

    def _propose(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        size = min(len(queries), max(1, self._memory // (4 * len(self._keys))))
        # One buffer for all blocks: fresh pages for each took a fifth of the time.
        buffer = torch.empty((size, len(self._keys)), device=queries.device)
        best = [
            torch.mm(block, self._keys.T, out=buffer[: len(block)]).topk(count, dim=1, sorted=False)
            for block in queries.split(size)
        ]
        return torch.cat([part.values for part in best]), torch.cat([part.indices for part in best])


class FaissFlat(_Index):
    """Exact search by FAISS, on the CPU.

    Args:
        atoms: ``(N, D)``, any floating dtype, finite.
        similarity: ``cosine``, where a zero row is 0 to everything, or ``dot``.

    Raises:
        ValueError: The atoms are no matrix of floating numbers.
    """

    def __init__(self, atoms: Tensor, *, similarity: Similarity = "cosine") -> None:
        super().__init__(atoms, similarity=similarity, device="cpu")

    def _propose(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        return _faiss_flat(queries, self._keys, count)


class FaissIvf(_Index):
    """Approximate search by FAISS, on the CPU: only the lists nearest to a query are looked through.

    Their number is doubled until a sample of queries finds enough of its 10 nearest atoms. What is missed may
    depend on the build of FAISS and on the split of the queries; similarities are exact.

    Args:
        atoms: ``(N, D)``, any floating dtype, finite.
        similarity: ``cosine``, where a zero row is 0 to everything, or ``dot``.
        recall: Share of its nearest atoms that the sample must find.
        sample: ``(S, D)``, queries like those to come; None takes 256 of the atoms, each looking for others.
        seed: Chooses the sample and the rows that the lists are trained on.

    Attributes:
        recall: Share of its nearest atoms that the sample finds.
        probes: Lists looked through for a query.

    Raises:
        ValueError: The atoms are no matrix of floating numbers.
    """

    _exact = False

    def __init__(
        self,
        atoms: Tensor,
        *,
        similarity: Similarity = "cosine",
        recall: float = 0.95,
        sample: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        import faiss

        super().__init__(atoms, similarity=similarity, device="cpu")
        count, width = self._keys.shape
        lists = max(1, min(int(4 * sqrt(count)), count // _ROWS_A_LIST, _MOST_LISTS))
        metric = faiss.METRIC_INNER_PRODUCT
        self._index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, metric)
        training = self._index.cp
        training.seed, training.max_points_per_centroid, training.spherical = seed, _ROWS_A_LIST, True
        self.probes, self.recall = 1, 1.0
        if count:
            faiss.omp_set_num_threads(torch.get_num_threads())
            self._index.train(self._keys.numpy())
            self._index.add(self._keys.numpy())
            self._tune(recall, sample, torch.Generator().manual_seed(seed))
        # The index has its own copy.
        del self._keys

    def _tune(self, least: float, sample: Tensor | None, generator: torch.Generator) -> None:
        """Set ``probes`` and ``recall``."""
        if sample is None:
            own = torch.randperm(len(self._keys), generator=generator)[:256, None]
            queries = self._keys[own[:, 0]]
        else:
            own = torch.tensor(-1)
            queries = self._comparable(sample)[0]
        count = min(11 if sample is None else 10, len(self._keys))
        _, nearest = _faiss_flat(queries, self._keys, count)
        while True:
            _, found = self._probe(queries, count, self.probes)
            hits = (nearest[:, :, None] == found[:, None]).any(dim=2)[nearest != own]
            self.recall = float(hits.sum() / max(1, len(hits)))
            if self.recall >= least or self.probes >= self._index.nlist:
                break
            self.probes *= 2

    def _propose(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        products, indices = self._probe(queries, count, self.probes)
        short = (indices < 0).any(dim=1)
        if short.any():
            # The lists held too few atoms: look through them all.
            products[short], indices[short] = self._probe(queries[short], count, self._index.nlist)
        return products, indices

    def _probe(self, queries: Tensor, count: int, probes: int) -> tuple[Tensor, Tensor]:
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        self._index.nprobe = probes
        products, indices = self._index.search(queries.numpy(), count)
        return torch.from_numpy(products), torch.from_numpy(indices)


def _faiss_flat(queries: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """What IndexFlatIP computes, without its copy of the keys."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    products, indices = faiss.knn(queries.numpy(), keys.numpy(), count, metric=faiss.METRIC_INNER_PRODUCT)
    return torch.from_numpy(products), torch.from_numpy(indices)
