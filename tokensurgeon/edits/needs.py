"""Which tokens a token brings with it.

A trimmed tokenizer has to cut a text as before wherever all tokens of the text are kept. What that takes
depends on the model.

**BPE.** Merges fire in the order of their rank, the leftmost of a rank first. Take the merges that fire on
a text while all are there. If these are kept, in their order, then at each step the merge that fired before
is still the first of those that apply, for others have only gone; and at the end none applies, for none
did. So the text is cut as before. For these to be kept it is enough to keep, for each kept token, the
merges that make it: no merge crosses the borders of a token that is there at the end, so those inside it
fire in the order in which they fire on it alone. The last of them tells the two tokens needed, and what
these need is found in the same way. A token that its own letters do not lead to is never made
(`ignore_merges` looks it up), and needs nothing. Byte pieces and the unknown token are letters of their
own: where merges build on them, every merge that makes a token counts.

**Unigram.** The old path is still the best one, for fewer pieces open no better path. A letter that loses
its own piece opens one with the unknown token; but that costs more than any piece did, as long as its price
stays. The lowest score sets it, so `trim` keeps the piece that has it.

**WordPiece.** The longest match at each place is still the longest. But a word that failed, and was unknown,
might now succeed by shorter matches. It does not if the old vocabulary had a piece for each letter of the
pieces that are kept, for then it would not have failed. Where one has none (`Needs.unspelt`), an unknown word
may become known.

So neither of these two has to keep anything for what is kept. A piece of several letters brings the pieces of
single letters all the same: no text that these can write becomes unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from functools import cache

from tokensurgeon.edits.document import learnt_ids, model_type, read_merges
from tokensurgeon.vocab.canonical import Kind
from tokensurgeon.vocab.vocabulary import Vocabulary


class Needs:
    """Id of a token -> ids of the tokens that it brings with it.

    Args:
        vocabulary: Of any kind.
        none: Whether tokens come alone, whatever becomes of texts.
    """

    def __init__(self, vocabulary: Vocabulary, none: bool = False) -> None:
        self._tokens = vocabulary.tokens
        self._ids = learnt_ids(vocabulary.spec)
        self._kind = model_type(vocabulary.spec)
        self._prefix: str = vocabulary.spec["model"].get("continuing_subword_prefix") or ""
        merges = read_merges(vocabulary.spec) if self._kind == "BPE" else []
        # As the library: of a pair that is listed twice the last rank counts.
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._products = {left + right for left, right in merges}
        long_letters = {token.content for token in vocabulary if token.kind is not Kind.TEXT}
        self._long_letters = {part for pair in merges for part in pair if part in long_letters}
        self._makers: dict[str, set[str]] = {}
        if self._long_letters:
            for pair in merges:
                self._makers.setdefault("".join(pair), set()).update(pair)
        self.direct: Callable[[int], frozenset[int]] = cache(self._nothing if none else self._find)

    def close(self, ids: Iterable[int], closed: Set[int] = frozenset()) -> set[int]:
        """Add to tokens all that they bring with them, directly or not.

        Args:
            ids: Any tokens.
            closed: Tokens that are there already, with all that they bring.

        Returns:
            These and the others, without those that are there already.
        """
        found: set[int] = set()
        waiting = set(ids) - closed
        while waiting:
            found |= waiting
            waiting = {need for index in waiting for need in self.direct(index)} - found - closed
        return found

    def unspelt(self, ids: Iterable[int]) -> list[int]:
        """Find the pieces of a WordPiece model that have a letter without a piece of its own.

        Args:
            ids: Any tokens.

        Returns:
            Those; none in another kind of model.
        """
        if self._kind != "WordPiece":
            return []
        pieces = [index for index in ids if self._tokens[index].kind is Kind.TEXT]
        return [index for index in pieces if not self._ids.keys() >= self._letters(index)]

    def _nothing(self, _: int) -> frozenset[int]:
        return frozenset()

    def _find(self, index: int) -> frozenset[int]:
        parts: Iterable[str] = ()
        if self._kind == "BPE":
            parts = self._parts(self._tokens[index].content)
        elif self._kind in ("Unigram", "WordPiece") and self._tokens[index].kind is Kind.TEXT:
            letters = self._bare(index)
            # A single letter brings nothing: its two forms would bring each other.
            parts = [*letters, *(self._prefix + letter for letter in letters)] if len(letters) > 1 else ()
        return frozenset(self._ids[part] for part in parts if part in self._ids)

    def _bare(self, index: int) -> str:
        content = self._tokens[index].content
        return content.removeprefix(self._prefix) or content

    def _letters(self, index: int) -> set[str]:
        """The pieces that would write a piece letter by letter."""
        content, bare = self._tokens[index].content, self._bare(index)
        first = content[: len(content) - len(bare) + 1]
        return {first, *(self._prefix + letter for letter in bare[1:])}

    def _parts(self, content: str) -> list[str]:
        if content not in self._products:
            return []
        if any(letter in content for letter in self._long_letters):
            return list(self._makers[content])
        symbols = list(content)
        last: tuple[str, ...] = ()
        while len(symbols) > 1:
            _, at = min(
                (self._ranks.get((symbols[at], symbols[at + 1]), len(self._ranks) + 1), at)
                for at in range(len(symbols) - 1)
            )
            last = (symbols[at], symbols[at + 1])
            if last not in self._ranks:
                return []
            symbols[at : at + 2] = ["".join(last)]
        return list(last)
