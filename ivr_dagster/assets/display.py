"""Inline plots, agreement figures and column schemas that assets show in the UI."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
import numpy as np
import polars as pl

from ivr_dagster.core.tokenizer.agreement import Agreement
from ivr_dagster.core.tokens.display import markdown_table

# number of x positions that a plot of this size can resolve
MAX_POSITIONS = 1_000
LISTED = 20  # divergences


def inline_png(png: bytes, alt_text: str) -> dg.MarkdownMetadataValue:
    """A PNG image embedded in Markdown metadata."""
    return dg.MetadataValue.md(f"![{alt_text}](data:image/png;base64,{base64.b64encode(png).decode()})")


def columns(**described: tuple[str, str]) -> dict[str, dg.TableSchema]:
    """Asset metadata with the column schema of a table: name=(type, description)."""
    schema = [dg.TableColumn(name, kind, description=text) for name, (kind, text) in described.items()]
    return {"dagster/column_schema": dg.TableSchema(schema)}


def curves(
    xs: Sequence[float],
    lines: Mapping[str, Sequence[float] | np.ndarray],
    *,
    x: str,
    y: str,
    logarithmic: bool = False,
) -> bytes:
    """A PNG plot of lines over the same x values; on logarithmic axes, downsampled to the visible positions."""
    figure, axes = _figure(x, y)
    shown = np.arange(len(xs))
    if logarithmic and len(xs) > MAX_POSITIONS:
        shown = np.unique(np.geomspace(1, len(xs), MAX_POSITIONS).astype(int)) - 1
    for label, ys in lines.items():
        axes.plot(np.asarray(xs)[shown], np.asarray(ys)[shown], label=label)
    if logarithmic:
        axes.set_xscale("log")
        axes.set_yscale("log")
    return _png(figure, axes, legend=len(lines) > 1)


def histograms(groups: Mapping[str, np.ndarray], *, x: str, y: str, bins: int = 60) -> bytes:
    """A PNG plot of distributions over the same bins, each normalized to a sum of 1."""
    figure, axes = _figure(x, y)
    filled = {label: values for label, values in groups.items() if len(values)}
    edges = np.histogram_bin_edges(np.concatenate(list(filled.values())), bins)
    for label, values in filled.items():
        axes.stairs(np.histogram(values, edges)[0] / len(values), edges, label=f"{label} ({len(values):,})", fill=False)
    return _png(figure, axes, legend=True)


def _figure(x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3))
    figure.subplots_adjust(left=0.13, right=0.97, bottom=0.17, top=0.95)  # layout="constrained" takes half a second
    return figure, figure.add_subplot(xlabel=x, ylabel=y)


def _png(figure: Any, axes: Any, *, legend: bool) -> bytes:
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg

    axes.grid(alpha=0.3)
    if legend:
        axes.legend()
    buffer = io.BytesIO()
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(buffer)
    return buffer.getvalue()


def agreement_metadata(train: Agreement, heldout: Agreement) -> dict[str, Any]:
    """The figures of a distilled tokenizer's agreement, with the worst divergences as tables."""
    return {
        "agreement": train.share,
        "agreement_heldout": heldout.share,
        "worst divergences": dg.MetadataValue.md(_divergences(train)),
        "divergences on held-out text": dg.MetadataValue.md(_divergences(heldout)),
        "pretoken_types_differing": train.types - train.types_identical,
        "pretoken_types_differing_heldout": heldout.types - heldout.types_identical,
    }


def _divergences(agreement: Agreement) -> str:
    rows = [(d.pretoken, d.count, " ".join(d.base), " ".join(d.other)) for d in agreement.divergences[:LISTED]]
    if not rows:
        return "None: every pre-token gets the same ids."
    return markdown_table(pl.DataFrame(rows, schema=["pre-token", "count", "BPE", "Unigram"], orient="row"))
