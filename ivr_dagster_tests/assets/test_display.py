"""What a browser shows of a string is all there is to it."""

import polars as pl
import pytest

from ivr_dagster.assets.display import markdown_table, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("of the", "of the"),
        (" the", "␣the"),
        ("  ", "␣␣"),
        ("a  b ", "a␣␣b␣"),
        ("\n    ", "\\n␣␣␣␣"),
        ("\\n", "\\\\n"),
        ("\xa0\u200b", "\\xa0\\u200b"),
        ("한국 어", "한국 어"),
        ("=" * 8, "========"),
        ("+" + "-" * 26 + "+", "+-{26}+"),
        (" " * 80, "␣{80}"),
    ],
)
def test_spaces_that_a_browser_drops_and_control_characters_are_seen(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_table_survives_strings_with_bars_and_backticks() -> None:
    table = markdown_table(pl.DataFrame({"token": ["a|b", "`"], "count": [1, 2000]}))
    assert table.splitlines() == ["| token | count |", "|---|---|", "| `a\\|b` | 1 |", "| `'` | 2,000 |"]
