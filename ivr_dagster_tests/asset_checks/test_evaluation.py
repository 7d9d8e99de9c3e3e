"""The checks on the report."""

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
    ("sft", "vanilla", "tolerance", "passes"),
    [
        (0.34, 0.18, None, False),
        (0.34, 0.18, 0.2, True),
        (0.22, 0.18, None, True),
        (-0.1, 0.0, None, True),
        (0.0, -0.06, None, False),
    ],
)
def test_retention_warns_about_more_forgetting_than_the_baseline(
    sft: float, vanilla: float, tolerance: float | None, passes: bool, tmp_path: Path
) -> None:
    settings = set_to(retention_tolerance=tolerance) if tolerance else set_to()
    result = verdict_of(retention, tmp_path, settings, retention=other_text(sft=sft, vanilla_sft=vanilla))
    assert result.passed is passes
    assert result.severity == dg.AssetCheckSeverity.WARN
    assert (result.metadata["rise"].value, result.metadata["rise_vanilla"].value) == (sft, vanilla)
    assert bool(result.description) is not passes


def test_retention_passes_with_a_note_if_it_cannot_be_compared(tmp_path: Path) -> None:
    results = [
        verdict_of(retention, tmp_path, set_to(), retention=measured)
        for measured in (None, {"skipped": "the corpus contains it.", "variants": {}}, other_text(sft=9.0))
    ]
    assert all(result.passed for result in results)
    assert [result.metadata["note"].value for result in results] == [
        "not measured: retention_bytes is 0",
        "not measured: the corpus contains it.",
        "no vanilla baseline to compare with",
    ]


@pytest.mark.parametrize(("sft", "passes"), [(1.9, True), (2.1, False)])
def test_bpb_must_fall_with_training(sft: float, passes: bool, tmp_path: Path) -> None:
    variants = {"initialized": {"bpb": 2.0}, "sft": {"bpb": sft}}
    assert verdict_of(bpb_falls_with_training, tmp_path, variants=variants).passed is passes


@pytest.mark.parametrize(
    ("distilled", "changed", "passes"),
    [(1.004, {}, True), (1.006, {}, False), (1.006, {"distilled_tolerance": 0.01}, True)],
)
def test_bpb_of_the_distilled_tokenizer_must_be_near_the_base(
    distilled: float, changed: dict[str, float], passes: bool, tmp_path: Path
) -> None:
    variants = {"base": {"bpb": 1.0}, "distilled": {"bpb": distilled}}
    assert verdict_of(bpb_of_distilled_near_base, tmp_path, set_to(**changed), variants=variants).passed is passes
