"""The token assets: one computation, any selection of its results."""

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ivr_dagster.core.tokens.sequences import TokenSequences
from ivr_dagster_tests.small_pipeline import TINY, open_project

FREQUENCIES, COUNTS, SEQUENCES = (
    "artifacts/analysis/reports/token_frequency.parquet",
    "artifacts/analysis/pretoken_counts.parquet",
    "artifacts/analysis/token_sequences",
)


@pytest.fixture
def root(tiny: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny, tmp_path / "root")
    shutil.copytree(tiny.parent / "model", tmp_path / "model")
    return tmp_path / "root"


def run(root: Path, *assets: str, **changed: int) -> dict[str, dict[str, int]]:
    return open_project(root, model_name=str(root.parent / "model"), **TINY, **changed).run(assets).figures


def frequencies(root: Path) -> np.ndarray:
    return pl.read_parquet(root / FREQUENCIES)["frequency"].to_numpy()


def test_frequencies_equal_those_of_the_sequences(tiny: Path) -> None:
    expected = frequencies(tiny)
    np.testing.assert_array_equal(TokenSequences(tiny / SEQUENCES).frequencies(len(expected)), expected)


@pytest.mark.parametrize("asset", ["pretoken_counts", "token_stats", "token_sequences"])
def test_one_asset_can_be_materialized_alone_with_the_same_content(root: Path, asset: str) -> None:
    files = [root / FREQUENCIES, root / COUNTS, *sorted((root / SEQUENCES).glob("*.parquet"))]
    before = [file.read_bytes() for file in files]
    shutil.rmtree(root / "artifacts" / ".shards")
    assert run(root, asset).keys() == {asset}
    assert [file.read_bytes() for file in files] == before


def test_frequencies_include_pretoken_types_that_are_not_kept(root: Path) -> None:
    before = frequencies(root)
    figures = run(root, "pretoken_counts", "token_stats", "token_sequences", max_pretoken_types=100)["pretoken_counts"]
    assert figures["pretoken_types_kept"] == 100 < figures["pretoken_types"]
    assert pl.read_parquet(root / COUNTS).filter(pl.col("kind") == "pretoken").height == 100
    np.testing.assert_array_equal(frequencies(root), before)
