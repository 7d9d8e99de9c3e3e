"""The handle of an evaluation's folder."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ReportFolder:
    """`report.json`, `report.md` and the plots it shows."""

    path: Path
