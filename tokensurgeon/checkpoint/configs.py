"""``config.json`` and ``generation_config.json`` of the output: every token id and every vocabulary size.

The target tokenizer says what BOS, EOS and the other roles are; every other id follows its token. An
id without a counterpart becomes null, because a key that is merely left out comes back on load with the
default of the model class.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokensurgeon.errors import InputError, PolicyError

_ROLE_FIELD = re.compile(r"^(bos|eos|pad|unk|sep|cls|mask)_token_id$")
_ID_FIELD = re.compile(r"_token_(id|index|ids|indices)$")
_ID_LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")
_FORCED = "forced_decoder_ids"
_SIZE_FIELDS = ("vocab_size", "decoder_vocab_size", "embedding_size", "n_vocab", "padded_vocab_size")
_PER_LAYER_SIZE = "vocab_size_per_layer_input"
_NESTED_TEXT = ("text_config", "language_config", "llm_config")
_TEXT_LEVELS = ("", *_NESTED_TEXT, "decoder", "encoder")
_TIED = "tie_word_embeddings"


@dataclass(frozen=True)
class ConfigChange:
    """One field that differs from the base.

    Attributes:
        file: ``config.json`` or ``generation_config.json``.
        field: Dotted path.
        old: Value in the base; None where there was none.
        new: Value in the output.
    """

    file: str
    field: str
    old: Any
    new: Any


@dataclass(frozen=True)
class IdRemap:
    """Where token ids go.

    Attributes:
        successors: Base id to the target ids that carry its row.
        roles: Role to id in the target tokenizer.
        stops: Ids at which the target's own model stops, the tokenizer's EOS first.
        rows: Rows of the output.
        old_sizes: Numbers that mean "vocabulary size" in the base.
        identity: Whether nothing moves; a field that is absent then stays absent.
    """

    successors: Callable[[int], list[int]]
    roles: Mapping[str, int]
    stops: Sequence[int]
    rows: int
    old_sizes: frozenset[int]
    identity: bool = False

    def ids(self, value: Any) -> list[int]:  # noqa: ANN401 - a JSON value
        """Follow one id or a list of ids; those without a counterpart are dropped."""
        old = value if isinstance(value, list) else [value]
        return list(
            dict.fromkeys(new for index in old if type(index) is int for new in self.successors(index))
        )


def read_config(directory: Path, name: str = "config.json", optional: bool = False) -> dict[str, Any]:
    """Read a JSON config of a checkpoint.

    Args:
        directory: The checkpoint.
        name: The file.
        optional: Whether a missing file is an empty config.

    Returns:
        The parsed config.

    Raises:
        InputError: The file is missing or no JSON object.
    """
    path = directory / name
    if not path.is_file():
        if optional:
            return {}
        raise InputError(f"{directory}: no {name}", "a Hugging Face checkpoint directory")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {error}", "a JSON document") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "a file that can be read") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: {type(config).__name__}", "a JSON object")
    return config


def refuse_remote_code(directory: Path) -> None:
    """Refuse a checkpoint or tokenizer that asks to run its own code.

    Args:
        directory: A checkpoint or a tokenizer.

    Raises:
        PolicyError: Its configs name code.
    """
    for name in ("config.json", "tokenizer_config.json"):
        if "auto_map" in read_config(directory, name, optional=True):
            raise PolicyError(
                f"{directory / name}: auto_map asks to run code that comes with the model",
                "a model that the installed transformers knows",
                "read the code, then set trust_remote_code: true (--trust-remote-code)",
            )


def dump_config(config: Mapping[str, Any]) -> str:
    """Write a config as text: keys in their order, UTF-8, one newline at the end."""
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def text_levels(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The levels of a config that describe a text model, the outermost first."""
    return [
        level for name in _TEXT_LEVELS if isinstance(level := config.get(name) if name else config, Mapping)
    ]


def find_pad(config: Mapping[str, Any]) -> int | None:
    """The padding id of a config's text model."""
    found = [level["pad_token_id"] for level in text_levels(config) if level.get("pad_token_id") is not None]
    return found[-1] if found and type(found[-1]) is int else None


def rewrite_config(config: Mapping[str, Any], remap: IdRemap) -> tuple[dict[str, Any], list[ConfigChange]]:
    """Rewrite ``config.json`` for the target tokenizer.

    Args:
        config: The base's config.
        remap: Where token ids go.

    Returns:
        The new config, keys in the old order, and what changed.

    Raises:
        InputError: A field for token ids holds something else.
    """
    _refuse_no_ids("config.json", config)
    new = _rewrite_level(config, remap, "")
    return new, _differences("config.json", config, new)


def complete_config(config: Mapping[str, Any], remap: IdRemap) -> tuple[dict[str, Any], list[ConfigChange]]:
    """Write what ``config.json`` leaves to the defaults of its class, which know another tokenizer.

    Args:
        config: A rewritten config.
        remap: Where token ids go.

    Returns:
        The config with vocabulary size, BOS, EOS and padding at its text level, and what was added.
    """
    nested = config.get("text_config")
    levels = text_levels(config)
    keys = {f"{role}_token_id": _role_value(role, None, remap) for role in ("bos", "eos", "pad")}
    added = {
        key: _for_class(levels[-1], key, value)
        for key, value in {"vocab_size": remap.rows, **keys}.items()
        if not any(key in level for level in levels)
    }
    new = (
        {**config, "text_config": {**nested, **added}} if isinstance(nested, Mapping) else {**config, **added}
    )
    return new, _differences("config.json", config, new)


def untie_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[ConfigChange]]:
    """Say in ``config.json`` that the lm_head has rows of its own, at every level that a reader may ask.

    Args:
        config: Any config.

    Returns:
        The config and what changed.
    """
    new = _untie_level(config)
    return new, _differences("config.json", config, new)


def _untie_level(config: Mapping[str, Any]) -> dict[str, Any]:
    new = {
        # transformers asks the outermost level, others the text level; some tie where neither says so.
        key: _untie_level(value)
        if isinstance(value, Mapping) and (_TIED in value or key in _NESTED_TEXT)
        else value
        for key, value in config.items()
    }
    return {**new, _TIED: False}


def rewrite_generation_config(
    config: Mapping[str, Any], model_config: Mapping[str, Any], remap: IdRemap
) -> tuple[dict[str, Any], list[ConfigChange]]:
    """Rewrite ``generation_config.json``; its stops are those of the base and of the target together.

    Args:
        config: The base's generation config; empty when it has none.
        model_config: The base's ``config.json``, for stops that only it names.
        remap: Where token ids go.

    Returns:
        The new config and what changed.

    Raises:
        InputError: A field for token ids holds something else.
    """
    _refuse_no_ids("generation_config.json", config)
    new = _rewrite_level(config, remap, "")
    for role in ("bos", "eos", "pad"):
        key = f"{role}_token_id"
        named = [index for level in text_levels(model_config) for index in as_ids(level.get(key))]
        if key not in config and named:
            new[key] = _role_value(role, _collapse(named) if role == "eos" else named[0], remap)
        elif role == "eos" and named and not remap.identity:
            new[key] = _collapse([*as_ids(new[key]), *remap.ids(named)])
    if remap.stops and not new.get("eos_token_id"):
        new["eos_token_id"] = _collapse(remap.stops)
    for role in ("bos", "pad"):
        if role in remap.roles:
            new[f"{role}_token_id"] = remap.roles[role]
    return new, _differences("generation_config.json", config, new)


def remaining_ids(config: Mapping[str, Any], prefix: str = "") -> dict[str, list[int]]:
    """Every token id a config still names, by dotted path.

    Args:
        config: A config.
        prefix: Path of this level.

    Returns:
        Ids by path; the list is empty where the field is null.

    Raises:
        InputError: A field for token ids holds something else.
    """
    if not prefix:
        _refuse_no_ids("config", config)
    found: dict[str, list[int]] = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= remaining_ids(value, f"{path}.")
        elif _is_id_field(key) or key == _FORCED:
            ids = [index for index in _flat(value) if type(index) is int and index >= 0]
            if key == _FORCED:
                ids = [pair[1] for pair in value or [] if type(pair[1]) is int]
            found[path] = ids
    return found


def _refuse_no_ids(file: str, config: Mapping[str, Any], prefix: str = "") -> None:
    for key, value in config.items():
        if isinstance(value, Mapping) and not (_ROLE_FIELD.match(key) or key in (*_ID_LISTS, _FORCED)):
            _refuse_no_ids(file, value, f"{prefix}{key}.")
        elif value is not None and not _has_ids(key, value):
            raise InputError(
                f"{file}: {prefix}{key} is {repr(value)[:80]}",
                "a token id, or a list of what the field is a list of",
                "correct the file",
            )


def _has_ids(key: str, value: Any) -> bool:  # noqa: ANN401 - a JSON value
    """Whether a field that is made of token ids is; true of all other fields."""
    if key not in (_FORCED, "bad_words_ids"):
        return not _is_id_field(key) or all(type(i) is int for i in as_ids(value))
    if not (isinstance(value, list) and all(isinstance(part, list) for part in value)):
        return False
    if key == _FORCED:
        return all(
            len(part) == 2 and type(part[0]) is int and type(part[1]) in (int, type(None)) for part in value
        )
    return all(type(i) is int for word in value for i in word)


def _is_id_field(key: str) -> bool:
    return bool(_ID_FIELD.search(key)) or key in _ID_LISTS


def _rewrite_level(config: Mapping[str, Any], remap: IdRemap, prefix: str) -> dict[str, Any]:
    new: dict[str, Any] = {}
    is_text = prefix in _TEXT_LEVELS
    for key, value in config.items():
        role = _ROLE_FIELD.match(key)
        if isinstance(value, Mapping):
            new[key] = _rewrite_level(value, remap, key)
        elif (key == "vocab_size" and is_text) or (
            key in (*_SIZE_FIELDS, _PER_LAYER_SIZE) and value in remap.old_sizes
        ):
            new[key] = remap.rows
        elif role and is_text:
            new[key] = _for_class(config, key, _role_value(role.group(1), value, remap))
        elif isinstance(value, list) and not value:
            new[key] = value
        elif key == _FORCED:
            # Whisper: null is a token still to be found out.
            new[key] = [
                [place, ids[0] if ids else None]
                for place, old in value or []
                if (ids := remap.ids(old)) or old is None
            ] or None
        elif key == "bad_words_ids":
            words = [[remap.ids(index) for index in word] for word in value or []]
            new[key] = [[ids[0] for ids in word] for word in words if all(word)] or None
        elif _is_id_field(key) and value is not None:
            ids = remap.ids(value)
            new[key] = (ids or None) if isinstance(value, list) else (ids[0] if ids else None)
        else:
            new[key] = value
    return new


def _role_value(role: str, old: Any, remap: IdRemap) -> int | list[int] | None:  # noqa: ANN401
    followed = remap.ids(old) if old is not None else []
    if role == "eos":
        stops = [*remap.stops, *followed]
        same = old is not None and set(stops) == set(as_ids(old))
        return old if same else _collapse(stops)
    if role in remap.roles:
        return remap.roles[role]
    return followed[0] if followed else None


def _for_class(level: Mapping[str, Any], key: str, value: Any) -> Any:  # noqa: ANN401 - a JSON value
    """What the class of a config takes: some take one id for a role, and refuse to load with several."""
    if not isinstance(value, list) or "model_type" not in level:
        return value
    from transformers import CONFIG_MAPPING

    try:
        fields = getattr(CONFIG_MAPPING[level["model_type"]], "__dataclass_fields__", {})
    except KeyError:
        return value  # a class that comes with the model
    return value if key not in fields or "list" in str(fields[key].type) else value[0]


def _collapse(ids: Sequence[int]) -> int | list[int] | None:
    unique = list(dict.fromkeys(ids))
    if not unique:
        return None
    return unique[0] if len(unique) == 1 else unique


def as_ids(value: int | list[int] | None) -> list[int]:
    """A config's id, list of ids or null as a list.

    Args:
        value: A config value.

    Returns:
        The ids.
    """
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _flat(value: Any) -> list[Any]:  # noqa: ANN401 - a JSON value
    return [item for part in value for item in _flat(part)] if isinstance(value, list) else [value]


def _differences(
    file: str, old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> list[ConfigChange]:
    changes = []
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changes += _differences(file, before, after, f"{prefix}{key}.")
        elif before != after or (key in new) != (key in old):
            changes.append(ConfigChange(file, f"{prefix}{key}", before, after))
    return changes
