"""Which file of the output comes from where.

====================  ==========================================================================
from the target       tokenizer files and chat templates, byte for byte
rebuilt               config.json, generation_config.json, weights and their index, README.md, the report,
                      id_map.json, made_from.json
never                 weights in other formats, the base's tokenizer files, hidden folders
from the base         everything else (processors, custom code, licence); listed in the report
====================  ==========================================================================
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from tokensurgeon.errors import PolicyError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
)
_TOKENIZER_SUFFIXES = (".tiktoken", ".spm", ".model")
_TOKENIZER_PREFIX = "tokenizer.model."  # Mistral's tokenizer.model.v3
_TEMPLATE_FOLDER = "additional_chat_templates"
ID_MAP = "id_map.json"
RECORD = "made_from.json"
REPORT_FILES = ("report.json", "report.html", "provenance.json", ID_MAP, RECORD)
_REBUILT = ("config.json", "generation_config.json", "README.md", *REPORT_FILES)
_FRONT_MATTER = re.compile(r"\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
_CARRIED_FIELDS = ("license", "license_name", "license_link", "language", "pipeline_tag")
_WEIGHT_SUFFIXES = (
    ".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".ckpt", ".h5",
    ".msgpack", ".gguf", ".onnx", ".onnx_data", ".npz", ".tflite", ".mlmodel", ".ot", ".h5.index.json",
    ".msgpack.index.json", ".onnx.data", ".pkl", ".pickle",
)  # fmt: skip


def is_tokenizer_file(path: Path) -> bool:
    """Whether a file, relative to its checkpoint, belongs to the tokenizer."""
    return (
        path.name in TOKENIZER_FILES
        or path.name.endswith(_TOKENIZER_SUFFIXES)
        or path.name.startswith(_TOKENIZER_PREFIX)
        or path.parts[0] == _TEMPLATE_FOLDER
    )


def tokenizer_files(target: Path) -> list[Path]:
    """Files that the output takes from the target tokenizer, relative, sorted.

    Args:
        target: A checkpoint or a tokenizer.

    Returns:
        Their names.

    Raises:
        PolicyError: One of them is a link to somewhere else.
    """
    found = [path for path in _walk(target) if is_tokenizer_file(path) and _is_shallow(path)]
    _refuse_links_elsewhere(target, found)
    return found


def carried_files(base: Path) -> list[Path]:
    """Files that the output takes from the base, relative, sorted.

    Args:
        base: A checkpoint.

    Returns:
        Their names.

    Raises:
        PolicyError: One of them is a link to somewhere else.
    """
    found = [
        path
        for path in _walk(base)
        if not is_tokenizer_file(path)
        and not (path.name in _REBUILT and len(path.parts) == 1)
        and not path.name.endswith(_WEIGHT_SUFFIXES)
    ]
    # What is rebuilt from a file holds what that file says.
    rebuilt = [Path(name) for name in ("config.json", "generation_config.json") if (base / name).is_file()]
    _refuse_links_elsewhere(base, [*rebuilt, *found])
    return found


def plain_files(directory: Path) -> list[Path]:
    """All files of a checkpoint but weights, relative, sorted; those of hidden folders are left out."""
    return [path for path in _walk(directory) if not path.name.endswith(_WEIGHT_SUFFIXES)]


def read_card(directory: Path) -> dict[str, str | list[str]]:
    """What a model card says in its front matter that holds for a model made of it, too.

    Args:
        directory: A checkpoint.

    Returns:
        Licence, languages and task, as far as they are told; nothing for a card that cannot be read.
    """
    try:
        text = (directory / "README.md").read_text(encoding="utf-8")
        found = _FRONT_MATTER.match(text)
        head = yaml.safe_load(found[1]) if found else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    if not isinstance(head, dict):
        return {}
    return {key: head[key] for key in _CARRIED_FIELDS if _is_text(head.get(key))}


def _is_text(value: object) -> bool:
    parts = value if isinstance(value, list) and value else [value]
    return all(isinstance(part, str) and part for part in parts)


def _is_shallow(path: Path) -> bool:
    return len(path.parts) == 1 or path.parts[0] == _TEMPLATE_FOLDER


def _walk(directory: Path) -> list[Path]:
    return sorted(
        path.relative_to(directory)
        for path in directory.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(directory).parts[:-1])
    )


def _refuse_links_elsewhere(directory: Path, files: list[Path]) -> None:
    """What a checkpoint links to may be anybody's: it must not get into an output, and so onto the hub."""
    home = directory.resolve()
    # In the hub's cache, files of snapshots/REVISION are links into its neighbour blobs.
    places = (home, home.parent.parent / "blobs") if home.parent.name == "snapshots" else (home,)
    for name in files:
        found = (directory / name).resolve()
        if not any(found.is_relative_to(place) for place in places):
            raise PolicyError(
                f"{directory / name}: a link to {found}, outside the checkpoint",
                "files of the checkpoint itself, or of the hub's cache",
                "put a copy of the file in its place if it belongs to the checkpoint",
            )
