"""Metadata of every artifact: its size, the code and settings it was made with, the memory it took."""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dagster as dg

from ivr_dagster.pipeline import settings_hash

CONFIG_HASH = "config_hash"
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def provenance(place: Path, settings: Mapping[str, Any], one_off: Sequence[str] = ()) -> dict[str, dg.MetadataValue]:
    """Metadata of an artifact that was just written.

    Args:
        place: its file or folder.
        settings: the values of the settings that it depends on, in this run.
        one_off: settings that the launchpad changed for this run, as `name: from -> to`.
    """
    found: dict[str, dg.MetadataValue] = {
        "size_bytes": dg.MetadataValue.int(size_of(place)),
        "made_by": dg.MetadataValue.text(code_revision()),
    }
    if settings:
        found[CONFIG_HASH] = dg.MetadataValue.text(settings_hash(settings))
        found["settings"] = dg.MetadataValue.json(dict(settings))
    if one_off:
        found["one-off settings"] = dg.MetadataValue.md(
            f"Built with settings of one run: {', '.join(f'`{change}`' for change in one_off)}. "
            "Materialize the asset again for the current ones."
        )
    peak = peak_memory()
    if peak is not None:
        found["peak_memory_bytes"] = dg.MetadataValue.int(peak)
    return found


def config_hash_of(made: dg.AssetMaterialization) -> str | None:
    """The hash of the settings that an asset was made with, None if it depends on none."""
    found = made.metadata.get(CONFIG_HASH)
    return None if found is None else str(found.value)


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
    """The project's version and, in a git checkout, the revision, with `+` if files are modified."""
    released = f"ivr-dagster {version('ivr-dagster')}"
    package = Path(__file__).parents[1]
    with suppress(OSError, subprocess.SubprocessError):
        git = ["git", "-C", str(package), "-c", "core.fsmonitor=false"]
        options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 10, "check": True}
        top = subprocess.run([*git, "rev-parse", "--show-toplevel", "HEAD"], **options).stdout.split("\n")
        # the package may be installed inside another project's checkout
        if Path(top[0]) / package.name == package:
            changed = subprocess.run([*git, "status", "--porcelain", "--", str(package)], **options).stdout
            return f"{released}, git {top[1][:12]}{'+' if changed.strip() else ''}"
    return released


def reset_peak_memory() -> None:
    """Reset what :func:`peak_memory` measures, on Linux."""
    with suppress(OSError):
        _RESET.write_text("5")


def peak_memory() -> int | None:
    """Peak resident memory of this process in bytes since the last reset; None if unknown.

    IO managers reset it with each input of a step and after each output.
    """
    with suppress(OSError):
        found = re.search(r"^VmHWM:\s*(\d+) kB", _STATUS.read_text(), flags=re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    return None
