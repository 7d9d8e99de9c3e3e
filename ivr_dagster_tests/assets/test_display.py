"""Strings, tables and plots for the UI."""

import struct

import numpy as np
import polars as pl
import pytest

from ivr_dagster.assets.display import curves, inline_png
from ivr_dagster.core.tokens.display import markdown_table


def test_markdown_table_escapes_bars_and_backticks() -> None:
    table = markdown_table(pl.DataFrame({"token": ["a|b", "`"], "count": [1, 2000]}))
    assert table.splitlines() == ["| token | count |", "|---|---|", "| `a\\|b` | 1 |", "| `'` | 2,000 |"]


@pytest.mark.parametrize("lines", [{"held-out": [0.1, 0.2]}, {"a": np.array([0.1, 0.2]), "b": [0.0, 0.5]}, {}])
def test_curves_returns_a_png(lines: dict[str, list[float]]) -> None:
    png = curves(range(1, 3), lines, x="new tokens", y="share")
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    assert width > height > 100


def test_inline_png_embeds_the_image() -> None:
    assert inline_png(b"abc", "a curve").value == "![a curve](data:image/png;base64,YWJj)"
