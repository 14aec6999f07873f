"""Everything that ``eval`` measures of one model, in one loading of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tokensurgeon.console import Advance, no_progress, progress
from tokensurgeon.evaluation.bits_per_byte import (
    CONTEXT_BYTES,
    STRIDE_BYTES,
    ModelScores,
    TextScore,
    load_model,
    score_texts,
)
from tokensurgeon.evaluation.boundaries import token_ends
from tokensurgeon.evaluation.cuts import TextCut, measure_cut
from tokensurgeon.evaluation.exact import ExactScore, score_exactly
from tokensurgeon.evaluation.harness import TaskScore, run_tasks
from tokensurgeon.evaluation.loops import NEW_TOKENS, Continuation, continue_prompts
from tokensurgeon.evaluation.probes import CUTS, probe_texts, show_cut
from tokensurgeon.evaluation.texts import head_of
from tokensurgeon.evaluation.windows import encode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Asked:
    """What to measure besides bits per byte and how texts are cut.

    Attributes:
        stride_bytes: Bytes of text a window scores.
        context_bytes: Bytes it sees before those.
        keep_losses: Whether to keep the loss of every token.
        probes: Whether to score and cut the fixed texts of numbers and white space.
        prompts: What the model goes on with.
        new_tokens: Tokens of each continuation.
        exact_bytes: Bytes of each text to score over all its cuts; 0 for none.
        tasks: Of the harness, as ``find_tasks`` gives them.
        task_limit: Questions of each; None for all.
    """

    stride_bytes: int = STRIDE_BYTES
    context_bytes: int = CONTEXT_BYTES
    keep_losses: bool = False
    probes: bool = False
    prompts: Sequence[str] = ()
    new_tokens: int = NEW_TOKENS
    exact_bytes: int = 0
    tasks: Sequence[str | dict[str, Any]] = ()
    task_limit: int | None = None


@dataclass(frozen=True)
class Measured:
    """One model.

    Attributes:
        scores: Bits per byte of the texts.
        cuts: How its tokenizer cuts each of them.
        exact: Each of them over all cuts, if asked for.
        probes: Bits per byte of the fixed texts.
        probe_cuts: Pieces of the short ones, by text.
        continuations: What it wrote.
        tasks: What it knew.
    """

    scores: ModelScores
    cuts: list[TextCut]
    exact: list[ExactScore] = field(default_factory=list)
    probes: list[TextScore] = field(default_factory=list)
    probe_cuts: dict[str, list[str]] = field(default_factory=dict)
    continuations: list[Continuation] = field(default_factory=list)
    tasks: list[TaskScore] = field(default_factory=list)


def measure(
    model_dir: str,
    texts: dict[str, str],
    asked: Asked,
    *,
    device: str = "auto",
    dtype: str = "float32",
    trust_remote_code: bool = False,
    advance: Advance = no_progress,
) -> Measured:
    """Load a model and measure it.

    Args:
        model_dir: Local directory or hub id.
        texts: Text by name.
        asked: What to measure.
        device: A torch device, or ``auto``: CUDA where there is one.
        dtype: One of ``loading.DTYPES``; ``auto`` keeps the checkpoint's.
        trust_remote_code: Whether code that comes with the checkpoint may run.
        advance: Called with the bytes of text scored.

    Returns:
        What was asked for.
    """
    model, tokenizer = load_model(model_dir, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    scores = score_texts(
        model,
        tokenizer,
        texts,
        stride_bytes=asked.stride_bytes,
        context_bytes=asked.context_bytes,
        keep_losses=asked.keep_losses,
        advance=advance,
    )
    return Measured(
        scores=replace(scores, model=model_dir),
        cuts=[cut_text(tokenizer, name, text) for name, text in texts.items()],
        exact=_score_exactly(model, tokenizer, texts, asked.exact_bytes),
        probes=score_texts(model, tokenizer, probe_texts()).scores if asked.probes else [],
        probe_cuts={text: show_cut(tokenizer, text) for text in CUTS} if asked.probes else {},
        continuations=_continue(model, tokenizer, asked),
        tasks=run_tasks(model, tokenizer, asked.tasks, asked.task_limit) if asked.tasks else [],
    )


def cut_text(tokenizer: PreTrainedTokenizerFast, name: str, text: str) -> TextCut:
    """Measure how a tokenizer cuts a text.

    Args:
        tokenizer: One that gives offsets.
        name: Of the text.
        text: Not empty.

    Returns:
        The figures.
    """
    encoded = encode(tokenizer, name, text)
    return measure_cut(text, encoded.ids, token_ends(tokenizer, encoded, text.encode()))


def _score_exactly(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: dict[str, str], size: int
) -> list[ExactScore]:
    if not size:
        return []
    heads = {name: head_of(text, size) for name, text in texts.items()}
    with progress("over all cuts", sum(len(head.encode()) for head in heads.values()), "bytes") as advance:
        return [score_exactly(model, tokenizer, name, head, advance=advance) for name, head in heads.items()]


def _continue(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, asked: Asked) -> list[Continuation]:
    if not asked.prompts:
        return []
    with progress("writing", len(asked.prompts), "prompts") as advance:
        return continue_prompts(model, tokenizer, asked.prompts, new_tokens=asked.new_tokens, advance=advance)
