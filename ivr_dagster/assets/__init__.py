"""The assets: one module a stem, thin. An asset takes its inputs, calls core, returns the value with metadata.

`definitions` adds a hash of the settings that an asset depends on to its code version, so that a changed setting makes
the asset stale just as changed code does.
"""

import os
import warnings

from dagster import BetaWarning

# observable sources and conditions of our own are beta in Dagster; that is a choice made here, not news for whoever
# runs the assets
warnings.filterwarnings("ignore", category=BetaWarning)
# read when torch is first imported: threads that spin at barriers lose most of their time to any other busy process
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

OWNERS = ["team:ivr"]


def kinds(*names: str) -> dict[str, str]:
    """Kinds as tags, for sources, whose decorator takes no `kinds`."""
    return {f"dagster/kind/{name}": "" for name in names}
