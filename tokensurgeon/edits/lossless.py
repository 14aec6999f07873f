"""What an edit did to the way that texts are cut, and which tokens text never leads to."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tokensurgeon.edits.document import model_type, open_tokenizer
from tokensurgeon.vocab.canonical import Kind
from tokensurgeon.vocab.vocabulary import Token, Vocabulary

_EXAMPLES = 5
_LINE = re.compile(r"[^\n]*\n|[^\n]+")


@dataclass(frozen=True)
class Comparison:
    """Texts, line by line, before and after an edit.

    Attributes:
        lines: Lines compared; the end of a line belongs to it.
        changed_lines: Share of them that is cut into other tokens.
        changed_bytes: Share of the bytes that lie in other tokens.
        broken: Lines that are cut otherwise although all their tokens were kept; 0 for a trim.
        examples: The first of these.
        bytes_per_token: Before and after; None where there is no token.
    """

    lines: int
    changed_lines: float
    changed_bytes: float
    broken: int
    examples: tuple[str, ...]
    bytes_per_token: tuple[float | None, float | None]


def compare(
    old: Vocabulary, new: Vocabulary, origins: Mapping[int, int], texts: Mapping[str, str]
) -> Comparison:
    """Cut texts with the old tokenizer and with the new one.

    Args:
        old: Before the edit.
        new: After it.
        origins: New id to old id, as `Edited` has them.
        texts: Text by name.

    Returns:
        How they differ.
    """
    kept = set(origins.values())
    lines = [line for text in texts.values() for line in _LINE.findall(text)]
    size, changed_size, changed, before_tokens, after_tokens = 0, 0, 0, 0, 0
    broken = []
    for line in lines:
        before, ends = old.segment(line)
        new_ids, new_ends = new.segment(line)
        after = [origins.get(index) for index in new_ids]
        size += len(line.encode())
        before_tokens += len(before)
        after_tokens += len(after)
        if after != before:
            changed += 1
            spans = zip([0, *ends[:-1]], ends, before, strict=True)
            new_spans = set(zip([0, *new_ends[:-1]], new_ends, after, strict=True))
            changed_size += sum(span[1] - span[0] for span in spans if span not in new_spans)
            if kept.issuperset(before):
                broken.append(line)
    return Comparison(
        lines=len(lines),
        changed_lines=changed / max(1, len(lines)),
        changed_bytes=changed_size / max(1, size),
        broken=len(broken),
        examples=tuple(broken[:_EXAMPLES]),
        bytes_per_token=(
            size / before_tokens if before_tokens else None,
            size / after_tokens if after_tokens else None,
        ),
    )


def unreachable(vocabulary: Vocabulary) -> list[int]:
    """Find the tokens that plain text never leads to.

    What a normaliser or a pre-tokenizer keeps from the model is not looked for, except in WordPiece models,
    where the pieces inside a word are tried behind each letter that can start one.

    Args:
        vocabulary: Of any kind.

    Returns:
        Ids, ascending. Added and special tokens are never among them.
    """
    ordinary = [token for token in vocabulary if not token.added and token.kind is not Kind.SPECIAL]
    if model_type(vocabulary.spec) == "WordPiece":
        prefix = vocabulary.spec["model"]["continuing_subword_prefix"]
        letters = [token.content for token in ordinary if len(token.content) == 1]
        return [token.id for token in ordinary if not _is_written(token, vocabulary, prefix, letters)]
    by_merges = vocabulary
    if vocabulary.spec["model"].get("ignore_merges"):
        spec = {**vocabulary.spec, "model": {**vocabulary.spec["model"], "ignore_merges": False}}
        by_merges = replace(vocabulary, tokenizer=open_tokenizer(spec), spec=spec)
    return [token.id for token in ordinary if not _is_made(token, vocabulary, by_merges)]


def _is_made(token: Token, vocabulary: Vocabulary, by_merges: Vocabulary) -> bool:
    if not _is_in_utf8(token.data):
        return False
    if token.kind is Kind.BYTE:
        return vocabulary.by_bytes[token.data][0] is token
    if by_merges.run_model(token.content) == [token.id]:
        return True
    # A look-up finds it only where it is all that the pre-tokenizer hands over.
    return by_merges is not vocabulary and vocabulary.encode(token.text) == [token.id]


def _is_written(token: Token, vocabulary: Vocabulary, prefix: str, letters: list[str]) -> bool:
    ending = token.content.removeprefix(prefix)
    if token.word_start or ending == token.content:
        return vocabulary.encode(token.content) == [token.id]
    return any(vocabulary.encode(letter + ending)[1:] == [token.id] for letter in letters)


def _is_in_utf8(data: bytes) -> bool:
    """Whether bytes can lie in some UTF-8 text, perhaps from within a character to within another."""
    for cut in range(min(4, len(data) + 1)):
        if cut and not 0x80 <= data[cut - 1] < 0xC0:
            return False
        try:
            codecs.getincrementaldecoder("utf-8")().decode(data[cut:])
        except UnicodeDecodeError:
            continue
        return True
    return False
