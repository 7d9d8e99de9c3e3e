"""Provenance metadata of artifacts."""

import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.io_managers import provenance
from ivr_dagster.io_managers.provenance import code_revision, size_of
from ivr_dagster.pipeline import settings_hash
from ivr_dagster_tests.small_pipeline import Figures, open_tiny_project


def test_every_artifact_records_size_code_and_settings(tiny_run: tuple[Path, Figures]) -> None:
    root, figures = tiny_run
    project = open_tiny_project(root)
    paths = ArtifactPaths(root / "artifacts")
    for asset, found in figures.items():
        assert Path(found["path"]) == paths[asset]
        assert found["made_by"].startswith("ivr-dagster ")
        event = project.last_materialization(asset)
        assert event is not None and event.asset_materialization is not None
        metadata = event.asset_materialization.metadata
        settings = metadata["settings"].value if "settings" in metadata else {}
        assert isinstance(settings, dict)
        version = str(project.graph.get(dg.AssetKey(asset)).code_version)
        assert ("-" in version) is bool(settings), asset
        if settings:
            assert version.endswith(f"-{found['config_hash']}")
            assert found["config_hash"] == settings_hash(settings)
    # these were not modified after their materialization
    for asset in ("token_stats", "remapped_tokenizer", "original_embeddings"):
        manifest = 0 if paths[asset].is_file() else (paths[asset] / ".ivr.json").stat().st_size
        assert figures[asset]["size_bytes"] - manifest == sum(
            file.stat().st_size for file in [paths[asset], *paths[asset].rglob("*")]
            if file.is_file() and file.name != ".ivr.json"
        )  # fmt: skip


def test_folder_size_does_not_follow_symlinks(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "sub" / "b").write_bytes(b"123")
    assert size_of(tmp_path) == 8
    (tmp_path / "loop").symlink_to(tmp_path)
    assert size_of(tmp_path) == 8


PEAK_MEMORY_SCRIPT = """
import numpy as np
from ivr_dagster.io_managers.provenance import peak_memory, reset_peak_memory

np.ones(100_000_000, dtype=np.uint8).sum()
before = peak_memory()
reset_peak_memory()
after = peak_memory()
block = np.ones(80_000_000, dtype=np.uint8)
print(before, after, peak_memory(), block.sum())
"""


def test_peak_memory_is_measured_since_the_reset() -> None:
    """In a separate process, because this one may not return freed memory to the system."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("no /proc")
    printed = subprocess.run(
        [sys.executable, "-c", PEAK_MEMORY_SCRIPT], capture_output=True, text=True, check=True, timeout=100
    ).stdout
    before, after, grown, _ = map(int, printed.split())
    assert before - after > 70_000_000
    assert 70_000_000 < grown - after < 100_000_000


def test_code_revision_is_that_of_the_projects_own_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str, at: Path) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(at), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    if shutil.which("git") is None:
        pytest.skip("no git")
    package = tmp_path / "ours" / "ivr_dagster"
    (package / "io_managers").mkdir(parents=True)
    (package / "io_managers" / "provenance.py").write_text("")
    monkeypatch.setattr(provenance, "__file__", str(package / "io_managers" / "provenance.py"))

    def git_revision() -> str:
        code_revision.cache_clear()
        try:
            return code_revision().partition(", ")[2]
        finally:
            code_revision.cache_clear()

    assert git_revision() == ""
    git("init", "-q", at=tmp_path / "ours")
    git("add", ".", at=tmp_path / "ours")
    git("commit", "-qm", "one", at=tmp_path / "ours")
    revision = git("rev-parse", "HEAD", at=tmp_path / "ours")
    assert git_revision() == f"git {revision[:12]}"
    (package / "more.py").write_text("")
    assert git_revision() == f"git {revision[:12]}+"
    (package / "more.py").unlink()
    shutil.rmtree(tmp_path / "ours" / ".git")
    git("init", "-q", at=tmp_path)  # installed inside another project's checkout
    git("add", ".", at=tmp_path)
    git("commit", "-qm", "theirs", at=tmp_path)
    assert git_revision() == ""
