"""The checkpoints of one run: which are whole, which belong to it, where to go on.

transformers' Trainer writes a checkpoint file by file and resumes from the newest folder unchecked; without the
optimizer's or the random generators' state it goes on silently wrong. So a checkpoint gets a marker when everything
else is written, and the marker names the run. A checkpoint without the marker, or with another run's, is worthless
and removed.
"""

import json
import re
import shutil
from pathlib import Path

from ivr_dagster.storage.atomic import atomic_write

MARKER = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def mark_complete(checkpoint: Path, run: dict[str, object]) -> None:
    """Declare a checkpoint folder whole; `run` identifies the run it belongs to. To be called last."""
    with atomic_write(checkpoint / MARKER) as staged:
        staged.write_text(json.dumps(run, sort_keys=True) + "\n", encoding="utf-8")


def newest_complete(output_dir: Path, run: dict[str, object]) -> Path | None:
    """The newest whole checkpoint of `run` below `output_dir`, or None."""
    ours = [folder for folder in _checkpoints(output_dir) if _run_of(folder) == run]
    return max(ours, key=step_of, default=None)


def discard_useless(output_dir: Path, run: dict[str, object]) -> list[Path]:
    """Remove the checkpoints that are not whole or not of `run`; returns what was removed."""
    useless = [folder for folder in _checkpoints(output_dir) if _run_of(folder) != run]
    for folder in useless:
        # the marker goes first: a removal cut short must not leave a marked half
        (folder / MARKER).unlink(missing_ok=True)
        shutil.rmtree(folder)
    return useless


def step_of(checkpoint: Path) -> int:
    """The optimizer step a checkpoint folder was written after."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else -1


def _checkpoints(output_dir: Path) -> list[Path]:
    return sorted((folder for folder in output_dir.glob("checkpoint-*") if step_of(folder) >= 0), key=step_of)


def _run_of(checkpoint: Path) -> object:
    try:
        return json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
