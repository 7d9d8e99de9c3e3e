"""What becomes of an encoder that is not exact."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ivr_dagster.core.tokens import statistics
from ivr_dagster.core.tokens.sequences import Encoder, TokenSequences
from ivr_dagster_tests.small_pipeline import TINY, workbench

MADE = ("pretoken_counts", "token_stats", "token_sequences")


@pytest.fixture
def root(tiny: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny, tmp_path / "root")
    shutil.copytree(tiny.parent / "model", tmp_path / "model")
    shutil.rmtree(tmp_path / "root" / "artifacts" / ".shards")
    return tmp_path / "root"


def made(root: Path, **changed: int) -> dict[str, dict[str, Any]]:
    return workbench(root, model_name=str(root.parent / "model"), **TINY, **changed).run(MADE).figures


def frequencies(root: Path) -> np.ndarray:
    return pl.read_parquet(root / "artifacts/analysis/reports/token_frequency.parquet")["frequency"].to_numpy()


def swapping(encode: Encoder) -> Encoder:
    """An encoder that gives two frequent ids for one another where nobody looks."""

    def encode_wrongly(texts: list[str]) -> list[np.ndarray]:
        return [np.where(ids == 13, 11, ids).astype(ids.dtype) for ids in encode(texts)]

    return encode_wrongly


def test_a_fast_encoder_that_is_not_exact_is_left_out(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = frequencies(root)
    assert before[13] > 0
    right: Callable[..., Encoder | None] = statistics.built_in_encoder

    def wrong(*arguments: object) -> Encoder | None:
        encode = right(*arguments)
        assert encode is not None
        return swapping(encode)

    monkeypatch.setattr(statistics, "built_in_encoder", wrong)
    statistics._tools.cache_clear()
    made(root)
    statistics._tools.cache_clear()
    assert "a fast encoder is not exact on 2 ids of this tokenizer and is left out" in capfd.readouterr().err
    np.testing.assert_array_equal(frequencies(root), before)
    sequences = TokenSequences(root / "artifacts" / "analysis" / "token_sequences")
    np.testing.assert_array_equal(sequences.frequencies(len(before)), before)


def test_types_that_are_not_kept_count_in_frequencies_all_the_same(root: Path) -> None:
    before = frequencies(root)
    figures = made(root, max_pretoken_types=100)["pretoken_counts"]
    assert figures["pretoken_types_kept"] == 100 < figures["pretoken_types"]
    assert (
        pl.read_parquet(root / "artifacts/analysis/pretoken_counts.parquet").filter(pl.col("kind") == "pretoken").height
        == 100
    )
    np.testing.assert_array_equal(frequencies(root), before)
