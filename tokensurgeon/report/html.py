"""A report as one HTML page that needs nothing else: no network, no fonts, no script."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from tokensurgeon.report.model import LossClass, Report, SpecialToken, TensorQuality
from tokensurgeon.report.summary import (
    change,
    count,
    decimal,
    heal_sentence,
    made_by,
    main_tensor,
    overall_bits,
    percent,
    recipe_yaml,
    shape,
    show_token,
    signed,
    solver_sentence,
    source_of,
    summary_sentence,
    tokenizer_of,
)

_MOST_SPECIALS = 200


@dataclass(frozen=True)
class _Card:
    """A key number at the top of the page."""

    label: str
    value: str
    note: str
    tone: str = ""


def render_html(report: Report) -> str:
    """The page as text; equal reports give equal pages.

    Args:
        report: A finished run.

    Returns:
        A whole HTML document.
    """
    environment = Environment(
        loader=PackageLoader("tokensurgeon.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        show=show_token,
        token=_token,
        count=count,
        decimal=decimal,
        percent=percent,
        shape=shape,
        json=_json,
        solver=solver_sentence,
        heal=heal_sentence,
        bars=_bars,
        signed=signed,
    )
    return environment.get_template("report.html.jinja").render(
        report=report,
        base=source_of(report, "base"),
        target=source_of(report, "target"),
        sentence=summary_sentence(report),
        tokenizer=tokenizer_of(report),
        cards=_cards(report),
        change=change,
        specials=_specials(report)[:_MOST_SPECIALS],
        recipe=recipe_yaml(report.recipe),
        choice_recipe=recipe_yaml(report.choice.recipe) if report.choice else "",
        plots=_plots(report),
    )


def _token(text: str) -> Markup:
    return Markup("<code>{}</code>").format(escape(show_token(text)))


def _json(value: Any) -> str:  # noqa: ANN401 - any JSON value
    return show_token(json.dumps(value, ensure_ascii=False))


@dataclass(frozen=True)
class _Bar:
    """A class of loss with the length of its bar.

    Attributes:
        part: The class.
        width: Share of the longest bar of its split, in percent.
        tone: CSS class.
    """

    part: LossClass
    width: float
    tone: str


def _bars(parts: list[LossClass]) -> list[_Bar]:
    """Classes that occur in the text, each with a bar as long as its share of the loss."""
    longest = max((abs(part.excess) for part in parts), default=0.0) or 1.0
    return [
        _Bar(part, round(100 * abs(part.excess) / longest, 1), "gain" if part.excess < 0 else "loss")
        for part in parts
        if part.chunks
    ]


def _specials(report: Report) -> list[SpecialToken]:
    """Those that do something first; some tokenizers reserve thousands that do nothing."""
    return sorted(report.specials, key=lambda token: (not token.roles, not token.base_tokens, token.id))


def _cards(report: Report) -> list[_Card]:
    sizes, tensor = report.vocabulary, main_tensor(report)
    cards = [_Card("Rows", count(sizes.rows), f"were {count(sizes.base_rows)}")]
    if tensor is not None:
        share = percent(tensor.copied / sizes.target_tokens) if sizes.target_tokens else "none"
        cards.append(_Card("Copied rows", count(tensor.copied), f"{share} of the target's tokens"))
        cards.append(_Card("New rows", count(tensor.made), ", ".join(map(show_token, made_by(report)))))
        cards.extend(_residual_card(tensor))
    if report.scores:
        before, after = overall_bits(report.scores)
        cards.append(_Card("Bits per byte", change(before, after), f"{before:.3f} → {after:.3f}"))
    growth = change(sizes.parameters_before, sizes.parameters_after)
    cards.append(
        _Card("Parameters", _short(sizes.parameters_after), f"{growth} on {_short(sizes.parameters_before)}")
    )
    failed = sum(not check.passed for check in report.checks)
    total = len(report.checks)
    note = f"{failed} failed" if failed else "verified" if total else "not verified"
    tone = "good" if note == "verified" else "bad"
    cards.append(_Card("Checks passed", f"{total - failed} / {total}", note, tone))
    return cards


def _residual_card(tensor: TensorQuality) -> list[_Card]:
    if tensor.residuals is None:
        return []
    part = tensor.residuals
    return [_Card("Median residual", decimal(part.median), f"99 % below {decimal(part.q99)}")]


def _short(number: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return str(number)


def _plots(report: Report) -> dict[str, Any]:
    """Every plot that there is data for; those of a tensor by its name."""
    from tokensurgeon.report import plots  # here, because matplotlib is slow to import

    return {
        "origins": Markup(plots.origins_plot(report.origins)) if report.origins else None,
        "scores": Markup(plots.scores_plot(report.scores)) if report.scores else None,
        "heal": Markup(plots.heal_plot(report.heal)) if report.heal and report.heal.losses else None,
        "norms": {
            tensor.name: Markup(plots.norms_plot(tensor))
            for tensor in report.tensors
            if tensor.kept_norms or tensor.new_norms
        },
        "residuals": {
            tensor.name: Markup(plots.residuals_plot(tensor)) for tensor in report.tensors if tensor.residuals
        },
    }
