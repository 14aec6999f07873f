"""Check an output directory: against what it must be, and as a user's own program would find it.

Everything is read again from disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokensurgeon.checkpoint.as_read import ReadOptions, check_as_read
from tokensurgeon.checkpoint.configs import (
    as_ids,
    read_config,
    refuse_remote_code,
    remaining_ids,
    text_levels,
)
from tokensurgeon.checkpoint.expectation import (
    MADE,
    Expectation,
    hash_rows,
    load_expectation,
    row_digests,
    token_rows,
)
from tokensurgeon.checkpoint.index import CheckpointIndex, read_index
from tokensurgeon.checkpoint.layout import Layout, TensorRole, VocabTensor, find_layout
from tokensurgeon.checkpoint.reader import map_tensor
from tokensurgeon.checkpoint.sidefiles import tokenizer_files
from tokensurgeon.checkpoint.stream import hash_all, hash_file, hash_tensor
from tokensurgeon.checkpoint.subject import Subject, Verification
from tokensurgeon.console import progress
from tokensurgeon.errors import InputError
from tokensurgeon.vocab.vocabulary import load_vocabulary

_CHUNK = 16384


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
    if not trust_remote_code:
        refuse_remote_code(directory)
    index = read_index(directory)
    expected = load_expectation(directory)
    layout = _layout(index, config, expected)
    subject = Subject(directory, index, config, layout, load_vocabulary(directory), expected)
    result = Verification()
    for check in (_check_files, _check_body, _check_shapes, _check_copies, _check_health, _check_ids):
        for name, problems, detail in check(subject):
            result.add(name, problems, detail)
    options = ReadOptions(forward, trust_remote_code, allow_reader_mismatch)
    check_as_read(subject, result, options)
    return result


def _layout(index: CheckpointIndex, config: dict[str, Any], expected: Expectation | None) -> Layout:
    """The vocabulary tensors: those that were written, or what names and shapes tell."""
    if expected is None:
        return find_layout(index, config)
    tensors = index.tensors
    known = tuple(
        VocabTensor(tensors[name], TensorRole(rows.role), rows.axis)
        for name, rows in expected.vocab.items()
        if name in tensors and len(tensors[name].shape) == len(rows.shape)
    )
    if not known or known[0].role is not TensorRole.EMBEDDING:
        raise InputError(
            f"{index.path}: no input embedding",
            f"{next(iter(expected.vocab), 'one')}, as provenance.json says",
        )
    return Layout(known, tied=not any(tensor.role is TensorRole.HEAD for tensor in known))


_Checks = Iterator[tuple[str, list[str], str]]


def _check_files(subject: Subject) -> _Checks:
    present = {path.name for path in subject.directory.iterdir()}
    known = {shard.path.name for shard in subject.index.shards}
    stray = sorted(n for n in present - known if n.endswith((".safetensors", ".bin")))
    yield "weights", [f"stray {name}" for name in stray], f"{len(known)} shard(s), headers and index agree"
    if subject.expected is not None:
        changed = subject.expected.rewritten
        wrong = [
            name
            for name, digest in subject.expected.files.items()
            if not (subject.directory / name).is_file() or hash_file(subject.directory / name) != digest
        ]
        extra = [str(path) for path in tokenizer_files(subject.directory)]
        wrong += [name for name in extra if name not in subject.expected.files]
        yield (
            "tokenizer files",
            [
                f"{name} is not what was written" if name in changed else f"{name} is not the target's"
                for name in wrong
            ],
            f"{len(subject.expected.files) - len(changed)} equal to the target's byte for byte"
            + "".join(f", {name} as it was rewritten" for name in changed),
        )


def _check_body(subject: Subject) -> _Checks:
    if subject.expected is None:
        return
    tensors = subject.index.tensors
    body, vocab, trained = subject.expected.body, subject.expected.vocab, set(subject.expected.trained)
    problems = [f"{name} missing" for name in [*body, *vocab] if name not in tensors]
    problems += [f"{name} unexpected" for name in tensors if name not in body and name not in vocab]
    refs = [ref for name, ref in tensors.items() if name in body]
    with progress("hashing", sum(ref.nbytes for ref in refs), "bytes") as advance:
        digests = hash_all(hash_tensor, refs, advance)
    for ref, digest in zip(refs, digests, strict=True):
        want = body[ref.name]
        if (ref.dtype, list(ref.shape)) != (want.dtype, want.shape):
            problems.append(f"{ref.name} is {ref.dtype} {list(ref.shape)}")
        elif digest != want.sha256:
            wanted = "training gave it" if ref.name in trained else "in the base"
            problems.append(f"{ref.name} has other bytes than {wanted}")
    same = f"{len(body) - len(trained)} tensors byte-identical to the base"
    yield "body", problems, same + (f", {len(trained)} as they were trained" if trained else "")


def _check_shapes(subject: Subject) -> _Checks:
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


def _check_copies(subject: Subject) -> _Checks:
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
        if (ids and ids[-1] >= len(rows)) or hash_rows(rows, ids) != want.copied_sha256:
            problems.append(f"{name}: copied rows differ from the base's")
        if want.equal_to and not (
            want.equal_to in subject.layout.names and torch.equal(rows, subject.rows(want.equal_to))
        ):
            problems.append(f"{name} no longer equals {want.equal_to}")
    yield "copied rows", problems, f"{copied} rows bit-equal to the base's"


def _check_health(subject: Subject) -> _Checks:
    infinite, vanished, repeated = [], [], []
    for tensor in subject.layout.tensors:
        if tensor.role is TensorRole.BIAS:
            continue
        rows = token_rows(map_tensor(tensor.ref), tensor.axis)
        want = subject.expected.vocab.get(tensor.name) if subject.expected else None
        # Another number of rows than expected is reported by its own check.
        origins = want.source[: len(rows)] if want else []
        fresh = [i for i, source in enumerate(origins) if source == MADE]
        for start in range(0, len(rows), _CHUNK):
            part = rows[start : start + _CHUNK].float()
            bad = (~torch.isfinite(part).all(dim=1)).nonzero()[:, 0] + start
            infinite += [f"{tensor.name}[{i}] is not finite" for i in bad.tolist()]
            if want is None:
                continue
            zero = (part == 0).all(dim=1).nonzero()[:, 0] + start
            vanished += [
                f"{tensor.name}[{i}] is zero"
                for i in zero.tolist()
                if i < len(origins) and origins[i] < 0 and not want.may_vanish
            ]
        if want and not want.equal_to:
            repeated += _repeats(rows, fresh, set(want.may_repeat), tensor.name)
    yield "finite", infinite, "no NaN or infinity in any row"
    if subject.expected is not None:
        yield "no zero rows", vanished, "no made or padding row is zero"
        yield "no repeated rows", repeated, "no made row repeats another"


def _repeats(rows: Tensor, fresh: list[int], allowed: set[int], name: str) -> list[str]:
    seen: dict[bytes, int] = {}
    problems = []
    for index, digest in zip(fresh, row_digests(rows, fresh), strict=True):
        first = seen.setdefault(digest, index)
        if first != index and not {first, index} <= allowed:
            problems.append(f"{name}[{index}] equals {name}[{first}]")
    return problems


def _check_ids(subject: Subject) -> _Checks:
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
    stops = as_ids(configs["generation_config.json"].get("eos_token_id"))
    if eos is not None and stops and eos not in stops:
        problems.append(f"generation_config.json stops at {stops}, the tokenizer's EOS is {eos}")
    yield "ids in configs", problems, f"{fields} fields, all ids below {rows}"
