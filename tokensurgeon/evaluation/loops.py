"""Text that a model goes on with by itself, and whether it goes round in circles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tokensurgeon.console import Advance, no_progress
from tokensurgeon.errors import InputError
from tokensurgeon.evaluation.loading import silent_loading
from tokensurgeon.evaluation.windows import encode, find_bos

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

NEW_TOKENS = 200
GRAM = 4
LOOPS = 0.5
"""A continuation with more than this share of repeated grams goes round in circles."""

_PROMPT = 160


@dataclass(frozen=True)
class Continuation:
    """What a model wrote after a prompt, the likeliest token each time.

    Attributes:
        prompt: What it was given.
        text: What it wrote.
        repeated: Share of its four-grams of tokens that occurred before, 0 to 1.
    """

    prompt: str
    text: str
    repeated: float


def loop_rate(found: Sequence[Continuation]) -> float:
    """Share of continuations that go round in circles, 0 to 1.

    Args:
        found: At least one.

    Returns:
        Those with more than ``LOOPS`` of repeated grams, over all.
    """
    return sum(one.repeated > LOOPS for one in found) / len(found)


def repeated_share(ids: Sequence[int], gram: int = GRAM) -> float:
    """Share of grams that occurred before: 0 where none occurs twice, near 1 where a text goes in circles.

    Args:
        ids: Tokens.
        gram: Tokens of a gram.

    Returns:
        0 for a text shorter than two grams.
    """
    grams = [tuple(ids[place : place + gram]) for place in range(len(ids) - gram + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def cut_prompts(text: str, count: int) -> list[str]:
    """Take the beginnings of equal parts of a text.

    Args:
        text: Not empty.
        count: Parts.

    Returns:
        Up to ``count`` prompts, none of them blank, each of 160 characters or what there is.

    Raises:
        InputError: The text is blank.
    """
    step = max(1, len(text) // count)
    prompts = [text[place : place + min(step, _PROMPT)] for place in range(0, len(text), step)][:count]
    kept = [prompt for prompt in prompts if prompt.strip()]
    if not kept:
        raise InputError("a blank text to take prompts from", "text, or --prompts FILE with a prompt a line")
    return kept


@torch.inference_mode()
def continue_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    *,
    new_tokens: int = NEW_TOKENS,
    advance: Advance = no_progress,
) -> list[Continuation]:
    """Let a model go on with prompts, each opened by one BOS, greedily and past any end of text.

    Args:
        model: Causal language model.
        tokenizer: Its own.
        prompts: What it goes on with.
        new_tokens: Tokens of each continuation.
        advance: Told of every prompt done.

    Returns:
        A continuation for each prompt.
    """
    start = find_bos(tokenizer)
    found = []
    for prompt in prompts:
        ids = [*([] if start is None else [start]), *encode(tokenizer, "prompt", prompt).ids]
        given = torch.tensor([ids], device=model.device)
        with silent_loading():  # a config may ask for a way of sampling that is not used here
            written = model.generate(
                given,
                attention_mask=torch.ones_like(given),
                do_sample=False,
                num_beams=1,
                repetition_penalty=1.0,
                min_new_tokens=new_tokens,
                max_new_tokens=new_tokens,
                pad_token_id=start or 0,
            )[0, len(ids) :].tolist()
        text = tokenizer.decode(written, skip_special_tokens=True)
        found.append(Continuation(prompt, text, repeated_share(written)))
        advance()
    return found
