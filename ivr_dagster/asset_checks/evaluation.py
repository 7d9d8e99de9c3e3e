"""Quality, as warnings: the report is worth reading whichever way it came out."""

import json
from typing import Any

import dagster as dg

from ivr_dagster.asset_checks import verdict
from ivr_dagster.core.evaluation.folder import ReportFolder
from ivr_dagster.resources.settings import SettingsResource


@dg.asset_check(asset="evaluation_report")
def bpb_falls_with_training(evaluation_report: ReportFolder) -> dg.AssetCheckResult:
    """Bits per byte of the fine-tuned model are below those of the model it was fine-tuned from."""
    variants = _variants(evaluation_report)
    before, after = variants["initialized"]["bpb"], variants["sft"]["bpb"]
    return verdict(
        after < before,
        severity=dg.AssetCheckSeverity.WARN,
        remedy="Training made it worse on held-out text: look at the loss, lower learning_rate, take more text.",
        bpb_before=before,
        bpb_after=after,
    )


@dg.asset_check(asset="evaluation_report")
def bpb_of_distilled_near_base(settings: SettingsResource, evaluation_report: ReportFolder) -> dg.AssetCheckResult:
    """The base model scores with the distilled tokenizer what it scores with its own (`distilled_tolerance`)."""
    variants = _variants(evaluation_report)
    base, distilled = variants["base"]["bpb"], variants["distilled"]["bpb"]
    return verdict(
        abs(distilled / base - 1) <= settings.evaluation.distilled_tolerance,
        severity=dg.AssetCheckSeverity.WARN,
        remedy="Pre-tokens that the two cut differently cost quality: see distilled_tokenizer's worst divergences.",
        bpb_base=base,
        bpb_distilled=distilled,
        tolerance=settings.evaluation.distilled_tolerance,
    )


@dg.asset_check(asset="evaluation_report")
def retention(settings: SettingsResource, evaluation_report: ReportFolder) -> dg.AssetCheckResult:
    """On text of another domain the fine-tuned model unlearned hardly more than the vanilla baseline did
    (`retention_tolerance`).
    """
    measured = _report(evaluation_report)["retention"]
    variants = measured["variants"] if measured else {}
    rises = {name: variant["rise"] for name, variant in variants.items() if "rise" in variant}
    if "sft" not in rises:
        reason = (measured or {}).get("skipped") or "retention_bytes is 0"
        return verdict(True, remedy="", note=f"not measured: {reason}")
    if "vanilla_sft" not in rises:
        return verdict(True, remedy="", rise=rises["sft"], note="no vanilla baseline to compare with")
    return verdict(
        rises["sft"] <= rises["vanilla_sft"] + settings.evaluation.retention_tolerance,
        severity=dg.AssetCheckSeverity.WARN,
        remedy="The model unlearned more than plain fine-tuning makes it: mix other text in (general_corpora_dir), "
        "lower learning_rate, train on fewer epochs, or give fewer ids to new tokens.",
        rise=rises["sft"],
        rise_vanilla=rises["vanilla_sft"],
        tolerance=settings.evaluation.retention_tolerance,
    )


def _variants(report: ReportFolder) -> dict[str, dict[str, Any]]:
    variants: dict[str, dict[str, Any]] = _report(report)["variants"]
    return variants


def _report(report: ReportFolder) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((report.path / "report.json").read_text(encoding="utf-8"))
    return values
