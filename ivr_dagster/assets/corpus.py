"""The raw corpus, the cleaned corpus that all other assets read, and optional out-of-domain text."""

import time
from dataclasses import asdict

import dagster as dg

from ivr_dagster.assets import OWNERS, kinds
from ivr_dagster.assets.display import columns
from ivr_dagster.core.corpus.cleaned import CleanedCorpus, write_cleaned_corpus
from ivr_dagster.core.corpus.files import fingerprint_corpus
from ivr_dagster.core.corpus.other_text import other_files
from ivr_dagster.pipeline import OTHER_CORPORA
from ivr_dagster.resources.progress import track
from ivr_dagster.resources.settings import SettingsResource
from ivr_dagster.sample.corpus import write_sample_corpus

GROUP = "corpus"


def observe_corpus(settings: SettingsResource) -> str:
    """Content hash of the raw corpus."""
    create_sample_corpus(settings)
    return fingerprint_corpus(settings.paths["raw_corpus"], settings.paths.file_hashes)


def create_sample_corpus(settings: SettingsResource) -> None:
    """Writes the sample corpus under the sample preset, unless it exists or the settings name another folder."""
    corpus = settings.paths["raw_corpus"]
    # topics.jsonl is written last; an existing corpus may have been edited
    if settings.preset == "sample" and not settings.corpus.raw_corpora_dir and not (corpus / "topics.jsonl").is_file():
        write_sample_corpus(corpus)


def observe_other_corpus(source: str, settings: SettingsResource) -> str:
    """Content hash of the text of a source in `OTHER_CORPORA`.

    Raises:
        InputError: the folder has no readable text.
    """
    folder = settings.other_corpora[source]
    other_files(folder, OTHER_CORPORA[source])
    return fingerprint_corpus(folder, settings.paths.file_hashes)


# The UI does not show the docstring of a source, so each one has a description.


@dg.observable_source_asset(
    group_name=GROUP,
    tags=kinds("text"),
    description=(
        "Your text: a folder of .txt, .jsonl and .json files, each also as .gz, at any depth. The files are never "
        "changed.\n\nAn observation hashes all content, so added, changed and removed files make downstream assets "
        "stale."
    ),
)
def raw_corpus(settings: SettingsResource) -> dg.DataVersion:
    return dg.DataVersion(observe_corpus(settings))


@dg.observable_source_asset(
    group_name="training",
    tags=kinds("text"),
    description=(
        "General text that is mixed into training against forgetting: the folder named by `general_corpora_dir`. Its "
        "version is a hash of the content."
    ),
)
def general_corpus(settings: SettingsResource) -> dg.DataVersion:
    return dg.DataVersion(observe_other_corpus("general_corpus", settings))


@dg.observable_source_asset(
    group_name="training",
    tags=kinds("text"),
    description=(
        "Out-of-domain text that is never trained on and on which the report measures forgetting: the folder named by "
        "`retention_corpora_dir`. Its version is a hash of the content."
    ),
)
def retention_corpus(settings: SettingsResource) -> dg.DataVersion:
    return dg.DataVersion(observe_other_corpus("retention_corpus", settings))


@dg.asset(
    deps=[raw_corpus],
    group_name=GROUP,
    kinds={"parquet", "text"},
    owners=OWNERS,
    io_manager_key="documents_io",
    code_version="2",
    metadata=columns(
        document_id=("string", "Hash of the text; determines the split"),
        text=("string", "The clean text"),
        source=("string", "File and line on which the document starts"),
        bytes=("int64", "UTF-8 bytes of the text"),
    ),
)
def cleaned_corpus(
    context: dg.AssetExecutionContext, settings: SettingsResource
) -> dg.MaterializeResult[CleanedCorpus]:
    """The documents of the raw corpus, Unicode-normalized and without control characters, empty documents and exact
    duplicates. A hash of each document assigns it to the `train` or `heldout` split, so a document stays in its split
    when others change. Only the evaluation reads held-out text.
    """
    started = time.monotonic()
    create_sample_corpus(settings)
    with settings.staging("cleaned_corpus") as folder:
        counts = write_cleaned_corpus(
            settings.paths["raw_corpus"],
            folder,
            settings.corpus,
            cache=settings.paths.shard_cache("cleaned_corpus"),
            file_hashes=settings.paths.file_hashes,
            run=settings.map_shards,
            progress=track(context.log, "cleaning", "bytes"),
        )
    if counts.skipped_files or counts.skipped_records:
        context.log.warning(
            f"on_bad_input is skip: skipped {counts.skipped_files} files and {counts.skipped_records} records. "
            "Set on_bad_input to fail to see which."
        )
    corpus, seconds = CleanedCorpus(folder), time.monotonic() - started
    return dg.MaterializeResult(
        value=corpus,
        data_version=dg.DataVersion(corpus.digest()),
        metadata={
            **asdict(counts),
            "seconds": round(seconds, 2),
            "bytes_per_second": round(counts.bytes_read / seconds),
        },
    )
