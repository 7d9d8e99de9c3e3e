"""Checks of a training's progress."""

import math

import dagster as dg

from ivr_dagster.asset_checks import verdict
from ivr_dagster.core.training.folders import TrainedModel


@dg.asset_check(asset="sft_checkpoint", name="loss_falls")
def loss_falls(sft_checkpoint: TrainedModel) -> dg.AssetCheckResult:
    """The loss is finite and falls."""
    losses = [float(loss) for _, loss in sft_checkpoint.history()["losses"]]
    if not losses:
        note = "no loss was logged: logging_steps exceeds the number of steps"
        return verdict(True, severity=dg.AssetCheckSeverity.WARN, remedy="", note=note)
    first, last = losses[0], losses[-1]
    return verdict(
        all(map(math.isfinite, losses)) and (len(losses) < 2 or last < first),
        severity=dg.AssetCheckSeverity.WARN,
        remedy="See the training loss on the asset's page; lower learning_rate or new_row_rate, or train longer.",
        loss_first=first,
        loss_last=last,
        entries=len(losses),
    )
