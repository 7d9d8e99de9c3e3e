"""Tables through Parquet and CSV."""

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ivr_dagster.core.tokens.counts import PretokenCounts, counts_from_table, counts_table
from ivr_dagster.pipeline import ArtifactPaths

NASTY = [
    "a,b",
    'q"q',
    '""',
    '"',
    "'",
    "\n",
    "\r",
    "\r\n x",
    "\t",
    " lead",
    "trail ",
    "\x00",
    "\ufffd",
    "\u2028",
    "",
    "null",
    "NaN",
    "true",
    "12",
    "1e5",
    "007",
    "-",
    "=1+1",
    "#",
    "한국어",
    "ĠĊĉ",
]


def test_parquet_keeps_values_and_types(materialize: Callable[..., None], load: Callable[..., Any]) -> None:
    table = pl.DataFrame(
        {
            "token_id": pl.Series(range(len(NASTY)), dtype=pl.UInt32),
            "token": NASTY,
            "frequency": pl.Series(range(len(NASTY)), dtype=pl.Int64),
        }
    )
    materialize("token_stats", "parquet_io", lambda: table)
    assert_frame_equal(load("token_stats", "parquet_io"), table)


def test_parquet_keeps_pretoken_counts(materialize: Callable[..., None], load: Callable[..., Any]) -> None:
    counts = PretokenCounts(NASTY, np.arange(len(NASTY), 0, -1), {"<|endoftext|>": 3}, 0, 1)
    materialize("pretoken_counts", "parquet_io", lambda: counts_table(counts))
    back = counts_from_table(load("pretoken_counts", "parquet_io"))
    assert (back.types, back.counts.tolist(), back.added) == (counts.types, counts.counts.tolist(), counts.added)


def candidates(strings: list[str]) -> pl.DataFrame:
    numbers = pl.Series(range(len(strings)), dtype=pl.Int64)
    columns: dict[str, Any] = {
        "rank": numbers + 1,
        "new_token": strings,
        "new_text": strings[::-1],
        "constituents": strings,
        "saving": numbers * 7,
        "frequency": numbers,
        "heldout_saving": numbers / 7_000_000,
        "sacrificed_id": numbers + 50_000,
        "sacrificed_token": strings,
        "sacrificed_text": strings,
        "sacrificed_frequency": numbers,
        "status": strings,
        "sacrificed_cost": numbers + 1,
    }
    text = {name: pl.String for name in columns if not isinstance(columns[name], pl.Series)}
    return pl.DataFrame(columns, schema_overrides=text)


@pytest.mark.parametrize("strings", [NASTY, ["12", "34"], ["true"], []])
def test_csv_keeps_strings_that_look_like_other_types(
    strings: list[str], materialize: Callable[..., None], load: Callable[..., Any]
) -> None:
    materialize("replacement_candidates", "csv_io", lambda: candidates(strings))
    assert_frame_equal(load("replacement_candidates", "csv_io"), candidates(strings))


def test_csv_keeps_floats_exactly(materialize: Callable[..., None], load: Callable[..., Any]) -> None:
    shares = pl.Series("heldout_saving", [0.0, 1e-9, 0.1, 1 / 3, 2.0**-40], dtype=pl.Float64)
    materialize("replacement_candidates", "csv_io", lambda: candidates(["x"] * 5).with_columns(shares))
    back = load("replacement_candidates", "csv_io")
    assert back["heldout_saving"].to_list() == shares.to_list()
    assert back["sacrificed_cost"].dtype == pl.Int64


def test_csv_keeps_empty_strings(materialize: Callable[..., None], load: Callable[..., Any]) -> None:
    table = candidates(["é", ""])
    materialize("replacement_candidates", "csv_io", lambda: table)
    back = load("replacement_candidates", "csv_io")
    assert back["constituents"].to_list() == ["é", ""]
    assert back.null_count().sum_horizontal().item() == 0


def test_csv_is_text_with_a_header(paths: ArtifactPaths, materialize: Callable[..., None]) -> None:
    materialize("replacement_candidates", "csv_io", lambda: candidates(["Ġthe"]))
    lines = paths["replacement_candidates"].read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("rank,new_token,new_text,")
    assert lines[1].startswith("1,Ġthe,")
