"""IO managers, one module per kind of artifact."""

from typing import Any

import dagster as dg

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.io_managers.artifacts import ArtifactIOManager
from ivr_dagster.io_managers.documents import (
    BlocksIOManager,
    DocumentsIOManager,
    ExportIOManager,
    ReportIOManager,
    SequencesIOManager,
)
from ivr_dagster.io_managers.models import ModelIOManager, TrainedModelIOManager, TuningIOManager
from ivr_dagster.io_managers.tables import CsvIOManager, ParquetIOManager
from ivr_dagster.io_managers.tensors import FittedEmbeddingsIOManager, TensorsIOManager
from ivr_dagster.io_managers.texts import MarkdownIOManager, RulesIOManager
from ivr_dagster.io_managers.tokenizers import TokenizerIOManager

_MANAGERS: dict[str, type[ArtifactIOManager]] = {  # type: ignore[type-arg]
    "documents_io": DocumentsIOManager,
    "sequences_io": SequencesIOManager,
    "blocks_io": BlocksIOManager,
    "parquet_io": ParquetIOManager,
    "csv_io": CsvIOManager,
    "tokenizer_io": TokenizerIOManager,
    "rules_io": RulesIOManager,
    "markdown_io": MarkdownIOManager,
    "tensors_io": TensorsIOManager,
    "fitted_embeddings_io": FittedEmbeddingsIOManager,
    "model_io": ModelIOManager,
    "trained_model_io": TrainedModelIOManager,
    "tuning_io": TuningIOManager,
    "report_io": ReportIOManager,
    "export_io": ExportIOManager,
}


def io_managers(paths: ArtifactPaths) -> dict[str, dg.IOManagerDefinition]:
    """All IO managers, by the key that assets name. They need the resource `settings`."""
    return {key: _definition(manager(paths)) for key, manager in _MANAGERS.items()}


def _definition(manager: ArtifactIOManager) -> dg.IOManagerDefinition:  # type: ignore[type-arg]
    def create(_: dg.InitResourceContext) -> Any:
        return manager

    # the type that the UI shows
    create.__module__, create.__name__ = type(manager).__module__, type(manager).__name__
    return dg.IOManagerDefinition(create, required_resource_keys={"settings"})
