"""What every artifact says of itself beside its own figures: how large it is, what it was made with, what it took."""

import os
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dagster as dg

from ivr_dagster.pipeline import settings_hash

CONFIG_HASH = "config_hash"
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def provenance(place: Path, settings: Mapping[str, Any]) -> dict[str, dg.MetadataValue]:
    """Metadata of an artifact that was just written.

    Args:
        place: its file or folder.
        settings: those that it depends on, by key, as they were in this run.
    """
    found: dict[str, dg.MetadataValue] = {
        "size_bytes": dg.MetadataValue.int(size_of(place)),
        "made_by": dg.MetadataValue.text(code_revision()),
    }
    if settings:
        found[CONFIG_HASH] = dg.MetadataValue.text(settings_hash(settings))
        found["settings"] = dg.MetadataValue.json(dict(settings))
    peak = peak_memory()
    if peak is not None:
        found["peak_memory_bytes"] = dg.MetadataValue.int(peak)
    return found


def config_hash_of(made: dg.AssetMaterialization) -> str | None:
    """The hash of the settings that something was made with, None where it depends on none."""
    told = made.metadata.get(CONFIG_HASH)
    return None if told is None else str(told.value)


def size_of(place: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if place.is_file():
        return place.stat().st_size
    total = 0
    for file in place.rglob("*"):
        with suppress(FileNotFoundError):
            total += 0 if file.is_dir() else os.lstat(file).st_size
    return total


@lru_cache(maxsize=1)
def code_revision() -> str:
    """The project's version and, where it runs out of a git checkout of its own, the revision.

    `+` behind the revision: files differ from it.
    """
    released = f"ivr-dagster {version('ivr-dagster')}"
    package = Path(__file__).parents[1]
    with suppress(OSError, subprocess.SubprocessError):
        git = ["git", "-C", str(package), "-c", "core.fsmonitor=false"]
        options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 10, "check": True}
        top = subprocess.run([*git, "rev-parse", "--show-toplevel", "HEAD"], **options).stdout.split("\n")
        # an environment inside somebody else's checkout is not ours
        if Path(top[0]) / package.name == package:
            changed = subprocess.run([*git, "status", "--porcelain", "--", str(package)], **options).stdout
            return f"{released}, git {top[1][:12]}{'+' if changed.strip() else ''}"
    return released


def reset_peak_memory() -> None:
    """Begin to measure anew, where the system can: Linux, for a process of one's own."""
    with suppress(OSError):
        _RESET.write_text("5")


def peak_memory() -> int | None:
    """The most memory, in bytes resident, that this process had since it was reset; None where it is not known.

    It is reset with each input of a step and after each output, so it is the peak since the last of them.
    """
    with suppress(OSError):
        found = re.search(r"^VmHWM:\s*(\d+) kB", _STATUS.read_text(), flags=re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    return None
