"""Write any bytes as tokens of a vocabulary: total, also for bytes that are no valid UTF-8."""

from __future__ import annotations

from dataclasses import dataclass

from tokensurgeon.vocab.canonical import CHAR_OF_BYTE, Family, Kind
from tokensurgeon.vocab.vocabulary import Vocabulary


@dataclass(frozen=True)
class Pieces:
    """A token of one vocabulary spelt in another.

    Attributes:
        ids: Ids in order; empty when not one byte of it can be spelt.
        exact: Whether the pieces' bytes put together are the bytes asked for.
    """

    ids: tuple[int, ...]
    exact: bool


def decompose(data: bytes, vocabulary: Vocabulary) -> Pieces:
    """Spell bytes with a vocabulary's tokens, as its own model would.

    The model's segmentation is taken when its pieces give the bytes back. If not (an unknown
    character, a normaliser that changes text), the longest matching tokens from the left are taken, of
    the normalised text if the bytes themselves (capitals, for an uncased WordPiece) cannot be spelt.

    Args:
        data: At least one byte.
        vocabulary: The vocabulary to spell them in.

    Returns:
        The pieces, and whether they are exact.
    """
    ids = _by_model(data, vocabulary)
    if ids and _spelt(ids, vocabulary) == data:
        return Pieces(tuple(ids), exact=True)
    pieces = _greedy(data, vocabulary)
    if not pieces.exact and vocabulary.family is Family.WORDPIECE:
        normalised = _greedy(_normalise(data, vocabulary), vocabulary)
        if normalised.exact:
            return Pieces(normalised.ids, exact=False)
    return pieces


def _by_model(data: bytes, vocabulary: Vocabulary) -> list[int]:
    if vocabulary.family is Family.BYTE_LEVEL:
        return vocabulary.run_model("".join(CHAR_OF_BYTE[byte] for byte in data))
    if vocabulary.family is Family.WORDPIECE:
        # WordPiece is greedy longest match; its model cannot start inside a word.
        return []
    start, end = _text_span(data)
    text = data[start:end].decode()
    if vocabulary.family is Family.SENTENCEPIECE:
        text = text.replace(" ", "▁")
    ids = vocabulary.run_model(text) if text else []
    return [*_byte_ids(data[:start], vocabulary), *ids, *_byte_ids(data[end:], vocabulary)]


def _text_span(data: bytes) -> tuple[int, int]:
    """The longest run of valid UTF-8, as offsets."""
    best = (0, 0)
    start = 0
    while start < len(data):
        try:
            data[start:].decode()
            end = len(data)
        except UnicodeDecodeError as error:
            end = start + error.start
        if end - start > best[1] - best[0]:
            best = (start, end)
        start = max(end, start) + 1
    return best


def _byte_ids(data: bytes, vocabulary: Vocabulary) -> list[int]:
    ids = []
    for byte in data:
        tokens = vocabulary.by_bytes.get(bytes([byte]), ())
        ids += [token.id for token in tokens[:1]]
    return ids


def _spelt(ids: list[int], vocabulary: Vocabulary) -> bytes | None:
    if not all(index in vocabulary.tokens for index in ids):
        return None
    tokens = [vocabulary.tokens[index] for index in ids]
    if any(token.kind is Kind.SPECIAL for token in tokens):
        return None
    return b"".join(token.data for token in tokens)


def _greedy(data: bytes, vocabulary: Vocabulary) -> Pieces:
    ids = []
    exact = True
    position = 0
    while position < len(data):
        for end in range(len(data), position, -1):
            tokens = vocabulary.by_bytes.get(data[position:end])
            if tokens:
                ids.append(tokens[0].id)
                position = end
                break
        else:
            exact = False
            position += 1
    return Pieces(tuple(ids), exact)


def _normalise(data: bytes, vocabulary: Vocabulary) -> bytes:
    normalizer = vocabulary.tokenizer.normalizer
    text = data.decode(errors="ignore")
    return data if normalizer is None else normalizer.normalize_str(text).encode()
