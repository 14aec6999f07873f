"""A tokenizer learnt anew from a corpus, of the same make: only the learnt pieces are other ones."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, starmap
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from tokensurgeon.edits.document import Edited, open_tokenizer, read_merges, renumber_processor
from tokensurgeon.edits.grow import check_model
from tokensurgeon.edits.learn import word_ends
from tokensurgeon.edits.params import TrainParams
from tokensurgeon.errors import InputError
from tokensurgeon.vocab.canonical import CHAR_OF_BYTE, Decoder, Family, Kind
from tokensurgeon.vocab.digits import digit_scheme
from tokensurgeon.vocab.vocabulary import Token, Vocabulary

_STEP = 1.1
_FIRST = 500
"""Learnt pieces the search for a size starts with."""

_LARGEST = 1 << 18
_SURPLUS = 1.5
"""By how much more Unigram pieces are learnt, of which some are left out."""

_HELD_OUT = 10
"""One part in so many is kept back to see what a larger size gains."""

# How SentencePiece ends words where the pre-tokenizer does not; a run of spaces leaves its last to the word.
_SCRIPTS = r"▁?[\p{L}\p{M}]+|▁?[^\s▁\p{L}\p{M}\p{N}]+|NUMBERS|▁+(?=▁)|▁|\s+"


@dataclass(frozen=True)
class _Learnt:
    """What a trainer gives: pieces from the first to the last needed, their scores, and merges."""

    pieces: list[str]
    scores: dict[str, float]
    merges: list[tuple[str, str]]


def train(vocabulary: Vocabulary, params: TrainParams, texts: Sequence[str]) -> Edited:
    """Learn a tokenizer with the same normalizer, pre-tokenizer, decoder and special tokens.

    Args:
        vocabulary: The tokenizer to replace.
        params: Its size, or when to stop looking for one.
        texts: Contents of ``params.corpus``.

    Returns:
        The tokenizer, with ids from 0: first special and added tokens, in their order, then byte pieces.

    Raises:
        InputError: The model is of another kind, the texts are too short, or numbers would be cut anew.
    """
    kind = check_model(vocabulary, ("BPE", "Unigram", "WordPiece"), "train")
    base = _base(vocabulary)
    found: list[dict[str, Any]] = []
    size = params.size
    if size is None:
        size, found = _search_size(vocabulary, base, kind, texts, params.growth)
    if size <= len(base):
        raise InputError(
            f"train: size {size}, of which special tokens and single bytes take {len(base)}",
            f"more than {len(base)} tokens",
        )
    result = _assemble(vocabulary, base, _run_trainer(vocabulary, base, kind, texts, size), size)
    scheme, was = digit_scheme(result), digit_scheme(vocabulary)
    if was == "single digits" and scheme != was:
        raise InputError(f"train: numbers were cut into {was}, now into {scheme}", "the same cut")
    known = {_identity(token): token.id for token in sorted(vocabulary, key=lambda t: -t.id)}
    origins = {token.id: known[_identity(token)] for token in result if _identity(token) in known}
    facts = {
        "size": len(result),
        "kept": len(origins),
        "special": sum(token.kind is Kind.SPECIAL for token in result),
        "digits": {"before": was, "after": scheme},
        "sizes_tried": found,
    }
    return Edited(result.spec, origins, facts)


def _identity(token: Token) -> tuple[Kind, bytes, bool]:
    return token.kind, token.data, token.word_start


def _base(vocabulary: Vocabulary) -> list[Token]:
    """Tokens that stay whatever the corpus: special and added ones, bytes, ASCII letters."""
    front = [token for token in vocabulary if token.added or token.kind is Kind.SPECIAL]
    pieces = [token for token in vocabulary if token.kind is Kind.BYTE]
    letters = [
        token
        for token in vocabulary
        if token.kind is Kind.TEXT and not token.added and _is_letter(vocabulary, token)
    ]
    return [*front, *pieces, *letters]


def _is_letter(vocabulary: Vocabulary, token: Token) -> bool:
    if vocabulary.family is Family.BYTE_LEVEL:
        return len(token.data) == 1 and len(token.content) == 1
    prefix = vocabulary.spec["model"].get("continuing_subword_prefix") or ""
    bare = token.content.removeprefix(prefix) or token.content
    return len(bare) == 1 and (bare.isascii() or bare == "▁")


def _search_size(
    vocabulary: Vocabulary, base: list[Token], kind: str, texts: Sequence[str], growth: float
) -> tuple[int, list[dict[str, Any]]]:
    """Grow the size by a tenth until that gains less than ``growth`` on text kept back."""
    cuts = [text.find("\n", len(text) - len(text) // _HELD_OUT) + 1 or len(text) for text in texts]
    learn = [text[:cut] for text, cut in zip(texts, cuts, strict=True)]
    held = [text[cut:] for text, cut in zip(texts, cuts, strict=True) if text[cut:]]
    if not held:
        # One long line: the last tenth is still better than none.
        cuts = [len(text) - len(text) // _HELD_OUT for text in texts]
        learn = [text[:cut] for text, cut in zip(texts, cuts, strict=True)]
        held = [text[cut:] for text, cut in zip(texts, cuts, strict=True)]
    # The first merges of a large BPE are a small BPE; Unigram prunes, so every size is learnt on its own.
    once = None if kind == "Unigram" else _run_trainer(vocabulary, base, kind, learn, _LARGEST)
    measure = _log_likelihood if kind == "Unigram" else _bytes_per_token
    tried: list[dict[str, Any]] = []
    letters = set() if vocabulary.family is Family.BYTE_LEVEL else set("".join(texts))
    size = len(base) + len(letters) + _FIRST
    best, last = 0, -math.inf
    while True:
        learnt = once or _run_trainer(vocabulary, base, kind, learn, size)
        trial = _assemble(vocabulary, base, learnt, size)
        score = measure(trial, held)
        tried.append({"size": len(trial), measure.__name__.strip("_"): round(score, 4)})
        if best and score - last < growth * abs(last):
            return best, tried
        best, last = len(trial), score
        if len(trial) < size or size >= _LARGEST:
            return best, tried
        size = math.ceil(size * _STEP)


def _bytes_per_token(vocabulary: Vocabulary, texts: Sequence[str]) -> float:
    tokens = sum(len(vocabulary.encode(text)) for text in texts)
    return sum(len(text.encode()) for text in texts) / max(tokens, 1)


def _log_likelihood(vocabulary: Vocabulary, texts: Sequence[str]) -> float:
    """Log-probability of a byte under the tokens' frequencies, as UniBridge compares sizes by."""
    counts = Counter(index for text in texts for index in vocabulary.encode(text))
    total = sum(counts.values())
    return sum(n * math.log(n / total) for n in counts.values()) / sum(len(text.encode()) for text in texts)


def _run_trainer(
    vocabulary: Vocabulary, base: list[Token], kind: str, texts: Sequence[str], size: int
) -> _Learnt:
    tokenizer = Tokenizer(
        {"BPE": models.BPE, "Unigram": models.Unigram, "WordPiece": models.WordPiece}[kind]()
    )
    if vocabulary.tokenizer.normalizer is not None:
        tokenizer.normalizer = vocabulary.tokenizer.normalizer
    cutter = _training_cutter(vocabulary, kind)
    if cutter is not None:
        tokenizer.pre_tokenizer = cutter
    model = vocabulary.spec["model"]
    room = max(size - len(base), 1)
    options: dict[str, Any] = {"show_progress": False, "special_tokens": []}
    if kind == "Unigram":
        # Letters of the corpus are among the trainer's pieces, also those that stay anyway.
        letters = set("▁").union(*texts)
        room += sum(token.content in letters for token in base)
        trainer = trainers.UnigramTrainer(vocab_size=int(room * _SURPLUS), **options)
    else:
        if vocabulary.family is Family.BYTE_LEVEL:
            options["initial_alphabet"] = list(CHAR_OF_BYTE.values())
        elif model.get("byte_fallback"):
            options["limit_alphabet"] = room // 2 + 1
        if kind == "WordPiece":
            options["continuing_subword_prefix"] = model.get("continuing_subword_prefix") or "##"
        # Letters that stay are not counted twice: those of the corpus come on top, and are cut off later.
        make: Callable[..., Any] = trainers.BpeTrainer if kind == "BPE" else trainers.WordPieceTrainer
        trainer = make(vocab_size=size + len(CHAR_OF_BYTE), **options)
    try:
        tokenizer.train_from_iterator(_stretches(vocabulary, texts), trainer)
    except Exception as error:  # tokenizers raises nothing narrower
        raise InputError(f"train: {error}", "longer texts, or another size") from error
    document = json.loads(tokenizer.to_str())
    vocab = document["model"]["vocab"]
    if isinstance(vocab, list):
        # The trainer finds no piece that always ends a word it is given, so words are not cut finer for it,
        # and pieces that reach over a word's end are left out. Letters first: the last are cut off.
        pieces = [
            piece for piece, _ in vocab if not any(starmap(word_ends, pairwise(piece.replace("▁", " "))))
        ]
        return _Learnt(sorted(pieces, key=lambda piece: len(piece) > 1), dict(vocab), [])
    return _Learnt(sorted(vocab, key=vocab.__getitem__), {}, read_merges(document))


def _training_cutter(vocabulary: Vocabulary, kind: str) -> Any:  # noqa: ANN401 - no public type
    """The tokenizer's own pre-tokenizer, and what SentencePiece keeps apart, and digits that stay single."""
    parts = [] if vocabulary.tokenizer.pre_tokenizer is None else [vocabulary.tokenizer.pre_tokenizer]
    single = digit_scheme(vocabulary) == "single digits"
    if kind == "Unigram":
        parts.append(pre_tokenizers.Split("▁", "merged_with_next"))
    elif vocabulary.family in (Family.SENTENCEPIECE, Family.PLAIN):
        pattern = _SCRIPTS.replace("NUMBERS", r"\p{N}" if single else r"▁?\p{N}+")
        parts.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    elif single and vocabulary.family is Family.BYTE_LEVEL:
        # Not `Digits`: among the stand-ins for bytes are ² and ½.
        parts.append(pre_tokenizers.Split(Regex("[0-9]"), "isolated"))
    return pre_tokenizers.Sequence(parts) if parts else None


def _stretches(vocabulary: Vocabulary, texts: Sequence[str]) -> Iterator[str]:
    """The texts without what added tokens take out of them."""
    names = sorted((token.content for token in vocabulary if token.added), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, names)) or "(?!)")
    for text in texts:
        yield from filter(None, pattern.split(text))


def _assemble(vocabulary: Vocabulary, base: list[Token], learnt: _Learnt, size: int) -> Vocabulary:
    spec = dict(vocabulary.spec)
    ids: dict[str, int] = {}
    for token in base:
        ids.setdefault(token.content, len(ids))
    whole_numbers = digit_scheme(vocabulary) != "single digits"
    prefix = spec["model"].get("continuing_subword_prefix") or ""
    for piece in learnt.pieces:
        if len(ids) >= size:
            break
        bare = piece.removeprefix(prefix) if prefix else piece
        if whole_numbers or len(bare) == 1 or not any(char in "0123456789" for char in bare):
            ids.setdefault(piece, len(ids))
    spec["model"] = model = dict(spec["model"])
    if isinstance(model["vocab"], list):
        old = dict(model["vocab"])
        lowest = min(learnt.scores.values())
        stays = {token.content for token in base if token.kind is not Kind.TEXT or token.added}
        model["vocab"] = [
            [piece, old.get(piece, lowest) if piece in stays else learnt.scores.get(piece, lowest)]
            for piece in ids
        ]
        if model.get("unk_id") is not None:
            model["unk_id"] = ids[vocabulary.spec["model"]["vocab"][model["unk_id"]][0]]
    else:
        model["vocab"] = ids
    if "merges" in model:
        pairs = [pair for pair in learnt.merges if {*pair, "".join(pair)} <= ids.keys()]
        legacy = bool(model["merges"]) and isinstance(model["merges"][0], str)
        model["merges"] = [" ".join(pair) if legacy else list(pair) for pair in pairs]
    entries = [{**entry, "id": ids[entry["content"]]} for entry in spec.get("added_tokens") or []]
    spec["added_tokens"] = sorted(entries, key=lambda entry: entry["id"])
    new_ids = {token.id: ids[token.content] for token in base}
    try:
        spec["post_processor"] = renumber_processor(spec.get("post_processor"), new_ids)
    except KeyError as error:
        name = vocabulary.tokens[error.args[0]].content
        raise InputError(
            f"{vocabulary.path}: the post-processor adds {name!r}, which is no special token",
            "special tokens that are listed under added_tokens",
        ) from None
    if spec.get("padding"):
        spec["padding"] = {**spec["padding"], "pad_id": ids[spec["padding"]["pad_token"]]}
    return _read(vocabulary, base, spec, ids)


def _read(vocabulary: Vocabulary, base: list[Token], spec: dict[str, Any], ids: dict[str, int]) -> Vocabulary:
    decode = Decoder(spec, vocabulary.path)
    kept = {token.content: token for token in base}
    tokens = {}
    for content, index in ids.items():
        if content in kept:
            tokens[index] = replace(kept[content], id=index)
        else:
            kind, data, word_start = decode(content)
            tokens[index] = Token(index, content, kind, data, word_start, added=False)
    named = {role: vocabulary.tokens[index].content for role, index in vocabulary.roles.items()}
    roles = {role: ids[content] for role, content in named.items() if content in ids}
    return replace(vocabulary, tokens=tokens, roles=roles, tokenizer=open_tokenizer(spec), spec=spec)
