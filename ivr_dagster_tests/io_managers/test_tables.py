"""Round trips of tables through Parquet and CSV."""

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.core.tokens.counts import PretokenCounts, counts_from_table, counts_table

TRICKY = [
    "a,b", 'q"q', '""', '"', "'", "\n", "\r", "\r\n x", "\t", " lead", "trail ", "\x00", "\ufffd", "\u2028", "", "null",
    "NaN", "true", "12", "1e5", "007", "-", "=1+1", "#", "한국어", "ĠĊĉ",
]  # fmt: skip


def test_parquet_keeps_values_and_types(materialize: Callable[..., None], load: Callable[..., Any]) -> None:
    table = pl.DataFrame(
        {
            "token_id": pl.Series(range(len(TRICKY)), dtype=pl.UInt32),
            "token": TRICKY,
            "frequency": pl.Series(range(len(TRICKY)), dtype=pl.Int64),
        }
    )
    materialize("token_stats", "parquet_io", lambda: table)
    assert_frame_equal(load("token_stats", "parquet_io"), table)


def test_parquet_keeps_pretoken_counts(materialize: Callable[..., None], load: Callable[..., Any]) -> None:
    counts = PretokenCounts(TRICKY, np.arange(len(TRICKY), 0, -1), {"<|endoftext|>": 3}, 0, 1)
    materialize("pretoken_counts", "parquet_io", lambda: counts_table(counts))
    loaded = counts_from_table(load("pretoken_counts", "parquet_io"))
    assert (loaded.types, loaded.counts.tolist(), loaded.added) == (counts.types, counts.counts.tolist(), counts.added)


def candidates(strings: list[str]) -> pl.DataFrame:
    numbers = pl.Series(range(len(strings)), dtype=pl.Int64)
    columns: dict[str, Any] = {
        "rank": numbers + 1,
        "new_token": strings,
        "new_text": strings[::-1],
        "halves": strings,
        "merge_rank": numbers,
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
    string_columns = {name: pl.String for name in columns if not isinstance(columns[name], pl.Series)}
    return pl.DataFrame(columns, schema_overrides=string_columns)


@pytest.mark.parametrize("strings", [TRICKY, ["12", "34"], ["true"], []])
def test_csv_keeps_strings_that_look_like_other_types(
    strings: list[str], materialize: Callable[..., None], load: Callable[..., Any]
) -> None:
    materialize("replacement_candidates", "csv_io", lambda: candidates(strings))
    assert_frame_equal(load("replacement_candidates", "csv_io"), candidates(strings))


def test_csv_keeps_floats_exactly(materialize: Callable[..., None], load: Callable[..., Any]) -> None:
    shares = pl.Series("heldout_saving", [0.0, 1e-9, 0.1, 1 / 3, 2.0**-40], dtype=pl.Float64)
    materialize("replacement_candidates", "csv_io", lambda: candidates(["x"] * 5).with_columns(shares))
    loaded = load("replacement_candidates", "csv_io")
    assert loaded["heldout_saving"].to_list() == shares.to_list()
    assert loaded["sacrificed_cost"].dtype == pl.Int64


def test_csv_keeps_empty_strings(materialize: Callable[..., None], load: Callable[..., Any]) -> None:
    table = candidates(["é", ""])
    materialize("replacement_candidates", "csv_io", lambda: table)
    loaded = load("replacement_candidates", "csv_io")
    assert loaded["constituents"].to_list() == ["é", ""]
    assert loaded.null_count().sum_horizontal().item() == 0


def test_csv_has_a_header_and_plain_text(paths: ArtifactPaths, materialize: Callable[..., None]) -> None:
    materialize("replacement_candidates", "csv_io", lambda: candidates(["Ġthe"]))
    lines = paths["replacement_candidates"].read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("rank,new_token,new_text,")
    assert lines[1].startswith("1,Ġthe,")
