"""Settings, what a user can choose: `groups` declares them, `presets` bundles defaults, `loading` merges sources."""

from ivr_dagster.settings.groups import (
    AutomationSettings,
    ComputeSettings,
    CorpusSettings,
    EmbeddingSettings,
    EvaluationSettings,
    ExportSettings,
    SelectionSettings,
    TokenizerSettings,
    TrainingSettings,
    TuningSettings,
)
from ivr_dagster.settings.loading import Settings, load_settings

__all__ = [
    "AutomationSettings",
    "ComputeSettings",
    "CorpusSettings",
    "EmbeddingSettings",
    "EvaluationSettings",
    "ExportSettings",
    "SelectionSettings",
    "Settings",
    "TokenizerSettings",
    "TrainingSettings",
    "TuningSettings",
    "load_settings",
]
