"""The plots of a search for training settings, as PNG."""

import io
from collections.abc import Sequence
from typing import Any

from ivr_dagster.core.training.study import COMPLETE, PRUNED, Trial

# Okabe and Ito's palette, which people with any colour vision can tell apart (https://jfly.uni-koeln.de/color/)
_DONE, _GIVEN_UP, _BEST = "#0072B2", "#999999", "#D55E00"
_COLUMNS = 3
# a parameter whose greatest value is so many times its least is drawn on a logarithmic axis
_LOGARITHMIC_FROM = 3.0


def history_plot(trials: Sequence[Trial], default: Trial) -> bytes:
    """Bits per byte by trial, the best so far, and the default."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes: Any = figure.subplots()
    finished = [trial for trial in trials if trial.state == COMPLETE]
    best = [min(float(each.value or 0) for each in finished[: n + 1]) for n in range(len(finished))]
    axes.step([trial.number for trial in finished], best, where="post", color=_BEST, label="best so far")
    _draw(axes, trials, [trial.number for trial in trials])
    if default.value is not None:
        axes.axhline(default.value, color="#000000", linestyle=":", linewidth=1, label="settings as they were")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial")
    axes.set_ylabel("bits per byte on validation text")
    axes.set_title("Trials", loc="left")
    axes.legend(frameon=False)
    _tidy(axes)
    return _png(figure)


def slice_plot(trials: Sequence[Trial], best: Trial) -> bytes:
    """Bits per byte by each setting that was tried."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    names = list(best.parameters)
    rows = -(-len(names) // _COLUMNS)
    figure = Figure(figsize=(3.2 * min(_COLUMNS, len(names)), 2.8 * rows), layout="constrained")
    grid: Any = figure.subplots(rows, min(_COLUMNS, len(names)), sharey=True, squeeze=False)
    for axes, name in zip(grid.flat, names, strict=False):
        known = [trial for trial in trials if name in trial.parameters]
        values = [trial.parameters[name] for trial in known]
        if min(values) > 0 and max(values) >= _LOGARITHMIC_FROM * min(values):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        _draw(axes, known, values)
        axes.plot([best.parameters[name]], [best.value], "o", color=_BEST, label="best")
        axes.set_xlabel(name)
        _tidy(axes)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("bits per byte")
    return _png(figure)


def _draw(axes: Any, trials: Sequence[Trial], places: Sequence[float]) -> None:
    for state, marker, colour, label in ((COMPLETE, "o", _DONE, "trial"), (PRUNED, "x", _GIVEN_UP, "given up")):
        points = [
            (place, trial.value)
            for place, trial in zip(places, trials, strict=True)
            if trial.state == state and trial.value is not None
        ]
        if points:
            axes.plot(*zip(*points, strict=True), marker, color=colour, label=label)


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.6)


def _png(figure: Any) -> bytes:
    """PNG of 150 dots per inch; the same bytes from the same figure, so without matplotlib's version in it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
