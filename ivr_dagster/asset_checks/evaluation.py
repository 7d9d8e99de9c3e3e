"""Quality checks on the report. They only warn, since a report is useful whatever its result."""

import json
from typing import Any

import dagster as dg

from ivr_dagster.asset_checks import verdict
from ivr_dagster.core.evaluation.folder import ReportFolder
from ivr_dagster.resources.settings import SettingsResource


@dg.asset_check(asset="evaluation_report")
def bpb_falls_with_training(evaluation_report: ReportFolder) -> dg.AssetCheckResult:
    """The fine-tuned model has fewer bits per byte than the initialized model."""
    variants = _read(evaluation_report)["variants"]
    before, after = variants["initialized"]["bpb"], variants["sft"]["bpb"]
    return verdict(
        after < before,
        severity=dg.AssetCheckSeverity.WARN,
        remedy="Fine-tuning increased bits per byte on held-out text: check the training loss, lower learning_rate, or"
        " train on more text.",
        bpb_before=before,
        bpb_after=after,
    )


@dg.asset_check(asset="evaluation_report")
def bpb_of_distilled_near_base(settings: SettingsResource, evaluation_report: ReportFolder) -> dg.AssetCheckResult:
    """The base model's bits per byte change by at most `distilled_tolerance` with the distilled tokenizer."""
    variants = _read(evaluation_report)["variants"]
    base, distilled = variants["base"]["bpb"], variants["distilled"]["bpb"]
    return verdict(
        abs(distilled / base - 1) <= settings.evaluation.distilled_tolerance,
        severity=dg.AssetCheckSeverity.WARN,
        remedy="Pre-tokens that the tokenizers segment differently cost quality: see the worst divergences of"
        " distilled_tokenizer.",
        bpb_base=base,
        bpb_distilled=distilled,
        tolerance=settings.evaluation.distilled_tolerance,
    )


@dg.asset_check(asset="evaluation_report")
def retention(settings: SettingsResource, evaluation_report: ReportFolder) -> dg.AssetCheckResult:
    """The fine-tuned model forgets at most `retention_tolerance` more out-of-domain text than the vanilla baseline."""
    measured = _read(evaluation_report)["retention"] or {}
    rises = {name: each["rise"] for name, each in measured.get("variants", {}).items() if "rise" in each}
    if "sft" not in rises:
        return verdict(True, remedy="", note=f"not measured: {measured.get('skipped') or 'retention_bytes is 0'}")
    if "vanilla_sft" not in rises:
        return verdict(True, remedy="", rise=rises["sft"], note="no vanilla baseline to compare with")
    return verdict(
        rises["sft"] <= rises["vanilla_sft"] + settings.evaluation.retention_tolerance,
        severity=dg.AssetCheckSeverity.WARN,
        remedy="The model forgets more than plain fine-tuning does: mix in general text (general_corpora_dir), lower"
        " learning_rate, train for fewer epochs, or reassign fewer ids.",
        rise=rises["sft"],
        rise_vanilla=rises["vanilla_sft"],
        tolerance=settings.evaluation.retention_tolerance,
    )


def _read(report: ReportFolder) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((report.path / "report.json").read_text(encoding="utf-8"))
    return values
