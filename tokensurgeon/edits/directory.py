"""The directory of an edited tokenizer: no file of it disagrees with another about an id.

============================  ==============================================================
written anew                  tokenizer.json
rewritten, if there           ids in tokenizer_config.json; vocab.json, merges.txt, vocab.txt,
                              added_tokens.json
as they were                  chat templates, special_tokens_map.json (names, no ids)
left out                      tokenizer files of other libraries, such as tokenizer.model
not of the tokenizer          config.json, generation_config.json, weights: not looked at
============================  ==============================================================
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokensurgeon.checkpoint.sidefiles import tokenizer_files
from tokensurgeon.edits.document import Edited, learnt_ids, read_merges

_UNCHANGED = re.compile(r"special_tokens_map\.json|(.*/)?[^/]*\.jinja|chat_template\.json")


def write_tokenizer(source: Path, edited: Edited, folder: Path) -> dict[str, str]:
    """Write all files of an edited tokenizer.

    Args:
        source: Directory of the tokenizer it was made from.
        edited: What was made.
        folder: Where to write; made if it does not exist, and not emptied.

    Returns:
        What happened to each tokenizer file of the source, by name, for a report.
    """
    folder.mkdir(parents=True, exist_ok=True)
    told = {}
    for path in tokenizer_files(source):
        name = path.as_posix()
        if _UNCHANGED.fullmatch(name):
            (folder / path).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / path, folder / path)
            told[name] = "as it was"
        elif name in _REWRITTEN:
            before = (source / path).read_text(encoding="utf-8")
            after = _REWRITTEN[name](edited, before)
            if after is None:
                told[name] = "left out: its format cannot hold this vocabulary"
                continue
            (folder / path).write_text(after, encoding="utf-8", newline="\n")
            told[name] = "as it was" if after == before else "rewritten"
        else:
            told[name] = "left out: it holds the old vocabulary"
    return told


def _dump(document: Any) -> str:  # noqa: ANN401 - a JSON tree
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _config(edited: Edited, before: str) -> str:
    config = json.loads(before)
    new_ids = {old: new for new, old in edited.origins.items()}
    changed = {
        key: new_ids.get(value) if key.endswith("_token_id") and isinstance(value, int) else value
        for key, value in config.items()
    }
    if "added_tokens_decoder" in config:
        entries = {
            new_ids[int(old)]: entry
            for old, entry in config["added_tokens_decoder"].items()
            if int(old) in new_ids
        }
        for token in edited.spec["added_tokens"]:
            if token["id"] not in edited.origins:
                entries[token["id"]] = {key: value for key, value in token.items() if key != "id"}
        changed["added_tokens_decoder"] = {str(index): entries[index] for index in sorted(entries)}
    return before if changed == config else _dump(changed)


def _vocab_txt(edited: Edited, _: str) -> str | None:
    pieces = sorted(learnt_ids(edited.spec).items(), key=lambda item: item[1])
    # A piece's id is the number of its line.
    fits = all(index == line and "\n" not in piece for line, (piece, index) in enumerate(pieces))
    return "".join(f"{piece}\n" for piece, _ in pieces) if fits else None


def _merges_txt(edited: Edited, before: str) -> str | None:
    merges = read_merges(edited.spec)
    if any(re.search(r"\s", piece) for pair in merges for piece in pair):
        return None
    first, _, _ = before.partition("\n")
    return "".join(f"{line}\n" for line in [*[first] * first.startswith("#version"), *map(" ".join, merges)])


def _added_tokens_json(edited: Edited, _: str) -> str:
    learnt = learnt_ids(edited.spec)
    added = edited.spec.get("added_tokens") or []
    return _dump({token["content"]: token["id"] for token in added if token["content"] not in learnt})


_REWRITTEN: dict[str, Callable[[Edited, str], str | None]] = {
    "tokenizer.json": lambda edited, _: _dump(edited.spec),
    "tokenizer_config.json": _config,
    "vocab.json": lambda edited, _: _dump(learnt_ids(edited.spec)),
    "vocab.txt": _vocab_txt,
    "merges.txt": _merges_txt,
    "added_tokens.json": _added_tokens_json,
}
