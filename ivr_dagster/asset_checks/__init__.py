"""Asset checks, by the stem of the assets they guard: the invariants that must hold, and the quality floors.

A blocking check that fails stops what follows; a warning is shown and stops nothing. Every check tells the figure,
the threshold and, on failure, what to do.
"""

import dagster as dg


def beside(*assets: str) -> dict[str, dg.AssetIn]:
    """Assets that a check reads beside the one it guards."""
    return {asset: dg.AssetIn(asset) for asset in assets}


def verdict(
    passed: bool,
    *,
    remedy: str,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
    **figures: float | int | str,
) -> dg.AssetCheckResult:
    """A check's result: figures as metadata, what to do as description where it failed."""
    return dg.AssetCheckResult(
        passed=bool(passed), severity=severity, metadata=dict(figures), description=None if passed else remedy
    )
