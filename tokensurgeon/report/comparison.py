"""What ``eval`` prints: one document, and tables, CSV and an HTML page of the figures in it."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tokensurgeon.report.summary import show_token

# Writing systems with less of a text than this are in the document only.
_LEAST_SHARE = 0.005
_NAMES = ("name", "script", "task", "prompt", "text")


@dataclass(frozen=True)
class Table:
    """Some figures for a person.

    Attributes:
        title: Line above it.
        heads: Of the columns.
        rows: Cells as text.
    """

    title: str
    heads: list[str]
    rows: list[list[str]]


def make_tables(document: dict[str, Any]) -> list[Table]:
    """The figures of a document as tables: a row a text, a column a model.

    Args:
        document: As ``eval --json`` prints it.

    Returns:
        Tables with rows, in order of interest.
    """
    models = document["models"]
    heads = _short_names([model["model"] for model in models])
    tables = [
        _bits("Bits per byte (lower is better)", heads, [model["texts"] for model in models]),
        _by_script("Bytes per token", "bytes_per_token", heads, models),
        _by_script("Tokens per word", "fertility", heads, models),
        _renyi(heads, models),
        _exact(heads, models),
        *_probes(heads, models),
        *_samples(heads, models),
        _tasks(heads, models),
        Table(
            "Every window opens with",
            ["model", "token"],
            [
                [head, model["bos"] or "none: first character not scored"]
                for head, model in zip(heads, models, strict=True)
                if model["texts"]
            ],
        ),
        *_anatomies(heads, models),
    ]
    return [table for table in tables if table.rows]


def to_csv(document: dict[str, Any]) -> str:
    """Every figure of a document as a line: model, text, measure, value.

    Args:
        document: As ``eval --json`` prints it.

    Returns:
        CSV with a header line.
    """
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(["model", "text", "measure", "value"])
    for model in document["models"]:
        for text in model["texts"]:
            lines.writerows([model["model"], text["text"], *line] for line in _figures(text))
        rest = {key: value for key, value in model.items() if key != "texts"}
        lines.writerows([model["model"], "", *line] for line in _figures(rest))
    return out.getvalue()


def to_html(document: dict[str, Any]) -> str:
    """A document as one HTML page that needs nothing else.

    Args:
        document: As ``eval --json`` prints it.

    Returns:
        A whole page; equal documents give equal pages.
    """
    environment = Environment(
        loader=PackageLoader("tokensurgeon.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["show"] = show_token
    return environment.get_template("comparison.html.jinja").render(
        tables=make_tables(document), models=[model["model"] for model in document["models"]]
    )


def _figures(value: Any, path: str = "") -> Iterator[tuple[str, float]]:  # noqa: ANN401 - any JSON value
    """Numbers inside a value, each with the way that leads to it."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _figures(part, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for place, part in enumerate(value):
            names = [part[key] for key in _NAMES if key in part] if isinstance(part, dict) else []
            yield from _figures(part, f"{path}.{' '.join([*names[:1], *_metric(part)]) or place}")
    elif isinstance(value, int | float):
        yield path, value


def _metric(part: Any) -> list[str]:  # noqa: ANN401 - any JSON value
    return [part["metric"]] if isinstance(part, dict) and "metric" in part else []


def _short_names(models: list[str]) -> list[str]:
    short = [Path(model).name or model for model in models]
    seen = Counter(short)
    return [name if seen[name] == 1 else model for name, model in zip(short, models, strict=True)]


def _bits(title: str, heads: list[str], columns: list[list[dict[str, Any]]]) -> Table:
    """Figures of every model, those after the first with their difference from it."""
    rows = []
    for scores in zip(*columns, strict=True):
        cells = [scores[0]["text"], f"{scores[0]['bits_per_byte']:.4f}"]
        for score in scores[1:]:
            cells += [f"{score['bits_per_byte']:.4f}", _change(score)]
        rows.append(cells)
    return Table(title, ["text", *_with_changes(heads)], rows)


def _with_changes(heads: list[str]) -> list[str]:
    first, *others = heads
    return [first, *(name for head in others for name in (head, f"{head} - {first}"))]


def _change(score: dict[str, Any]) -> str:
    share = score["relative_difference"]
    return f"{score['difference']:+z.4f}" + ("" if share is None else f" ({share:+z.1%})")


def _by_script(title: str, key: str, heads: list[str], models: list[dict[str, Any]]) -> Table:
    rows = []
    for texts in zip(*(model["texts"] for model in models), strict=True):
        rows.append([texts[0]["text"], "all", *(_decimal(text[key]) for text in texts)])
        if len(texts[0]["by_script"]) == 1:
            continue
        parts = [{part["script"]: part for part in text["by_script"]} for text in texts]
        most = max(text["tokens"] for text in texts)
        for script in dict.fromkeys(script for part in parts for script in part):
            found = [part.get(script) for part in parts]
            figures = [part[key] if part else None for part in found]
            seen = max(part["tokens"] for part in found if part)
            if seen >= _LEAST_SHARE * most and figures.count(None) < len(figures):
                rows.append(["", script, *map(_decimal, figures)])
    return Table(title, ["text", "script", *heads], rows)


def _renyi(heads: list[str], models: list[dict[str, Any]]) -> Table:
    rows = [
        [texts[0]["text"], *(_decimal(text["renyi_efficiency"], 4) for text in texts)]
        for texts in zip(*(model["texts"] for model in models), strict=True)
    ]
    return Table("Rényi efficiency of the tokens (α = 2.5)", ["text", *heads], rows)


def _exact(heads: list[str], models: list[dict[str, Any]]) -> Table:
    rows = []
    for texts in zip(*(model["texts"] for model in models), strict=True):
        for head, text in zip(heads, texts, strict=True):
            if "exact" not in text:
                continue
            exact = text["exact"]
            likely = sorted(enumerate(exact["next_bytes"]), key=lambda pair: -pair[1])[:3]
            shown = [f"{_show_byte(byte)} {probability:.1%}" for byte, probability in likely]
            rows.append(
                [
                    text["text"],
                    head,
                    str(exact["bytes"]),
                    f"{exact['canonical_bits_per_byte']:.4f}",
                    f"{exact['bits_per_byte']:.4f}",
                    f"{exact['least_bits_per_byte']:.4f}",
                    f"{exact['dropped_share']:.2%}",
                    ", ".join([*shown, f"end {exact['end']:.1%}"]),
                ]
            )
    names = ["text", "model", "bytes", "one cut", "all cuts: at most", "at least", "dropped", "next byte"]
    return Table("Bits per byte over all cuts of the first bytes", names, rows)


def _show_byte(byte: int) -> str:
    return show_token(bytes([byte]).decode(errors="backslashreplace"))


def _probes(heads: list[str], models: list[dict[str, Any]]) -> list[Table]:
    if any("probes" not in model for model in models):
        return []
    probes = [model["probes"] for model in models]
    rows = [
        [show_token(cuts[0]["text"]), *("|".join(map(show_token, cut["pieces"])) for cut in cuts)]
        for cuts in zip(*(probe["cuts"] for probe in probes), strict=True)
    ]
    return [
        _bits("Bits per byte of numbers and white space", heads, [probe["scores"] for probe in probes]),
        Table("How they are cut", ["text", *heads], rows),
    ]


def _samples(heads: list[str], models: list[dict[str, Any]]) -> list[Table]:
    if any("samples" not in model for model in models):
        return []
    samples = [model["samples"] for model in models]
    rows = [
        [head, f"{sample['mean_repeated']:.3f}", f"{sample['loop_rate']:.1%}"]
        for head, sample in zip(heads, samples, strict=True)
    ]
    written = [
        [show_token(one["prompt"]), head, f"{one['repeated']:.2f}", show_token(one["text"])]
        for ones in zip(*(sample["continuations"] for sample in samples), strict=True)
        for head, one in zip(heads, ones, strict=True)
    ]
    return [
        Table("Greedy continuations", ["model", "repeated four-grams", "loops"], rows),
        Table("What they say", ["prompt", "model", "repeated", "continuation"], written),
    ]


def _tasks(heads: list[str], models: list[dict[str, Any]]) -> Table:
    if any("tasks" not in model for model in models):
        return Table("", [], [])
    rows = []
    for scores in zip(*(model["tasks"] for model in models), strict=True):
        first = scores[0]
        cells = [first["task"], first["metric"], str(first["items"]), _with_error(first)]
        for score in scores[1:]:
            cells += [_with_error(score), f"{score['difference']:+z.4f}"]
        rows.append(cells)
    return Table("Tasks", ["task", "metric", "items", *_with_changes(heads)], rows)


def _with_error(score: dict[str, Any]) -> str:
    return f"{score['value']:.4f}" + ("" if score["stderr"] is None else f" ± {score['stderr']:.4f}")


def _anatomies(heads: list[str], models: list[dict[str, Any]]) -> Iterator[Table]:
    for head, model in zip(heads, models, strict=True):
        for text in model["texts"]:
            if "anatomy" in text:
                yield _anatomy(f"Where {head} loses on {text['text']}", text["anatomy"])


def _anatomy(title: str, anatomy: dict[str, Any]) -> Table:
    splits = {
        "cut": anatomy["by_cut"],
        "script": anatomy["by_script"],
        "content": anatomy["by_content"],
        "new rows": anatomy["by_new_rows"] or [],
    }
    rows = [
        [
            split,
            part["name"],
            f"{part['chunks']:,}",
            f"{100 * part['byte_share']:.1f}%",
            f"{part['base']:.4f}",
            f"{part['output']:.4f}",
            f"{part['excess']:+z.4f}",
        ]
        for split, parts in splits.items()
        for part in parts
        if part["chunks"]
    ]
    heads = ["by", "chunk", "chunks", "bytes", "base", "output", "excess"]
    return Table(f"{title}: {anatomy['excess']:+z.4f} bits per byte", heads, rows)


def _decimal(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
