"""Models: folders that AutoModelForCausalLM loads, and training folders around them."""

from ivr_dagster.core.handles import ModelFolder, TrainedModel, TuningFolder
from ivr_dagster.io_managers.artifacts import FolderIOManager


class ModelIOManager(FolderIOManager[ModelFolder]):
    """`initialized_model`."""

    handle = ModelFolder


class TrainedModelIOManager(FolderIOManager[TrainedModel]):
    """`sft_checkpoint` and `vanilla_sft_checkpoint`: checkpoints fill up in place, the final model is renamed whole."""

    handle = TrainedModel


class TuningIOManager(FolderIOManager[TuningFolder]):
    """`tuning_study`: the study fills up in place, trial by trial."""

    handle = TuningFolder
