"""What assets show in the UI beside figures: Markdown tables and inline plots."""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
import numpy as np
import polars as pl


def markdown_table(table: pl.DataFrame) -> str:
    """A frame as a Markdown table; strings are set as code by `visible`."""
    rows = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    rows += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in table.rows()]
    return "\n".join(rows)


def _cell(value: object) -> str:
    if isinstance(value, str):
        return "`" + visible(value).replace("|", "\\|").replace("`", "'") + "`"
    return f"{value:,}"


def visible(text: str) -> str:
    """The text with everything in it to be seen in a browser, which drops spaces at the ends and joins several to one.

    Such spaces become `␣`, control characters and backslashes escapes, and `c{n}` stands for n > 8 times the same c.
    """
    text = re.sub(r"^ +| +$| {2,}", lambda spaces: "␣" * len(spaces[0]), text)
    escaped = "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in text)
    return re.sub(r"(.)\1{8,}", lambda run: f"{run[1]}{{{len(run[0])}}}", escaped)


def inline_png(png: bytes, alternative: str) -> dg.MarkdownMetadataValue:
    """A picture inside the asset's page."""
    return dg.MetadataValue.md(f"![{alternative}](data:image/png;base64,{base64.b64encode(png).decode()})")


def curves(xs: Sequence[float], lines: Mapping[str, Sequence[float] | np.ndarray], *, x: str, y: str) -> bytes:
    """A plot of lines over the same places as PNG."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot(xlabel=x, ylabel=y)
    for label, ys in lines.items():
        axes.plot(xs, ys, label=label)
    axes.grid(alpha=0.3)
    if len(lines) > 1:
        axes.legend()
    buffer = io.BytesIO()
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(buffer)
    return buffer.getvalue()
