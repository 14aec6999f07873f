"""A ``tokenizer.json`` that is being rewritten, and which of its tokens was which before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer


@dataclass(frozen=True)
class Edited:
    """A tokenizer that was made from another.

    Attributes:
        spec: Its ``tokenizer.json``, parsed.
        origins: Id here to id there, of the tokens both have, ascending; every other token is new.
        facts: What there is to tell of the edit, in the words of a report: ``{"kept": 512, ...}``.
    """

    spec: dict[str, Any] = field(repr=False)
    origins: dict[int, int] = field(repr=False)
    facts: dict[str, Any] = field(default_factory=dict)


def model_type(spec: dict[str, Any]) -> str:
    """``BPE``, ``Unigram``, ``WordPiece`` or ``WordLevel``, also where an old file does not say.

    Args:
        spec: ``tokenizer.json``, parsed.

    Returns:
        The type.
    """
    model = spec["model"]
    return model.get("type") or ("Unigram" if isinstance(model["vocab"], list) else "BPE")


def learnt_ids(spec: dict[str, Any]) -> dict[str, int]:
    """Id of each piece of the model, added tokens apart, by its printed form.

    Args:
        spec: ``tokenizer.json``, parsed.

    Returns:
        Pieces in the order of the file.
    """
    vocab = spec["model"]["vocab"]
    return {piece: i for i, (piece, _) in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)


def read_merges(spec: dict[str, Any]) -> list[tuple[str, str]]:
    """Merges of a BPE model in their order, whichever way the file writes them.

    Args:
        spec: ``tokenizer.json``, parsed.

    Returns:
        Pairs of printed forms.
    """
    merges = spec["model"].get("merges") or []
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges)
    return [(left, right) for left, right in pairs]


def renumber_processor(node: dict[str, Any] | None, new_ids: Mapping[int, int]) -> dict[str, Any] | None:
    """A post-processor that adds the same tokens by their new ids.

    Args:
        node: As in ``tokenizer.json``.
        new_ids: Old id to new id.

    Returns:
        As in ``tokenizer.json``.

    Raises:
        KeyError: It adds an id that has no new one.
    """
    if node is None:
        return None
    node = dict(node)
    if "processors" in node:
        node["processors"] = [renumber_processor(part, new_ids) for part in node["processors"]]
    if "special_tokens" in node:
        node["special_tokens"] = {
            name: {**entry, "ids": [new_ids[index] for index in entry["ids"]]}
            for name, entry in node["special_tokens"].items()
        }
    for end in ("sep", "cls"):
        if end in node:
            node[end] = [node[end][0], new_ids[node[end][1]]]
    return node


def open_tokenizer(spec: dict[str, Any]) -> Tokenizer:
    """The tokenizer that a spec describes, without its truncation and padding.

    Args:
        spec: ``tokenizer.json``, parsed.

    Returns:
        A ``tokenizers`` object.
    """
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
