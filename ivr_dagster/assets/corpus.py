"""The corpus: raw text as its owner keeps it, and the cleaned, split corpus that everything else reads."""

import platform
import time

import dagster as dg

from ivr_dagster.assets import OWNERS, kinds
from ivr_dagster.assets.display import columns
from ivr_dagster.core.corpus.cleaned import CleanedCorpus, CleaningSettings, write_cleaned_corpus
from ivr_dagster.core.corpus.other_text import other_files
from ivr_dagster.core.corpus.shards import fingerprint_corpus
from ivr_dagster.resources.progress import track
from ivr_dagster.resources.settings import SettingsResource
from ivr_dagster.sample.corpus import write_sample_corpus

GROUP = "corpus"
# of text beside the corpus, which nothing before training reads
BESIDE = "training"


def observe_corpus(settings: SettingsResource) -> str:
    """The content hash of the raw corpus; the sample preset's is made first where no folder is named."""
    make_sample_corpus(settings)
    return fingerprint_corpus(settings.paths["raw_corpus"], settings.paths.file_hashes)


def make_sample_corpus(settings: SettingsResource) -> None:
    """Write the sample preset's corpus where no folder is named and it is not there yet."""
    corpus = settings.paths["raw_corpus"]
    # the topics are written last; to make the sample anew takes seconds, and somebody may have changed it since
    if settings.preset == "sample" and not settings.corpus.raw_corpora_dir and not (corpus / "topics.jsonl").is_file():
        write_sample_corpus(corpus)


@dg.observable_source_asset(
    group_name=GROUP,
    tags=kinds("text"),
    description=(  # a source's docstring is not shown
        "Your text, as you keep it: a folder of .txt, .jsonl and .json files, each also as .gz, in any depth of "
        "folders. Your files are never changed.\n\nObserving it takes a hash of all content, so a file that was added, "
        "changed or removed makes what follows stale."
    ),
)
def raw_corpus(settings: SettingsResource) -> dg.DataVersion:
    """The raw corpus at the hash of its content."""
    return dg.DataVersion(observe_corpus(settings))


def observe_other_corpus(setting: str, settings: SettingsResource) -> str:
    """The content hash of the text beside the corpus that `setting` names; without one, what takes its place.

    Raises:
        InputError: it names a folder without text.
    """
    folder = settings.other_corpus_dir(setting)
    if folder is not None:
        other_files(folder, setting)
        return fingerprint_corpus(folder, settings.paths.file_hashes)
    if setting == "retention_corpora_dir" and settings.evaluation.retention_bytes:
        return f"documentation of Python {platform.python_version()}"
    return "none"


@dg.observable_source_asset(
    group_name=BESIDE,
    tags=kinds("text"),
    description=(
        "Text of no particular domain, mixed into training so that the model does not forget it: the folder that "
        "`general_corpora_dir` names. Its version is a hash of the content, or `none`: then nothing is mixed in."
    ),
)
def general_corpus(settings: SettingsResource) -> dg.DataVersion:
    """General text at the hash of its content."""
    return dg.DataVersion(observe_other_corpus("general_corpora_dir", settings))


@dg.observable_source_asset(
    group_name=BESIDE,
    tags=kinds("text"),
    description=(
        "Text of another domain, never trained on, on which the report shows what fine-tuning unlearned: the folder "
        "that `retention_corpora_dir` names, else the English documentation that every Python carries. Its version is "
        "a hash of the content, or which documentation it is."
    ),
)
def retention_corpus(settings: SettingsResource) -> dg.DataVersion:
    """Text of another domain at the hash of its content."""
    return dg.DataVersion(observe_other_corpus("retention_corpora_dir", settings))


@dg.asset(
    deps=[raw_corpus],
    group_name=GROUP,
    kinds={"parquet", "text"},
    owners=OWNERS,
    io_manager_key="documents_io",
    code_version="2",
    metadata=columns(
        document_id=("string", "Hash of the document's text; decides on which side of the split it stands"),
        text=("string", "The document, cleaned"),
        source=("string", "File, and line of a .jsonl, that it stands in"),
        bytes=("int64", "UTF-8 bytes of the text"),
    ),
)
def cleaned_corpus(
    context: dg.AssetExecutionContext, settings: SettingsResource
) -> dg.MaterializeResult[CleanedCorpus]:
    """The documents of the raw corpus: Unicode-normalized, without control characters, empty documents
    and exact duplicates, split into `train` and `heldout` by a hash of each document. A document keeps its side as
    others come and go; held-out text is read by evaluation only.
    """
    started = time.monotonic()
    make_sample_corpus(settings)
    with settings.staging("cleaned_corpus") as folder:
        counts = write_cleaned_corpus(
            settings.paths["raw_corpus"],
            folder,
            CleaningSettings(
                text_key=settings.corpus.text_key,
                encoding=settings.corpus.encoding,
                normalization=settings.corpus.normalization,
                heldout_fraction=settings.corpus.heldout_fraction,
                text_split_bytes=settings.corpus.text_split_bytes,
                encoding_errors=settings.corpus.encoding_errors,
                on_bad_input=settings.corpus.on_bad_input,
            ),
            results=settings.paths.shard_cache("cleaned_corpus"),
            kept=settings.paths.file_hashes,
            run=settings.map_shards,
            progress=track(context.log, "cleaning", "bytes"),
        )
    if counts.skipped_files or counts.skipped_records:
        context.log.warning(
            f"left out as on_bad_input says: {counts.skipped_files} files and {counts.skipped_records} records; with "
            "on_bad_input fail you are told which"
        )
    corpus, seconds = CleanedCorpus(folder), time.monotonic() - started
    return dg.MaterializeResult(
        value=corpus,
        data_version=dg.DataVersion(corpus.digest()),
        metadata={
            **counts.as_dict(),
            "seconds": round(seconds, 2),
            "bytes_per_second": round(counts.bytes_read / seconds),
        },
    )
