"""Columns that Arrow itself would make."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivr_dagster.storage import arrow_columns
from ivr_dagster.storage.arrow_columns import number_column, string_column


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_strings_become_the_column_that_arrow_makes(values: list[str]) -> None:
    column = string_column(values)
    column.validate(full=True)
    assert column.equals(pa.array(values, pa.string()))


@pytest.mark.parametrize("values", [np.arange(3, dtype=np.uint16), np.array([True, False]), np.empty(0, np.int64)])
def test_numbers_keep_their_type(values: np.ndarray) -> None:
    assert number_column(values).equals(pa.array(values))


def test_more_than_fits_into_a_column_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_columns, "MOST_BYTES", 5)
    assert len(string_column(["한", "ab"])) == 2
    with pytest.raises(OverflowError, match="6 bytes"):
        string_column(["한", "abc"])
