"""Where tokens end in the bytes of a text, also inside a character."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tokensurgeon.errors import InputError
from tokensurgeon.evaluation.windows import Encoded
from tokensurgeon.vocab.vocabulary import token_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def token_ends(tokenizer: PreTrainedTokenizerFast, encoded: Encoded, data: bytes) -> NDArray[np.int64]:
    """Find the byte after each token.

    A tokenizer tells which characters a token touches, not which bytes of them. So tokens are grouped
    first until no two groups share a character; inside a group the bytes that its tokens stand for decide,
    where they spell the text. Text that no token covers, such as a space that is dropped, belongs to the
    token after it, as a leading space does elsewhere.

    Args:
        tokenizer: The one that encoded the text.
        encoded: ``n`` tokens, at least one.
        data: The text in UTF-8.

    Returns:
        ``(n,)`` ascending byte positions, the last ``len(data)``. Tokens of a group that does not spell its
        text, which a normaliser altered, end together.
    """
    reached = np.maximum.accumulate(encoded.spans[:, 1])
    reached[-1] = len(data)
    to_come = np.minimum.accumulate(encoded.spans[::-1, 0])[::-1]
    last_of_group = np.append(reached[:-1] <= to_come[1:], True)
    lasts = np.flatnonzero(last_of_group)
    ends: NDArray[np.int64] = reached[lasts[np.searchsorted(lasts, np.arange(len(encoded.ids)))]]
    groups = [(first, last) for first, last in pairwise([0, *(lasts + 1).tolist()]) if last - first > 1]
    spelling = _spelling(tokenizer) if groups else {}
    for first, last in groups:
        spelt = [spelling.get(index, b"") for index in encoded.ids[first:last]]
        begin = int(ends[first - 1]) if first else 0
        if b"".join(spelt) == data[begin : int(ends[first])]:
            ends[first:last] = begin + np.cumsum([len(part) for part in spelt])
    return ends


def shared_ends(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where chunks end: byte positions at which a token ends in two tokenizations of a text.

    Args:
        one: Ends of the tokens of one.
        other: Ends of the tokens of the other.

    Returns:
        Ascending, without position 0, where a token of no text may end.
    """
    ends = np.intersect1d(one, other)
    return ends[ends > 0]


def _spelling(tokenizer: PreTrainedTokenizerFast) -> dict[int, bytes]:
    """Bytes by token id; empty for a kind of tokenizer whose tokens cannot be read as bytes."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    try:
        return token_bytes(spec, Path(str(tokenizer.name_or_path)))
    except InputError:
        return {}
