"""Text of tokens for people: every character visible, on one line, safe in Markdown."""

import re

import polars as pl


def visible(text: str) -> str:
    """The text with all characters visible in a browser, which strips outer spaces and collapses repeated ones.

    Such spaces become `␣`, control characters and backslashes are escaped, and `c{n}` replaces n > 8 repetitions of c.
    """
    text = re.sub(r"^ +| +$| {2,}", lambda spaces: "␣" * len(spaces[0]), text)
    escaped = "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in text)
    return re.sub(r"(.)\1{8,}", lambda run: f"{run[1]}{{{len(run[0])}}}", escaped)


def table_cell(value: object) -> str:
    """A cell of a Markdown table: text as visible code, numbers with thousands separators."""
    if isinstance(value, str):
        return "`" + visible(value).replace("|", "\\|").replace("`", "'") + "`"
    return f"{value:,}"


def markdown_table(table: pl.DataFrame) -> str:
    """A frame as a Markdown table, see :func:`table_cell`."""
    rows = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    rows += ["| " + " | ".join(table_cell(value) for value in row) + " |" for row in table.rows()]
    return "\n".join(rows)
