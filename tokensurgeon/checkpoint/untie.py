"""Give a tied checkpoint an lm_head of its own, as far as headers and configs are concerned.

Which tensors are one in a tied checkpoint the model class knows, so it is asked. From here on the
checkpoint is seen as if it stored each of them: a copy is the same bytes under another name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokensurgeon.checkpoint.as_read import run_probe
from tokensurgeon.checkpoint.configs import untie_config
from tokensurgeon.checkpoint.index import CheckpointIndex
from tokensurgeon.checkpoint.layout import Layout, TensorRole, VocabTensor, role_of
from tokensurgeon.errors import InputError


@dataclass(frozen=True)
class Untied:
    """A checkpoint as if its two ends were stored apart.

    Attributes:
        index: Its tensors, those that were added included.
        layout: Its vocabulary tensors, those that were added last.
        added: Names of the tensors that it does not really store.
        was_tied: Whether the ends were tied; if not, nothing else differs.
    """

    index: CheckpointIndex
    layout: Layout
    added: tuple[str, ...]
    was_tied: bool


def untie(
    index: CheckpointIndex, layout: Layout, config: Mapping[str, Any], trust_remote_code: bool = False
) -> Untied:
    """See a checkpoint as if it stored its lm_head.

    Args:
        index: Its headers.
        layout: Its vocabulary tensors.
        config: Its ``config.json``.
        trust_remote_code: Whether code in the directory may run.

    Returns:
        The same checkpoint with all that its class ties stored apart.

    Raises:
        InputError: Its class has no lm_head, always ties it, computes something else when it does not, or
            ties tensors that have no rows for tokens.
    """
    seen = _ask_class(index.path, config, trust_remote_code)
    head, tied = seen["head"], seen["tied"]
    if head not in tied:
        if layout.tied:
            raise InputError(
                f"untie: {index.path} stores no lm_head, and {seen['class']} ties none",
                "a tied base with an lm_head",
                "leave untie out, or choose a checkpoint with an lm_head",
            )
        return Untied(index, layout, (), was_tied=False)
    if seen["obstacle"]:
        raise InputError(
            f"untie: {seen['class']} {seen['obstacle']}",
            "a base that computes the same with an lm_head of its own",
            "leave untie out, or choose another base",
        )
    # A head may be stored under a name that the loader translates.
    stored = index.tensors.keys() | (set() if layout.tied else {head})
    added = tuple(_copy(name, head, layout, seen["class"]) for name in sorted(tied.keys() - stored))
    return Untied(
        index.with_copies([tensor.ref for tensor in added]),
        Layout((*layout.tensors, *added), tied=False),
        tuple(tensor.name for tensor in added),
        was_tied=True,
    )


def _copy(name: str, head: str, layout: Layout, kind: str) -> VocabTensor:
    role = TensorRole.HEAD if name == head else role_of(name)
    origin = layout.find(TensorRole.BIAS) if role is TensorRole.BIAS else layout.embedding
    if role is None or origin is None:
        raise InputError(
            f"untie: {kind} ties {name}, too, which the base does not store",
            "a base that ties input embedding, lm_head and its bias, and nothing else",
            "leave untie out, or choose another base",
        )
    return VocabTensor(replace(origin.ref, name=name), role, origin.axis)


def _ask_class(directory: Path, config: Mapping[str, Any], trust_remote_code: bool) -> dict[str, Any]:
    seen = run_probe(
        {
            "task": "ties",
            "directory": str(directory.resolve()),
            "trust_remote_code": trust_remote_code,
            "config": config,
            "untied_config": untie_config(config)[0],
        }
    )
    if "error" in seen:
        raise InputError(
            f"untie: {directory}: {seen['error']}",
            "a model class that transformers can set up",
            "leave untie out",
        )
    return seen
