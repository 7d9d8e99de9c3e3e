"""Where every artifact lies: the only place that spells a path below the artifacts folder."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ivr_dagster.errors import InputError
from ivr_dagster.storage.file_hashes import FileHashCache
from ivr_dagster.storage.shard_cache import ShardCache

RELATIVE_PATHS: dict[str, str] = {
    "raw_corpus": "corpora/raw",
    "cleaned_corpus": "corpora/cleaned",
    "original_tokenizer": "tokenizers/original",
    "pretoken_counts": "analysis/pretoken_counts.parquet",
    "token_stats": "analysis/reports/token_frequency.parquet",
    "token_sequences": "analysis/token_sequences",
    "distilled_tokenizer": "tokenizers/distilled_unigram",
    "replacement_candidates": "analysis/reports/replacement_candidates.csv",
    "selection_log": "analysis/reports/selection_log.md",
    "remap_rules": "tokenizers/remap_rules.yaml",
    "remapped_tokenizer": "tokenizers/remapped",
    "original_embeddings": "embeddings/original_embeddings.safetensors",
    "reordered_embeddings": "embeddings/reordered_embeddings.safetensors",
    "fitted_embeddings": "embeddings/fitted_embeddings.safetensors",
    "initialized_model": "embeddings/initialized_model",
    "training_blocks": "training/blocks",
    "sft_checkpoint": "training/sft_checkpoint",
    "vanilla_sft_checkpoint": "training/vanilla_sft_checkpoint",
    "vanilla_compute_checkpoint": "training/vanilla_compute_checkpoint",
    "tuning_study": "training/tuning",
    "evaluation_report": "evaluation",
}

SETTINGS_FILE = "ivr.yaml"
SFT_CONFIG_FILE = "sft_config.yaml"
ACCELERATE_CONFIG_FILE = "accelerate_config.yaml"
LAUNCHED = "training/.launched"
DAGSTER_HOME = ".dagster"
PRESENCE_FILE, SERVING_FILE = ".ivr.lock", ".ivr-ui.lock"
EXPERIMENTS = "experiments"
SHARD_RESULTS, LOCKS = ".shards", ".locks"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class ArtifactPaths:
    """Paths of one artifacts folder.

    Attributes:
        root: the artifacts folder, absolute.
        elsewhere: artifacts that a setting puts somewhere else, by asset name.
        brought: what a person brings, by the name of the source that stands for it; it is read there and never written.
        replaced: assets whose part it takes altogether, so that they are not made, with the name of the source.
    """

    root: Path
    elsewhere: Mapping[str, Path] = field(default_factory=dict)
    brought: Mapping[str, Path] = field(default_factory=dict)
    replaced: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, asset: str) -> Path:
        """The file or folder of an asset, or of what is read in its place."""
        source = self.replaced.get(asset, asset)
        return self.brought.get(source) or self.elsewhere.get(asset) or self.root / RELATIVE_PATHS[asset]

    @property
    def dagster_home(self) -> Path:
        """Dagster's run storage, unless DAGSTER_HOME says otherwise."""
        return self.root / DAGSTER_HOME

    @property
    def experiments(self) -> Path:
        """The folder of experiments, each an artifacts folder of its own."""
        return self.root / EXPERIMENTS

    def experiment(self, name: str) -> Path:
        """The artifacts folder of an experiment, which need not exist.

        Raises:
            InputError: the name is none for a folder.
        """
        if not _NAME.fullmatch(name):
            raise InputError(
                f"{name!r} is no name for an experiment",
                where="experiment",
                remedy="Take letters, digits, dots, hyphens and underscores, a letter or a digit first.",
            )
        return self.experiments / name

    def shard_cache(self, asset: str) -> ShardCache:
        """What is kept of shards for an asset, so that it need not be made whole again."""
        return ShardCache(self.root / SHARD_RESULTS / asset)

    @property
    def known_files(self) -> FileHashCache:
        """Hashes of raw files, kept so that those that stay as they are need not be read."""
        return FileHashCache(self.root / SHARD_RESULTS / "files.json")

    @property
    def presence(self) -> Path:
        """The lock that tells of a command at work here."""
        return self.root / PRESENCE_FILE

    @property
    def locks(self) -> Path:
        """The folder of the locks of artifacts."""
        return self.root / LOCKS

    @property
    def serving(self) -> Path:
        """The lock of the UI's servers."""
        return self.root / SERVING_FILE

    @property
    def settings_file(self) -> Path:
        """The settings file, unless `--config` names another."""
        return self.root / SETTINGS_FILE

    @property
    def sft_config(self) -> Path:
        """Training settings, unless `--config-path` names others; need not exist."""
        return self.root / SFT_CONFIG_FILE

    @property
    def accelerate_config(self) -> Path:
        """Launch settings, unless `--accelerate-config` names others; need not exist."""
        return self.root / ACCELERATE_CONFIG_FILE

    @property
    def launched(self) -> Path:
        """Where processes that train together find what to do, each training in a folder; need not exist."""
        return self.root / LAUNCHED
