"""A report as one HTML page that needs nothing else: no network, no fonts; a script only to search rows."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from tokensurgeon.report.compare import compare_reports
from tokensurgeon.report.model import (
    DraftSummary,
    HiddenErrors,
    LossClass,
    Report,
    RowTable,
    SpecialToken,
    TensorQuality,
)
from tokensurgeon.report.summary import (
    change,
    count,
    decimal,
    headline,
    heal_sentence,
    made_by,
    main_tensor,
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
_SAMPLED_ROWS = 24


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
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            report=report,
            headline=headline(report),
            compared=_compare(report),
            base=source_of(report, "base"),
            target=source_of(report, "target"),
            sentence=_prose(summary_sentence(report)),
            tokenizer=tokenizer_of(report),
            cards=_cards(report),
            specials=_specials(report)[:_MOST_SPECIALS],
            recipe=recipe_yaml(report.recipe),
            choice_recipe=recipe_yaml(report.choice.recipe) if report.choice else "",
            plots=_plots(report),
        )
    )


def render_comparison(reports: dict[str, Report]) -> str:
    """Several reports on one page.

    Args:
        reports: By the name of the run; at least one.

    Returns:
        A whole HTML document.
    """
    return (
        _environment()
        .get_template("compare.html.jinja")
        .render(compared=compare_reports(reports), reports=reports)
    )


def _environment() -> Environment:
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
        heal=lambda heal: _prose(heal_sentence(heal)),
        bars=_bars,
        signed=signed,
        rows=_rows,
        sections=_sections,
        headline=headline,
    )
    return environment


def _sections(body: str) -> list[tuple[str, Markup]]:
    """Anchor and title of every section that made it into the page."""
    found = re.findall(r'<section id="([^"]+)">\n<h2>(.*?)</h2>', body)
    return [(anchor, Markup(title)) for anchor, title in found]


def _prose(text: str) -> str:
    """Text that breaks no line between a number and its percent sign."""
    return text.replace(" %", "\u00a0%")


def _token(text: str) -> Markup:
    # dir=auto keeps text that runs from right to left apart from what stands around it.
    return Markup('<code dir="auto">{}</code>').format(escape(show_token(text)))


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


@dataclass(frozen=True)
class _Rows:
    """Made rows of one tensor as the page shows them.

    Attributes:
        sample: Some of them, evenly spread.
        held: How many the page holds.
        made: How many there are.
        data: All that it holds, as JSON that may stand in a script element: for every row its id, text,
            method, residual and ingredients, each a place in ``texts`` and a coefficient.
    """

    sample: list[dict[str, Any]]
    held: int
    made: int
    data: Markup


def _rows(table: RowTable) -> _Rows:
    held = len(table.ids)
    places = {source: place for place, source in enumerate(table.source_tokens)}
    rows = [
        [
            table.ids[at],
            show_token(table.tokens[at]),
            table.methods[at],
            table.residuals[at],
            [[places[i], weight] for i, weight in zip(table.sources[at], table.weights[at], strict=True)],
        ]
        for at in range(held)
    ]
    data = {"texts": [show_token(text) for text in table.source_tokens.values()], "rows": rows}
    encoded = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    size = min(held, _SAMPLED_ROWS)
    sample = [
        {
            "id": table.ids[at],
            "token": table.tokens[at],
            "method": table.methods[at],
            "residual": table.residuals[at],
            "made_of": [
                (table.source_tokens[i], weight)
                for i, weight in zip(table.sources[at], table.weights[at], strict=True)
            ],
        }
        for at in (held * place // size for place in range(size))
    ]
    return _Rows(sample, held, table.made, Markup(encoded))


@dataclass(frozen=True)
class _Compared:
    """A line of the table of before and after; ``change`` may be empty."""

    label: str
    before: str
    after: str
    change: str = ""


def _compare(report: Report) -> list[_Compared]:
    sizes, traits = report.vocabulary, report.traits
    lines = [
        _compared_counts(label, before, after)
        for label, before, after in (
            ("tokens", sizes.base_tokens, sizes.target_tokens),
            ("rows", sizes.base_rows, sizes.rows),
        )
    ]
    old, new = sizes.parameters_before, sizes.parameters_after
    lines.append(_Compared("parameters", _short(old), _short(new), change(old, new)))
    for score in report.scores:
        name = show_token(score.text)
        bits = change(score.base, score.output)
        lines.append(_Compared(f"bits per byte, {name}", f"{score.base:.3f}", f"{score.output:.3f}", bits))
    for score in report.scores:
        before, after = score.base_bytes_per_token, score.output_bytes_per_token
        name = f"bytes a token, {show_token(score.text)}"
        lines.append(_Compared(name, f"{before:.2f}", f"{after:.2f}", change(before, after)))
    chat = "no template" if traits.bos_chat_target is None else str(traits.bos_chat_target)
    return [
        *lines,
        _Compared("numbers are cut into", show_token(traits.digits_base), show_token(traits.digits_target)),
        _Compared("normaliser", show_token(traits.normalizer_base), show_token(traits.normalizer_target)),
        _Compared("BOS in front of a prompt", str(traits.bos_base), str(traits.bos_target)),
        _Compared("BOS in front of a chat", "–", chat),
    ]


def _compared_counts(label: str, before: int, after: int) -> _Compared:
    return _Compared(label, count(before), count(after), change(before, after))


def _cards(report: Report) -> list[_Card]:
    sizes, tensor = report.vocabulary, main_tensor(report)
    cards = []
    if tensor is not None:
        share = percent(tensor.copied / sizes.target_tokens) if sizes.target_tokens else "none"
        cards.append(_Card("Copied rows", count(tensor.copied), f"{share} of the target's tokens"))
        cards.append(_Card("New rows", count(tensor.made), ", ".join(map(show_token, made_by(report)))))
        cards.extend(_residual_card(tensor))
    if report.hidden is not None and report.hidden.errors:
        cards.append(_hidden_card(report.hidden.errors[0], report.hidden.tokens))
    if report.draft is not None:
        cards.append(_draft_card(report.draft))
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


def _hidden_card(errors: HiddenErrors, tokens: int) -> _Card:
    return _Card("Hidden-anchor error", f"{errors.weighted:.3f}", f"on {count(tokens)} tokens; mean row: 1")


def _draft_card(draft: DraftSummary) -> _Card:
    judged = [verdict for verdict in draft.verdicts if verdict.result != "not checked"]
    passed = sum(verdict.result == "passes" for verdict in judged)
    tone = ("good" if passed == len(judged) else "bad") if draft.asked else ""
    return _Card("As a draft model", f"{passed} / {len(judged)}", "rules of engines that it passes", tone)


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
