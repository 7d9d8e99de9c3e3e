"""A built folder of a tiny model, and `ivr` in its own process."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ivr_dagster_tests.small_pipeline import SMALL, TINY

Ivr = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """An artifacts folder with all assets and the settings file that they were built with."""
    root = Path(shutil.copytree(tiny, tmp_path / "copy"))
    paths = {"raw_corpora_dir": str(root / "raw"), "config_path": str(root / "sft_config.yaml")}
    settings: dict[str, Any] = {**SMALL, **TINY, **paths, "model_name": str(tiny.parent / "model")}
    (root / "artifacts" / "ivr.yaml").write_text(yaml.safe_dump(settings))
    return root / "artifacts"


@pytest.fixture
def ivr(folder: Path) -> Ivr:
    """`ivr(*arguments, **variables)` on the folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("IVR_", "DAGSTER_"))}

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ivr_dagster", "--artifacts-dir", folder, *arguments]
        environment = kept | {"HF_HUB_OFFLINE": "1"} | variables
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=250)

    return run
