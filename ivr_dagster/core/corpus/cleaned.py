"""The cleaned corpus: every raw document cleaned, deduplicated and assigned to a split, as Parquet.

`train/` and `heldout/` have parts (see `parts`) in the order of the raw files. The same input and settings give the
same bytes.
"""

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate, islice, pairwise
from pathlib import Path

import numpy as np

from ivr_dagster.core.corpus.cleaning import clean, is_empty
from ivr_dagster.core.corpus.documents import read_documents
from ivr_dagster.core.corpus.files import CorpusFile, hash_content, ignored_files, read_corpus_files
from ivr_dagster.core.corpus.parts import (
    PART_NAME,
    PartsWriter,
    add_document_ids,
    copy_rows,
    count_rows,
    part_name,
    parts_in,
    read_columns,
)
from ivr_dagster.core.corpus.shards import group_into_shards
from ivr_dagster.core.corpus.splits import SPLITS, Split, document_id, is_heldout
from ivr_dagster.errors import InputError
from ivr_dagster.settings.groups import CorpusSettings
from ivr_dagster.storage.atomic import atomic_write, link, remove, staging_path
from ivr_dagster.storage.content_hash import new_digest
from ivr_dagster.storage.file_hashes import FileHashCache
from ivr_dagster.storage.shard_cache import Map, ShardCache, result_key

# Part of the cache keys. Raise the number when the same files and settings give another result; a newer Unicode
# version may normalize differently.
CLEANING_VERSION = (2, unicodedata.unidata_version)
# Settings that determine the documents of a file.
CLEANING_SETTINGS = (
    "text_key",
    "encoding",
    "normalization",
    "heldout_fraction",
    "text_split_bytes",
    "encoding_errors",
    "on_bad_input",
)
_COUNTS, _UNIQUE = "counts.json", "part.parquet"


@dataclass(frozen=True, slots=True)
class CorpusCounts:
    """Figures of a cleaned corpus. Documents and bytes of the splits are counted after cleaning.

    Attributes:
        files: corpus files read.
        files_ignored: visible files with another suffix.
        documents_read: documents in the files, including those dropped.
        bytes_read: bytes of the files as stored, possibly compressed.
        train_documents: documents of the train split.
        train_bytes: UTF-8 bytes of their texts.
        heldout_documents: documents held out.
        heldout_bytes: UTF-8 bytes of their texts.
        dropped_empty: documents with only whitespace.
        dropped_duplicates: documents whose clean text occurred before.
        control_characters_dropped: includes lone surrogates and byte order marks.
        normalized_documents: documents changed by Unicode normalization.
        skipped_files: damaged or undecodable files, if `on_bad_input` is "skip".
        skipped_records: JSON records without text, likewise.
    """

    files: int
    files_ignored: int
    documents_read: int
    bytes_read: int
    train_documents: int
    train_bytes: int
    heldout_documents: int
    heldout_bytes: int
    dropped_empty: int
    dropped_duplicates: int
    control_characters_dropped: int
    normalized_documents: int
    skipped_files: int = 0
    skipped_records: int = 0


@dataclass(frozen=True, slots=True)
class CleanedCorpus:
    """Handle of a cleaned corpus on disk. Reading streams, about 8 MB of text at a time.

    All methods raise an InputError if the cleaned corpus is missing or a part cannot be read.
    """

    path: Path

    def texts(self, split: Split, *, max_texts: int | None = None) -> Iterator[str]:
        """Yields the documents' texts, at most `max_texts` if given."""
        return islice((text for (text,) in self._rows(split, "text")), max_texts)

    def documents(self, split: Split) -> Iterator[tuple[str, str]]:
        """Yields (document id, text)."""
        return ((row_id, text) for row_id, text in self._rows(split, "document_id", "text"))

    def ids(self, split: Split) -> Iterator[str]:
        """Yields the documents' ids without reading their texts."""
        return (row_id for (row_id,) in self._rows(split, "document_id"))

    def digest(self) -> str:
        """Hash of the documents and their order, in hexadecimal. Sources do not matter."""
        digest = new_digest()
        for split in SPLITS:
            digest.update(split.encode())
            for part in self.parts(split):
                add_document_ids(part, digest)
        return digest.hexdigest()

    def count(self, split: Split) -> int:
        """Number of documents, from the metadata of the parts."""
        return sum(map(count_rows, self.parts(split)))

    def parts(self, split: Split) -> list[Path]:
        """The Parquet files, in order."""
        folder = self.path / split
        paths = parts_in(folder)
        if not paths:
            raise InputError("the cleaned corpus is missing", where=folder, remedy="Run `ivr init`")
        return paths

    def _rows(self, split: Split, *columns: str) -> Iterator[tuple[str, ...]]:
        for path in self.parts(split):
            for group in read_columns(path, *columns):
                yield from zip(*group, strict=True)


def write_cleaned_corpus(
    raw_root: Path,
    target: Path,
    settings: CorpusSettings | None = None,
    *,
    cache: ShardCache | None = None,
    file_hashes: FileHashCache | None = None,
    run: Map = map,
    progress: Callable[[int, int], None] | None = None,
) -> CorpusCounts:
    """Reads, cleans and splits all corpus files below `raw_root` into `target`/train and `target`/heldout.

    Of documents with the same clean text the first is kept. Apart from about 60 bytes per document for its id, memory
    does not grow with the corpus. An existing corpus in `target` is replaced when the new one is complete, and stays
    unchanged after an error.

    Args:
        raw_root: the raw corpus folder.
        target: folder of the result, created if missing.
        settings: see `CLEANING_SETTINGS`.
        cache: results of shards, so that only changed shards are read. Without it, all are.
        file_hashes: hashes of raw files, so that only changed files are hashed.
        run: applies the cleaning function to shards, here or in other processes.
        progress: called with the bytes of raw files done and in total.

    Raises:
        InputError: invalid input or settings (see `read_documents`, `clean`, `is_heldout`); an empty train or
            held-out split; `target` contains files that are not a cleaned corpus.
    """
    settings = settings or CorpusSettings()
    files = read_corpus_files(raw_root, file_hashes)
    _check_target(target)
    if cache is not None:
        with cache.locked():
            return _write_from_shards(raw_root, files, target, settings, cache, run, progress)
    temporary = ShardCache(staging_path(target / "shards"))
    try:
        temporary.path.mkdir()
        return _write_from_shards(raw_root, files, target, settings, temporary, run, progress)
    finally:
        remove(temporary.path)


def _write_from_shards(
    raw_root: Path,
    files: Sequence[CorpusFile],
    target: Path,
    settings: CorpusSettings,
    cache: ShardCache,
    run: Map,
    progress: Callable[[int, int], None] | None,
) -> CorpusCounts:
    values = {name: getattr(settings, name) for name in CLEANING_SETTINGS}
    tasks = {
        result_key(CLEANING_VERSION, values, [(file.name, file.content.hex()) for file in shard]): (
            raw_root,
            shard,
            settings,
        )
        for shard in group_into_shards(files)
    }
    done, total = 0, sum(file.size for file in files)

    def advance(key: str) -> None:
        nonlocal done
        done += sum(file.size for file in tasks[key][1])
        if progress:
            progress(done, total)

    cache.complete(_write_shard, tasks, run, advance)
    counts = Counter(files=len(files), files_ignored=len(ignored_files(raw_root)), bytes_read=total)
    for key in tasks:
        counts.update(json.loads((cache.result_folder(key) / _COUNTS).read_text(encoding="utf-8")))
    in_use = set(tasks)
    with atomic_write(target / "train") as train, atomic_write(target / "heldout") as heldout:
        for split, folder in (("train", train), ("heldout", heldout)):
            parts = [part for key in tasks for part in parts_in(cache.result_folder(key) / split)]
            unique, split_counts = _deduplicate(parts, cache, run)
            in_use.update(part.relative_to(cache.path).parts[0] for part in unique)
            folder.mkdir(parents=True)
            for number, part in enumerate(unique):
                link(part, folder / part_name(number))
            counts[f"{split}_documents"], counts[f"{split}_bytes"] = split_counts["documents"], split_counts["bytes"]
            counts["dropped_duplicates"] += split_counts["duplicates"]
        result = CorpusCounts(**{field.name: counts[field.name] for field in fields(CorpusCounts)})
        _check_counts(result, raw_root, settings.heldout_fraction)
    cache.keep_only(in_use)
    return result


def _write_shard(task: tuple[Path, list[CorpusFile], CorpusSettings], target: Path) -> None:
    """Writes the clean documents of some files, duplicates included, to both splits, and their counts."""
    raw_root, files, settings = task
    counts: Counter[str] = Counter()

    def skip(kind: str, _: InputError) -> None:
        counts[f"skipped_{kind}s"] += 1

    on_skip = skip if settings.on_bad_input == "skip" else None
    with PartsWriter(target / "train") as train, PartsWriter(target / "heldout") as heldout:
        for file in files:
            for document in read_documents(file.path, raw_root, settings, on_skip=on_skip):
                counts["documents_read"] += 1
                text, effects = clean(document.text, normalization=settings.normalization)
                counts["control_characters_dropped"] += effects.control_characters_dropped
                counts["normalized_documents"] += effects.normalized
                if is_empty(text):
                    counts["dropped_empty"] += 1
                    continue
                row_id = document_id(text)
                split = heldout if is_heldout(row_id, settings.heldout_fraction) else train
                split.add(row_id, text, document.source)
    for file in files:
        if hash_content(file.path) != file.content:  # the result would be cached under the old content
            raise InputError(
                "the file changed while it was read", where=file.path, remedy="Run again when it no longer changes"
            )
    (target / _COUNTS).write_text(json.dumps(counts), encoding="utf-8")


def _deduplicate(parts: Sequence[Path], cache: ShardCache, run: Map) -> tuple[list[Path], dict[str, int]]:
    """Parts of a split without the documents that occurred before, in order and without empty parts.

    Returns:
        The parts, and counts: `documents` kept, UTF-8 `bytes` of their texts, `duplicates` dropped.
    """
    offsets = [0, *accumulate(map(count_rows, parts))]
    ids, sizes = np.empty((offsets[-1], 2), np.uint64), np.empty(offsets[-1], np.int64)
    filled = 0
    for part in parts:
        for names, lengths in read_columns(part, "document_id", "bytes"):
            rows = slice(filled, filled := filled + len(names))
            ids[rows] = np.frombuffer(bytes.fromhex("".join(names)), np.uint64).reshape(-1, 2)
            sizes[rows] = lengths
    is_first = _first_occurrences(ids)
    unique: list[Path] = []
    tasks: dict[str, tuple[Path, np.ndarray]] = {}
    for part, (start, end) in zip(parts, pairwise(offsets), strict=True):
        keep = is_first[start:end]
        if keep.all():
            unique.append(part)
        elif keep.any():
            key = result_key(part.relative_to(cache.path).as_posix(), np.packbits(keep).tobytes().hex())
            tasks[key] = part, keep
            unique.append(cache.result_folder(key) / _UNIQUE)
    cache.complete(_write_unique_rows, tasks, run)
    counts = {
        "documents": int(is_first.sum()),
        "bytes": int(sizes[is_first].sum()),
        "duplicates": int((~is_first).sum()),
    }
    return unique, counts


def _write_unique_rows(task: tuple[Path, np.ndarray], target: Path) -> None:
    part, keep = task
    copy_rows(part, keep, target / _UNIQUE)


def _first_occurrences(ids: np.ndarray) -> np.ndarray:
    """Whether each of ids, uint64 [n, 2], occurs for the first time, bool [n]."""
    order = np.lexsort((ids[:, 1], ids[:, 0]))  # stable
    ordered = ids[order]
    is_repeated = (ordered[1:] == ordered[:-1]).all(axis=1)
    first = np.ones(len(ids), dtype=bool)
    first[order[1:][is_repeated]] = False
    return first


def _check_target(target: Path) -> None:
    """Refuses to replace folders that contain other files than a cleaned corpus."""
    for split in SPLITS:
        folder = target / split
        foreign = [folder] if folder.exists() and not folder.is_dir() else []
        if folder.is_dir():
            visible = (path for path in folder.iterdir() if path.name[0] != ".")
            foreign = sorted(path for path in visible if not PART_NAME.fullmatch(path.name))
        if foreign:
            raise InputError(
                "is in the way: this folder of the cleaned corpus would be replaced as a whole",
                where=foreign[0],
                remedy="Choose another folder with --cleaned-corpora-dir",
            )


def _check_counts(counts: CorpusCounts, raw_root: Path, heldout_fraction: float) -> None:
    dropped = counts.dropped_empty + counts.dropped_duplicates
    if counts.documents_read != counts.train_documents + counts.heldout_documents + dropped:
        raise RuntimeError(f"documents were lost between shards and corpus: {counts}")
    skipped = (
        f"; {counts.skipped_files} files and {counts.skipped_records} records were skipped"
        if counts.skipped_files or counts.skipped_records
        else ""
    )
    if not counts.train_documents:
        raise InputError(
            f"no document is left for training: of {counts.documents_read} read, {counts.dropped_empty} were empty, "
            f"{counts.dropped_duplicates} duplicates and {counts.heldout_documents} held out (fraction "
            f"{heldout_fraction})" + skipped,
            where=raw_root,
            remedy="Add documents, or lower --heldout-fraction" if counts.heldout_documents else "Add documents",
        )
    if not counts.heldout_documents:
        raise InputError(
            f"no document was held out: fraction {heldout_fraction} of {counts.train_documents}" + skipped,
            where=raw_root,
            remedy="Raise --heldout-fraction or add documents",
        )
