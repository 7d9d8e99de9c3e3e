"""The assets: one module a stem, thin. An asset takes its inputs, calls core, returns the value with metadata.

An asset names the settings it depends on in its metadata (`ivr/settings`); `definitions` folds their values into the
code version, so that a changed setting makes the asset stale as changed code does.
"""

import os
import warnings
from typing import Any

from dagster import BetaWarning

from ivr_dagster.io_managers.artifacts import SETTINGS_KEY

# observable sources and conditions of our own are beta in Dagster; that is a choice made here, not news for whoever
# runs the assets
warnings.filterwarnings("ignore", category=BetaWarning)
# read when torch is first imported: threads that spin at barriers lose most of their time to any other busy process
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

OWNERS = ["team:ivr"]


def kinds(*names: str) -> dict[str, str]:
    """Kinds as tags, for sources, whose decorator takes no `kinds`."""
    return {f"dagster/kind/{name}": "" for name in names}


def depends_on_settings(*keys: str) -> dict[str, Any]:
    """Asset metadata that names the settings an asset's content depends on."""
    return {SETTINGS_KEY: list(keys)}
