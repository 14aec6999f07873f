"""Two vocabularies -> which target token is which base token. Ids only, no tensors.

Ordinary tokens are the same when they stand for the same bytes. Where several tokens of a vocabulary
spell the same bytes each base token is used once: same printed form first, then same kind, then the
preferred spelling; what is left over counts as missing and is reported as a collision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from tokensurgeon.vocab.canonical import Kind
from tokensurgeon.vocab.special import DEFAULT_ROLES, Origin, Source, link_specials
from tokensurgeon.vocab.vocabulary import Token, Vocabulary


@dataclass(frozen=True)
class Collision:
    """Tokens of one vocabulary that spell the same bytes.

    Attributes:
        side: ``target`` or ``base``.
        data: The bytes.
        ids: Their ids, the preferred one first.
    """

    side: str
    data: bytes
    ids: tuple[int, ...]


@dataclass(frozen=True)
class VocabMatch:
    """What a target vocabulary shares with a base vocabulary.

    Attributes:
        target: The vocabulary the output will speak.
        base: The vocabulary of the model that is kept.
        sources: Base tokens behind a target token, by target id, ascending.
        collisions: Bytes with more than one token, on either side.
    """

    target: Vocabulary
    base: Vocabulary
    sources: dict[int, Source]
    collisions: tuple[Collision, ...]

    @cached_property
    def missing(self) -> list[int]:
        """Target ids with no counterpart, ascending."""
        return [index for index in self.target.tokens if index not in self.sources]

    @cached_property
    def byte_equal(self) -> dict[int, int]:
        """Target id to base id of ordinary tokens with equal bytes."""
        return {i: s.embedding[0] for i, s in self.sources.items() if s.origin is Origin.MATCHED}

    @cached_property
    def false_matches(self) -> list[int]:
        """Target ids matched to other bytes or another word start than their own; empty by construction."""
        return [
            index
            for index, twin in self.byte_equal.items()
            if _key(self.target.tokens[index]) != _key(self.base.tokens[twin])
        ]

    @property
    def is_identity(self) -> bool:
        """Whether every target token is the base token with the same id, and nothing else."""
        return self.target.tokens.keys() == self.base.tokens.keys() and all(
            index in self.sources and self.sources[index].embedding == self.sources[index].head == (index,)
            for index in self.target.tokens
        )

    def successors(self, base_id: int) -> list[int]:
        """Target ids that carry a base token's head row."""
        return self._successors.get(base_id, [])

    @cached_property
    def _successors(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for index, source in self.sources.items():
            if len(source.head) == 1:
                found.setdefault(source.head[0], []).append(index)
        return found


def match_vocabularies(
    target: Vocabulary,
    base: Vocabulary,
    user_map: Mapping[str, str] | None = None,
    roles: Sequence[str] = DEFAULT_ROLES,
) -> VocabMatch:
    """Match a target vocabulary with a base vocabulary.

    Args:
        target: The vocabulary the output will speak.
        base: The vocabulary of the model that is kept.
        user_map: Target token to base text; goes before everything else.
        roles: Roles by which special tokens may be linked.

    Returns:
        The match.

    Raises:
        RecipeError: The user's map names a token that does not exist.
    """
    sources = link_specials(target, base, user_map or {}, roles)
    for index, twin in _match_bytes(target, base).items():
        sources.setdefault(index, Source((twin,), (twin,), Origin.MATCHED, "equal bytes"))
    collisions = [
        Collision(side, data, tuple(token.id for token in group))
        for side, vocabulary in (("target", target), ("base", base))
        for data, group in vocabulary.by_bytes.items()
        if len(group) > 1
    ]
    return VocabMatch(target, base, dict(sorted(sources.items())), tuple(collisions))


def match_edited(
    target: Vocabulary,
    base: Vocabulary,
    origins: Mapping[int, int],
    user_map: Mapping[str, str] | None = None,
) -> VocabMatch:
    """Match an edited vocabulary with the one it was made from: a token that stayed is the same token.

    Args:
        target: After the edits.
        base: Before them.
        origins: Target id to base id of the tokens that stayed.
        user_map: Target token to base text; goes before everything else.

    Returns:
        The match.

    Raises:
        RecipeError: The user's map names a token that does not exist.
    """
    sources = link_specials(target, base, user_map or {}, ()) if user_map else {}
    sources = {index: source for index, source in sources.items() if source.origin is Origin.MAPPED}
    for index, old in origins.items():
        if old in base.tokens:
            kind = Origin.CONTENT if base.tokens[old].kind is Kind.SPECIAL else Origin.MATCHED
            sources.setdefault(index, Source((old,), (old,), kind, "the same token"))
    return VocabMatch(target, base, dict(sorted(sources.items())), ())


def _key(token: Token) -> tuple[bytes, bool]:
    return token.data, token.word_start


def _match_bytes(target: Vocabulary, base: Vocabulary) -> dict[int, int]:
    matched: dict[int, int] = {}
    same_print = target.family is base.family
    for data, ours in target.by_bytes.items():
        pairs = [
            (_rank(token, twin, same_print), position, order, token.id, twin.id)
            for position, token in enumerate(ours)
            for order, twin in enumerate(base.by_bytes.get(data, ()))
            if token.word_start is twin.word_start
        ]
        used: set[int] = set()
        for _, _, _, index, twin_id in sorted(pairs):
            if index not in matched and twin_id not in used:
                matched[index] = twin_id
                used.add(twin_id)
    return matched


def _rank(token: Token, twin: Token, same_print: bool) -> int:
    if same_print and token.content == twin.content and token.added is twin.added:
        return 0
    return 1 if (token.kind is Kind.BYTE) is (twin.kind is Kind.BYTE) else 2
