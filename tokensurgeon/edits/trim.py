"""Fewer tokens: what a corpus, a script or a list asks for, and what these need to be produced as before."""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tokensurgeon.console import progress
from tokensurgeon.edits.document import Edited, learnt_ids, model_type, read_merges, renumber_processor
from tokensurgeon.edits.needs import Needs
from tokensurgeon.edits.params import TrimParams
from tokensurgeon.errors import InputError, RecipeError
from tokensurgeon.evaluation.texts import read_texts
from tokensurgeon.vocab.canonical import BYTE_OF_CHAR, Family, Kind
from tokensurgeon.vocab.scripts import script_of
from tokensurgeon.vocab.usable import is_reserved
from tokensurgeon.vocab.vocabulary import Vocabulary

_WITH_EVERY_SCRIPT = ("Digits", "Whitespace", "Symbols")
_CHUNK = re.compile(r"(?s).{20000}.*?\n(?=\S)|.+")


def count_tokens(vocabulary: Vocabulary, texts: Iterable[str]) -> Counter[int]:
    """Count how often each token is used.

    Args:
        vocabulary: What to encode with.
        texts: Any texts; long ones are encoded in pieces that start with a line.

    Returns:
        Uses by id.
    """
    counts: Counter[int] = Counter()
    texts = list(texts)
    with progress("reading the corpus", sum(map(len, texts)), "characters") as advance:
        for text in texts:
            for chunk in _CHUNK.findall(text):
                counts.update(vocabulary.encode(chunk))
                advance(len(chunk))
    return counts


def trim(vocabulary: Vocabulary, params: TrimParams, counts: Mapping[int, int]) -> Edited:
    """Leave out tokens; a text whose tokens are all kept is cut as before.

    Special and added tokens, bytes and whatever the tokenizer's own settings name stay in any case, except
    reserved ones if that is asked for; and so does all that a kept token needs (see `needs`), unless
    ``allow_unreachable`` says otherwise.

    Args:
        vocabulary: The tokenizer to trim.
        params: What to keep.
        counts: Uses of each token in ``params.corpus``, as `count_tokens` finds them.

    Returns:
        The tokenizer, with ids from 0 on in the order of the old ones. Its facts: ``tokens`` before, and how
        many are ``kept``; ``why``, by the first reason that applies; ``merges`` before and ``merges_kept``;
        how many pieces of a WordPiece model are ``unspelt``, if any are (see `needs`).

    Raises:
        RecipeError: Nothing is asked for, or what is asked for contradicts itself or the vocabulary.
    """
    _check(params)
    needs = Needs(vocabulary, none=params.allow_unreachable)
    must = _mandatory(vocabulary, params.drop_reserved)
    listed = _listed(vocabulary, params.keep)
    used = {index for index, count in counts.items() if count >= params.least} if params.corpus else set()
    written = _of_scripts(vocabulary, params.scripts)
    whole = set() if params.corpus or params.scripts or params.size is None else set(vocabulary.tokens)
    asked = must | listed | used | written | whole
    kept = needs.close(asked)
    size = None if params.size is None else params.size - params.size % params.multiple_of
    if size is not None:
        firm = needs.close(must | listed)
        if size < len(firm):
            raise RecipeError(
                f"trim.size: {params.size}, and {len(firm)} tokens have to stay",
                f"{len(must)} that the tokenizer itself names, {len(listed - must)} listed, "
                f"{len(firm) - len(must | listed)} they need; multiple_of {params.multiple_of}",
                "a greater size, or a shorter list",
            )
        _take_away(kept, size, needs, firm, lambda index: (index in asked, counts.get(index, 0), -index))
    goal = size if size is not None and params.exact_size else _round_up(len(kept), params.multiple_of)
    if goal > len(vocabulary):
        raise RecipeError(f"trim: {goal} tokens asked for, and the tokenizer has {len(vocabulary)}")
    filled = _fill(
        kept, goal, needs, sorted(vocabulary.tokens, key=lambda index: (-counts.get(index, 0), index))
    )
    reasons = {"mandatory": must, "listed": listed, "used": used, "script": written, "size": whole}
    reasons |= {"filled": filled, "ancestors": kept}
    own = set(learnt_ids(vocabulary.spec).values())
    # The library numbers added tokens behind the model's pieces, whatever the file says.
    origins = dict(enumerate(sorted(kept, key=lambda index: (index not in own, index))))
    spec = _rewrite(vocabulary.spec, {old: new for new, old in origins.items()})
    facts: dict[str, Any] = {"tokens": len(vocabulary), "kept": len(kept), "why": _count(kept, reasons)}
    if "merges" in spec["model"]:
        facts["merges"] = len(vocabulary.spec["model"]["merges"])
        facts["merges_kept"] = len(spec["model"]["merges"])
    if unspelt := needs.unspelt(kept):
        facts["unspelt"] = len(unspelt)
    return Edited(spec, origins, facts)


def _check(params: TrimParams) -> None:
    if not (params.corpus or params.scripts or params.keep or params.size):
        raise RecipeError("trim: nothing says what to keep", "at least one of corpus, scripts, keep, size")
    if params.exact_size and params.size is None:
        raise RecipeError("trim.exact_size: there is no size", "a size")
    if params.exact_size and params.size and params.size % params.multiple_of:
        raise RecipeError(
            f"trim.exact_size: {params.size} is no multiple of {params.multiple_of}",
            "a size that multiple_of divides",
        )


def _mandatory(vocabulary: Vocabulary, drop_reserved: bool) -> set[int]:
    spec = vocabulary.spec
    must = {
        token.id
        for token in vocabulary
        if (token.added or token.kind is not Kind.TEXT) and not (drop_reserved and is_reserved(token))
    }
    must |= set(vocabulary.roles.values())
    if vocabulary.unknown is not None:
        must.add(vocabulary.unknown)
    must |= set(_processor_ids(spec.get("post_processor")))
    if spec.get("padding"):
        must.add(spec["padding"]["pad_id"])
    if vocabulary.family is Family.BYTE_LEVEL:
        must |= {token.id for token in vocabulary if token.content in BYTE_OF_CHAR}
    if model_type(spec) == "Unigram":
        # The unknown token costs ten more than the piece with the lowest score.
        must.add(min(enumerate(spec["model"]["vocab"]), key=lambda entry: entry[1][1])[0])
    strays = sorted(must - vocabulary.tokens.keys())
    if strays:
        raise InputError(
            f"{vocabulary.path / 'tokenizer.json'}: post_processor or padding uses id {strays[0]}",
            "an id that a token has",
        )
    return must


def _listed(vocabulary: Vocabulary, files: Iterable[str]) -> set[int]:
    listed: set[int] = set()
    for text in read_texts([Path(file) for file in files]).values():
        for line in text.split("\n"):
            word = line.removesuffix("\r")
            # In a WordPiece vocabulary what opens a word brings its space.
            forms = (" " + word, word) if vocabulary.family is Family.WORDPIECE else (word,)
            found = [twins[0].id for form in forms if (twins := vocabulary.by_bytes.get(form.encode()))]
            listed.update(found[:1] or vocabulary.encode(word))
    return listed


def _of_scripts(vocabulary: Vocabulary, scripts: Iterable[str]) -> set[int]:
    wanted = set(scripts)
    if not wanted:
        return set()
    by_script: dict[str, set[int]] = {}
    for token in vocabulary:
        by_script.setdefault(script_of(token), set()).add(token.id)
    if unknown := sorted(wanted - by_script.keys()):
        raise RecipeError(
            f"trim.scripts: no token is written in {unknown[0]!r}", f"some of {', '.join(sorted(by_script))}"
        )
    return set().union(*(by_script.get(script, set()) for script in {*wanted, *_WITH_EVERY_SCRIPT}))


def _take_away(
    kept: set[int], size: int, needs: Needs, firm: set[int], worth: Callable[[int], tuple[bool, int, int]]
) -> None:
    """Leave only so many: again and again the one of least worth goes that no other one needs."""
    needed_by = Counter(need for index in kept for need in needs.direct(index))
    free = [(worth(index), index) for index in kept - firm if not needed_by[index]]
    heapq.heapify(free)
    # What was only there for others, which comes first, goes with them also where the size is reached.
    while len(kept) > size or (free and not free[0][0][0]):
        _, index = heapq.heappop(free)
        kept.remove(index)
        for need in needs.direct(index):
            needed_by[need] -= 1
            if not needed_by[need] and need not in firm:
                heapq.heappush(free, (worth(need), need))


def _fill(kept: set[int], goal: int, needs: Needs, order: Iterable[int]) -> set[int]:
    """Keep so many: the first ones that still fit with all they need."""
    filled: set[int] = set()
    waiting = [index for index in order if index not in kept]
    # What did not fit may do so once others have brought what it needs.
    while len(kept) < goal:
        for index in waiting:
            added = needs.close([index], kept)
            if len(kept) + len(added) <= goal:
                kept |= added
                filled |= added
        waiting = [index for index in waiting if index not in kept]
    return filled


def _count(kept: set[int], reasons: Mapping[str, set[int]]) -> dict[str, int]:
    """Tokens by the first reason that each is kept for."""
    counts, left = {}, set(kept)
    for reason, ids in reasons.items():
        counts[reason] = len(left & ids)
        left -= ids
    return {reason: count for reason, count in counts.items() if count}


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _rewrite(spec: dict[str, Any], new_ids: Mapping[int, int]) -> dict[str, Any]:
    """The ``tokenizer.json`` of the tokens that have a new id, everything else in it as it was."""
    model = dict(spec["model"])
    learnt = learnt_ids(spec)
    if isinstance(model["vocab"], list):
        model["vocab"] = [entry for old, entry in enumerate(model["vocab"]) if old in new_ids]
        if model.get("unk_id") is not None:
            model["unk_id"] = new_ids[model["unk_id"]]
    else:
        model["vocab"] = {piece: new_ids[old] for piece, old in learnt.items() if old in new_ids}
    if "merges" in model:
        pieces = model["vocab"].keys()
        model["merges"] = [
            merge
            for merge, pair in zip(model["merges"], read_merges(spec), strict=True)
            if pieces >= {*pair, "".join(pair)}
        ]
    changed = {
        "added_tokens": sorted(
            (
                {**entry, "id": new_ids[entry["id"]]}
                for entry in spec.get("added_tokens") or []
                if entry["id"] in new_ids
            ),
            key=lambda entry: int(entry["id"]),
        ),
        "post_processor": renumber_processor(spec.get("post_processor"), new_ids),
        "padding": spec.get("padding") and {**spec["padding"], "pad_id": new_ids[spec["padding"]["pad_id"]]},
        "model": model,
    }
    return {key: changed.get(key, value) for key, value in spec.items()}


def _processor_ids(node: dict[str, Any] | None) -> list[int]:
    if node is None:
        return []
    ids = [index for part in node.get("processors", []) for index in _processor_ids(part)]
    ids += [index for entry in node.get("special_tokens", {}).values() for index in entry["ids"]]
    return ids + [node[end][1] for end in ("sep", "cls") if end in node]
