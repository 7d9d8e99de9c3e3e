"""The plots of the evaluation report, as PNG."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from ivr_dagster.core.evaluation.figures import EvaluationReport, LossCurve, in_order

# Okabe and Ito's palette, which people with any colour vision can tell apart (https://jfly.uni-koeln.de/color/)
_COLOURS = {
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


def plots(report: EvaluationReport, curves: Mapping[str, LossCurve] | None = None) -> dict[str, bytes]:
    """The plots as PNG, by name: `bpb`, `bytes_per_token` and, where there are curves, `training_loss`,
    `validation_by_text` and `validation_by_compute`.

    Args:
        report: the values.
        curves: variant name → its training loss; `sft` and `vanilla_sft` are usual.
    """
    from matplotlib.figure import Figure

    result = {}
    for name, decimals in (("bpb", 3), ("bytes_per_token", 2)):
        rows = [(variant, float(getattr(value, name))) for variant, value in in_order(report)][::-1]
        figure = Figure(figsize=(7, 0.5 * len(rows) + 1.1), layout="constrained")
        axes = figure.subplots()
        bars = axes.barh(
            [variant for variant, _ in rows],
            [value for _, value in rows],
            color=[_COLOURS.get(variant, "#000000") for variant, _ in rows],
            height=0.7,
            **(_error_bars(report, [variant for variant, _ in rows]) if name == "bpb" else {}),
        )
        axes.bar_label(bars, fmt=f"%.{decimals}f", padding=4)
        axes.margins(x=0.12)
        axes.set_title(PLOT_TITLES[name], loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        result[name] = _png(figure)
    losses = {
        name: (curve.bytes_seen, curve.bits_per_byte) for name, curve in (curves or {}).items() if curve.bytes_seen
    }
    known = {name: curve for name, curve in report.learning.items() if curve.bits_per_byte}
    for name, lines, x, y in (
        ("training_loss", losses, "text seen, MB (repetitions counted)", "training loss, bits per byte"),
        (
            "validation_by_text",
            {name: (curve.bytes_seen, curve.bits_per_byte) for name, curve in known.items()},
            "text seen, MB (repetitions counted)",
            "bits per byte on validation text",
        ),
        (
            "validation_by_compute",
            {name: (curve.tokens_seen, curve.bits_per_byte) for name, curve in known.items()},
            "tokens trained on, millions",
            "bits per byte on validation text",
        ),
    ):
        if lines:
            result[name] = _lines(lines, PLOT_TITLES[name], x, y)
    return result


def _error_bars(report: EvaluationReport, names: Sequence[str]) -> dict[str, Any]:
    """Arguments of a bar plot that draw the intervals, none where a variant has none."""
    intervals = [report.variants[name].interval for name in names]
    ends = [(each.value - each.low, each.high - each.value) for each in intervals if each is not None]
    if len(ends) < len(names) or not ends:
        return {}
    # an interval need not hold its figure, but an error bar must
    below, above = zip(*((max(0.0, low), max(0.0, high)) for low, high in ends), strict=True)
    return {"xerr": [below, above], "error_kw": {"elinewidth": 1.2, "capsize": 3, "ecolor": "#333333"}}


def _lines(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str, x_label: str, y_label: str
) -> bytes:
    """A plot of a line a variant; the horizontal axis in millions."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (name, (places, values)), line in zip(lines.items(), ("-", "--", ":", "-."), strict=False):
        axes.plot(
            [place / 1e6 for place in places],
            values,
            line,
            color=_COLOURS.get(name, "#000000"),
            label=name,
            marker="o" if len(places) == 1 else None,
        )
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.legend(frameon=False)
    return _png(figure)


def _png(figure: Any) -> bytes:
    """PNG of 150 dots per inch; the same bytes from the same figure, so without matplotlib's version in it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
