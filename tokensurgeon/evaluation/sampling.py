"""Text that a model writes by itself: what it takes for likely, in its own proportions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from tokensurgeon.console import Advance, progress
from tokensurgeon.errors import InputError
from tokensurgeon.evaluation.heads import narrow_head
from tokensurgeon.evaluation.loading import silent_loading
from tokensurgeon.evaluation.windows import find_bos

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SAMPLES = 24
NEW_TOKENS = 128

_TEXTS_AT_A_TIME = 256
# Rows of logits that a processor's cache has room for.
_CACHED_ROWS = 16


@dataclass(frozen=True)
class Allowed:
    """Tokens that texts are made of; no other is drawn.

    Attributes:
        first: Ids that may open a text.
        later: Ids that may follow.
    """

    first: list[int]
    later: list[int]


@torch.inference_mode()
def sample_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    samples: int = SAMPLES,
    new_tokens: int = NEW_TOKENS,
    allowed: Allowed | None = None,
) -> dict[str, str]:
    """Let a model write texts, each from the token that opens one, at temperature one.

    Args:
        model: Causal language model.
        tokenizer: Its own.
        seed: Of the draws.
        samples: Texts.
        new_tokens: Tokens of each, at most.
        allowed: What the texts are made of; None for all tokens.

    Returns:
        Texts by name, none of them empty.

    Raises:
        InputError: The tokenizer has no token to open a text with, or nothing was written.
    """
    start = find_bos(tokenizer)
    if start is None:
        raise InputError(f"{model.name_or_path}: no BOS, EOS or padding token", "a token that opens a text")
    texts: list[str] = []
    steps = () if allowed is None else (allowed.first, allowed.later)
    drawn = [torch.tensor(sorted(set(ids)), device=model.device) for ids in steps]
    with (
        progress("writing texts", samples * new_tokens, "tokens") as advance,
        narrow_head(model, torch.cat(drawn).unique() if drawn else None),
    ):
        draw = _Draw(seed, drawn, advance)
        for count in [_TEXTS_AT_A_TIME] * (samples // _TEXTS_AT_A_TIME) + [samples % _TEXTS_AT_A_TIME]:
            if not count:
                continue
            opened = torch.full((count, 1), start, device=model.device)
            with silent_loading():  # a config may ask for a way of sampling that is not used here
                written = model.generate(
                    opened,
                    attention_mask=torch.ones_like(opened),
                    do_sample=False,
                    num_beams=1,
                    repetition_penalty=1.0,
                    max_new_tokens=new_tokens,
                    pad_token_id=start,
                    logits_processor=LogitsProcessorList([draw]),
                )
            texts += tokenizer.batch_decode(written[:, 1:], skip_special_tokens=True)
    found = {f"sample {number}": text for number, text in enumerate(texts, 1) if len(text.encode()) > 1}
    if not found:
        raise InputError(f"{model.name_or_path}: writes nothing", "a model that writes text")
    return found


class _Draw(LogitsProcessor):  # type: ignore[misc]
    """Draws the next token itself, a few rows at a time, and leaves no choice to what comes after.

    The usual way, several passes over the logits of all texts and a random number for each, takes longer
    than a small model does; this takes one number a text.
    """

    def __init__(self, seed: int, allowed: list[Tensor], advance: Advance) -> None:
        self._advance = advance
        self._generator = torch.Generator().manual_seed(seed)
        # Sorted ids for the first token and for later ones; none for all tokens.
        self._allowed = allowed

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits ``(n, V)``, the same memory, with infinity for the token drawn."""
        levels = torch.rand((len(scores), 1), generator=self._generator, dtype=torch.float64)
        allowed = self._allowed[min(input_ids.shape[1] - 1, 1)] if self._allowed else None
        count = _CACHED_ROWS if scores.device.type == "cpu" else len(scores)
        drawn = []
        for part, level in zip(scores.split(count), levels.split(count), strict=True):
            logits = (part if allowed is None else part[:, allowed]).float()
            sums = logits.softmax(dim=1).cumsum(dim=1)
            total = sums[:, -1:]
            wanted = torch.minimum(level.to(sums) * total, torch.nextafter(total, torch.zeros_like(total)))
            # Below the total, and on the right of sums that are equal: no token without probability is drawn.
            place = torch.searchsorted(sums, wanted, right=True)
            drawn.append(place if allowed is None else allowed[place])
        self._advance(len(scores))
        return scores.scatter_(1, torch.cat(drawn), torch.inf)
