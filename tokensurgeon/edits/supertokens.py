"""Tokens of several words: merges over spaces, after all merges within words.

A BPE model merges within the pieces its pre-tokenizer cuts. Pieces of several words keep the segmentation
of each word as long as no old merge fits a word's end and the next word's start: old merges come first, and
within a word they meet what they met before. So the pre-tokenizer is rewritten to leave runs of words
together, and the merges over spaces are appended. (arXiv:2503.13423 SuperBPE; arXiv:2504.00178 BoundlessBPE,
from which it is taken that only whole words are joined.)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from tokensurgeon.edits.document import Edited, open_tokenizer, read_merges
from tokensurgeon.edits.extend import word_cutter
from tokensurgeon.edits.grow import Growth, check_model
from tokensurgeon.edits.learn import Word, learn_merges, plain_ids, read_words
from tokensurgeon.edits.params import SupertokensParams
from tokensurgeon.errors import InputError
from tokensurgeon.vocab.canonical import Decoder, Family
from tokensurgeon.vocab.vocabulary import Vocabulary

# What ByteLevel cuts with where it has `use_regex`.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_METASPACE = "▁?[^▁]+|▁"
# White space as regular expressions have it that know Unicode; Python's has four separators more.
_SPACE = re.compile(r"[^\S\x1c-\x1f]")

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_MARKS = ",;:."
_CONTINUES = re.compile(r" [^\W\d_]+|[,;:.]|['’][^\W\d_]+")
_GLUES = re.compile(r".*(?:[^\W\d_]|[,;:.])", re.DOTALL)


def supertokens(
    vocabulary: Vocabulary,
    params: SupertokensParams,
    texts: Sequence[str],
    trim: Callable[[Vocabulary, int], Edited] | None = None,
) -> Edited:
    """Learn tokens that span words from texts and add them.

    Args:
        vocabulary: A byte-level or SentencePiece-like BPE tokenizer.
        params: How many, and of how many words.
        texts: Contents of ``params.corpus``.
        trim: Needed for ``params.replace``: leaves a vocabulary so many tokens, the most used ones.

    Returns:
        The tokenizer; without ``replace`` every old id is as it was.

    Raises:
        InputError: The tokenizer is of another kind, or the texts have no pair of words that occurs twice.
    """
    check_model(vocabulary, ("BPE",), "supertokens")
    joined = join_words(vocabulary)
    growth = Growth(joined)
    spans = {token.id: token.data for token in vocabulary}

    def join(left: int, right: int) -> int | None:
        content = growth.content[left] + growth.content[right]
        data = spans[left] + spans[right]
        if content in growth.taken or b" " not in data[1:]:
            return None
        if len(_WORD.findall(data.decode(errors="replace"))) > params.most_words:
            return None
        index = growth.add(content)
        spans[index] = data
        return index

    merges, _ = learn_merges(_phrases(vocabulary, joined, texts), join, params.count)
    if not merges:
        raise InputError("supertokens: no two words follow each other twice in the texts", "longer texts")
    growth.merges += [(growth.content[left], growth.content[right]) for left, right, _ in merges]
    result = growth.finish()
    sizes = Counter(len(_WORD.findall(spans[index].decode(errors="replace"))) for index in growth.new)
    facts: dict[str, Any] = {
        "added": len(merges),
        "by_words": dict(sorted(sizes.items())),
        "pre_tokenizer": "rewritten" if joined is not vocabulary else "as it was",
    }
    if not params.replace:
        return Edited(result.spec, {index: index for index in vocabulary.tokens}, facts)
    if trim is None:
        raise ValueError("replace needs a function that trims")
    trimmed = trim(result, len(vocabulary))
    origins = {new: old for new, old in trimmed.origins.items() if old in vocabulary.tokens}
    facts["kept"] = len(trimmed.origins) - len(origins)
    facts["removed"] = len(vocabulary) - len(origins)
    return Edited(trimmed.spec, origins, facts)


def join_words(vocabulary: Vocabulary) -> Vocabulary:
    """The tokenizer with a pre-tokenizer that leaves runs of words together, and the same segmentation.

    Args:
        vocabulary: A byte-level or SentencePiece-like BPE tokenizer.

    Returns:
        The vocabulary itself where nothing cuts words apart.

    Raises:
        InputError: The pre-tokenizer is not of a known kind, or merges would reach over words.
    """
    if vocabulary.family not in (Family.BYTE_LEVEL, Family.SENTENCEPIECE):
        raise _refusal(vocabulary, f"a {vocabulary.family} BPE model")
    if not _cuts_words(vocabulary):
        return vocabulary
    _check_lookups(vocabulary)
    over_space, over_marks = _crossing(vocabulary)
    if over_space:
        raise _refusal(vocabulary, f"a merge that reaches over a space, {over_space[0]}")
    node = _rewrite(vocabulary, over_marks=not over_marks)
    joined = vocabulary.with_pre_tokenizer(node)
    if _cuts_words(joined):
        raise _refusal(vocabulary, "words are cut apart by more than one pre-tokenizer")
    return joined


def _refusal(vocabulary: Vocabulary, found: str) -> InputError:
    return InputError(
        f"{vocabulary.path}: supertokens: {found}",
        "a byte-level or SentencePiece-like BPE tokenizer whose words are cut by one regular expression",
        "add the phrases you need with `extend` and `placed: added`",
    )


def _cuts_words(vocabulary: Vocabulary) -> bool:
    return len(set(vocabulary.tokenizer.encode("ab cd ef", add_special_tokens=False).word_ids)) > 1


def _check_lookups(vocabulary: Vocabulary) -> None:
    """A whole piece that is a token may be looked up before merges; within a run of words it is not."""
    model = vocabulary.spec["model"]
    if not model.get("ignore_merges"):
        return
    merging = open_tokenizer({**vocabulary.spec, "model": {**model, "ignore_merges": False}}).model
    for index in plain_ids(vocabulary):
        token = vocabulary.tokens[index]
        if [piece.id for piece in merging.tokenize(token.content)] != [index]:
            raise _refusal(vocabulary, f"{token.content!r} is looked up whole, no merges lead to it")


def _crossing(vocabulary: Vocabulary) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Merges that fit the end of one word and the start of the next, or a word and the mark behind it."""
    decode = Decoder(vocabulary.spec, vocabulary.path)
    over_space, over_marks = [], []
    for pair in read_merges(vocabulary.spec):
        # Half a character may be of a letter.
        before, after = (decode(part)[1].decode(errors="replace") for part in pair)
        if after.startswith(" ") and not _SPACE.fullmatch(before[-1:]):
            over_space.append(pair)
        elif after[:1] in (*_MARKS, "'") and (before[-1:].isalnum() or before.endswith("\ufffd")):
            over_marks.append(pair)
    return over_space, over_marks


def _rewrite(vocabulary: Vocabulary, over_marks: bool) -> dict[str, Any]:
    node = vocabulary.spec["pre_tokenizer"]
    parts = list(node["pretokenizers"]) if node["type"] == "Sequence" else [node]
    place = next((i for i in reversed(range(len(parts))) if _splits(parts[i])), None)
    known = place is not None and all(
        part["type"] == "Digits" or part["type"] == "ByteLevel" for part in parts[place + 1 :]
    )
    if place is None or not known or any(part.get("add_prefix_space") for part in parts):
        raise _refusal(vocabulary, "a pre-tokenizer of " + ", ".join(part["type"] for part in parts))
    part = parts[place]
    if part["type"] == "Split":
        parts[place] = {**part, "pattern": {"Regex": _run_of(part["pattern"]["Regex"], " ", over_marks)}}
    elif part["type"] == "ByteLevel":
        parts[place : place + 1] = [_split(_run_of(_GPT2, " ", over_marks)), {**part, "use_regex": False}]
    else:
        space = part["replacement"]
        pattern = _run_of(_METASPACE.replace("▁", space), space, over_marks)
        parts[place : place + 1] = [{**part, "split": False}, _split(pattern)]
    return {"type": "Sequence", "pretokenizers": parts}


def _splits(part: dict[str, Any]) -> bool:
    """Whether a pre-tokenizer cuts words in a way that can be written as a regular expression."""
    if part["type"] == "Split":
        kept = (part["behavior"], bool(part.get("invert"))) in (("Isolated", False), ("Removed", True))
        return kept and "Regex" in part["pattern"]
    option = {"ByteLevel": "use_regex", "Metaspace": "split"}.get(part["type"])
    return option is not None and bool(part.get(option, True))


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _run_of(pattern: str, space: str, over_marks: bool) -> str:
    """Matches of a pattern that follow each other, as long as each opens with a space and a letter.

    Each step is a match of the whole old pattern where the one before ended, and the last step may end
    anywhere, so that nothing makes a step shorter than it was. Behind white space no step follows: there,
    merges may reach over the next space.
    """
    opens, goes_on = rf"{space}?\p{{L}}", rf"{space}\p{{L}}"
    if over_marks:
        marks = rf"|[{_MARKS}](?={space}\p{{L}})"
        opens, goes_on = opens + marks, goes_on + marks + r"|'\p{L}"
    return f"(?={opens})(?:{pattern})(?:(?<![\\s{space}])(?={goes_on})(?:{pattern}))*|{pattern}"


def _phrases(vocabulary: Vocabulary, joined: Vocabulary, texts: Sequence[str]) -> Counter[Word]:
    """Runs of words and marks that are one token each, with nothing else between."""
    plain = plain_ids(vocabulary)
    printed = {token.id: token.data.decode(errors="replace") for token in vocabulary}
    phrases: Counter[Word] = Counter()
    phrase: list[int] = []
    last, before = None, "\n"
    for piece, word in read_words(vocabulary, texts, word_cutter(vocabulary), joined):
        text = printed.get(word[0], "")
        whole = len(word) == 1 and word[0] in plain
        if not (whole and phrase and piece == last and _follows(before, text)):
            phrases[tuple(phrase)] += 1
            # The rest of a word, as after an apostrophe, opens no phrase.
            opens = whole and (before[-1:].isspace() or _CONTINUES.fullmatch(text))
            phrase = [word[0]] if opens else []
        else:
            phrase.append(word[0])
        last, before = piece, printed.get(word[-1], "")
    phrases[tuple(phrase)] += 1
    return Counter({phrase: times for phrase, times in phrases.items() if len(phrase) > 1})


@cache
def _follows(before: str, after: str) -> bool:
    return bool(_GLUES.fullmatch(before) and _CONTINUES.fullmatch(after))
