"""Models: folders that AutoModelForCausalLM loads, and training folders around them."""

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
    """`sft_checkpoint` and `vanilla_sft_checkpoint`: checkpoints fill up in place, the final model is renamed whole."""

    handle = TrainedModel

    def files(self, folder: Path) -> Iterable[Path]:
        """The final model and how it came about; checkpoints are marked complete themselves, and deleted."""
        yield from visible_files(TrainedModel(folder).final_model.path)
        yield from (file for file in [folder / HISTORY] if file.exists())


class TuningIOManager(FolderIOManager[TuningFolder]):
    """`tuning_study`: the study fills up in place, trial by trial."""

    handle = TuningFolder

    def files(self, folder: Path) -> Iterable[Path]:
        """What the search found; the study itself goes on."""
        return (file for file in visible_files(folder) if file.parent == folder and file.suffix != ".db")
