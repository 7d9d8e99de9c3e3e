"""The base tokenizer and rules of an external tokenizer."""

from pathlib import Path

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.io_managers.tokenizers import external_tokenizer


def test_context_comes_from_settings_else_from_the_folder_else_from_artifacts(tmp_path: Path) -> None:
    paths = ArtifactPaths(tmp_path / "artifacts")
    mine = tmp_path / "mine"
    mine.mkdir()
    base, rules = paths["original_tokenizer"] / "tokenizer.json", paths["remap_rules"]
    assert external_tokenizer(mine, paths) == TokenizerFolder(mine, base, rules)
    (mine / "remap_rules.yaml").touch()
    assert external_tokenizer(mine, paths) == TokenizerFolder(mine, base, None)
    (mine / "base_tokenizer.json").touch()
    found = external_tokenizer(mine, paths)
    assert (found.base_file, found.rules_file) == (mine / "base_tokenizer.json", mine / "remap_rules.yaml")
    named = {"external_remap_rules": tmp_path / "rules.yaml"}
    paths = ArtifactPaths(paths.root, external=named, replaced={"remap_rules": "external_remap_rules"})
    assert external_tokenizer(mine, paths).rules_file == tmp_path / "rules.yaml"
