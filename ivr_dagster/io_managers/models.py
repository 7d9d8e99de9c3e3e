"""Folders that AutoModelForCausalLM loads, and the training folders around them."""

from collections.abc import Iterable
from pathlib import Path

from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.training.folders import HISTORY, TrainedModel, TuningFolder
from ivr_dagster.io_managers.artifacts import FolderIOManager
from ivr_dagster.storage.manifest import visible_files


class ModelIOManager(FolderIOManager[ModelFolder]):
    """`initialized_model`."""

    handle = ModelFolder


class TrainedModelIOManager(FolderIOManager[TrainedModel]):
    """`sft_checkpoint` and the vanilla baselines: checkpoints are written in place, the final model is renamed."""

    handle = TrainedModel

    def files(self, folder: Path) -> Iterable[Path]:
        """The final model and its history. Checkpoints have their own completeness marks and are deleted later."""
        yield from visible_files(TrainedModel(folder).final_model.path)
        yield from (file for file in [folder / HISTORY] if file.exists())


class TuningIOManager(FolderIOManager[TuningFolder]):
    """`tuning_study`: trials are written in place."""

    handle = TuningFolder

    def files(self, folder: Path) -> Iterable[Path]:
        """The results; the study's database changes with each trial."""
        return (file for file in visible_files(folder) if file.parent == folder and file.suffix != ".db")
