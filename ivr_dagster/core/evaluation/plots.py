"""The plots of the evaluation report, as PNG."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from ivr_dagster.core.evaluation.figures import EvaluationReport
from ivr_dagster.core.evaluation.intervals import Interval

# Okabe and Ito's palette, safe for color-blind readers (https://jfly.uni-koeln.de/color/)
_COLORS = {
    "base": "#999999",
    "distilled": "#56B4E9",
    "initialized": "#E69F00",
    "sft": "#0072B2",
    "vanilla_sft": "#D55E00",
    "vanilla_compute_sft": "#009E73",
}

PLOT_TITLES = {
    "bpb": "Bits per byte on held-out text (lower is better)",
    "bytes_per_token": "Bytes per token on held-out text (higher is better)",
    "training_loss": "Training loss",
    "validation_by_text": "Validation during training, by text read",
    "validation_by_compute": "Validation during training, by compute",
}
_TEXT_READ, _VALIDATION = "text read, MB (including repetitions)", "bits per byte on validation text"


def plots(report: EvaluationReport) -> dict[str, bytes]:
    """The plots by name: `bpb`, `bytes_per_token`, and the curves that the report has data for."""
    variants = report.ordered()[::-1]
    images = {
        "bpb": _bars(
            {name: variant.bpb for name, variant in variants},
            {name: variant.interval for name, variant in variants if variant.interval},
            title=PLOT_TITLES["bpb"],
            label="%.3f",
        ),
        "bytes_per_token": _bars(
            {name: variant.bytes_per_token for name, variant in variants}, {}, PLOT_TITLES["bytes_per_token"], "%.2f"
        ),
    }
    losses = {name: (each.bytes_seen, each.bits_per_byte) for name, each in report.training_loss.items()}
    by_text = {name: (each.bytes_seen, each.bits_per_byte) for name, each in report.validation.items()}
    by_tokens = {name: (each.tokens_seen, each.bits_per_byte) for name, each in report.validation.items()}
    for name, curves, x_label, y_label in (
        ("training_loss", losses, _TEXT_READ, "training loss, bits per byte"),
        ("validation_by_text", by_text, _TEXT_READ, _VALIDATION),
        ("validation_by_compute", by_tokens, "tokens trained on, millions", _VALIDATION),
    ):
        if curves := {variant: curve for variant, curve in curves.items() if curve[0]}:
            images[name] = _lines(curves, PLOT_TITLES[name], x_label, y_label)
    return images


def _bars(values: Mapping[str, float], intervals: Mapping[str, Interval], title: str, label: str) -> bytes:
    """One bar per variant, with error bars if every variant has an interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.5 * len(values) + 1.1), layout="constrained")
    axes = figure.subplots()
    errors: dict[str, Any] = {}
    if intervals and intervals.keys() == values.keys():
        # bootstrap intervals may exclude their figure, error bars must not be negative
        below = [max(0.0, each.value - each.low) for each in intervals.values()]
        above = [max(0.0, each.high - each.value) for each in intervals.values()]
        errors = {"xerr": [below, above], "error_kw": {"elinewidth": 1.2, "capsize": 3, "ecolor": "#333333"}}
    colors = [_COLORS[name] for name in values]
    bars = axes.barh(list(values), list(values.values()), color=colors, height=0.7, **errors)
    axes.bar_label(bars, fmt=label, padding=4)
    axes.margins(x=0.12)
    return _png(figure, axes, title)


def _lines(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str, x_label: str, y_label: str
) -> bytes:
    """One line per variant; the x axis is in millions."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (name, (xs, ys)), style in zip(curves.items(), ("-", "--", ":", "-."), strict=False):
        marker = "o" if len(xs) == 1 else None
        axes.plot([x / 1e6 for x in xs], ys, style, color=_COLORS[name], label=name, marker=marker)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.legend(frameon=False)
    return _png(figure, axes, title)


def _png(figure: Any, axes: Any, title: str) -> bytes:
    """PNG at 150 dpi, reproducible: without matplotlib's version."""
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
