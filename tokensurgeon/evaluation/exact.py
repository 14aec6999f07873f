"""Probability of a text over all the ways to cut it, and of every byte that may follow.

A model gives probabilities to token sequences, and many of them spell one text. The probability that what it
writes begins with given bytes is the sum over the *covers* of those bytes: sequences whose last token reaches
to their end or past it, and no earlier one does (Vieira et al. 2024, arXiv:2412.03719; Phan et al. 2024,
arXiv:2410.09303, for covers that the tokenizer itself would make). Covers share their beginnings, so they
are walked as a tree, byte by byte: a node is a sequence that ends at a byte of the text, and one pass of the
model tells the mass of all tokens that go on with the next bytes.

The tree doubles with every few bytes. Where it is cut down, to the heaviest nodes at each byte, what is found
is a lower bound of the probability; with the mass of the nodes that were dropped it is an upper one. The
tokenizer's own cut is never dropped.
"""

from __future__ import annotations

import inspect
import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from tokensurgeon.console import Advance, no_progress
from tokensurgeon.errors import InputError
from tokensurgeon.evaluation.windows import encode, find_bos
from tokensurgeon.vocab.vocabulary import token_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

WIDTH = 64
LEAST = 1e-4

_END = 256

# Logits of a batch, in numbers: 64 MiB of float32.
_LOGITS = 1 << 24


@dataclass(frozen=True)
class ExactScore:
    """A text over all its cuts.

    Attributes:
        text: Name of the text.
        bytes: UTF-8 bytes of it.
        canonical_bits: Of the tokenizer's own cut alone: what a usual score says.
        most_bits: Of all cuts that were walked; the text has no more.
        least_bits: It has no fewer, whatever the dropped nodes would have led to. Equal to ``most_bits``
            where none was dropped before the last byte.
        dropped: Nodes that were not walked.
        dropped_share: Of the probability, if they would go on as those that were kept.
        passes: Token sequences that the model read.
        byte_bits: Minus log2 of the probability of each byte given those before it.
        next_bytes: ``256`` probabilities of the byte that follows the text.
        end: Probability that none does: of a special token, or an id without a token.
    """

    text: str
    bytes: int
    canonical_bits: float
    most_bits: float
    least_bits: float
    dropped: int
    dropped_share: float
    passes: int
    byte_bits: list[float]
    next_bytes: list[float]
    end: float

    @property
    def bits_per_byte(self) -> float:
        """Of all cuts that were walked."""
        return self.most_bits / self.bytes


@dataclass(frozen=True, slots=True)
class _Node:
    """Tokens that end at a byte of the text, and log2 of their probability."""

    ids: tuple[int, ...]
    weight: float


@torch.inference_mode()
def score_exactly(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    name: str,
    text: str,
    *,
    width: int = WIDTH,
    least: float = LEAST,
    advance: Advance = no_progress,
) -> ExactScore:
    """Add up the probability of a short text over the ways to cut it.

    Args:
        model: Causal language model.
        tokenizer: Its tokenizer.
        name: Of the text.
        text: Not empty; the work grows with the square of its length.
        width: Nodes that are walked at each byte, the heaviest.
        least: Nodes with less than this share of the probability of the bytes so far are dropped.
        advance: Called with the bytes of the text that are done.

    Returns:
        Its probability, and that of the next byte. With ``least`` 0 and a width that is never reached, exact.

    Raises:
        InputError: There is no token to open a text with, or the tokens of the text do not spell it.
    """
    bos = find_bos(tokenizer)
    if bos is None:
        raise InputError(f"{model.name_or_path}: no BOS, EOS or padding token", "a token that opens a text")
    pieces = _Pieces(_spelling(tokenizer))
    own = tuple(encode(tokenizer, name, text).ids)
    data = b"".join(pieces.data.get(index, b"") for index in own)
    if data not in (text.encode(), b" " + text.encode()):
        raise InputError(
            f"{name}: its tokens spell {data[:40]!r}",
            "a text that the tokenizer does not change",
            "measure it without --exact",
        )
    reader = _Reader(model, bos, pieces)
    walk = _Walk(data, pieces, own, width, least)
    for place in range(len(data) + 1):
        nodes = walk.choose(place)
        for node, logs in zip(nodes, reader.read(nodes), strict=True):
            walk.expand(place, node, logs)
        advance(1 if place < len(text.encode()) else 0)
    canonical = -reader.weigh(own)
    found = float(walk.reached[-1])
    follow = walk.follow()
    return ExactScore(
        text=name,
        bytes=len(text.encode()),
        canonical_bits=canonical,
        most_bits=-found,
        least_bits=max(0.0, -float(np.logaddexp2(found, walk.lost))),
        dropped=walk.dropped,
        dropped_share=1.0 - walk.kept_share,
        passes=reader.passes,
        byte_bits=(-np.diff(walk.reached)).tolist(),
        next_bytes=follow[:_END].tolist(),
        end=float(follow[_END]),
    )


class _Pieces:
    """Tokens in the order of their bytes: those that begin alike lie together.

    Args:
        spelling: Bytes by token id; none of them empty.
    """

    def __init__(self, spelling: dict[int, bytes]) -> None:
        ordered = sorted(spelling.items(), key=lambda item: (item[1], item[0]))
        self.data = spelling
        self.ids = np.array([index for index, _ in ordered], dtype=np.int64)
        self.spelt = [data for _, data in ordered]
        self._longest = max(map(len, self.spelt))
        self.begin = lru_cache(maxsize=1 << 12)(self._begin)
        self.following = lru_cache(maxsize=4)(self._following)

    def _following(self, data: bytes) -> NDArray[np.int64]:
        """The byte after some bytes, in each token that is longer than these and begins with them."""
        _, longer, last = self.begin(data)
        return np.array([spelt[len(data)] for spelt in self.spelt[longer:last]], dtype=np.int64)

    def _begin(self, data: bytes) -> tuple[int, int, int]:
        """Places of the tokens that begin with some bytes: first, first that is longer, past the last."""
        return (
            bisect_left(self.spelt, data),
            bisect_right(self.spelt, data),
            bisect_right(self.spelt, data + b"\xff" * self._longest),
        )


class _Reader:
    """The model, as log2 probabilities of the next token in the order of its bytes, then of no token.

    Args:
        model: Causal language model.
        bos: Opens every sequence.
        pieces: Its tokens.
    """

    def __init__(self, model: PreTrainedModel, bos: int, pieces: _Pieces) -> None:
        self._model, self._bos = model, bos
        rows = model.get_input_embeddings().weight.shape[0]
        self._most = max(1, _LOGITS // rows)
        spelt = torch.from_numpy(pieces.ids)
        if int(spelt.max()) >= rows:
            raise InputError(
                f"{model.name_or_path}: token id {int(spelt.max())}",
                f"ids below {rows}, the rows of the model's embedding",
            )
        silent = torch.ones(rows, dtype=torch.bool)
        silent[spelt] = False
        self._spelt, self._silent = spelt.to(model.device), silent.nonzero()[:, 0].to(model.device)
        keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._options = {"use_cache": False, **({"logits_to_keep": 1} if keeps else {})}
        self.passes = 0

    def read(self, nodes: Sequence[_Node]) -> list[NDArray[np.float64]]:
        """Log2 probabilities ``(tokens + 1,)`` after each node, in their order."""
        order = sorted(range(len(nodes)), key=lambda place: len(nodes[place].ids))
        found: dict[int, NDArray[np.float64]] = {}
        # Sequences of one length need no padding, which some bodies could see.
        for _, group in groupby(order, key=lambda place: len(nodes[place].ids)):
            places = list(group)
            for first in range(0, len(places), self._most):
                batch = places[first : first + self._most]
                for place, logs in zip(batch, self._run([nodes[place].ids for place in batch]), strict=True):
                    found[place] = logs
        self.passes += len(nodes)
        return [found[place] for place in range(len(nodes))]

    def weigh(self, ids: Sequence[int]) -> float:
        """Log2 probability of tokens, one after another."""
        given = torch.tensor([[self._bos, *ids]], device=self._model.device)
        logits = self._model(input_ids=given[:, :-1], use_cache=False).logits[0].double()
        logs = logits.log_softmax(dim=1).gather(1, given[0, 1:, None])
        return float(logs.sum()) / math.log(2)

    def _run(self, sequences: list[tuple[int, ...]]) -> NDArray[np.float64]:
        given = torch.tensor([[self._bos, *ids] for ids in sequences], device=self._model.device)
        logits = self._model(input_ids=given, **self._options).logits[:, -1].double()
        logs = logits.log_softmax(dim=1) / math.log(2)
        silent = torch.log2(logs[:, self._silent].exp2().sum(dim=1, keepdim=True))
        found: NDArray[np.float64] = torch.cat([logs[:, self._spelt], silent], dim=1).cpu().numpy()
        return found


class _Walk:
    """The tree of covers of some bytes, from their first to past their last.

    Args:
        data: The bytes.
        pieces: What they can be spelt with.
        own: The tokenizer's cut of them, which is never dropped.
        width: Nodes that are walked at each byte.
        least: Share of the mass so far that a node must have.

    Attributes:
        reached: ``(n + 1,)`` log2 of the mass of all that begins with that many of the bytes.
        lost: Log2 of the mass of the nodes that were dropped before the last byte.
        dropped: Their number.
        kept_share: Of the mass so far, over all bytes.
    """

    def __init__(self, data: bytes, pieces: _Pieces, own: tuple[int, ...], width: int, least: float) -> None:
        self._data, self._pieces, self._width, self._least = data, pieces, width, least
        self._own = {own[:count] for count in range(len(own) + 1)}
        self._nodes: list[list[_Node]] = [[] for _ in range(len(data) + 1)]
        self._nodes[0].append(_Node((), 0.0))
        self.reached = np.full(len(data) + 1, -np.inf)
        self.reached[0] = 0.0
        self.lost, self.dropped, self.kept_share = -np.inf, 0, 1.0
        self._follow = np.full(257, -np.inf)

    def choose(self, place: int) -> list[_Node]:
        """Nodes that end at a byte, but for those that are dropped there."""
        nodes = sorted(self._nodes[place], key=lambda node: (-node.weight, node.ids))
        self._nodes[place] = []
        floor = self.reached[place] + (np.log2(self._least) if self._least else -np.inf)
        kept, dropped = [], [-np.inf]
        for rank, node in enumerate(nodes):
            if (rank < self._width and node.weight >= floor) or node.ids in self._own:
                kept.append(node)
            else:
                dropped.append(node.weight)
        self.dropped += len(dropped) - 1
        mass = float(np.logaddexp2.reduce(dropped))
        if place < len(self._data):  # one that ends with the bytes is in their mass already
            self.lost = float(np.logaddexp2(self.lost, mass))
        self.kept_share *= 1.0 - float(2.0 ** (mass - self.reached[place]))
        return kept

    def expand(self, place: int, node: _Node, logs: NDArray[np.float64]) -> None:
        """Go on from a node with every token that fits the bytes that follow it."""
        rest = self._data[place:]
        for size in range(1, len(rest) + 1):
            first, longer, last = self._pieces.begin(rest[:size])
            if first == last:
                return
            mass = node.weight + np.logaddexp2.reduce(logs[first:last])
            self.reached[place + size] = np.logaddexp2(self.reached[place + size], mass)
            self._nodes[place + size] += [
                _Node((*node.ids, int(self._pieces.ids[at])), node.weight + float(logs[at]))
                for at in range(first, longer)
            ]
        _, longer, last = self._pieces.begin(rest)
        np.logaddexp2.at(self._follow, self._pieces.following(rest), node.weight + logs[longer:last])
        if not rest:
            self._follow[_END] = np.logaddexp2(self._follow[_END], node.weight + logs[-1])

    def follow(self) -> NDArray[np.float64]:
        """Probability ``(257,)`` of each byte after all of them, and of none."""
        shares: NDArray[np.float64] = 2.0 ** (self._follow - np.logaddexp2.reduce(self._follow))
        return shares


def _spelling(tokenizer: PreTrainedTokenizerFast) -> dict[int, bytes]:
    """Bytes of the tokens that stand for text."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    silent = set(tokenizer.all_special_ids)
    spelling = token_bytes(spec, Path(str(tokenizer.name_or_path)), specials=False)
    return {index: data for index, data in spelling.items() if data and index not in silent}
