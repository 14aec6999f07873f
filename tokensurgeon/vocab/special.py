"""Which control token of the base stands behind each control token of the target.

Order: the user's map, identical content, role, position in a rendered chat. Only special and added
tokens are linked by content, role or chat; an ordinary token never gets a control token's row unless
the user says so. ``unk`` has a role in every vocabulary and a meaning in none, so it is not linked by
role unless asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tokensurgeon.errors import RecipeError
from tokensurgeon.vocab.canonical import Kind
from tokensurgeon.vocab.chat import SENTINELS, Conversation, render_chat
from tokensurgeon.vocab.vocabulary import ROLES, Token, Vocabulary

DEFAULT_ROLES = tuple(role for role in ROLES if role != "unk")

# Two tokens with one source: the role that matters more for generation is served first.
_ROLE_ORDER = ("eos", "bos", "sep", "cls", "mask", "pad", "unk")


class Origin(StrEnum):
    """Why a target row is a copy of base rows."""

    MATCHED = "matched"
    """An ordinary token with the same bytes."""
    CONTENT = "content"
    ROLE = "role"
    CHAT = "chat"
    MAPPED = "mapped"
    """The user's map."""


@dataclass(frozen=True)
class Source:
    """Base tokens behind one target token.

    Attributes:
        embedding: Base id for the input embedding; several only in a user's map.
        head: Base id for the lm_head; differs from ``embedding`` only where one target token is both
            BOS and EOS.
        origin: How it was decided.
        reason: The same for a person, such as ``role eos``.
    """

    embedding: tuple[int, ...]
    head: tuple[int, ...]
    origin: Origin
    reason: str


def link_specials(
    target: Vocabulary,
    base: Vocabulary,
    user_map: Mapping[str, str],
    roles: Sequence[str] = DEFAULT_ROLES,
) -> dict[int, Source]:
    """Find the base token behind each special token of the target.

    Args:
        target: The vocabulary the output will speak.
        base: The vocabulary of the model that is kept.
        user_map: Target token to base text; the text may be one token or several.
        roles: Roles that may be linked.

    Returns:
        Source by target id; tokens without one are missing.

    Raises:
        RecipeError: The user's map names a token that does not exist.
    """
    linked = _by_user_map(target, base, user_map)
    for step in (_by_content(target, base), _by_role(target, base, roles), _by_chat(target, base)):
        for index, source in step.items():
            linked.setdefault(index, source)
    return linked


def _is_control(token: Token | None) -> bool:
    return token is not None and (token.kind is Kind.SPECIAL or token.added)


def _by_user_map(target: Vocabulary, base: Vocabulary, user_map: Mapping[str, str]) -> dict[int, Source]:
    linked = {}
    for wanted, text in user_map.items():
        token = target.by_content.get(wanted)
        if token is None:
            ids = target.encode(wanted)
            if len(ids) != 1:
                raise RecipeError(
                    f"anchors.map: {wanted!r} is {len(ids)} tokens of the target tokenizer",
                    "one token on the left-hand side",
                    "run `tokensurgeon inspect` to see the target's special tokens",
                )
            token = target.tokens[ids[0]]
        known = base.by_content.get(text)
        sources = (known.id,) if known else tuple(base.encode(text))
        spelt = all(index in base.tokens and index != base.unknown for index in sources)
        if not sources or not (known or spelt):
            raise RecipeError(
                f"anchors.map: the base tokenizer has no token for {text!r} (mapped to {wanted!r})",
                "a base token, or text that base tokens can spell",
            )
        linked[token.id] = Source(sources, sources, Origin.MAPPED, f"map to {text!r}")
    return linked


def _by_content(target: Vocabulary, base: Vocabulary) -> dict[int, Source]:
    linked = {}
    for token in target:
        twin = base.by_content.get(token.content)
        if twin is None or not (_is_control(token) and _is_control(twin)):
            continue
        if Kind.SPECIAL in (token.kind, twin.kind):
            linked[token.id] = Source((twin.id,), (twin.id,), Origin.CONTENT, "identical content")
    return linked


def _by_role(target: Vocabulary, base: Vocabulary, roles: Sequence[str]) -> dict[int, Source]:
    linked: dict[int, Source] = {}
    for role in sorted(roles, key=_ROLE_ORDER.index):
        index, twin = target.roles.get(role), base.roles.get(role)
        if index is None or twin is None:
            continue
        if not (_is_control(target.tokens[index]) and _is_control(base.tokens[twin])):
            continue
        if role == "pad" and twin == base.roles.get("eos") and index != target.roles.get("eos"):
            # A base that pads with its EOS never learnt a padding token; EOS's row would make a stop of it.
            continue
        earlier = linked.get(index)
        if earlier is None:
            linked[index] = Source((twin,), (twin,), Origin.ROLE, f"role {role}")
        elif role == "bos" and target.roles.get("eos") == index:
            # One token opens and closes texts: it is read as BOS and predicted as EOS.
            linked[index] = Source((twin,), earlier.head, Origin.ROLE, "role bos (embedding), eos (head)")
    return linked


def _by_chat(target: Vocabulary, base: Vocabulary) -> dict[int, Source]:
    linked: dict[int, Source] = {}
    ours, theirs = chat_markers(target), chat_markers(base)
    for place in ours.keys() & theirs.keys():
        for index, twin in zip(ours[place], theirs[place], strict=False):
            linked.setdefault(index, Source((twin,), (twin,), Origin.CHAT, f"chat template, {place}"))
    return dict(sorted(linked.items()))


def chat_markers(vocabulary: Vocabulary) -> dict[str, list[int]]:
    """Control tokens of a rendered two-turn conversation, by where they stand.

    Only the stretches between turns are read: what stands before the first turn (BOS, a default
    system prompt) differs between templates without meaning anything.
    """
    rendered = render_chat(vocabulary, Conversation.MARKED)
    if rendered is None:
        return {}
    markers: dict[str, list[int]] = {}
    for place, start, end in (
        ("user to assistant", SENTINELS[0], SENTINELS[1]),
        ("assistant to user", SENTINELS[1], SENTINELS[2]),
    ):
        if rendered.count(start) != 1 or rendered.count(end) != 1:
            return {}
        between = rendered.split(start)[1].split(end)[0]
        ids = vocabulary.encode(between)
        markers[place] = [index for index in ids if vocabulary.tokens[index].kind is Kind.SPECIAL]
    return markers
