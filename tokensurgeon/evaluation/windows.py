"""Cut a text into windows measured in bytes, so that they are the same for every tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokensurgeon.console import logger
from tokensurgeon.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class Window:
    """A piece of an encoded text.

    Attributes:
        ids: BOS, context, then the tokens to score.
        first: Position in the text of the first token to score.
        scored: How many of the last ids are scored.
        bytes: The text they stand for.
    """

    ids: list[int]
    first: int
    scored: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text as tokens.

    Attributes:
        ids: ``n`` tokens.
        starts: ``(n + 1,)`` ascending byte positions: where each token starts and, last, the text's length.
            A token that starts inside a character starts where the character does.
        spans: ``(n, 2)`` byte positions of the characters that each token touches, as the tokenizer tells
            them: not everywhere ascending, and not of every byte.
    """

    ids: list[int]
    starts: NDArray[np.int64]
    spans: NDArray[np.int64]


def find_bos(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """Choose the token that opens every window.

    Args:
        tokenizer: Of the model.

    Returns:
        BOS, or what separates documents where there is none, or None.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        if token is not None:
            return int(token)
    return None


def encode(tokenizer: PreTrainedTokenizerFast, name: str, text: str) -> Encoded:
    """Encode a text as data: no token is added, and the name of a special token is only text.

    Args:
        tokenizer: One that gives offsets.
        name: Of the text.
        text: Not empty.

    Returns:
        Its tokens, and where they are.

    Raises:
        InputError: Text or tokenizer cannot be used.
    """
    if not text:
        raise InputError(f"{name}: empty text", "at least one character")
    try:
        codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name}: character {error.start} has no UTF-8 form", "text that is UTF-8"
        ) from error
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} gives no offsets", "a tokenizer of the tokenizers library"
        )
    encoding = tokenizer(
        text,
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    ids: list[int] = encoding["input_ids"]
    if not ids:
        raise InputError(f"{name}: the tokenizer makes no token of this text", "a text it can encode")
    unknown = 0 if tokenizer.unk_token_id is None else ids.count(tokenizer.unk_token_id)
    if unknown:
        logger.warning("%s: %d of %d tokens are unknown; bits per byte is too low", name, unknown, len(ids))
    widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    byte_at = np.concatenate([[0], np.cumsum(widths)])
    spans = byte_at[np.array(encoding["offset_mapping"], dtype=np.int64)]
    starts = np.append(spans[:, 0], byte_at[-1])
    starts[0] = 0
    # Some normalizers make offsets step back.
    return Encoded(ids, np.maximum.accumulate(starts), spans)


def cut_windows(
    ids: list[int], starts: NDArray[np.int64], bos: int | None, stride: int, context: int, most: int
) -> list[Window]:
    """Cut an encoded text into windows that score every token once.

    Args:
        ids: The tokens.
        starts: Where each starts in bytes, and the text's length; ascending.
        bos: Opens every window. Without it the first character is not scored.
        stride: Bytes a window scores.
        context: Bytes it sees before those.
        most: Tokens a window may score; one with more comes in pieces with the same context.

    Returns:
        Windows in order.
    """
    windows = []
    prefix = [] if bos is None else [bos]
    edges = np.arange(0, starts[-1], stride)
    firsts = np.searchsorted(starts[:-1], edges)
    lows = np.searchsorted(starts[:-1], edges - context)
    if bos is None:
        # Nothing comes before the first character, and something must before every other.
        firsts = np.maximum(firsts, np.searchsorted(starts[:-1], 0, side="right"))
        lows = np.minimum(lows, firsts - 1)
    lasts = [*firsts[1:].tolist(), len(ids)]
    for low, first, last in zip(lows.tolist(), firsts.tolist(), lasts, strict=True):
        for begin in range(first, last, most):
            end = min(begin + most, last)
            size = int(starts[end] - starts[begin])
            windows.append(Window(prefix + ids[low:end], begin, end - begin, size))
    return windows


def pad(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Put sequences into one batch for a causal model.

    Padding is on the right: no real position can see it, whatever the model's position encoding, attention
    window or state, so a batch gives what its sequences give alone.

    Args:
        sequences: Token ids, ``n`` sequences of at most ``L``.

    Returns:
        ``(n, L)`` int64 ids, and the mask of those that are real.
    """
    ids = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return ids, mask
