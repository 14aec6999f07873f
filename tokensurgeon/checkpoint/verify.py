"""Check an output directory: against what it must be, and as a user's own program would find it.

Everything is read again from disk. The model and its tokenizer are loaded in a fresh process, because a
perfectly written tokenizer may still be read back wrongly: ``AutoTokenizer`` picks its class from the
model's ``config.json``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokensurgeon.checkpoint.configs import read_config, remaining_ids, text_levels
from tokensurgeon.checkpoint.expectation import (
    MADE,
    Expectation,
    hash_file,
    hash_rows,
    load_expectation,
    token_rows,
)
from tokensurgeon.checkpoint.index import CheckpointIndex, read_index
from tokensurgeon.checkpoint.layout import Layout, TensorRole, find_layout
from tokensurgeon.checkpoint.reader import map_tensor
from tokensurgeon.checkpoint.writer import hash_tensor
from tokensurgeon.errors import PolicyError
from tokensurgeon.notices import Notice
from tokensurgeon.vocab.probe import MESSAGES, PROMPTS, probe_chat, probe_ids
from tokensurgeon.vocab.vocabulary import Vocabulary, load_vocabulary

_CHUNK = 16384


@dataclass(frozen=True)
class CheckResult:
    """One check.

    Attributes:
        name: What was checked.
        passed: Whether it held.
        detail: What was seen.
    """

    name: str
    passed: bool
    detail: str


@dataclass
class Verification:
    """What was checked, and what a user should know besides.

    Attributes:
        checks: All checks in order.
        notices: Warnings.
    """

    checks: list[CheckResult] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every check held."""
        return all(check.passed for check in self.checks)

    def add(self, name: str, problems: list[str], detail: str) -> None:
        """Record a check; problems make it fail and take the place of the detail."""
        self.checks.append(CheckResult(name, not problems, "; ".join(problems[:5]) if problems else detail))


@dataclass(frozen=True)
class _Subject:
    """The directory under check."""

    directory: Path
    index: CheckpointIndex
    config: dict[str, Any]
    layout: Layout
    vocabulary: Vocabulary
    expected: Expectation | None

    def rows(self, name: str) -> Tensor:
        """A vocabulary tensor as ``(rows, width)``."""
        tensor = next(t for t in self.layout.tensors if t.name == name)
        return token_rows(map_tensor(tensor.ref), tensor.axis)


def verify_checkpoint(
    directory: Path,
    *,
    forward: bool = True,
    trust_remote_code: bool = False,
    allow_reader_mismatch: bool = False,
) -> Verification:
    """Check a checkpoint directory.

    Any directory is checked for health; an output of this tool also against its ``provenance.json``.

    Args:
        directory: The checkpoint.
        forward: Whether the model itself is loaded and run.
        trust_remote_code: Whether code in the directory may run when it is loaded.
        allow_reader_mismatch: Record a tokenizer that is read back wrongly as a warning, not a failure.

    Returns:
        The checks.

    Raises:
        InputError: The directory is no checkpoint.
        PolicyError: It brings its own code and that is not trusted.
    """
    config = read_config(directory)
    if "auto_map" in config and not trust_remote_code:
        raise PolicyError(
            f"{directory / 'config.json'}: auto_map asks to run code that comes with the model",
            "a model that the installed transformers knows",
            "read the code, then pass --trust-remote-code",
        )
    index = read_index(directory)
    expected = load_expectation(directory)
    subject = _Subject(
        directory, index, config, find_layout(index, config), load_vocabulary(directory), expected
    )
    result = Verification()
    for check in (_check_files, _check_body, _check_shapes, _check_copies, _check_health, _check_ids):
        for name, problems, detail in check(subject):
            result.add(name, problems, detail)
    _check_fresh_process(subject, result, forward, trust_remote_code, allow_reader_mismatch)
    return result


_Checks = Iterator[tuple[str, list[str], str]]


def _check_files(subject: _Subject) -> _Checks:
    present = {path.name for path in subject.directory.iterdir()}
    known = {shard.path.name for shard in subject.index.shards}
    stray = sorted(n for n in present - known if n.endswith((".safetensors", ".bin")))
    yield "weights", [f"stray {name}" for name in stray], f"{len(known)} shard(s), headers and index agree"
    if subject.expected is not None:
        wrong = [
            name
            for name, digest in subject.expected.files.items()
            if not (subject.directory / name).is_file() or hash_file(subject.directory / name) != digest
        ]
        yield (
            "tokenizer files",
            [f"{name} is not the target's" for name in wrong],
            f"{len(subject.expected.files)} equal to the target's byte for byte",
        )


def _check_body(subject: _Subject) -> _Checks:
    if subject.expected is None:
        return
    tensors = subject.index.tensors
    body, vocab = subject.expected.body, subject.expected.vocab
    problems = [f"{name} missing" for name in [*body, *vocab] if name not in tensors]
    problems += [f"{name} unexpected" for name in tensors if name not in body and name not in vocab]
    for shard in subject.index.shards:
        with shard.path.open("rb") as file:
            for ref in shard.tensors:
                want = body.get(ref.name)
                if want and (ref.dtype, list(ref.shape)) != (want.dtype, want.shape):
                    problems.append(f"{ref.name} is {ref.dtype} {list(ref.shape)}")
                elif want and hash_tensor(ref, file) != want.sha256:
                    problems.append(f"{ref.name} has other bytes than in the base")
    yield "body", problems, f"{len(body)} tensors byte-identical to the base"


def _check_shapes(subject: _Subject) -> _Checks:
    rows, bound = subject.layout.rows, subject.vocabulary.bound
    problems = [f"{rows} rows for ids up to {bound - 1}"] if rows < bound else []
    for level in text_levels(subject.config):
        if level.get("vocab_size", rows) != rows:
            problems.append(f"config says vocab_size {level['vocab_size']}, the embedding has {rows} rows")
    if subject.expected is not None:
        for name, want in subject.expected.vocab.items():
            ref = subject.index.tensors.get(name)
            if ref is not None and (ref.dtype, list(ref.shape)) != (want.dtype, want.shape):
                problems.append(f"{name} is {ref.dtype} {list(ref.shape)}, not {want.dtype} {want.shape}")
    yield "rows", problems, f"{rows} rows = vocab_size, highest id {bound - 1}"


def _check_copies(subject: _Subject) -> _Checks:
    if subject.expected is None:
        return
    problems, copied = [], 0
    for name, want in subject.expected.vocab.items():
        if name not in subject.layout.names:
            problems.append(f"{name} missing")
            continue
        rows = subject.rows(name)
        ids = [row for row, source in enumerate(want.source) if source >= 0]
        copied += len(ids)
        if ids and ids[-1] >= len(rows) or hash_rows(rows, ids) != want.copied_sha256:
            problems.append(f"{name}: copied rows differ from the base's")
        if want.equal_to and not torch.equal(rows, subject.rows(want.equal_to)):
            problems.append(f"{name} no longer equals {want.equal_to}")
    yield "copied rows", problems, f"{copied} rows bit-equal to the base's"


def _check_health(subject: _Subject) -> _Checks:
    infinite, vanished, repeated = [], [], []
    for tensor in subject.layout.tensors:
        if tensor.role is TensorRole.BIAS:
            continue
        rows = token_rows(map_tensor(tensor.ref), tensor.axis)
        want = subject.expected.vocab.get(tensor.name) if subject.expected else None
        fresh = [i for i, source in enumerate(want.source) if source == MADE] if want else []
        for start in range(0, len(rows), _CHUNK):
            part = rows[start : start + _CHUNK].float()
            bad = (~torch.isfinite(part).all(dim=1)).nonzero()[:, 0] + start
            infinite += [f"{tensor.name}[{i}] is not finite" for i in bad.tolist()]
            if want is None:
                continue
            zero = (part == 0).all(dim=1).nonzero()[:, 0] + start
            vanished += [f"{tensor.name}[{i}] is zero" for i in zero.tolist() if want.source[i] < 0]
        if subject.expected and not (want and want.equal_to):
            repeated += _repeats(rows, fresh, set(subject.expected.may_repeat), tensor.name)
    if subject.expected and subject.expected.may_vanish:
        vanished = []
    yield "finite", infinite, "no NaN or infinity in any row"
    if subject.expected is not None:
        yield "no zero rows", vanished, "no made or padding row is zero"
        yield "no repeated rows", repeated, "no made row repeats another"


def _repeats(rows: Tensor, fresh: list[int], allowed: set[int], name: str) -> list[str]:
    seen: dict[bytes, int] = {}
    problems = []
    for start in range(0, len(fresh), _CHUNK):
        ids = fresh[start : start + _CHUNK]
        raw = rows[torch.tensor(ids)].contiguous().view(torch.uint8).numpy()
        for index, row in zip(ids, raw, strict=True):
            first = seen.setdefault(row.tobytes(), index)
            if first != index and not {first, index} <= allowed:
                problems.append(f"{name}[{index}] equals {name}[{first}]")
    return problems


def _check_ids(subject: _Subject) -> _Checks:
    problems = []
    rows = subject.layout.rows
    configs = {
        "config.json": subject.config,
        "generation_config.json": read_config(subject.directory, "generation_config.json", optional=True),
    }
    fields = 0
    for file, config in configs.items():
        for path, ids in remaining_ids(config).items():
            fields += 1
            problems += [f"{file}: {path} is {index}, past {rows} rows" for index in ids if index >= rows]
    eos = subject.vocabulary.roles.get("eos")
    stops = _ids(configs["generation_config.json"].get("eos_token_id"))
    if eos is not None and stops and eos not in stops:
        problems.append(f"generation_config.json stops at {stops}, the tokenizer's EOS is {eos}")
    yield "ids in configs", problems, f"{fields} fields, all ids below {rows}"


def _ids(value: Any) -> list[int]:  # noqa: ANN401 - a JSON value
    return value if isinstance(value, list) else [] if value is None else [value]


def _check_fresh_process(
    subject: _Subject,
    result: Verification,
    forward: bool,
    trust_remote_code: bool,
    allow_reader_mismatch: bool,
) -> None:
    expected = subject.expected
    probe = expected.probe if expected else probe_ids(subject.vocabulary)
    chat = expected.chat if expected else probe_chat(subject.vocabulary)
    bound, rows = subject.vocabulary.bound, subject.layout.rows
    holes = sorted(set(range(rows)) - subject.vocabulary.tokens.keys()) if bound <= rows else []
    seen = _run_probe(
        {
            "directory": str(subject.directory.resolve()),
            "trust_remote_code": trust_remote_code,
            "texts": [text for text, _ in probe],
            "messages": MESSAGES if chat else None,
            "forward": forward,
            "prompts": PROMPTS,
            "padding_ids": holes,
            "rows": rows,
        }
    )
    if "error" in seen:
        result.add("loads in a fresh process", [seen["error"]], "")
        return
    mismatches = _reader_mismatches(subject, probe, chat, seen)
    if mismatches and allow_reader_mismatch:
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
        result.notices.append(Notice("TS011", f"{framed[0][:4]} by tokenizer.json, {seen['framed'][0][:4]} on load"))
    if seen["warnings"]:
        result.notices.append(Notice("TS012", "; ".join(dict.fromkeys(seen["warnings"]))[:500]))
    if forward:
        _judge_model(subject, seen, result)
    else:
        result.notices.append(Notice("TS015", "verify.forward is off"))


def _run_probe(job: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tokensurgeon.checkpoint.probe"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"},
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return {"error": f"exit code {done.returncode}: {lines[-1] if lines else 'no message'}"}
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def _reader_mismatches(
    subject: _Subject,
    probe: list[tuple[str, list[int]]],
    chat: tuple[str, list[int]] | None,
    seen: dict[str, Any],
) -> list[str]:
    model_type, reader = subject.config.get("model_type"), seen["tokenizer_class"]
    wrong = [text for (text, ids), got in zip(probe, seen["ids"], strict=True) if ids != got]
    problems = []
    if wrong:
        problems.append(
            f"AutoTokenizer reads this tokenizer as {reader} because of model_type {model_type!r}: {len(wrong)} of "
            f"{len(probe)} probe texts get other ids than with tokenizer.json, such as {wrong[0][:40]!r}. "
            "PreTrainedTokenizerFast.from_pretrained(directory) reads it right"
        )
    if chat and seen["chat"] != list(chat):
        problems.append("the chat template renders other ids than the target's")
    return problems


def _judge_model(subject: _Subject, seen: dict[str, Any], result: Verification) -> None:
    model = seen["model"]
    problems = [f"{key}: {', '.join(names[:3])}" for key, names in model["problems"].items()]
    embedding = subject.layout.embedding.ref
    with embedding.path.open("rb") as file:
        if hash_tensor(embedding, file) != model["embedding_sha256"]:
            problems.append("the loaded input embedding differs from the file")
    result.add("loads in a fresh process", problems, f"{model['class']}, nothing missing, unexpected or new")
    result.add(
        "forward pass",
        [] if model["finite"] else ["logits are not finite"],
        f"finite; next tokens {', '.join(model['answers'])}" if model["answers"] else "finite",
    )
    margin = model["padding_margin"]
    if margin is not None:
        result.add(
            "ids without a token",
            [] if margin > 0 else [f"an id without a token wins by {-margin:.2f} logits"],
            f"never the most likely; {margin:.2f} logits below at the closest",
        )
    problems = []
    for role, counts in (
        (role, Counter(str(model[place][role]) for place in ("config_ids", "generation_ids")))
        for role in ("bos", "eos", "pad")
    ):
        own = seen["roles"].get(role)
        loaded = _ids(model["generation_ids"][role])
        if own is not None and loaded and own not in loaded:
            problems.append(f"{role}: tokenizer {own}, generation config {loaded}")
        elif len(counts) > 1 and model["generation_ids"][role] is not None:
            problems.append(f"{role}: {' against '.join(counts)} in config and generation config")
    result.add("ids after loading", problems, "config, generation config and tokenizer agree")
