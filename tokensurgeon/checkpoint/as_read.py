"""A checkpoint as a user's program finds it: loaded in a fresh process, then compared.

A perfectly written tokenizer may still be read back wrongly: ``AutoTokenizer`` picks its class from the
model's ``config.json``.
"""

from __future__ import annotations

import json
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokensurgeon.checkpoint.configs import as_ids
from tokensurgeon.checkpoint.expectation import PADDING, Expectation
from tokensurgeon.checkpoint.layout import VocabTensor
from tokensurgeon.checkpoint.subject import Subject, Verification
from tokensurgeon.child import child_command, child_environment
from tokensurgeon.device import available_memory
from tokensurgeon.notices import Notice
from tokensurgeon.vocab.chat import MESSAGES
from tokensurgeon.vocab.probe import PROMPTS, probe_chat, probe_ids

# How long a checkpoint may be read: many times what those need that are what they say.
_SECONDS = 600
_SECONDS_PER_GB = 60


@dataclass(frozen=True)
class ReadOptions:
    """How a checkpoint is read back.

    Attributes:
        forward: Whether the model itself is loaded and run.
        trust_remote_code: Whether code in the directory may run.
        allow_reader_mismatch: Whether a tokenizer that is read back wrongly is only a warning.
    """

    forward: bool
    trust_remote_code: bool
    allow_reader_mismatch: bool


def check_as_read(subject: Subject, result: Verification, options: ReadOptions) -> None:
    """Load a checkpoint in a fresh process and compare what a user's program would find.

    Args:
        subject: The directory.
        result: Where checks and warnings are recorded.
        options: How to read it.
    """
    expected = subject.expected
    probe = expected.probe if expected else probe_ids(subject.vocabulary)
    chat = expected.chat if expected else probe_chat(subject.vocabulary)
    bound, rows = subject.vocabulary.bound, subject.layout.rows
    holes = sorted(set(range(rows)) - subject.vocabulary.tokens.keys()) if bound <= rows else []
    layout = subject.layout
    seen = run_probe(
        {
            "task": "read",
            "directory": str(subject.directory.resolve()),
            "trust_remote_code": options.trust_remote_code,
            "texts": [text for text, _ in probe],
            "messages": MESSAGES if chat else None,
            "forward": options.forward,
            "prompts": PROMPTS,
            "padding_ids": holes,
            "rows": rows,
            "embedding": _place(layout.embedding),
            "head": None if layout.tied else _place(layout.head),
            "untied": expected is not None and expected.untied,
        }
    )
    if "error" in seen:
        result.add("loads in a fresh process", [seen["error"]], "")
        return
    mismatches = _reader_mismatches(subject, probe, chat, seen)
    if mismatches and options.allow_reader_mismatch:
        result.notices.append(Notice("TS011", f"allowed: {mismatches[0]}"))
        mismatches = []
    result.add(
        "AutoTokenizer",
        mismatches,
        f"{seen['tokenizer_class']} gives the raw tokenizer's ids on {len(probe)} texts"
        + (", chat template included" if chat else ""),
    )
    framed = [subject.vocabulary.encode(text, specials=True) for text, _ in probe]
    if framed != seen["framed"]:
        result.notices.append(
            Notice("TS011", f"{framed[0][:4]} by tokenizer.json, {seen['framed'][0][:4]} on load")
        )
    if seen["warnings"]:
        result.notices.append(Notice("TS012", "; ".join(dict.fromkeys(seen["warnings"]))[:500]))
    if options.forward:
        _judge_model(subject, seen, result)
    else:
        result.notices.append(Notice("TS015", "verify.forward is off"))


def _place(tensor: VocabTensor) -> dict[str, str]:
    return {"file": str(tensor.ref.path.resolve()), "name": tensor.name}


def run_probe(job: dict[str, Any]) -> dict[str, Any]:
    """Do a job of ``checkpoint.probe`` in a fresh process.

    Args:
        job: What to do; its ``task`` says which kind.

    Returns:
        What was seen, or ``error`` alone.
    """
    weights = sum(path.stat().st_size for path in Path(job["directory"]).glob("*.safetensors"))
    available = available_memory()
    limits = {
        # What is mapped counts as held, too.
        "memory": None if available is None else available + weights,
        "seconds": _SECONDS + _SECONDS_PER_GB * weights // 10**9,
    }
    done = subprocess.run(
        child_command("tokensurgeon.checkpoint.probe"),
        input=json.dumps({**job, "limits": limits}),
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**child_environment(), "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    if done.returncode == -signal.SIGXCPU:
        return {"error": f"it took more than {limits['seconds']} s of processor time, and was ended"}
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return {"error": f"exit code {done.returncode}: {lines[-1] if lines else 'no message'}"}
    # Libraries print before it, some of them in a way that no Python notices.
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


def _reader_mismatches(
    subject: Subject,
    probe: list[tuple[str, list[int]]],
    chat: tuple[str, list[int]] | None,
    seen: dict[str, Any],
) -> list[str]:
    model_type, reader = subject.config.get("model_type"), seen["tokenizer_class"]
    wrong = [text for (text, ids), got in zip(probe, seen["ids"], strict=True) if ids != got]
    problems = []
    if wrong:
        problems.append(
            f"AutoTokenizer reads this tokenizer as {reader} because of model_type {model_type!r}: "
            f"{len(wrong)} of {len(probe)} probe texts get other ids than with tokenizer.json, such as "
            f"{wrong[0][:40]!r}. "
            "PreTrainedTokenizerFast.from_pretrained(directory) reads it right"
        )
    if chat and seen["chat"] != list(chat):
        problems.append("the chat template renders other ids than the target's")
    return problems


def _judge_model(subject: Subject, seen: dict[str, Any], result: Verification) -> None:
    model = seen["model"]
    problems = [f"{key}: {', '.join(names[:3])}" for key, names in model["problems"].items()]
    if not model["embedding_as_stored"]:
        problems.append("the loaded input embedding differs from the file")
    if not model["head_as_stored"]:
        problems.append("the loaded lm_head differs from the file")
    result.add("loads in a fresh process", problems, f"{model['class']}, nothing missing, unexpected or new")
    result.add(
        "forward pass",
        [] if model["finite"] else ["logits are not finite"],
        f"finite; next tokens {', '.join(map(str, model['answers']))}" if model["answers"] else "finite",
    )
    if model["positions_from_pad"] and subject.expected is not None:
        _judge_positions(subject.expected, model, result)
    if model["untied_alike"] is not None:
        result.add(
            "untied",
            [] if model["untied_alike"] else [f"{model['class']} computes other logits when it is not tied"],
            "embedding and lm_head loaded apart, logits as if they were tied where their rows are equal",
        )
    _judge_padding(subject, model["padding_margin"], result)
    problems = []
    for role in ("bos", "eos", "pad"):
        own = seen["roles"].get(role)
        config, generation = (as_ids(model[place][role]) for place in ("config_ids", "generation_ids"))
        if own is not None and generation and own not in generation:
            problems.append(f"{role}: tokenizer {own}, generation config {generation}")
        elif generation and not set(config) <= set(generation):
            problems.append(f"{role}: config {config}, generation config {generation}")
    result.add("ids after loading", problems, "config, generation config and tokenizer agree")


def _judge_positions(expected: Expectation, model: dict[str, Any], result: Verification) -> None:
    """Some classes count positions from the padding id: with another id, every token is read elsewhere."""
    before = model["default_pad"] if expected.base_pad is None else expected.base_pad
    after = model["config_ids"]["pad"]
    told = f"{model['class']} counts positions from the padding id, {before} in the base and {after} here"
    result.add(
        "positions",
        [] if before == after else [f"{told}: every token would get another position's embedding"],
        f"counted from padding id {after}, as in the base",
    )


def _judge_padding(subject: Subject, margin: float | None, result: Verification) -> None:
    if margin is None:
        return
    expected = subject.expected
    head = expected.vocab.get(subject.layout.head.name) if expected else None
    ours = head is not None and PADDING in head.source
    if margin <= 0 and not ours:
        result.notices.append(Notice("TS017", f"by {-margin:.2f} logits; the rows are the base's own"))
        return
    result.add(
        "ids without a token",
        [] if margin > 0 else [f"an id without a token wins by {-margin:.2f} logits"],
        f"never the most likely; {margin:.2f} logits below at the closest",
    )
