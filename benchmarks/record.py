"""Saves results as JSON in benchmarks/results, with the machine and the versions of packages."""

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """The processor architecture and the number of cores."""
    return {"processor": platform.machine(), "cores": os.cpu_count()}


def save(name: str, result: Mapping[str, Any], packages: str) -> None:
    """Write `results/NAME.json`; `packages` are names separated by spaces."""
    versions = {package: version(package) for package in packages.split()} | {"python": platform.python_version()}
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({**result, "machine": machine(), "versions": versions}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
