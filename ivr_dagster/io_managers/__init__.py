"""IO managers, one file a kind of artifact; `io_managers(paths)` names them all for the definitions."""

import dagster as dg

from ivr_dagster.io_managers.artifacts import ArtifactIOManager
from ivr_dagster.io_managers.documents import BlocksIOManager, DocumentsIOManager, ReportIOManager, SequencesIOManager
from ivr_dagster.io_managers.models import ModelIOManager, TrainedModelIOManager, TuningIOManager
from ivr_dagster.io_managers.tables import CsvIOManager, ParquetIOManager
from ivr_dagster.io_managers.tensors import TensorsIOManager
from ivr_dagster.io_managers.texts import MarkdownIOManager, RulesIOManager
from ivr_dagster.io_managers.tokenizers import TokenizerIOManager
from ivr_dagster.pipeline import ArtifactPaths


def io_managers(paths: ArtifactPaths) -> dict[str, dg.IOManagerDefinition]:
    """One IO manager a kind of artifact, by the key that assets name; they tell which settings an artifact is of."""
    managers: dict[str, ArtifactIOManager] = {  # type: ignore[type-arg]
        "documents_io": DocumentsIOManager(paths),
        "sequences_io": SequencesIOManager(paths),
        "blocks_io": BlocksIOManager(paths),
        "parquet_io": ParquetIOManager(paths),
        "csv_io": CsvIOManager(paths),
        "tokenizer_io": TokenizerIOManager(paths),
        "rules_io": RulesIOManager(paths),
        "markdown_io": MarkdownIOManager(paths),
        "tensors_io": TensorsIOManager(paths),
        "model_io": ModelIOManager(paths),
        "trained_model_io": TrainedModelIOManager(paths),
        "tuning_io": TuningIOManager(paths),
        "report_io": ReportIOManager(paths),
    }
    return {key: _with_settings(manager) for key, manager in managers.items()}


def _with_settings(manager: ArtifactIOManager) -> dg.IOManagerDefinition:  # type: ignore[type-arg]
    return dg.IOManagerDefinition(lambda _: manager, required_resource_keys={"settings"})
