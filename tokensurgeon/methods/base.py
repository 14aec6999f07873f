"""What a method gets and what it gives back. A method never sees a path, a recipe or a rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Side = Literal["embedding", "lm_head", "tied"]


@dataclass(frozen=True)
class Agreement:
    """How near an approximate solver came to the exact one, on a sample of the wanted tokens.

    Attributes:
        sample: Tokens that were solved again exactly.
        residual: Their mean residual as made.
        exact_residual: Their mean residual when solved exactly.
        shared_anchors: Mean share of the exact anchors that were taken as well, 0 to 1.
        proven: Share of all choices, over all tokens, at which no anchor off the solver's shortlist could
            have been better, 0 to 1.
    """

    sample: int
    residual: float
    exact_residual: float
    shared_anchors: float
    proven: float


@dataclass(frozen=True)
class InitRows:
    """Rows for the wanted tokens, and where they came from.

    Attributes:
        rows: ``(B, d_base)`` float32.
        sources: ``(B, k)`` int64 base ids that were combined, -1 where there are fewer; None when the rows
            are no combination. Some methods put the combination on fewer dimensions afterwards.
        coefs: ``(B, k)`` float32 coefficients of the sources.
        residual: ``(B,)`` float32, share of the donor row that the combination misses; None if unknown.
        served: ``(B,)`` bool, tokens the method had something to say about; None for all. The next method of
            the recipe's list makes the others.
        proven: ``(B,)`` int64, sources chosen when none off the solver's shortlist could have been better;
            None if unknown.
        corrects: ``(B,)`` bool, rows that a map of the donor's row made and the combination only corrects: it
            is of what the map misses at the sources. None for rows that are their combination.
        solver: How the rows were solved for, such as ``exact``; empty where there is nothing to solve.
        agreement: A comparison with the exact solver; None for exact rows.
        primitives: ``(r, d_base)`` float32, vectors that all rows are combinations of; None without such.
    """

    rows: Tensor
    sources: Tensor | None = None
    coefs: Tensor | None = None
    residual: Tensor | None = None
    served: Tensor | None = None
    proven: Tensor | None = None
    corrects: Tensor | None = None
    solver: str = ""
    agreement: Agreement | None = None
    primitives: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The fields with one entry per token, by name."""
        values = ((part.name, getattr(self, part.name)) for part in fields(self) if part.name != "primitives")
        return {name: value for name, value in values if isinstance(value, Tensor)}

    def take(self, places: Tensor) -> InitRows:
        """Some of the tokens.

        Args:
            places: ``(n,)`` int64.

        Returns:
            The same about those tokens only.
        """
        parts: dict[str, Any] = {
            name: values[places.to(values.device)] for name, values in self.tensors().items()
        }
        return replace(self, **parts)


# Rows combined at a time.
_COMBINED = 64

Solve = Callable[[slice], InitRows]
"""Makes the rows of one batch: a slice of the wanted tokens."""


class BatchRunner(Protocol):
    """Whatever works through batches: here, or on several processes, or with finished ones kept."""

    def __call__(self, count: int, batch_size: int, solve: Solve, advance: Callable[[int], None]) -> InitRows:
        """Solve ``count`` tokens, ``batch_size`` at a time, and put the batches together."""


def run_batches(count: int, batch_size: int, solve: Solve, advance: Callable[[int], None]) -> InitRows:
    """Solve one batch after another in this process.

    Args:
        count: Number of tokens.
        batch_size: Tokens a batch.
        solve: Makes the rows of a batch.
        advance: Called with the number of tokens finished.

    Returns:
        Rows of all tokens, on the CPU.
    """

    def parts() -> Iterator[tuple[slice, InitRows]]:
        for span in batch_spans(count, batch_size):
            yield span, solve(span)
            advance(span.stop - span.start)

    return collect(count, parts())


def batch_spans(count: int, batch_size: int) -> list[slice]:
    """Cut ``count`` tokens into batches.

    Args:
        count: Number of tokens.
        batch_size: Tokens a batch.

    Returns:
        At least one slice; the last may be shorter.
    """
    starts = range(0, max(count, 1), batch_size)
    return [slice(start, min(start + batch_size, count)) for start in starts]


def collect(count: int, parts: Iterable[tuple[slice, InitRows]]) -> InitRows:
    """Put batches together without holding them twice.

    Args:
        count: Number of tokens.
        parts: Batches with their places, in any order; each token in one of them.

    Returns:
        Rows of all tokens, on the CPU.

    Raises:
        ValueError: There are no batches.
    """
    whole: dict[str, Any] = {}
    for span, part in parts:
        for name, values in part.tensors().items():
            if name not in whole:
                whole[name] = torch.empty((count, *values.shape[1:]), dtype=values.dtype)
            whole[name][span] = values.cpu()
    if not whole:
        raise ValueError("no batches to collect")
    return InitRows(**whole)


class Segmentation(NamedTuple):
    """A text as tokens.

    Attributes:
        ids: Token ids in order.
        ends: For each the byte of the text it ends before.
    """

    ids: list[int]
    ends: list[int]


@dataclass(frozen=True)
class Lexicon:
    """Ordinary tokens of both vocabularies as bytes, and texts as tokens. Special tokens are left out.

    Attributes:
        target: Bytes of each target token, by ascending id.
        base: Bytes of each base token that has a row, by ascending id; without reserved tokens.
        target_parts: The two target ids a target token is merged from; only for BPE.
        base_parts: The base ids that spell a base token if it is not used itself, by ascending id; two or
            more each, only for tokens that can be spelt so.
        base_of: Base id of every target token that has one counterpart, anchor or not.
        segment_target: Cuts a text into target tokens.
        segment_base: Cuts a text into base tokens.
    """

    target: Mapping[int, bytes] = field(repr=False)
    base: Mapping[int, bytes] = field(repr=False)
    target_parts: Mapping[int, tuple[int, int]] = field(repr=False)
    base_parts: Mapping[int, tuple[int, ...]] = field(repr=False)
    base_of: Mapping[int, int] = field(repr=False)
    segment_target: Callable[[str], Segmentation]
    segment_base: Callable[[str], Segmentation]


@dataclass(frozen=True)
class WordVectors:
    """Vectors of words.

    Attributes:
        words: The most frequent word first.
        rows: ``(n, d)`` float32.
    """

    words: list[str]
    rows: Tensor


class Resources(Protocol):
    """What a recipe brings besides the models; each is read when it is first asked for.

    The registry says which of them a method needs, and the plan refuses a recipe that lacks one.
    """

    @property
    def corpus(self) -> Sequence[str]:
        """Lines of text in the target's language, none of them blank."""

    @property
    def parallel(self) -> Sequence[tuple[str, str]]:
        """Pairs of lines that say the same, in the base's language and the target's."""

    @property
    def base_vectors(self) -> WordVectors | None:
        """Vectors of words of the base's language."""

    @property
    def target_vectors(self) -> WordVectors | None:
        """Vectors of words of the target's language."""

    @property
    def dictionary(self) -> Sequence[tuple[str, str]]:
        """Words of the base's language and their translations."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """``(n, d)`` float32 unit vectors of texts, by a text encoder."""

    def load_body(self) -> Any:  # noqa: ANN401 - a model of transformers, which is not imported here
        """The base as a causal language model, in evaluation mode, float32."""

    def load_hypernetwork(self) -> dict[str, Tensor] | None:
        """Weights of a hypernetwork that was trained before, or None."""

    def save_hypernetwork(self, weights: dict[str, Tensor]) -> None:
        """Keep a hypernetwork for later runs."""


@dataclass(frozen=True)
class MethodContext:
    """Everything about one vocabulary tensor whose missing rows are wanted.

    Attributes:
        side: Which end of the model reads the rows; ``tied`` when both do.
        base_rows: ``(V_b, d_base)`` in the stored dtype, mapped from the file.
        base_ids: ``(U,)`` int64, rows of ``base_rows`` that belong to a token.
        pieces: For each wanted token the base ids that spell it, in order; may be empty.
        donor_rows: ``(V_t, d_donor)`` in the stored dtype, or None without a donor.
        wanted: ``(B,)`` int64, target ids in ascending order.
        anchor_targets: ``(A,)`` int64, target ids of the anchors, ascending.
        anchor_bases: ``(A,)`` int64, base ids of the same anchors.
        generator: Random numbers, on the CPU, seeded for this tensor.
        device: Where to compute.
        batch_size: Tokens at a time.
        advance: Called with the number of tokens finished.
        lexicon: Tokens as bytes and texts as tokens.
        resources: What the recipe brings besides the models.
        rope_thetas: Base frequencies of the rotary positions of base and donor.
        runner: Works through batches for methods whose tokens take long.
    """

    side: Side
    base_rows: Tensor
    base_ids: Tensor
    pieces: Sequence[tuple[int, ...]]
    donor_rows: Tensor | None
    wanted: Tensor
    anchor_targets: Tensor
    anchor_bases: Tensor
    generator: torch.Generator
    device: torch.device
    batch_size: int
    advance: Callable[[int], None]
    lexicon: Lexicon
    resources: Resources
    rope_thetas: tuple[float, float] = (10_000.0, 10_000.0)
    runner: BatchRunner = run_batches

    @cached_property
    def base_mean(self) -> Tensor:
        """``(d_base,)`` float32 mean row of the base's own tokens."""
        parts = (self.base_rows[ids].to(torch.float64).sum(dim=0) for ids in self.base_ids.split(8192))
        total = torch.stack(list(parts)).sum(dim=0)
        return (total / len(self.base_ids)).to(self.device, torch.float32)

    @cached_property
    def base_covariance(self) -> Tensor:
        """``(d_base, d_base)`` float64 covariance of the rows of the base's own tokens."""
        mean = self.base_mean.to(torch.float64)
        total = torch.zeros((len(mean), len(mean)), dtype=torch.float64, device=self.device)
        for ids in self.base_ids.split(8192):
            rows = self.base(ids).to(torch.float64) - mean
            total += rows.mT @ rows
        return total / len(self.base_ids)

    def base(self, ids: Tensor) -> Tensor:
        """Base rows.

        Args:
            ids: int64, any shape.

        Returns:
            ``(*ids.shape, d_base)`` float32.
        """
        return self.base_rows[ids.cpu()].to(self.device, torch.float32)

    def combine(self, sources: Tensor, coefs: Tensor) -> InitRows:
        """Combinations of base rows.

        Args:
            sources: ``(n, k)`` int64 base ids, -1 where there are fewer.
            coefs: ``(n, k)`` float32, zero where there is no source.

        Returns:
            Their rows; those without any source are not served and get the mean row.
        """
        served = (sources >= 0).any(dim=1)
        rows = self.base_mean.repeat(len(sources), 1)
        # One token of very many sources must not widen the table for all others.
        for places in served.nonzero()[:, 0].split(_COMBINED):
            used = (sources[places] >= 0).any(dim=0)
            ids, weights = sources[places][:, used], coefs[places][:, used]
            # A sum of products, not a matrix product, which rounds otherwise for a single row.
            products = self.base(ids.clamp(min=0)) * weights[:, :, None].to(self.device)
            rows[places.to(self.device)] = products.sum(dim=1)
        return InitRows(rows, sources, coefs, served=served)

    def base_anchors(self) -> Tensor:
        """``(A, d_base)`` float32 anchor rows in the base's space."""
        return self.base_rows[self.anchor_bases].to(self.device, torch.float32)

    def donor_anchors(self) -> Tensor:
        """``(A, d_donor)`` float32 anchor rows in the donor's space."""
        return self.donor(self.anchor_targets)

    def donor(self, ids: Tensor) -> Tensor:
        """Donor rows of target ids.

        Args:
            ids: ``(n,)`` int64.

        Returns:
            ``(n, d_donor)`` float32.

        Raises:
            RuntimeError: The pipeline gave no donor to a method that needs one.
        """
        if self.donor_rows is None:
            raise RuntimeError("no donor rows; the registry must say that the method needs a donor")
        return self.donor_rows[ids].to(self.device, torch.float32)

    def in_batches(self, solve: Solve) -> InitRows:
        """Solve the wanted tokens batch by batch, perhaps on several processes.

        Args:
            solve: Makes the rows of a slice of ``wanted``, the same whatever else is solved with it.

        Returns:
            Rows of all wanted tokens, on the CPU.
        """
        return self.runner(len(self.wanted), self.batch_size, solve, self.advance)


class InitMethod(Protocol):
    """A method with its parameters, ready to be called for one vocabulary tensor after another."""

    def __call__(self, context: MethodContext) -> InitRows:
        """Make rows for ``context.wanted``."""
