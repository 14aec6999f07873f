"""Every token of another tokenizer behind those there are."""

from __future__ import annotations

from tokensurgeon.edits.document import Edited
from tokensurgeon.edits.extend import KINDS, Report, add_inside
from tokensurgeon.edits.grow import Growth, check_model
from tokensurgeon.edits.params import UnionParams
from tokensurgeon.vocab.canonical import Kind
from tokensurgeon.vocab.vocabulary import Vocabulary


def union(vocabulary: Vocabulary, params: UnionParams, other: Vocabulary) -> Edited:
    """Add every token of another tokenizer that plain text can be made to produce, and its special tokens.

    Args:
        vocabulary: The tokenizer to extend.
        params: Where the other one is from.
        other: The tokenizer of ``params.tokenizer``.

    Returns:
        The tokenizer with every old id as it was.

    Raises:
        InputError: The model is of a kind that cannot be extended.
    """
    check_model(vocabulary, KINDS, "union")
    report = Report()
    ordinary = [token.data for token in other if token.kind is not Kind.SPECIAL]
    result = add_inside(vocabulary, ordinary, None, report)
    growth = Growth(result)
    names = [token.content for token in other if token.kind is Kind.SPECIAL]
    new = [name for name in names if name not in growth.taken]
    for name in new:
        growth.add_outside(name, special=True)
    result = growth.finish() if new else result
    facts = report.facts() | {
        "of": params.tokenizer,
        "special_tokens_added": len(new),
        "special_tokens_already_there": len(names) - len(new),
    }
    return Edited(result.spec, {index: index for index in vocabulary.tokens}, facts)
