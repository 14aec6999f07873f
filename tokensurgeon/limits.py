"""What a recipe does not put up with in an output that is sound: warnings by code, and loss."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokensurgeon.errors import VerificationError
from tokensurgeon.notices import Notice
from tokensurgeon.recipe.schema import VerifyRules
from tokensurgeon.report import model as r

_NOTHING = "nothing was written"


def refuse_warned(rules: VerifyRules, notices: Iterable[Notice | r.Notice]) -> None:
    """Refuse an output with a warning of ``fail_on``.

    Args:
        rules: Of the recipe.
        notices: Its warnings, or those known so far.

    Raises:
        VerificationError: One of them is denied.
    """
    denied = [notice for notice in notices if notice.code in rules.fail_on]
    if denied:
        codes = ", ".join(dict.fromkeys(notice.code for notice in denied))
        raise VerificationError(
            "\n".join(f"{notice.code}: {notice.text}" for notice in denied),
            f"no {codes}, as verify.fail_on says",
            f"{_NOTHING}; `tokensurgeon --explain {denied[0].code}` says what to do",
        )


def refuse_costly(rules: VerifyRules, scores: Sequence[r.TextScore], notices: Iterable[Notice]) -> None:
    """Refuse an output that reads a text at more bits per byte than ``max_bpb_increase`` allows.

    Args:
        rules: Of the recipe.
        scores: Of its texts; empty where they could not be scored.
        notices: Warnings, which then say why.

    Raises:
        VerificationError: A text costs too much, or it is not known what it costs.
    """
    limit = rules.max_bpb_increase
    if limit is None:
        return
    expected = f"at most {limit:+g} bits per byte, as verify.max_bpb_increase says"
    if not scores:
        why = next((notice.text for notice in notices if notice.code == "TS018"), "there are none")
        raise VerificationError(f"what report.texts cost is not known: {why}", expected, _NOTHING)
    costs = [score.output - score.base for score in scores]
    if not max(costs) <= limit:
        raise VerificationError(
            "\n".join(
                f"{score.text}: {score.base:.3f} -> {score.output:.3f} bits per byte, {cost:+.3f}"
                + ("" if cost <= limit else ", too much")
                for score, cost in zip(scores, costs, strict=True)
            ),
            expected,
            f"{_NOTHING}; try another method or heal, or allow more",
        )
