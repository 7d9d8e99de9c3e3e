"""Quality, as warnings: the report is worth reading whichever way it came out."""

import json
from typing import Any

import dagster as dg

from ivr_dagster.asset_checks import verdict
from ivr_dagster.core.handles import ReportFolder

DISTILLED_TOLERANCE = 0.005


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
def bpb_of_distilled_near_base(evaluation_report: ReportFolder) -> dg.AssetCheckResult:
    """The base model scores with the distilled tokenizer what it scores with its own, within half a percent."""
    variants = _variants(evaluation_report)
    base, distilled = variants["base"]["bpb"], variants["distilled"]["bpb"]
    return verdict(
        abs(distilled / base - 1) <= DISTILLED_TOLERANCE,
        severity=dg.AssetCheckSeverity.WARN,
        remedy="Pre-tokens that the two cut differently cost quality: see distilled_tokenizer's worst divergences.",
        bpb_base=base,
        bpb_distilled=distilled,
        tolerance=DISTILLED_TOLERANCE,
    )


def _variants(report: ReportFolder) -> dict[str, dict[str, Any]]:
    variants: dict[str, dict[str, Any]] = json.loads((report.path / "report.json").read_text(encoding="utf-8"))[
        "variants"
    ]
    return variants
