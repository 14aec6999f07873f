"""Whether an engine takes one model as the draft of another for speculative decoding.

An engine's rule is what it compares itself, in its order, read in its source; one of which no comparison
was found is not judged. Some engines look at sizes only and would take a draft that means other tokens by its
ids, so what no draft can do without is a rule of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from tokensurgeon.checkpoint.configs import read_config, text_levels
from tokensurgeon.checkpoint.index import find_weights, read_index
from tokensurgeon.checkpoint.layout import find_layout, is_vocab_name
from tokensurgeon.errors import InputError, VerificationError
from tokensurgeon.vocab.probe import probe_texts
from tokensurgeon.vocab.vocabulary import Vocabulary, load_vocabulary

_EDGES = ("bos", "eos")

# llama.cpp's, see RULES.
_SLACK = 128
_FIRST_COMPARED = 5


@dataclass(frozen=True)
class Side:
    """One of the two models, as engines see its vocabulary.

    Attributes:
        vocabulary: Its tokenizer.
        size: ``vocab_size`` of its config.
        rows: Rows stored; None where they cannot be told.
        ids: Id of BOS and EOS, by role; None for a role without a token.
        adds: Whether the tokenizer puts BOS in front and EOS at the end, by role.
    """

    vocabulary: Vocabulary
    size: int
    rows: int | None
    ids: dict[str, int | None]
    adds: dict[str, bool]

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.vocabulary.path

    @property
    def kind(self) -> str:
        """Family and algorithm of its tokenizer."""
        return f"{self.vocabulary.family} {self.vocabulary.spec['model'].get('type')}"

    @property
    def facts(self) -> dict[str, Any]:
        """What is compared, for a table."""
        return {
            "path": str(self.path),
            "vocab_size": self.size,
            "stored rows": self.rows,
            "tokens": len(self.vocabulary),
            "highest id": self.vocabulary.bound - 1,
            "tokenizer": self.kind,
            **{role.upper(): self.name_edge(role) for role in _EDGES},
        }

    def name_edge(self, role: str) -> str:
        """BOS or EOS for a person, and whether it is added."""
        index = self.ids[role]
        name = "none" if index is None else f"{index} {self.name_token(index)}"
        return f"{name} ({'added' if self.adds[role] else 'not added'})"

    def name_token(self, index: int) -> str:
        """The printed form of a token for a person."""
        token = self.vocabulary.tokens.get(index)
        return "no token" if token is None else repr(token.content)


class Result(StrEnum):
    """What a rule says of a pair."""

    PASSES = "passes"
    FAILS = "fails"
    UNCHECKED = "not checked"


@dataclass(frozen=True)
class Verdict:
    """What one rule says of a pair.

    Attributes:
        rule: A key of ``RULES``.
        result: Whether the pair passes.
        reason: The first difference, or why there is no verdict; what was compared if it passes.
    """

    rule: str
    result: Result
    reason: str


Check = Callable[[Side, Side], str | None]
"""Target, draft -> the first difference, if there is one."""


def load_side(directory: Path, vocabulary: Vocabulary | None = None) -> Side:
    """Read what engines compare: tokenizer, config and headers; no weights.

    Args:
        directory: A checkpoint.
        vocabulary: Its tokenizer, where that is read already.

    Returns:
        One side of a pair.

    Raises:
        InputError: It has no config or tokenizer that can be read, or its weights are damaged.
    """
    config = read_config(directory)
    return make_side(vocabulary or load_vocabulary(directory), config, _stored_rows(directory, config))


def _stored_rows(directory: Path, config: Mapping[str, Any]) -> int | None:
    """Rows of the input embedding; None where it is not there, as from the hub, or quantised."""
    if not any(directory.glob("*.safetensors")):
        return None
    names, index = find_weights(directory)
    if index is not None:
        names = sorted({file for name, file in index["weight_map"].items() if is_vocab_name(name)})
    if not all((directory / name).is_file() for name in names):
        return None
    headers = read_index(directory, names)
    try:
        return find_layout(headers, config).rows
    except InputError:
        return None


def make_side(vocabulary: Vocabulary, config: Mapping[str, Any], rows: int | None) -> Side:
    """Put together what engines compare.

    Args:
        vocabulary: The tokenizer.
        config: ``config.json``.
        rows: Rows stored, if known.

    Returns:
        One side of a pair.

    Raises:
        InputError: There is no vocabulary size.
    """
    sizes = [level["vocab_size"] for level in text_levels(config) if type(level.get("vocab_size")) is int]
    size = sizes[-1] if sizes else rows
    if size is None:
        raise InputError(f"{vocabulary.path}: no vocab_size in config.json", "the config of a language model")
    settings = read_config(vocabulary.path, "tokenizer_config.json", optional=True)
    ids = {role: _edge_id(vocabulary, config, role) for role in _EDGES}
    framed = vocabulary.encode("Hello", specials=True)
    ends = {"bos": framed[:1], "eos": framed[-1:]}
    adds = {}
    for role in _EDGES:
        said = settings.get(f"add_{role}_token")
        # The same order as llama.cpp's converter (gguf-py/gguf/vocab.py, read 2026-11-26): the setting first.
        adds[role] = said if isinstance(said, bool) else ids[role] is not None and ends[role] == [ids[role]]
    return Side(vocabulary, size, rows, ids, adds)


def _edge_id(vocabulary: Vocabulary, config: Mapping[str, Any], role: str) -> int | None:
    if role in vocabulary.roles:
        return vocabulary.roles[role]
    stated = [level.get(f"{role}_token_id") for level in text_levels(config)]
    return next((index for index in stated if type(index) is int), None)


def judge_draft(target: Side, draft: Side, engines: Iterable[str] | None = None) -> list[Verdict]:
    """Apply rules to a pair.

    Args:
        target: The model that is served.
        draft: The small one that is to guess its tokens.
        engines: Keys of ``RULES``; None for all. What every draft needs is judged in any case.

    Returns:
        One verdict a rule, what every draft needs first.
    """
    asked = [NEEDS, *(engine for engine in (engines or RULES) if engine != NEEDS)]
    return [_apply(rule, target, draft) for rule in dict.fromkeys(asked)]


def refuse_unfit(verdicts: Iterable[Verdict], target: Path, must_pass: Iterable[str] = ()) -> None:
    """Refuse a draft that fails a rule.

    Args:
        verdicts: As `judge_draft` gives them.
        target: The model that is served, for the message.
        must_pass: Rules for which it is not enough that they were not checked.

    Raises:
        VerificationError: One of them fails.
    """
    strict = set(must_pass)
    unfit = [
        verdict
        for verdict in verdicts
        if verdict.result is Result.FAILS or (verdict.result is Result.UNCHECKED and verdict.rule in strict)
    ]
    if unfit:
        raise VerificationError(
            "\n".join(f"{verdict.rule}: {verdict.result}: {verdict.reason}" for verdict in unfit),
            f"a draft with the vocabulary of {target}",
            f"tokensurgeon transplant DRAFT {target} OUT --match-vocab-of {target}",
        )


def _apply(rule: str, target: Side, draft: Side) -> Verdict:
    checks = RULES[rule]
    if not checks:
        return Verdict(rule, Result.UNCHECKED, _UNKNOWN[rule])
    found = next(filter(None, (check(target, draft) for check in checks)), None)
    if found is not None:
        return Verdict(rule, Result.FAILS, found)
    return Verdict(rule, Result.PASSES, ", ".join(_SAME[check] for check in checks))


def _rows(target: Side, draft: Side) -> str | None:
    for name, side in (("target", target), ("draft", draft)):
        if side.rows not in (None, side.size):
            return f"the {name} stores {side.rows} rows, its config says {side.size}"
    return None


def _bytes(target: Side, draft: Side) -> str | None:
    one, other = target.vocabulary.tokens, draft.vocabulary.tokens
    differing = [index for index in one if index in other and one[index].data != other[index].data]
    if not differing:
        return None
    first = differing[0]
    return (
        f"token {first} is {one[first].text!r} in the target, {other[first].text!r} in the draft, "
        f"the first of {len(differing):,} that differ"
    )


def _cuts(target: Side, draft: Side) -> str | None:
    for text in probe_texts(target.vocabulary):
        one, other = target.vocabulary.encode(text), draft.vocabulary.encode(text)
        if one != other:
            pairs = zip(one, other, strict=False)
            place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
            return (
                f"{text[:40]!r} is cut otherwise: its token {place + 1} is {_at(one, place, target)} in the "
                f"target, {_at(other, place, draft)} in the draft"
            )
    return None


def _at(ids: list[int], place: int, side: Side) -> str:
    return f"{ids[place]} {side.name_token(ids[place])}" if place < len(ids) else "none"


def _size(target: Side, draft: Side) -> str | None:
    if target.size == draft.size:
        return None
    first = min(target.size, draft.size)
    one, other = (
        "past the end" if side.size == first else side.name_token(first) for side in (target, draft)
    )
    return (
        f"vocab_size is {target.size} in the target, {draft.size} in the draft; "
        f"id {first} is {one} in the target, {other} in the draft"
    )


def _mapping(target: Side, draft: Side) -> str | None:
    one, other = (side.vocabulary.tokenizer.get_vocab() for side in (target, draft))
    differing = {index for _, index in one.items() ^ other.items()}
    if not differing:
        return None
    first = min(differing)
    return (
        f"token {first} is {target.name_token(first)} in the target, {draft.name_token(first)} in the draft"
    )


def _kind(target: Side, draft: Side) -> str | None:
    if target.kind == draft.kind:
        return None
    return f"the target's tokenizer is {target.kind}, the draft's {draft.kind}"


def _edge(role: str, target: Side, draft: Side) -> str | None:
    same = target.adds[role] == draft.adds[role]
    if same and (not target.adds[role] or target.ids[role] == draft.ids[role]):
        return None
    return f"{role.upper()} is {target.name_edge(role)} in the target, {draft.name_edge(role)} in the draft"


def _bos(target: Side, draft: Side) -> str | None:
    return _edge("bos", target, draft)


def _eos(target: Side, draft: Side) -> str | None:
    return _edge("eos", target, draft)


def _near_size(target: Side, draft: Side) -> str | None:
    difference = abs(target.size - draft.size)
    if difference <= _SLACK:
        return None
    return f"{_size(target, draft)}; {difference} apart, {_SLACK} are allowed"


def _printed(target: Side, draft: Side) -> str | None:
    for index in range(_FIRST_COMPARED, min(target.size, draft.size)):
        one, other = target.vocabulary.tokens.get(index), draft.vocabulary.tokens.get(index)
        # An id without a token is called [PAD<id>] by the converter, on both sides.
        if (one and one.content) != (other and other.content):
            return (
                f"token {index} is {target.name_token(index)} in the target, {draft.name_token(index)} "
                "in the draft"
            )
    return None


_SAME: dict[Check, str] = {
    _rows: "rows as the configs say",
    _bytes: "same tokens",
    _cuts: "same cuts",
    _size: "same vocab_size",
    _mapping: "same tokens and ids",
    _kind: "same kind of tokenizer",
    _bos: "same BOS",
    _eos: "same EOS",
    _near_size: f"vocab_size within {_SLACK}",
    _printed: f"same tokens from id {_FIRST_COMPARED}",
}

NEEDS = "every draft"

# Sources read on 2026-11-26, as of the newest stored versions.
RULES: dict[str, tuple[Check, ...]] = {
    NEEDS: (_rows, _bytes, _cuts),
    # vllm/config/speculative.py, verify_equal_vocab_size_if_draft_model: the two configs, for
    # method "draft_model" without use_heterogeneous_vocab.
    "vllm": (_size,),
    # python/sglang/srt/speculative/standalone_worker_v2.py, _validate_vocab_compatibility (pull 23838): the
    # two configs, then get_vocab() of both tokenizers. Older versions compare nothing.
    "sglang": (_size, _mapping),
    # common/speculative.cpp at 001d906a, common_speculative_are_compatible, on what convert_hf_to_gguf.py
    # writes: as many tokens as vocab_size says.
    "llamacpp": (_kind, _bos, _eos, _near_size, _printed),
    # cpp/serve/engine.cc makes one logit processor with the target's size for both models;
    # cpp/serve/logit_processor.cc at 00c44c3c checks the logits' width against it (issue 3212).
    "mlc": (_size,),
    # tensorrt_llm/llmapi/llm_args.py, DraftTargetDecodingConfig, and _torch/speculative/draft_target.py
    # compare nothing; what its kernels need was not found.
    "tensorrt-llm": (),
}
_UNKNOWN = {"tensorrt-llm": "no comparison of vocabularies was found in its source"}
