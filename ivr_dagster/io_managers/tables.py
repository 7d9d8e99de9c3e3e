"""Tables: polars frames as Parquet, or as CSV for spreadsheets."""

from pathlib import Path

import polars as pl

from ivr_dagster.core.vocabulary.table import COLUMNS
from ivr_dagster.io_managers.artifacts import ArtifactIOManager


class ParquetIOManager(ArtifactIOManager[pl.DataFrame]):
    """`pretoken_counts` and `token_stats`."""

    def write(self, value: pl.DataFrame, path: Path) -> None:
        """Parquet, zstd."""
        value.write_parquet(path, compression="zstd")

    def read(self, path: Path) -> pl.DataFrame:
        """The whole table."""
        return pl.read_parquet(path)


class CsvIOManager(ArtifactIOManager[pl.DataFrame]):
    """`replacement_candidates`; list columns are not supported."""

    def write(self, value: pl.DataFrame, path: Path) -> None:
        """UTF-8 CSV with a header."""
        value.write_csv(path)

    def read(self, path: Path) -> pl.DataFrame:
        """The table with the types of `CANDIDATE_COLUMNS`, other columns as strings."""
        return read_candidates(path)


def read_candidates(path: Path) -> pl.DataFrame:
    """Replacement candidates from a CSV file."""
    # types are not inferred: a token may look like a number ("12")
    head = pl.read_csv(path, n_rows=0).columns
    types = {name: COLUMNS[name][0] if name in COLUMNS else pl.String for name in head}
    table = pl.read_csv(path, schema_overrides=types).with_columns(pl.col(pl.String).fill_null(""))
    # tables of earlier versions have no merges
    return table if "halves" in head else table.with_columns(halves=pl.lit(""), merge_rank=pl.col("rank"))
