"""More tokens: listed ones, another tokenizer's, or what more merges over a corpus make."""

from __future__ import annotations

import math
import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby, islice, pairwise, product
from typing import Any

from tokensurgeon.edits.document import Edited, model_type
from tokensurgeon.edits.grow import Growth, check_model, print_form
from tokensurgeon.edits.learn import Word, count_words, learn_merges, word_ends
from tokensurgeon.edits.params import ExtendParams
from tokensurgeon.errors import InputError
from tokensurgeon.vocab.canonical import Family, Kind
from tokensurgeon.vocab.digits import digit_scheme
from tokensurgeon.vocab.vocabulary import Vocabulary

KINDS = ("BPE", "Unigram", "WordPiece")
_EXAMPLES = 5
_EDGE = 1e-6
"""By how much a new Unigram piece beats the pieces it is made of."""

_CONTEXTS = ("", "a", "\n", "(", ".", "1", "a b")

_NO_FORM = "the tokenizer has no way to print it"
_UNSPELT = "the model cannot spell it"
_BLOCKED = "each way to build it passes over a token that is there already"
_CUT = "text is cut within it before the model sees it"
_SPACED = "as an added token, it would change the text around it"


class Report:
    """What became of each token that was asked for."""

    def __init__(self) -> None:
        self.added = 0
        self.intermediates: list[str] = []
        self.present = 0
        self.left_out: defaultdict[str, list[str]] = defaultdict(list)

    def leave_out(self, data: bytes, reason: str) -> None:
        """Note a token that is not added, and why."""
        self.left_out[reason].append(data.decode(errors="backslashreplace"))

    def facts(self) -> dict[str, Any]:
        """Counts, and the first few by name."""
        return {
            "added": self.added,
            "intermediates": len(self.intermediates),
            "first_intermediates": self.intermediates[:_EXAMPLES],
            "already_there": self.present,
            "left_out": {
                reason: {"count": len(names), "first": names[:_EXAMPLES]}
                for reason, names in sorted(self.left_out.items())
            },
        }


def extend(
    vocabulary: Vocabulary,
    params: ExtendParams,
    texts: Sequence[str] = (),
    tokens: Sequence[str] = (),
    other: Vocabulary | None = None,
) -> Edited:
    """Add tokens: those listed, then the other tokenizer's, then those learnt from texts.

    Args:
        vocabulary: The tokenizer to extend.
        params: How many, and whether the model learns them.
        texts: Contents of ``params.corpus``.
        tokens: Lines of ``params.tokens``, as ``read_token_list`` gives them.
        other: The tokenizer of ``params.tokenizer``.

    Returns:
        The tokenizer with every old id as it was.

    Raises:
        InputError: The model is of another kind, or none of the tokens can be added.
    """
    check_model(vocabulary, KINDS, "extend")
    report = Report()
    wanted = [line.encode() for line in tokens]
    if vocabulary.family is Family.WORDPIECE:
        wanted = [_wordpiece_line(vocabulary, line) for line in tokens]
    if other is not None:
        wanted += [token.data for token in other if token.kind is not Kind.SPECIAL]
    result = vocabulary
    if wanted:
        add = add_outside if params.placed == "added" else add_inside
        result = add(vocabulary, wanted, params.count, report)
        if not report.added and report.left_out:
            reasons = [f"{names[0]!r}: {reason}" for reason, names in report.left_out.items()]
            raise InputError(
                f"extend: none of {len(wanted)} tokens can be added; " + "; ".join(reasons),
                "tokens that plain text can produce"
                if params.placed == "vocab"
                else "a tokenizer that leaves the text around an added token as it is",
                "" if params.placed == "vocab" else "placed: vocab",
            )
    if texts and params.count is not None and params.count > len(result) - len(vocabulary):
        before = len(result)
        result = _learn(result, texts, params.count - (before - len(vocabulary)))
        report.added += len(result) - before
    return Edited(result.spec, {index: index for index in vocabulary.tokens}, report.facts())


def read_token_list(text: str) -> list[str]:
    r"""One token a line; ``\n``, ``\t``, ``\r`` and ``\\`` stand for what they stand for elsewhere.

    Args:
        text: Contents of the file.

    Returns:
        Tokens in the order of the file, each once; a leading space belongs to the token.
    """
    escapes = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    tokens = (re.sub(r"\\([ntr\\])", lambda found: escapes[found[1]], line) for line in lines)
    return [token for token in dict.fromkeys(tokens) if token]


def _wordpiece_line(vocabulary: Vocabulary, line: str) -> bytes:
    """A line opens a word, as it does in text, unless it is printed with the prefix."""
    prefix = vocabulary.spec["model"].get("continuing_subword_prefix") or ""
    if prefix and line.startswith(prefix):
        return line.removeprefix(prefix).encode()
    return b" " + line.removeprefix(" ").encode()


def add_inside(
    vocabulary: Vocabulary, wanted: Iterable[bytes], count: int | None, report: Report
) -> Vocabulary:
    """Let the model learn tokens so that plain text produces each of them.

    Args:
        vocabulary: The tokenizer.
        wanted: What the tokens stand for; the first ones are preferred.
        count: Tokens at most, those in between included.
        report: Is told what became of each.

    Returns:
        The tokenizer with the tokens.
    """
    candidates = {}
    taken = Growth(vocabulary).taken
    for data in _absent(vocabulary, wanted, report):
        content = print_form(vocabulary, data)
        if content is None:
            report.leave_out(data, _NO_FORM)
        elif content in taken:
            report.present += 1
        elif not _passes(vocabulary, data, content):
            report.leave_out(data, _CUT)
        else:
            candidates[data] = content
    build = {"BPE": _chain_merges, "Unigram": _score_pieces, "WordPiece": _list_pieces}[
        model_type(vocabulary.spec)
    ]
    limit = len(candidates) if count is None else max(count, 0)
    while True:
        chosen = dict(islice(candidates.items(), limit))
        growth = Growth(vocabulary)
        failed = build(vocabulary, chosen, growth)
        over = 0 if count is None else len(growth.new) - count
        unseen: dict[bytes, str] = {}
        if over <= 0:
            result = growth.finish()
            ids = {growth.content[index]: index for index in growth.new}
            made = (data for data in chosen if data not in failed)
            unseen = {data: _CUT for data in made if not _is_produced(result, ids[chosen[data]], data)}
        for data, reason in (failed | unseen).items():
            report.leave_out(data, reason)
            del candidates[data], chosen[data]
        if over > 0:
            limit -= over
        elif not unseen and (count is None or not failed):
            break
    asked = set(chosen.values())
    report.added += len(asked)
    report.intermediates += [content for content in ids if content not in asked]
    return result


def add_outside(
    vocabulary: Vocabulary, wanted: Iterable[bytes], count: int | None, report: Report
) -> Vocabulary:
    """Add tokens that text is searched for before the model sees it, if the text around them stays.

    Args:
        vocabulary: The tokenizer.
        wanted: What the tokens stand for; the first ones are preferred.
        count: Tokens at most.
        report: Is told what became of each.

    Returns:
        The tokenizer with the tokens.
    """
    candidates = {}
    taken = Growth(vocabulary).taken
    for data in _absent(vocabulary, wanted, report):
        try:
            text = data.decode()
        except UnicodeDecodeError:
            report.leave_out(data, _NO_FORM)
            continue
        if vocabulary.family is Family.WORDPIECE:
            text = text.removeprefix(" ")
        if text in taken:
            report.present += 1
        else:
            candidates[data] = text
    while True:
        chosen = dict(islice(candidates.items(), count))
        growth = Growth(vocabulary)
        for text in dict.fromkeys(chosen.values()):
            growth.add_outside(text, special=False)
        result = growth.finish()
        failed = [data for data, text in chosen.items() if not _keeps_round_trips(result, vocabulary, text)]
        for data in failed:
            report.leave_out(data, _SPACED)
            del candidates[data]
        if not failed:
            break
    report.added += len(growth.new)
    return result


def _absent(vocabulary: Vocabulary, wanted: Iterable[bytes], report: Report) -> Iterable[bytes]:
    for data in dict.fromkeys(wanted):
        if data in vocabulary.by_bytes:
            report.present += 1
        else:
            yield data


def _passes(vocabulary: Vocabulary, data: bytes, content: str) -> bool:
    """Whether the normalizer and the pre-tokenizer leave the token in one piece somewhere."""
    tokenizer = vocabulary.tokenizer
    if vocabulary.family is Family.WORDPIECE:
        content = content.removeprefix(vocabulary.spec["model"].get("continuing_subword_prefix") or "")
    for text in _written(data):
        for context in _CONTEXTS:
            whole = context + text
            if tokenizer.normalizer is not None:
                whole = tokenizer.normalizer.normalize_str(whole)
            pieces = [whole]
            if tokenizer.pre_tokenizer is not None:
                pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(whole)]
            if any(content in piece for piece in pieces):
                return True
    return False


def _is_produced(vocabulary: Vocabulary, index: int, data: bytes) -> bool:
    contexts: Iterable[str] = _CONTEXTS
    if vocabulary.family is Family.WORDPIECE and not data.startswith(b" "):
        contexts = (*_CONTEXTS, *string.ascii_letters)
    if vocabulary.family is Family.WORDPIECE:
        data = data.removeprefix(b" ")
    return any(index in vocabulary.encode(context + text) for text in _written(data) for context in contexts)


def _written(data: bytes) -> Iterable[str]:
    """Texts that hold these bytes: themselves, or with what their first and last character lack."""
    try:
        yield data.decode()
    except UnicodeDecodeError:
        heads = [b"", *(bytes([lead]) for lead in range(0xC2, 0xF5))]
        heads += [bytes([lead, byte]) for lead in range(0xE0, 0xF5) for byte in range(0x80, 0xC0, 8)]
        tails = [
            b"",
            *(bytes([byte]) for byte in range(0x80, 0xC0)),
            b"\x80\x80",
            b"\xa0\x80",
            b"\x80\x80\x80",
        ]
        for head, tail in product(heads, tails):
            try:
                yield (head + data + tail).decode()
            except UnicodeDecodeError:
                continue


def _keeps_round_trips(new: Vocabulary, old: Vocabulary, text: str) -> bool:
    index = new.by_content[text].id
    if index not in new.encode(text):
        return False
    for frame in ("{}", "x{}", "{}x", "x{}x", "x {} x", "x\n{}\n"):
        framed = frame.format(text)
        before, after = (v.tokenizer.decode(v.encode(framed), skip_special_tokens=False) for v in (old, new))
        if before != after:
            return False
    return True


def _chain_merges(vocabulary: Vocabulary, chosen: dict[bytes, str], growth: Growth) -> dict[bytes, str]:
    """Append merges that lead from how a token is cut today to the token; the shortest first, as parts."""
    failed = {}
    ranks: dict[tuple[str, str], int] = {}
    # A letter that the model has only bytes for becomes a token, on the way to the tokens it is in.
    lacking: set[str] = set()
    for data, content in sorted(chosen.items(), key=lambda item: len(item[0])):
        if content in growth.taken:
            continue
        letters = {char for char in content if char not in growth.taken}
        parts = _parts(vocabulary, content, lacking | letters)
        steps = _build_up(_settle(parts, ranks), growth.taken) if parts else None
        if steps is None:
            failed[data] = _BLOCKED if parts else _UNSPELT
            continue
        lacking |= letters
        for letter in sorted(letters):
            growth.add(letter)
        for pair in steps:
            growth.add("".join(pair))
            ranks[pair] = len(growth.merges)
            growth.merges.append(pair)
    return failed


def _parts(vocabulary: Vocabulary, content: str, letters: set[str]) -> list[str]:
    """How the model cuts a printed form once it has these letters; empty where it needs bytes or unknowns."""
    parts = []
    for known, stretch in groupby(content, key=lambda char: char not in letters):
        if known:
            ids = vocabulary.run_model("".join(stretch))
            parts += [vocabulary.tokens[i].content for i in ids if vocabulary.tokens[i].kind is Kind.TEXT]
        else:
            parts += stretch
    return parts if "".join(parts) == content else []


def _settle(parts: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Apply merges as the model does, the earliest first."""
    while len(parts) > 1:
        pair = min(pairwise(parts), key=lambda pair: ranks.get(pair, math.inf))
        if pair not in ranks:
            break
        parts = _merge(parts, pair)
    return parts


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    place = 0
    while place < len(parts):
        size = 2 if tuple(parts[place : place + 2]) == pair else 1
        merged.append("".join(parts[place : place + size]))
        place += size
    return merged


def _build_up(parts: list[str], taken: set[str]) -> list[tuple[str, str]] | None:
    """Merges from parts to the whole whose products are all new; None where there is no such way.

    Another merge to a token that is there would change texts without a new token.
    """
    for direction in (1, -1):
        symbols, steps = parts, []
        made: set[str] = set()
        while len(symbols) > 1:
            pairs = list(pairwise(symbols))[::direction]
            free = [pair for pair in pairs if "".join(pair) not in taken and "".join(pair) not in made]
            if not free:
                break
            steps.append(free[0])
            made.add("".join(free[0]))
            symbols = _merge(symbols, free[0])
        else:
            return steps
    return None


def _score_pieces(vocabulary: Vocabulary, chosen: dict[bytes, str], growth: Growth) -> dict[bytes, str]:
    """Give each piece a score that just beats the best way to write it without; the shortest first."""
    scores = dict(vocabulary.spec["model"]["vocab"])
    lowest = min(scores.values())
    for content in sorted(chosen.values(), key=len):
        # A lower score than any there is would also make unknown characters dearer.
        score = max(best_score(content, scores) + _EDGE, lowest)
        scores[content] = growth.scores[growth.add(content)] = score
    return {}


def best_score(content: str, scores: Mapping[str, float]) -> float:
    """Score of the best way to write a piece with others.

    Args:
        content: The piece, as the model sees it.
        scores: Score by piece.

    Returns:
        Minus infinity where it cannot be written.
    """
    best = [0.0, *[-math.inf] * len(content)]
    for end in range(1, len(content) + 1):
        for start in range(end):
            score = scores.get(content[start:end])
            if score is not None:
                best[end] = max(best[end], best[start] + score)
    return best[-1]


def _list_pieces(vocabulary: Vocabulary, chosen: dict[bytes, str], growth: Growth) -> dict[bytes, str]:
    # A mark is one piece, whether a space comes before it or not.
    for content in dict.fromkeys(chosen.values()):
        growth.add(content)
    return {}


def _learn(vocabulary: Vocabulary, texts: Iterable[str], count: int) -> Vocabulary:
    words = count_words(vocabulary, texts, word_cutter(vocabulary))
    growth = Growth(vocabulary)
    kind = model_type(vocabulary.spec)
    if kind == "BPE":
        merges, _ = learn_merges(words, lambda left, right: _join(growth, left, right), count)
        growth.merges += [(growth.content[left], growth.content[right]) for left, right, _ in merges]
    else:
        shares = _learn_pieces(vocabulary, words, count)
        scores = dict(vocabulary.spec["model"]["vocab"]) if kind == "Unigram" else {}
        for content in sorted(shares, key=len):
            index = growth.add(content)
            if kind == "Unigram":
                score = max(math.log(shares[content]), best_score(content, scores) + _EDGE)
                scores[content] = growth.scores[index] = max(score, min(scores.values()))
    return growth.finish()


def _join(growth: Growth, left: int, right: int, prefix: str = "") -> int | None:
    content = growth.content[left] + growth.content[right].removeprefix(prefix)
    return None if content in growth.taken else growth.add(content)


def _learn_pieces(vocabulary: Vocabulary, words: Counter[Word], count: int) -> dict[str, float]:
    """The pieces that save the most tokens, and their share of all pieces of the words.

    Merges are tried until enough of their products are left over: a piece needs none in between.
    """
    prefix = vocabulary.spec["model"].get("continuing_subword_prefix") or ""
    most = count
    while True:
        most *= 2
        trial = Growth(vocabulary)
        merges, uses = learn_merges(words, partial(_join, trial, prefix=prefix), most)
        sizes = Counter(dict.fromkeys(vocabulary.tokens, 1))
        for left, right, joined in merges:
            sizes[joined] = sizes[left] + sizes[right]
        gains = {index: uses[index] * (sizes[index] - 1) for index in trial.new if uses[index]}
        if len(gains) >= count or len(merges) < most:
            best = sorted(gains, key=lambda index: (-gains[index], index))[:count]
            return {trial.content[index]: uses[index] / uses.total() for index in best}


def word_cutter(vocabulary: Vocabulary) -> Callable[[int, int], bool]:
    """Where merges must not reach though the pre-tokenizer would let them.

    Args:
        vocabulary: The tokenizer.

    Returns:
        Called with two neighbours: numbers stay as they are cut, unless their groups are learnt; without a
        pre-tokenizer that finds words, a word ends where SentencePiece ends one.
    """
    numbers_learnt = digit_scheme(vocabulary) == "learnt groups"
    loose = vocabulary.family in (Family.SENTENCEPIECE, Family.PLAIN)
    texts = {token.id: token.data.decode(errors="replace") for token in vocabulary}

    def cut(left: int, right: int) -> bool:
        before, after = texts[left], texts[right]
        if not numbers_learnt and any(char.isnumeric() for char in before + after):
            return True
        return loose and word_ends(before, after)

    return cut
