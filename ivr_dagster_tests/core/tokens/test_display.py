"""Text of tokens for people."""

import pytest

from ivr_dagster.core.tokens.display import table_cell, visible


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
def test_visible_shows_spaces_and_control_characters(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_cells_tell_runs_of_spaces_apart() -> None:
    cells = {table_cell(" " * count) for count in (4, 6, 8, 16)}
    assert len(cells) == 4
    assert table_cell("a|`b") == "`a\\|'b`"
    assert table_cell(12_345) == "12,345"
