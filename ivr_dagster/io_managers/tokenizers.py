"""Folders that AutoTokenizer loads."""

from pathlib import Path

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.core.tokenizer.folder import BASE_TOKENIZER, REMAP_RULES, TOKENIZER, TokenizerFolder
from ivr_dagster.io_managers.artifacts import FolderIOManager


class TokenizerIOManager(FolderIOManager[TokenizerFolder]):
    """`original_tokenizer`, `distilled_tokenizer`, `remapped_tokenizer`."""

    handle = TokenizerFolder

    def read(self, path: Path) -> TokenizerFolder:
        """A handle of the folder; an external tokenizer's names its base tokenizer and rules."""
        return external_tokenizer(path, self._paths) if path in self._paths.external.values() else TokenizerFolder(path)


def training_tokenizer(model: Path, paths: ArtifactPaths) -> TokenizerFolder:
    """The tokenizer to train with: the one that `tokenizer_path` names, else the one in the model's folder."""
    folder = paths.external.get("external_train_tokenizer", model)
    return external_tokenizer(folder, paths) if folder in paths.external.values() else TokenizerFolder(folder)


def external_tokenizer(folder: Path, paths: ArtifactPaths) -> TokenizerFolder:
    """The handle of a remapped tokenizer that the user supplies.

    Its base tokenizer and its rules are those that settings name (`original_tokenizer_dir`, `remap_rules_path`), else
    the ones in its folder, else the artifacts.
    """

    def context(asset: str, name: str, file: Path) -> Path | None:
        return None if asset not in paths.replaced and (folder / name).is_file() else file

    return TokenizerFolder(
        folder,
        context("original_tokenizer", BASE_TOKENIZER, paths["original_tokenizer"] / TOKENIZER),
        context("remap_rules", REMAP_RULES, paths["remap_rules"]),
    )
