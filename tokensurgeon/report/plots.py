"""Plots as inline SVG. Text stays text, nothing depends on the clock or on a user's matplotlibrc."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from html import escape
from io import StringIO

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tokensurgeon.report.model import HealSummary, OriginCount, Quantiles, TensorQuality, TextScore
from tokensurgeon.report.summary import count, decimal, show_token

_BASE, _NEW = "#3b6ea8", "#d9822b"
_WIDTH = 4.0  # inches; small, so that labels are still readable when a phone scales the plot down
_LONGEST_LABEL = 22
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a label with dollar signs is data, not a formula
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8f98",
    "axes.labelcolor": "#30343b",
    "xtick.color": "#555b66",
    "ytick.color": "#555b66",
    "legend.frameon": False,
}
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def origins_plot(origins: list[OriginCount]) -> str:
    """Bars of how many rows came about in which way.

    Args:
        origins: At least one.

    Returns:
        An ``svg`` element.
    """

    def paint(axes: Axes) -> None:
        colors = [_NEW if part.origin.startswith("method: ") else _BASE for part in origins]
        bars = axes.barh(range(len(origins)), [part.tokens for part in origins], color=colors, height=0.7)
        axes.bar_label(bars, [count(part.tokens) for part in origins], padding=3)
        _label_rows(axes, [part.origin for part in origins])
        axes.margins(x=0.18)
        axes.set_xlabel("target tokens")
        _plain_counts(axes)

    return _draw("origins", "Target tokens by origin of their row", 0.8 + 0.3 * len(origins), paint)


def norms_plot(tensor: TensorQuality) -> str:
    """Norms of copied rows against norms of made rows.

    Args:
        tensor: One with at least one of the two distributions.

    Returns:
        An ``svg`` element.
    """

    def paint(axes: Axes) -> None:
        if tensor.kept_norms is not None:
            _density(axes, tensor.kept_norms, _BASE, f"copied ({count(tensor.kept_norms.count)})")
        if tensor.new_norms is not None:
            _density(axes, tensor.new_norms, _NEW, f"new ({count(tensor.new_norms.count)})")
        axes.set_xlabel("norm of a row")
        axes.set_ylabel("density")
        axes.set_ylim(bottom=0)  # only now: it ends the automatic scaling to what is drawn
        _legend(axes)

    return _draw(f"norms {tensor.name}", f"Norms of the rows of {tensor.name}", 2.5, paint)


def residuals_plot(tensor: TensorQuality) -> str:
    """Residuals of the made rows, with median and 99th percentile marked.

    Args:
        tensor: One with residuals.

    Returns:
        An ``svg`` element.

    Raises:
        ValueError: It has none.
    """
    residuals = tensor.residuals
    if residuals is None:
        raise ValueError(f"{tensor.name} has no residuals")

    def paint(axes: Axes) -> None:
        _density(axes, residuals, _NEW, None)
        axes.axvline(
            residuals.median, color="#30343b", linewidth=1, label=f"median {decimal(residuals.median)}"
        )
        axes.axvline(
            residuals.q99, color="#30343b", linewidth=1, linestyle=":", label=f"99 % {decimal(residuals.q99)}"
        )
        axes.set_xlabel("residual: share of the donor row that is missed")
        axes.set_ylabel("density")
        axes.set_ylim(bottom=0)
        _legend(axes)

    return _draw(f"residuals {tensor.name}", f"Residuals of the new rows of {tensor.name}", 2.5, paint)


def scores_plot(scores: list[TextScore]) -> str:
    """Bits per byte of each text, base against output.

    Args:
        scores: At least one.

    Returns:
        An ``svg`` element.
    """

    def paint(axes: Axes) -> None:
        rows = range(len(scores))
        for offset, color, label, values in (
            (-0.2, _BASE, "base", [score.base for score in scores]),
            (0.2, _NEW, "output", [score.output for score in scores]),
        ):
            bars = axes.barh([row + offset for row in rows], values, color=color, height=0.36, label=label)
            axes.bar_label(bars, [f"{value:.3f}" for value in values], padding=3)
        _label_rows(axes, [score.text for score in scores])
        axes.margins(x=0.14)
        axes.set_xlabel("bits per byte (lower is better)")
        _legend(axes)

    return _draw("scores", "Bits per byte, base against output", 1.1 + 0.5 * len(scores), paint)


def heal_plot(heal: HealSummary) -> str:
    """Held-out text and the objective by step, with the step marked whose rows were kept.

    Args:
        heal: One with at least one step.

    Returns:
        An ``svg`` element.
    """

    def paint(axes: Axes) -> None:
        training = axes.twinx()
        training.plot(range(1, len(heal.losses) + 1), heal.losses, color=_BASE, linewidth=0.8, alpha=0.5)
        training.set_ylabel(heal.objective.replace("_", " "), color=_BASE)
        bits = [score.bits_per_byte for score in heal.held_out]
        axes.plot([score.step for score in heal.held_out], bits, color=_NEW, marker="o", markersize=3)
        axes.axvline(heal.best_step, color="#30343b", linewidth=1, linestyle=":")
        axes.set_ylabel("bits per byte, held out", color=_NEW)
        axes.set_xlabel("step")

    return _draw("heal", "Held-out text and training loss by step", 2.5, paint)


def _density(axes: Axes, part: Quantiles, color: str, label: str | None) -> None:
    """Draw a histogram as density, so that two of different size and width compare."""
    width = (part.maximum - part.minimum) / max(1, len(part.histogram))
    total = sum(part.histogram)
    if not width or not total:
        axes.axvline(part.median, color=color, linewidth=2, label=label)
        return
    edges = [part.minimum + index * width for index in range(len(part.histogram) + 1)]
    heights = [size / (total * width) for size in part.histogram]
    axes.stairs(heights, edges, color=color, fill=True, alpha=0.25)
    axes.stairs(heights, edges, color=color, linewidth=1.3, label=label)


def _label_rows(axes: Axes, labels: list[str]) -> None:
    shown = [show_token(label) for label in labels]
    short = [text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "…" for text in shown]
    axes.set_yticks(range(len(labels)), labels=short)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()


def _plain_counts(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(int(value))))


def _legend(axes: Axes) -> None:
    """Put the legend above the axes, where it hides no data."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)


def _draw(salt: str, title: str, height: float, paint: Callable[[Axes], None]) -> str:
    with matplotlib.rc_context(), warnings.catch_warnings():
        # The reader's browser draws the text; what the measuring font lacks does not matter.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE, **{"svg.hashsalt": salt})
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        paint(figure.subplots())
        buffer = StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    # Groups are numbered alike in every figure; nothing refers to them, and one page holds many figures.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(show_token(title))}" ', 1)
