"""Text that the base writes about what a run makes: some to judge rows by, other to fit them to.

Left to itself a model writes what it likes best, mostly English. Rows for other writing systems would be
judged, and fitted, by nothing. So it also writes texts of which every letter belongs to one of the systems
that both vocabularies have tokens for. Which rows are made does not matter: a system with no missing token of
its own may be spelt with missing bytes, and loses what loud rows of others take. And it writes programs:
indentation is where tokenizers differ most, and prose has none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from tokensurgeon.plan import Plan
from tokensurgeon.resources import FileResources
from tokensurgeon.vocab.canonical import Kind
from tokensurgeon.vocab.scripts import count_scripts, script_of, script_of_text
from tokensurgeon.vocab.vocabulary import Token

# Texts to judge by, as the base pleases; how many there are to fit to, the recipe says.
JUDGES = 24
# So many of those as the base pleases for one in each writing system, and for one program.
_FREE_FOR_ONE = 5
# A system with fewer tokens in the target is not worth a text; with fewer in the base there is no text.
_LEAST_SPOKEN, _LEAST_KNOWN = 10, 20
_MOST_SCRIPTS = 8
# What ``script_of`` says of tokens that belong to no system; bytes may belong to any.
NO_LETTERS = {"Digits", "Whitespace", "Symbols", "Special"}
# Tokens that files of programs open with, and hardly any prose.
_OPENINGS = set(
    b"import from package class def const function using public static struct let module include "
    b"# #! // /* <? {".split()
)
_PROGRAM = "program"
# What prose has between words. Without letters of their own, models end in lists, code and tables.
_BETWEEN = set(" .,;:!?-–—…«»“”‘’'\"()、。，！？：；「」・،؛؟")


def judging_texts(plan: Plan, resources: FileResources) -> dict[str, str]:
    """Text to judge rows by.

    Args:
        plan: A transplant.
        resources: Where the base's body is.

    Returns:
        Text by name; seeded, the same for every use in a run.

    Raises:
        InputError: The base writes no text.
    """
    return _write(plan, resources, plan.match.base.tokens, 0, JUDGES)


def lesson_texts(plan: Plan, resources: FileResources) -> dict[str, str]:
    """Other text, and more of it, to fit rows to.

    Args:
        plan: A transplant.
        resources: Where the base's body is.

    Returns:
        Text by name; seeded, the same for every use in a run.

    Raises:
        InputError: The base writes no text.
    """
    return _write(plan, resources, plan.match.base.tokens, 1, plan.recipe.new_rows.head_texts)


def healing_texts(
    plan: Plan, resources: FileResources, base: Mapping[int, Token], count: int
) -> dict[str, str]:
    """Yet other text, to train rows on.

    Args:
        plan: A transplant.
        resources: Where the body is that writes.
        base: Tokens of that body's own tokenizer.
        count: Texts that it writes as it pleases.

    Returns:
        Text by name; seeded, the same for every use in a run.

    Raises:
        InputError: The base writes no text.
    """
    return _write(plan, resources, base, 2, count)


def find_scripts(base: Iterable[Token], target: Iterable[Token]) -> list[str]:
    """Writing systems to write in.

    Args:
        base: Tokens of the base.
        target: Tokens of the target.

    Returns:
        Those that both have tokens for, the one with the most target tokens first.
    """
    known = count_scripts(base)
    return [
        script
        for script, count in count_scripts(target).items()
        if script not in NO_LETTERS | {"Bytes"}
        and count >= _LEAST_SPOKEN
        and known.get(script, 0) >= _LEAST_KNOWN
    ][:_MOST_SCRIPTS]


def limit_of(name: str) -> str:
    """What a text is limited to from its first token to its last.

    Args:
        name: Of a text for one of the uses here.

    Returns:
        A writing system; empty for none.
    """
    limit = name.rpartition("sample")[0].strip()
    return "" if limit == _PROGRAM else limit


def may_hold(limit: str, token: Token) -> bool:
    """Whether a text that is limited to a writing system may hold a token, in any vocabulary.

    Args:
        limit: A writing system.
        token: Any token.

    Returns:
        Whether it has letters of the system, or stands between words.
    """
    return script_of(token) == limit or (token.kind is not Kind.SPECIAL and set(_text_of(token)) <= _BETWEEN)


def main_script(texts: Mapping[str, str]) -> str:
    """The writing system that a base writes in by itself.

    Args:
        texts: Some that it wrote, by name.

    Returns:
        The one of most letters of texts that were not limited to any; empty if there are none.
    """
    free = (text for name, text in texts.items() if name.startswith("sample"))
    scripts = Counter(script_of_text(char) for text in free for char in text if char.isalpha())
    return max(scripts, key=lambda script: (scripts[script], script), default="")


def _write(
    plan: Plan, resources: FileResources, base: Mapping[int, Token], turn: int, count: int
) -> dict[str, str]:
    between = [index for index, token in base.items() if _stands_between(token)]
    texts = dict(resources.write_texts(turn, count))
    limits = {
        script: ([index for index, token in base.items() if script_of(token) == script], between)
        for script in find_scripts(base.values(), plan.match.target.tokens.values())
    }
    openings = [index for index, token in base.items() if token.data in _OPENINGS]
    if openings:
        limits[_PROGRAM] = openings, list(base)
    for limit, (first, later) in limits.items():
        written = resources.write_texts(turn, -(-count // _FREE_FOR_ONE), limit, first, later)
        texts |= {f"{limit} {name}": text for name, text in written.items()}
    return texts


def _stands_between(token: Token) -> bool:
    """Whether a token is punctuation of prose, or one space."""
    text = _text_of(token)
    return token.kind is not Kind.SPECIAL and bool(text) and set(text) <= _BETWEEN and text.count(" ") < 2


def _text_of(token: Token) -> str:
    """A token's text, with a mark for what is none."""
    return token.data.decode(errors="replace")
