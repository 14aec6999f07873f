"""How many of a draft's tokens its target accepts, by transformers' assisted generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokensurgeon.console import Advance, no_progress
from tokensurgeon.errors import InputError
from tokensurgeon.evaluation.loading import load_model, silent_loading

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

DRAFT_TOKENS = 5
"""Tokens a draft proposes at a time: what vLLM's documentation shows."""


@dataclass(frozen=True)
class Acceptance:
    """What became of the draft's proposals.

    Attributes:
        sampled: Whether tokens were drawn at temperature one; else the likeliest were taken.
        proposed: Tokens the draft proposed.
        accepted: Those that the target kept.
        tokens: Tokens written.
        passes: Forward passes of the target.
    """

    sampled: bool
    proposed: int
    accepted: int
    tokens: int
    passes: int

    @property
    def share(self) -> float:
        """Accepted share of the proposed tokens; 0 if none were."""
        return self.accepted / self.proposed if self.proposed else 0.0

    @property
    def tokens_per_pass(self) -> float:
        """Tokens a forward pass of the target yields; 1 without a draft."""
        return self.tokens / self.passes


@dataclass(frozen=True)
class Pair:
    """A target and its draft, loaded.

    Attributes:
        target: The model that is served.
        draft: The model that proposes.
        tokenizer: The target's.
    """

    target: PreTrainedModel
    draft: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast


def load_pair(
    target_dir: str, draft_dir: str, *, device: str = "auto", trust_remote_code: bool = False
) -> Pair:
    """Load a target and its draft; of one directory, twice.

    Args:
        target_dir: The model that is served.
        draft_dir: The model that proposes.
        device: As for `load_model`.
        trust_remote_code: As for `load_model`.

    Returns:
        Both models.

    Raises:
        InputError: One of them cannot be loaded, or their vocabularies differ in size.
    """
    target, tokenizer = load_model(target_dir, device=device, trust_remote_code=trust_remote_code)
    draft, _ = load_model(draft_dir, device=device, trust_remote_code=trust_remote_code)
    one, other = (model.config.get_text_config().vocab_size for model in (target, draft))
    if one != other:
        raise InputError(
            f"{target_dir}: vocab_size {one}; {draft_dir}: {other}",
            "a draft with as many ids as its target",
            f"tokensurgeon transplant {draft_dir} {target_dir} OUT --match-vocab-of {target_dir}",
        )
    return Pair(target, draft, tokenizer)


@torch.inference_mode()
def measure_acceptance(
    pair: Pair,
    prompts: Sequence[str],
    new_tokens: int,
    *,
    sampled: bool = False,
    seed: int = 0,
    advance: Advance = no_progress,
) -> Acceptance:
    """Let a pair write on after prompts, and count what becomes of the draft's proposals.

    Args:
        pair: Target and draft.
        prompts: What they go on with.
        new_tokens: Tokens to write after each, at most.
        sampled: Draw tokens at temperature one; else take the likeliest.
        seed: Of the draws.
        advance: Told of every prompt done.

    Returns:
        Counts over all prompts.
    """
    how = pair.draft.generation_config
    # Always as many, however sure the draft is: so do engines, and shares can be compared.
    how.num_assistant_tokens, how.num_assistant_tokens_schedule = DRAFT_TOKENS, "constant"
    how.assistant_confidence_threshold = 0.0
    proposed = accepted = tokens = passes = 0
    with torch.random.fork_rng(devices=[pair.target.device] if pair.target.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for prompt in prompts:
            start, written, proposals = _write(pair, prompt, new_tokens, sampled)
            proposed += sum(map(len, proposals))
            accepted += _count_accepted(start, written, proposals)
            tokens += len(written) - start
            passes += len(proposals)
            advance()
    return Acceptance(sampled, proposed, accepted, tokens, passes)


def _write(pair: Pair, prompt: str, new_tokens: int, sampled: bool) -> tuple[int, list[int], list[list[int]]]:
    """Length of the prompt, ids of the text that begins with it, and proposals, one list a target's pass."""
    ids = pair.tokenizer(prompt, return_tensors="pt").input_ids.to(pair.target.device)
    read: list[list[int]] = []

    def note(_: PreTrainedModel, __: tuple[Tensor, ...], inputs: dict[str, Tensor]) -> None:
        read.append(inputs["input_ids"][0].tolist())

    how = (
        {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampled else {"do_sample": False}
    )
    hook = pair.target.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with silent_loading():
            written = pair.target.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                assistant_model=pair.draft,
                max_new_tokens=new_tokens,
                repetition_penalty=1.0,
                pad_token_id=pair.tokenizer.pad_token_id or 0,
                **how,
            )
    finally:
        hook.remove()
    start = ids.shape[1]
    # The first pass reads the prompt, a later one the last token that is settled; then proposals.
    settled = [start, *[1] * (len(read) - 1)]
    return start, written[0].tolist(), [seen[skip:] for seen, skip in zip(read, settled, strict=True)]


def _count_accepted(start: int, written: list[int], proposals: list[list[int]]) -> int:
    """Proposed tokens that are in the text where they were proposed."""
    accepted = 0
    for proposal in proposals:
        there = written[start : start + len(proposal)]
        kept = next((i for i, (a, b) in enumerate(zip(proposal, there, strict=False)) if a != b), len(there))
        accepted += kept
        start += kept + 1  # the target adds one of its own
    return accepted
