"""The checkpoints of a run: which are complete, which belong to it, and where to resume.

transformers' Trainer writes a checkpoint file by file and resumes from the newest folder without a check; without the
states of the optimizer and the random generators it resumes silently wrong. Therefore a checkpoint gets a marker when
all other files are written, and the marker identifies the run. Checkpoints without it, or of other runs, are removed.
"""

import json
import re
import shutil
from pathlib import Path

from ivr_dagster.storage.atomic import atomic_write

MARKER = "complete.json"
# transformers names checkpoints so; `final_model` is written beside them when training ends
PREFIX, FINAL_MODEL = "checkpoint-", "final_model"
_NAME = re.compile(rf"{PREFIX}(\d+)")


def mark_complete(checkpoint: Path, run: dict[str, object]) -> None:
    """Mark a checkpoint folder as complete; `run` identifies its run. Call this last."""
    with atomic_write(checkpoint / MARKER) as staged:
        staged.write_text(json.dumps(run, sort_keys=True) + "\n", encoding="utf-8")


def newest_complete(output_dir: Path, run: dict[str, object]) -> Path | None:
    """The newest complete checkpoint of `run` in `output_dir`, or None."""
    ours = [folder for folder in _checkpoints(output_dir) if _run_of(folder) == run]
    return max(ours, key=step_of, default=None)


def discard_others(output_dir: Path, run: dict[str, object]) -> list[Path]:
    """Remove incomplete checkpoints and those of other runs; returns the removed folders."""
    others = [folder for folder in _checkpoints(output_dir) if _run_of(folder) != run]
    for folder in others:
        # first the marker: an interrupted removal must not leave a marked, incomplete checkpoint
        (folder / MARKER).unlink(missing_ok=True)
        shutil.rmtree(folder)
    return others


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was written."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else -1


def _checkpoints(output_dir: Path) -> list[Path]:
    return sorted((folder for folder in output_dir.glob(f"{PREFIX}*") if step_of(folder) >= 0), key=step_of)


def _run_of(checkpoint: Path) -> object:
    try:
        return json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
