"""A report in a few lines of plain text, and how numbers and tokens look in every form of it."""

from __future__ import annotations

import unicodedata
from typing import Any

import yaml

from tokensurgeon.report.model import (
    DraftSummary,
    EditSummary,
    HealSummary,
    HiddenSummary,
    InputModel,
    Report,
    Solver,
    TensorQuality,
    TextScore,
)

_MADE = "method: "
_VISIBLE = {"\n": "⏎", "\r": "␍", "\t": "⇥"}
# Controls, invisible format marks (RTL overrides, joiners), surrogates, separators, unassigned.
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def show_token(text: str) -> str:
    """Token text with everything invisible made visible, on one line.

    Newline is ``⏎``, tab ``⇥``, a leading or trailing space ``␣``; other control and format characters
    are written as escapes.

    Args:
        text: Any text; nothing in it is trusted.

    Returns:
        Never empty, and without control characters.
    """
    if not text:
        return "∅"
    inner = text.strip(" ")
    lead = len(text) - len(text.lstrip(" "))
    shown = "␣" * lead + "".join(map(_show_character, inner)) + "␣" * (len(text) - lead - len(inner))
    # A mark that combines would sit on whatever stands in front of the token.
    return "◌" + shown if unicodedata.category(shown[0]).startswith("M") else shown


def _show_character(character: str) -> str:
    if character in _VISIBLE:
        return _VISIBLE[character]
    category = unicodedata.category(character)
    if category in _HIDDEN or (category == "Zs" and character != " "):
        code = ord(character)
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return character


def count(number: int) -> str:
    """A whole number with thousands separators."""
    return f"{number:,}"


def decimal(number: float) -> str:
    """A measured value to four significant digits."""
    return f"{number:.4g}"


def percent(share: float) -> str:
    """A share of 0 to 1; only exactly nothing is 0 % and only exactly everything is 100 %."""
    if 0 < share < 0.0005:
        return "<0.1 %"
    if 0.9995 <= share < 1:
        return ">99.9 %"
    return f"{100 * share:.1f} %"


def change(before: float, after: float) -> str:
    """Relative change with its sign."""
    return f"{100 * (after / before - 1):+z.1f} %" if before else "n/a"


def signed(number: float) -> str:
    """A difference in bits per byte, with its sign."""
    return f"{number:+z.3f}"


def shape(sizes: list[int]) -> str:
    """A tensor shape, such as ``49,152 × 576``; ``none`` for no tensor."""
    return " × ".join(map(count, sizes)) or "none"


def input_of(report: Report, role: str) -> InputModel | None:
    """The input with this role, if the run had one."""
    return next((model for model in report.inputs if model.role == role), None)


def source_of(report: Report, role: str) -> str:
    """Path or hub id of an input, on one line; a question mark if the run had none."""
    model = input_of(report, role)
    return show_token(model.source) if model else "?"


def made_by(report: Report) -> dict[str, int]:
    """Tokens made by each method, in the order of the report."""
    return {
        part.origin.removeprefix(_MADE): part.tokens
        for part in report.origins
        if part.origin.startswith(_MADE)
    }


def main_tensor(report: Report) -> TensorQuality | None:
    """The input embedding, which speaks for the run where one number must."""
    return next((tensor for tensor in report.tensors if tensor.role == "embedding"), None)


def overall_bits(scores: list[TextScore]) -> tuple[float, float]:
    """Bits per byte over all texts together, base and output; every byte counts the same."""
    size = sum(score.bytes for score in scores)
    base = sum(score.base * score.bytes for score in scores) / size
    return base, sum(score.output * score.bytes for score in scores) / size


def recipe_yaml(recipe: dict[str, Any]) -> str:
    """A recipe, or a part of one, as YAML."""
    return yaml.safe_dump(recipe, sort_keys=False)


def headline(report: Report) -> tuple[str, str]:
    """The one number that says most about a run, and what it counts.

    Args:
        report: A finished run.

    Returns:
        The number, and the end of a sentence that starts with it.
    """
    if report.scores:
        before, after = overall_bits(report.scores)
        texts = (
            show_token(report.scores[0].text) if len(report.scores) == 1 else f"{len(report.scores)} texts"
        )
        return change(before, after), f"bits per byte against the base: {before:.3f} → {after:.3f} on {texts}"
    main = main_tensor(report)
    copied = main.copied if main is not None else report.matching.byte_equal
    share = copied / report.vocabulary.target_tokens if report.vocabulary.target_tokens else 0.0
    return percent(share), "of the tokens have a row of the base, copied byte for byte; no text was scored"


def summary_sentence(report: Report) -> str:
    """What was done and what it cost, in up to three sentences.

    Args:
        report: A finished run.

    Returns:
        Plain text on one line.
    """
    base = source_of(report, "base")
    was_healed = report.heal is not None and base == source_of(report, "target")
    done = "was healed" if was_healed else f"now speaks {tokenizer_of(report)}"
    sentences = [f"{base} {done}{_rows_clause(report)}."]
    if report.scores:
        sentences.append(_scores_sentence(report.scores))
    sentences.append(checks_sentence(report))
    return " ".join(sentences)


def tokenizer_of(report: Report) -> str:
    """Whose tokenizer the output speaks, and what was done to it, for the end of a sentence."""
    base, target = source_of(report, "base"), source_of(report, "target")
    if report.edits is None:
        return f"the tokenizer of {target}"
    owner = "its own tokenizer" if base == target else f"the tokenizer of {target}"
    return f"{owner} after {', '.join(step.operation for step in report.edits.steps)}"


def _rows_clause(report: Report) -> str:
    tensor = main_tensor(report)
    if tensor is None:
        return ""
    total = count(report.vocabulary.target_tokens)
    clause = f": {count(tensor.copied)} of {total} tokens have a base row, copied byte for byte"
    if tensor.made:
        clause += f"; {count(tensor.made)} rows were made by {_names(report, ' and ')}"
    if tensor.healed:
        clause += f"; {count(tensor.healed)} rows were trained"
    return clause


def _names(report: Report, separator: str = ", ") -> str:
    return separator.join(map(show_token, made_by(report))) or "no method"


def _scores_sentence(scores: list[TextScore]) -> str:
    base, output = overall_bits(scores)
    needs = f"The output needs {output:.3f} bits per byte where the base needs {base:.3f}"
    sentence = f"{needs} ({change(base, output)})"
    if len(scores) > 1:
        worst = max(scores, key=lambda score: score.output / score.base if score.base else 0.0)
        sentence += f"; worst on {show_token(worst.text)} ({change(worst.base, worst.output)})"
    return sentence + "."


def checks_sentence(report: Report) -> str:
    """Whether verification passed, in one sentence; a run without checks has not passed."""
    failed = sum(not check.passed for check in report.checks)
    if not report.checks:
        return "It was not verified."
    if failed:
        return f"Verification FAILED: {failed} of {len(report.checks)} checks."
    return f"Verification passed: {len(report.checks)} of {len(report.checks)} checks."


def draft_sentence(draft: DraftSummary) -> str:
    """Which engines take the output as a draft, on one line."""
    groups = {
        result: [verdict.rule for verdict in draft.verdicts if verdict.result == result]
        for result in ("passes", "fails", "not checked")
    }
    return "; ".join(f"{result}: {', '.join(rules)}" for result, rules in groups.items() if rules)


def _choice_rows(report: Report) -> list[tuple[str, str]]:
    if report.choice is None:
        return []
    before = report.choice.base_bits
    lost = [
        f"{tried.method} {signed(tried.bits_per_byte - before)}{' (chosen)' if tried.chosen else ''}"
        for tried in report.choice.tried
    ]
    return [("auto", f"lost on {count(report.choice.hidden)} hidden tokens: " + ", ".join(lost))]


def heal_sentence(heal: HealSummary) -> str:
    """What training gained.

    Args:
        heal: Of a finished run.

    Returns:
        Plain text on one line.
    """
    steps = f"{count(heal.steps)} steps, {count(heal.tokens_read)} tokens"
    if heal.layers:
        steps += f", rows and {count(heal.layers)} layers of the body"
    if not heal.best_step:
        return f"{heal.objective}, {steps}: held-out text was not read better, rows are as they were made"
    gain = f"{heal.before:.3f} -> {heal.after:.3f} bits per byte ({change(heal.before, heal.after)})"
    return f"{heal.objective}, {steps}: held-out text {gain}, the base {heal.base:.3f}"


def _edit_rows(edits: EditSummary) -> list[tuple[str, str]]:
    rows = [(step.operation, f"{count(step.before)} -> {count(step.after)} tokens") for step in edits.steps]
    rows.append(("never reached", f"{count(edits.unreachable_before)} -> {count(edits.unreachable)} tokens"))
    if edits.bytes_per_token_before is not None and edits.bytes_per_token_after is not None:
        lines = f"{percent(edits.changed_lines)} of {count(edits.lines)} lines are cut otherwise"
        sizes = f"{edits.bytes_per_token_before:.2f} -> {edits.bytes_per_token_after:.2f} bytes a token"
        rows.append(("texts", f"{lines}, {sizes}"))
    return rows


def summary_rows(report: Report) -> list[tuple[str, str]]:
    """The lines printed at the end of a run, each a label and a value.

    Args:
        report: A finished run.

    Returns:
        Label and value, in the order to print.
    """
    passed = sum(check.passed for check in report.checks)
    codes = ", ".join(dict.fromkeys(notice.code for notice in report.warnings))
    return [
        *_input_rows(report),
        ("method", _names(report)),
        *_choice_rows(report),
        *(_edit_rows(report.edits) if report.edits is not None else []),
        *_vocabulary_rows(report),
        *(
            row
            for tensor in report.tensors
            if tensor.equal_to is None
            for row in _tensor_rows(report, tensor)
        ),
        *([("heal", heal_sentence(report.heal))] if report.heal is not None else []),
        *(_score_row(score) for score in report.scores),
        *_draft_rows(report),
        ("checks", f"{passed} of {len(report.checks)} passed"),
        ("warnings", f"{len(report.warnings)} ({codes})" if codes else "0"),
    ]


def _draft_rows(report: Report) -> list[tuple[str, str]]:
    if report.draft is None:
        return []
    asked = f" of {show_token(report.draft.model)}" if report.draft.asked else " of the target"
    return [(f"as a draft{asked}", draft_sentence(report.draft))]


def _input_rows(report: Report) -> list[tuple[str, str]]:
    return [
        (model.role, show_token(model.source) + (f" @ {model.revision}" if model.revision else ""))
        for model in report.inputs
        if model.role != "donor" or model.source != source_of(report, "target")
    ]


def _vocabulary_rows(report: Report) -> list[tuple[str, str]]:
    sizes, matching = report.vocabulary, report.matching
    missing = ", ".join(f"{show_token(name)} {count(tokens)}" for name, tokens in made_by(report).items())
    rows = [
        (
            "rows",
            f"{count(sizes.base_rows)} -> {count(sizes.rows)}"
            f" ({count(sizes.holes)} without a token, {count(sizes.padding)} padding)",
        ),
        ("byte-equal matches", f"{count(matching.byte_equal)} of {count(sizes.target_tokens)}"),
        ("false matches", count(matching.false_matches)),
        ("missing tokens", count(matching.missing) + (f" ({missing})" if missing else "")),
    ]
    if report.anchors is not None:
        excluded = sum(part.tokens for part in report.anchors.excluded)
        rows.append(("anchors", f"{count(report.anchors.count)} used, {count(excluded)} left out"))
    return rows


def _tensor_rows(report: Report, tensor: TensorQuality) -> list[tuple[str, str]]:
    alone = sum(other.role == tensor.role for other in report.tensors) == 1
    name = tensor.role if alone else tensor.name
    rows = []
    main = main_tensor(report)
    if main is not None and tensor.made_by != main.made_by and tensor.equal_to is None:
        made = ", ".join(f"{show_token(method)} {count(rows)}" for method, rows in tensor.made_by.items())
        rows.append((f"made rows, {name}", made or "none"))
    if tensor.residuals is not None:
        part = tensor.residuals
        rows.append((f"residual, {name}", f"median {decimal(part.median)}, 99 % {decimal(part.q99)}"))
    if tensor.similarities is not None:
        part = tensor.similarities
        rows.append((f"nearest anchor, {name}", f"median cosine {decimal(part.median)}"))
    if report.hidden is not None:
        for off in report.hidden.errors:
            if off.tensor == tensor.name:
                rows.append((f"error, {name}", hidden_sentence(report.hidden, off.weighted)))
    if tensor.solver is not None:
        rows.append((f"solver, {name}", solver_sentence(tensor.solver)))
    norms = [
        f"{label} {decimal(part.median)}"
        for label, part in (("kept", tensor.kept_norms), ("new", tensor.new_norms))
        if part is not None
    ]
    if norms:
        rows.append((f"median norm, {name}", ", ".join(norms)))
    if tensor.note and tensor.role != "bias":
        rows.append((f"note, {name}", tensor.note))
    return rows


def hidden_sentence(hidden: HiddenSummary, error: float) -> str:
    """How far made rows are from the true ones, on one line.

    Args:
        hidden: The tokens it was measured on.
        error: Their weighted error.

    Returns:
        Plain text.
    """
    return f"{error:.3f} of the mean row's, on {count(hidden.tokens)} shared tokens made again"


def solver_sentence(solver: Solver) -> str:
    """How rows were solved for, and how near an approximate solver came.

    Args:
        solver: The solver of one tensor.

    Returns:
        Plain text on one line.
    """
    if solver.residual is None or solver.exact_residual is None or solver.sample is None:
        return solver.mode
    compared = (
        f"residual {decimal(solver.residual)}, exact {decimal(solver.exact_residual)}"
        f" ({change(solver.exact_residual, solver.residual)}) on {count(solver.sample)} tokens"
    )
    return f"{solver.mode}: {compared}"


def _score_row(score: TextScore) -> tuple[str, str]:
    value = f"{score.base:.3f} -> {score.output:.3f} ({change(score.base, score.output)})"
    return f"bits per byte, {show_token(score.text)}", value
