"""What the checks on the report make of its figures."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ivr_dagster.asset_checks.evaluation import bpb_falls_with_training, bpb_of_distilled_near_base, retention
from ivr_dagster.core.evaluation.folder import ReportFolder
from ivr_dagster.resources.settings import ProjectSettings
from ivr_dagster_tests.small_pipeline import project_settings


def verdict_of(check: Any, folder: Path, *settings: ProjectSettings, **report: Any) -> dg.AssetCheckResult:
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    result: dg.AssetCheckResult = check(*settings, ReportFolder(folder))
    return result


def set_to(**changed: Any) -> ProjectSettings:
    return project_settings(Path("/nowhere"), **changed)


def other_text(**rises: float) -> dict[str, Any]:
    variants = {name: {"bpb": 2 * (1 + rise), "rise": rise} for name, rise in rises.items()}
    return {"skipped": "", "variants": {"base": {"bpb": 2.0}} | variants}


@pytest.mark.parametrize(
    ("sft", "vanilla", "passes"), [(0.34, 0.18, False), (0.22, 0.18, True), (-0.1, 0.0, True), (0.0, -0.06, False)]
)
def test_unlearning_more_than_the_vanilla_baseline_is_warned_of(
    sft: float, vanilla: float, passes: bool, tmp_path: Path
) -> None:
    result = verdict_of(retention, tmp_path, set_to(), retention=other_text(sft=sft, vanilla_sft=vanilla))
    assert result.passed is passes
    assert result.severity == dg.AssetCheckSeverity.WARN
    assert (result.metadata["rise"].value, result.metadata["rise_vanilla"].value) == (sft, vanilla)
    assert bool(result.description) is not passes


def test_what_cannot_be_compared_passes_and_says_why(tmp_path: Path) -> None:
    notes = [
        verdict_of(retention, tmp_path, set_to(), retention=measured)
        for measured in (None, {"skipped": "the corpus holds it.", "variants": {}}, other_text(sft=9.0))
    ]
    assert all(result.passed for result in notes)
    assert [result.metadata["note"].value for result in notes] == [
        "not measured: retention_bytes is 0",
        "not measured: the corpus holds it.",
        "no vanilla baseline to compare with",
    ]


def test_training_that_made_it_worse_and_a_distilled_tokenizer_that_costs_are_warned_of(tmp_path: Path) -> None:
    def variants(**bpb: float) -> dict[str, Any]:
        return {name: {"bpb": value} for name, value in bpb.items()}

    assert verdict_of(bpb_falls_with_training, tmp_path, variants=variants(initialized=2.0, sft=1.9)).passed
    assert not verdict_of(bpb_falls_with_training, tmp_path, variants=variants(initialized=2.0, sft=2.1)).passed
    assert verdict_of(
        bpb_of_distilled_near_base, tmp_path, set_to(), variants=variants(base=1.0, distilled=1.004)
    ).passed
    assert not verdict_of(
        bpb_of_distilled_near_base, tmp_path, set_to(), variants=variants(base=1.0, distilled=1.006)
    ).passed


def test_the_thresholds_are_settings(tmp_path: Path) -> None:
    variants = {"base": {"bpb": 1.0}, "distilled": {"bpb": 1.006}}
    result = verdict_of(bpb_of_distilled_near_base, tmp_path, set_to(distilled_tolerance=0.01), variants=variants)
    assert result.passed and result.metadata["tolerance"].value == 0.01
    unlearned = other_text(sft=0.34, vanilla_sft=0.18)
    result = verdict_of(retention, tmp_path, set_to(retention_tolerance=0.2), retention=unlearned)
    assert result.passed and result.metadata["tolerance"].value == 0.2
