"""The handle of an exported folder."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ExportFolder:
    """The files of one format."""

    path: Path

    def files(self) -> list[Path]:
        """All files except hidden ones, sorted by path."""
        found = (file for file in self.path.rglob("*") if file.is_file() and not file.name.startswith("."))
        return sorted(found)
