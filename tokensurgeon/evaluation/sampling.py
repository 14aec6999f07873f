"""Text that a model writes by itself: what it takes for likely, in its own proportions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tokensurgeon.errors import InputError
from tokensurgeon.evaluation.windows import find_bos

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SAMPLES = 24
NEW_TOKENS = 128


@torch.inference_mode()
def sample_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    samples: int = SAMPLES,
    new_tokens: int = NEW_TOKENS,
) -> dict[str, str]:
    """Let a model write texts, each from the token that opens one.

    Args:
        model: Causal language model.
        tokenizer: Its own.
        seed: Of the draws; the caller's random numbers stay as they were.
        samples: Texts.
        new_tokens: Tokens of each, at most.

    Returns:
        Texts by name, none of them empty.

    Raises:
        InputError: The tokenizer has no token to open a text with, or nothing was written.
    """
    start = find_bos(tokenizer)
    if start is None:
        raise InputError(f"{model.name_or_path}: no BOS, EOS or padding token", "a token that opens a text")
    opened = torch.full((samples, 1), start, device=model.device)
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        written = model.generate(
            opened,
            attention_mask=torch.ones_like(opened),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            max_new_tokens=new_tokens,
            pad_token_id=start,
        )
    texts = tokenizer.batch_decode(written[:, 1:], skip_special_tokens=True)
    found = {f"sample {number}": text for number, text in enumerate(texts, 1) if len(text.encode()) > 1}
    if not found:
        raise InputError(f"{model.name_or_path}: writes nothing", "a model that writes text")
    return found
