"""Warnings of the corpus, vocabulary and training checks."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ivr_dagster.asset_checks.corpus import heldout_floor
from ivr_dagster.asset_checks.training import loss_falls
from ivr_dagster.asset_checks.vocabulary import token_saving_floor
from ivr_dagster.core.training.folders import TrainedModel
from ivr_dagster_tests.small_pipeline import Figures, open_tiny_project


@pytest.mark.parametrize(
    ("losses", "passes"),
    [([3.0, 2.0], True), ([2.0, 3.0], False), ([3.0, float("nan"), 2.0], False), ([3.0], True), ([], True)],
)
def test_loss_check_warns_if_the_loss_rises_or_is_nan(losses: list[float], passes: bool, tmp_path: Path) -> None:
    trained = TrainedModel(tmp_path)
    trained.write_history(len(losses), 10, list(enumerate(losses)), [])
    result: Any = loss_falls(trained)
    assert result.passed is passes
    assert result.severity == dg.AssetCheckSeverity.WARN
    assert ("learning_rate" in (result.description or "")) is not passes


@pytest.mark.parametrize(
    ("check", "asset", "setting", "figure"),
    [
        (heldout_floor, "cleaned_corpus", "heldout_floor", "heldout_documents"),
        (token_saving_floor, "remapped_bpe_tokenizer", "saving_floor", "token_saving"),
    ],
)
def test_floor_check_warns_below_the_floor_but_not_at_it(
    check: Any, asset: str, setting: str, figure: str, tiny_run: tuple[Path, Figures]
) -> None:
    root, figures = tiny_run
    measured = figures[asset][figure]
    value = open_tiny_project(root).load(asset)
    passing = check(open_tiny_project(root, **{setting: measured}).settings, value)
    failing = check(open_tiny_project(root, **{setting: measured + (1 if measured >= 1 else 0.01)}).settings, value)
    assert (passing.passed, failing.passed) == (True, False)
    assert passing.metadata[figure].value == pytest.approx(measured)
    assert failing.severity == dg.AssetCheckSeverity.WARN
    assert failing.description
