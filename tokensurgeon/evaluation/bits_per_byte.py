"""Bits per byte: how well a model predicts text, comparable between tokenizers.

The figure is ``-sum log2 p(token | prefix) / UTF-8 bytes of the text``. A loss per token is not
comparable between tokenizers, because they cut a text into different numbers of tokens; its bytes are
the same for all. For the same reason windows are measured in bytes: window ``k`` scores the tokens that
start in bytes ``[k * stride, (k + 1) * stride)`` and sees, after one BOS, the tokens that start in the
``context`` bytes before it. Every token is scored once, and every model sees the same amount of text.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokensurgeon.console import Advance, no_progress
from tokensurgeon.errors import InputError, RecipeError
from tokensurgeon.evaluation.boundaries import token_ends
from tokensurgeon.evaluation.heads import flat_head, narrow_head
from tokensurgeon.evaluation.loading import load_model
from tokensurgeon.evaluation.texts import read_texts
from tokensurgeon.evaluation.windows import Window, cut_windows, encode, find_bos, pad

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = [
    "ModelScores",
    "TextScore",
    "TokenLosses",
    "load_model",
    "read_texts",
    "score_texts",
    "score_windows",
]

STRIDE_BYTES = 2048
CONTEXT_BYTES = 1024
LOGITS_BYTES = 1 << 30

# Bounds what logits_bytes does not: attention masks and activations of a batch.
_BATCH_TOKENS = 16384
# Logits upcast to float32 at once, 16 MiB of them: more do not stay in the cache.
_CHUNK_LOGITS = 1 << 22


@dataclass(frozen=True, eq=False)
class TokenLosses:
    """The tokens of one text, each with its loss.

    Attributes:
        ids: ``(n,)`` token ids.
        ends: ``(n,)`` ascending positions of the byte after each token; the last is the text's length.
            Tokens that cannot be told apart, because they share a character of an altered text, end together.
        bits: ``(n,)`` minus log2 probability of each; 0 for a token that is not scored.
    """

    ids: NDArray[np.int64]
    ends: NDArray[np.int64]
    bits: NDArray[np.float64]


@dataclass(frozen=True)
class TextScore:
    """One model on one text.

    Attributes:
        text: Name of the text.
        bytes: UTF-8 bytes scored: all of the text, unless the tokenizer has no token to start with.
        tokens: Tokens scored.
        bits: Minus the sum of their log2 probabilities.
        losses: The tokens one by one, if asked for.
    """

    text: str
    bytes: int
    tokens: int
    bits: float
    losses: TokenLosses | None = field(default=None, repr=False, compare=False)

    @property
    def bits_per_byte(self) -> float:
        """Lower is better; comparable between tokenizers."""
        return self.bits / self.bytes

    @property
    def bytes_per_token(self) -> float:
        """How much text a token carries; higher is a better fit of the tokenizer."""
        return self.bytes / self.tokens


@dataclass(frozen=True)
class ModelScores:
    """One model on all texts.

    Attributes:
        model: Directory or hub id.
        bos: Token that opens every window. None if the tokenizer has none: then the first character of
            each text is not scored and its bytes are left out.
        scores: One entry a text, in the order given.
    """

    model: str
    bos: str | None
    scores: list[TextScore]

    @property
    def bits_per_byte(self) -> float:
        """Over all texts together; every byte counts the same."""
        return sum(score.bits for score in self.scores) / sum(score.bytes for score in self.scores)


def score_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: dict[str, str],
    *,
    stride_bytes: int = STRIDE_BYTES,
    context_bytes: int = CONTEXT_BYTES,
    logits_bytes: int = LOGITS_BYTES,
    keep_losses: bool = False,
    allowed: Tensor | None = None,
    advance: Advance = no_progress,
) -> ModelScores:
    """Score texts with a loaded model.

    Args:
        model: Causal language model, on any device, in any dtype.
        tokenizer: Its tokenizer, one that gives offsets.
        texts: Text by name.
        stride_bytes: Bytes of text a window scores.
        context_bytes: Bytes of text it sees before those.
        logits_bytes: Memory for the float32 logits of a batch.
        keep_losses: Whether to keep the loss of every token.
        allowed: ``(V,)`` bool, the tokens that the texts may hold, if others were out of the question when
            they were written; others have no part in the probabilities then.
        advance: Called with the bytes of text scored.

    Returns:
        One score a text.

    Raises:
        RecipeError: A window of no bytes.
        InputError: An empty text, or tokenizer and model do not fit each other.
    """
    if stride_bytes < 1 or context_bytes < 0:
        raise RecipeError(
            f"stride of {stride_bytes} bytes, context of {context_bytes}", "a stride from 1, a context from 0"
        )
    bos = find_bos(tokenizer)
    rows = model.get_input_embeddings().weight.shape[0]
    keeps = _keeps_logits(model)
    # Positions whose logits fit. A model that always gives all of them gains nothing from shorter pieces.
    most = max(1, logits_bytes // (4 * rows))
    known = None if allowed is None or allowed.all() else allowed.nonzero()[:, 0]
    scores = []
    for name, text in texts.items():
        text_in_tokens = encode(tokenizer, name, text)
        ids, starts = text_in_tokens.ids, text_in_tokens.starts
        windows = cut_windows(ids, starts, bos, stride_bytes, context_bytes, most if keeps else len(ids))
        _check_windows(model, name, windows, rows)
        bits = np.zeros(len(ids))
        with narrow_head(model, known):
            for batch in _batches(windows, most, keeps):
                for window, losses in zip(batch, score_windows(model, batch, known), strict=True):
                    bits[window.first : window.first + window.scored] = losses
                advance(sum(window.bytes for window in batch))
        if not np.isfinite(bits).all():
            raise InputError(
                f"{name}: probabilities are not finite", "a model with finite weights and logits"
            )
        size, tokens = sum(window.bytes for window in windows), sum(window.scored for window in windows)
        kept = None
        if keep_losses:
            kept = TokenLosses(np.array(ids), token_ends(tokenizer, text_in_tokens, text.encode()), bits)
        scores.append(TextScore(name, size, tokens, math.fsum(bits), kept))
    label = None if bos is None else str(tokenizer.convert_ids_to_tokens(bos))
    return ModelScores(str(model.name_or_path), label, scores)


def _check_windows(model: PreTrainedModel, name: str, windows: list[Window], rows: int) -> None:
    if not sum(window.bytes for window in windows):
        raise InputError(f"{name}: one token and no BOS before it", "a text of several tokens")
    highest = max(max(window.ids) for window in windows)
    if highest >= rows:
        raise InputError(
            f"{name}: token id {highest}", f"ids below {rows}, the rows of the model's embedding"
        )
    longest = max(len(window.ids) for window in windows) - 1
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise InputError(
            f"{name}: a window of {longest} tokens",
            f"at most {limit}, the model's max_position_embeddings",
            "use a smaller stride and context, the same for all models compared",
        )


def _batches(windows: list[Window], most: int, keeps: bool) -> Iterator[list[Window]]:
    """Group windows of like length, as many as memory holds."""
    batch: list[Window] = []
    for window in sorted(windows, key=lambda window: (len(window.ids), window.scored)):
        length, kept = _shape([*batch, window])
        size = len(batch) + 1
        if batch and (size * (kept if keeps else length) > most or size * length > _BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(window)
    yield batch


def _shape(batch: list[Window]) -> tuple[int, int]:
    """Padded length of a batch, and how many of its last positions predict a scored token."""
    length = max(len(window.ids) for window in batch) - 1
    return length, length - min(len(window.ids) - 1 - window.scored for window in batch)


def _keeps_logits(model: PreTrainedModel) -> bool:
    """Whether a model can give the logits of last positions only."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


@torch.inference_mode()
def score_windows(
    model: PreTrainedModel, batch: list[Window], allowed: Tensor | None = None
) -> list[NDArray[np.float64]]:
    """Score windows in one pass.

    Args:
        model: Causal language model, on any device, in any dtype.
        batch: Windows of any lengths.
        allowed: ``(n,)`` int64, the tokens that have a part in the probabilities; None for all.

    Returns:
        For each window ``(scored,)`` minus log2 probabilities.
    """
    length, kept = _shape(batch)
    ids, mask = pad([window.ids[:-1] for window in batch])
    with flat_head(model):
        seen = model(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            use_cache=False,
            **({"logits_to_keep": kept} if _keeps_logits(model) else {}),
        ).logits
    left_out = length - seen.shape[1]
    if allowed is not None:
        places = torch.full((seen.shape[2],), -1, device=seen.device)
        places[allowed] = torch.arange(len(allowed), device=seen.device)
    chunk = max(1, _CHUNK_LOGITS // (seen.shape[2] if allowed is None else len(allowed)))
    bits = []
    for row, window in enumerate(batch):
        end = len(window.ids) - 1 - left_out
        targets = torch.tensor(window.ids[-window.scored :], device=seen.device)
        scored = seen[row, end - window.scored : end]
        losses = torch.empty(window.scored, device=seen.device)
        # Into place: small results kept between large ones would hold on to the memory of those.
        for part, target, out in zip(*(x.split(chunk) for x in (scored, targets, losses)), strict=True):
            if allowed is None:
                out.copy_(torch.nn.functional.cross_entropy(part.float(), target, reduction="none"))
                continue
            place = places[target]
            likely = part[:, allowed].float().log_softmax(dim=1).gather(1, place.clamp(min=0)[:, None])[:, 0]
            out.copy_(torch.where(place < 0, torch.inf, -likely))
        bits.append(losses.cpu().double().numpy() / math.log(2))
    return bits
