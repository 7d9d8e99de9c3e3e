"""Folders of Parquet and Arrow files: the cleaned corpus and what is derived from it document by document."""

from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.evaluation.folder import ReportFolder
from ivr_dagster.core.export.folder import ExportFolder
from ivr_dagster.core.tokens.sequences import TokenSequences
from ivr_dagster.core.training.folders import TrainingBlocks
from ivr_dagster.io_managers.artifacts import FolderIOManager


class DocumentsIOManager(FolderIOManager[CleanedCorpus]):
    """`cleaned_corpus`: train and held-out documents in Parquet parts."""

    handle = CleanedCorpus


class SequencesIOManager(FolderIOManager[TokenSequences]):
    """`token_sequences`: token ids by document in Parquet parts."""

    handle = TokenSequences


class BlocksIOManager(FolderIOManager[TrainingBlocks]):
    """`training_blocks`: packed blocks as memory-mapped Arrow files of `datasets`."""

    handle = TrainingBlocks


class ReportIOManager(FolderIOManager[ReportFolder]):
    """`evaluation_report`: report.json, report.md and plots."""

    handle = ReportFolder


class ExportIOManager(FolderIOManager[ExportFolder]):
    """`exported_model`, `exported_gguf` and `exported_tiktoken`."""

    handle = ExportFolder
