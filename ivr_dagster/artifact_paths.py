"""Where the files of one artifacts folder are."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ivr_dagster.errors import InputError
from ivr_dagster.pipeline import ASSETS, EXTERNAL
from ivr_dagster.settings.loading import SETTINGS_FILE, Settings
from ivr_dagster.storage.file_hashes import FileHashCache
from ivr_dagster.storage.lock import ProcessLock
from ivr_dagster.storage.shard_cache import ShardCache

SFT_CONFIG_FILE = "sft_config.yaml"
ACCELERATE_CONFIG_FILE = "accelerate_config.yaml"
_EXPERIMENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class ArtifactPaths:
    """Paths of one artifacts folder.

    Attributes:
        root: the artifacts folder, absolute.
        outputs: artifact paths that a setting overrides, by asset.
        external: paths of external artifacts, by the name of the source asset.
        replaced: the source asset that replaces an asset for all its readers, by asset.
    """

    root: Path
    outputs: Mapping[str, Path] = field(default_factory=dict)
    external: Mapping[str, Path] = field(default_factory=dict)
    replaced: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings, artifacts_dir: Path) -> "ArtifactPaths":
        """The paths of an artifacts folder under these settings."""
        root = artifacts_dir.expanduser().resolve()
        outputs: dict[str, Path] = {}
        if settings.corpus.raw_corpora_dir:
            outputs["raw_corpus"] = _resolved(settings.corpus.raw_corpora_dir)
        sharing = [asset.output for asset in ASSETS.values()]
        for asset in ASSETS.values():
            if asset.output and (given := settings.get(asset.output)):
                shared = sharing.count(asset.output) > 1  # a setting of several assets names their common folder
                outputs[asset.name] = _resolved(given) / Path(asset.path).name if shared else _resolved(given)
        paths = cls(root, outputs)
        external: dict[str, Path] = {}
        replaced: dict[str, str] = {}
        for name, source in EXTERNAL.items():
            given = settings.get(source.setting)
            # naming the artifact's own path changes nothing
            if given and _resolved(given) != cls(root, outputs, external, replaced)[source.replaces]:
                external[name] = _resolved(given)
                if not source.only_in:
                    replaced[source.replaces] = name
        return cls(paths.root, outputs, external, replaced)

    def __getitem__(self, asset: str) -> Path:
        """The path of an asset or external artifact; of a replaced asset, the path of the external artifact."""
        source = self.replaced.get(asset, asset)
        if source in self.external:
            return self.external[source]
        default = "corpora/raw" if asset == "raw_corpus" else ASSETS[asset].path
        return self.outputs.get(asset) or self.root / default

    @property
    def dagster_home(self) -> Path:
        """The default DAGSTER_HOME."""
        return self.root / ".dagster"

    @property
    def experiments(self) -> Path:
        """The folder of experiments; each experiment is an artifacts folder."""
        return self.root / "experiments"

    def experiment(self, name: str) -> Path:
        """The artifacts folder of an experiment, which need not exist.

        Raises:
            InputError: the name is not a valid folder name.
        """
        if not _EXPERIMENT_NAME.fullmatch(name):
            raise InputError(
                f"invalid experiment name {name!r}",
                where="experiment",
                remedy="Use letters, digits, dots, hyphens and underscores, starting with a letter or a digit.",
            )
        return self.experiments / name

    def shard_cache(self, asset: str) -> ShardCache:
        """The cache of an asset's results per corpus shard."""
        return ShardCache(self.root / ".shards" / asset)

    @property
    def file_hashes(self) -> FileHashCache:
        """The cached hashes of raw files."""
        return FileHashCache(self.root / ".shards" / "files.json")

    @property
    def lock(self) -> ProcessLock:
        """The lock that every run and command holds while it reads or writes artifacts."""
        return ProcessLock(self.root / ".ivr.lock")

    @property
    def ui_lock(self) -> ProcessLock:
        """The lock that the servers of the UI hold."""
        return ProcessLock(self.root / ".ivr-ui.lock")

    @property
    def settings_file(self) -> Path:
        """The settings file, unless `--config` names another."""
        return self.root / SETTINGS_FILE

    @property
    def sft_config(self) -> Path:
        """The training settings file, unless `--config-path` names another; need not exist."""
        return self.root / SFT_CONFIG_FILE

    @property
    def accelerate_config(self) -> Path:
        """The launch settings file, unless `--accelerate-config` names another; need not exist."""
        return self.root / ACCELERATE_CONFIG_FILE


def _resolved(path: str) -> Path:
    return Path(path).expanduser().resolve()
