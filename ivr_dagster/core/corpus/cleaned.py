"""The cleaned corpus: every raw document cleaned, unique and on its side of the split, as Parquet.

`train/` and `heldout/` hold parts named part-00000.parquet and so on with the columns of SCHEMA, in the order of the
raw files. The same input and settings give the same bytes.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from itertools import accumulate, islice, pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ivr_dagster.core.corpus.cleaning import clean, is_empty
from ivr_dagster.core.corpus.documents import TEXT_SPLIT_BYTES, hash_content, ignored_files, read_documents
from ivr_dagster.core.corpus.shards import CorpusFile, read_corpus_files, shards_of
from ivr_dagster.core.corpus.splits import Split, document_id, is_heldout
from ivr_dagster.errors import InputError
from ivr_dagster.storage.arrow_columns import MOST_BYTES, number_column, string_column
from ivr_dagster.storage.atomic import atomic_write, link, remove, staging_path
from ivr_dagster.storage.content_hash import new_digest
from ivr_dagster.storage.file_hashes import FileHashCache
from ivr_dagster.storage.shard_cache import Map, ShardCache, result_key

SPLITS: tuple[Split, ...] = get_args(Split)
SCHEMA = pa.schema(
    [
        pa.field("document_id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
    ]
)
HELDOUT_FRACTION = 0.05
# raised when the same files and settings come out otherwise than before; with it what Unicode says of characters
CLEANING = (2, unicodedata.unidata_version)

_ROW_GROUP_BYTES = 8 << 20
_ROW_GROUP_ROWS = 1 << 16  # bounds what many tiny documents take as Python objects
_PART_BYTES = 64 << 20
_COUNTS, _REST = "counts.json", "part.parquet"
_PART = re.compile(r"part-\d{5,}\.parquet")


@dataclass(frozen=True, slots=True)
class CorpusCounts:
    """What a corpus held and what became of it. Documents and bytes of text are counted after cleaning.

    Attributes:
        files: the corpus files read.
        files_ignored: visible files with another suffix.
        documents_read: documents found in the files, before anything was dropped.
        bytes_read: bytes of the files as stored, compressed where they are.
        train_documents: documents written for training.
        train_bytes: UTF-8 bytes of their text.
        heldout_documents: documents held out.
        heldout_bytes: UTF-8 bytes of their text.
        dropped_empty: documents without text but white space.
        dropped_duplicates: documents whose clean text had occurred before.
        control_characters_dropped: characters, with lone surrogates and byte order marks.
        normalized_documents: documents that Unicode normalization changed.
        skipped_files: damaged files and files not of the encoding, left out where the settings say so.
        skipped_records: JSON records that are no documents, left out likewise.
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

    def as_dict(self) -> dict[str, int]:
        """The counts by name, in the order above."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class CleanedCorpus:
    """A cleaned corpus on disk: a handle, cheap to pass around. Reading streams, about 8 MB of text at a time.

    All methods raise an InputError where there is no cleaned corpus or a part of it cannot be read.
    """

    path: Path

    def texts(self, split: Split, *, max_texts: int | None = None) -> Iterator[str]:
        """Yields the documents' texts, the first `max_texts` of them if given."""
        return islice((text for (text,) in self._rows(split, "text")), max_texts)

    def documents(self, split: Split) -> Iterator[tuple[str, str]]:
        """Yields id and text of the documents."""
        return ((row_id, text) for row_id, text in self._rows(split, "document_id", "text"))

    def ids(self, split: Split) -> Iterator[str]:
        """Yields the documents' ids, without reading their texts."""
        return (row_id for (row_id,) in self._rows(split, "document_id"))

    def digest(self) -> str:
        """A hash of the documents and their order, in hexadecimal: which file a document came from is not in it."""
        digest = new_digest()
        for split in SPLITS:
            digest.update(split.encode())
            for part in self.parts(split):
                _add_ids(part, digest)
        return digest.hexdigest()

    def count(self, split: Split) -> int:
        """The number of documents, without reading them."""
        return sum(map(rows_of, self.parts(split)))

    def parts(self, split: Split) -> list[Path]:
        """The Parquet files, in order."""
        folder = self.path / split
        paths = _parts_in(folder)
        if not paths:
            raise InputError("there is no cleaned corpus", where=folder, remedy="Make it with `ivr init`")
        return paths

    def _rows(self, split: Split, *columns: str) -> Iterator[tuple[str, ...]]:
        for path in self.parts(split):
            for group in _columns(path, *columns):
                yield from zip(*group, strict=True)


def _parts_in(folder: Path) -> list[Path]:
    """By number, which may have more digits than others."""
    parts = (path for path in folder.glob("*.parquet") if _PART.fullmatch(path.name))
    return sorted(parts, key=lambda path: (len(path.name), path.name))


def read_part(path: Path) -> Iterator[tuple[list[str], list[str]]]:
    """Ids and texts of a part's documents, about 8 MB of text at a time."""
    return ((ids, texts) for ids, texts in _columns(path, "document_id", "text"))


def part_digest(path: Path) -> str:
    """A hash of a part's documents and their order, in hexadecimal."""
    digest = new_digest()
    _add_ids(path, digest)
    return digest.hexdigest()


def _add_ids(path: Path, digest: blake2b) -> None:
    for (ids,) in _columns(path, "document_id"):
        digest.update("".join(ids).encode())


def _columns(path: Path, *names: str) -> Iterator[list[list[Any]]]:
    """Columns of each row group of a part."""
    with _opened(path) as part:
        for group in range(part.num_row_groups):
            table = part.read_row_group(group, columns=list(names))
            yield [table.column(name).to_pylist() for name in names]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with pq.ParquetFile(path) as part:
            yield part
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"cannot be read ({error})", where=path, remedy="Make the corpus anew with `ivr init`"
        ) from error


@dataclass(frozen=True, slots=True)
class CleaningSettings:
    """What decides, beside the files themselves, how files come out; see :func:`write_cleaned_corpus`."""

    text_key: str = "text"
    encoding: str = "utf-8"
    normalization: str = "NFC"
    heldout_fraction: float = HELDOUT_FRACTION
    text_split_bytes: int = TEXT_SPLIT_BYTES
    encoding_errors: str = "strict"
    on_bad_input: str = "fail"


def write_cleaned_corpus(
    raw_root: Path,
    target: Path,
    settings: CleaningSettings = CleaningSettings(),
    *,
    results: ShardCache | None = None,
    kept: FileHashCache | None = None,
    run: Map = map,
    progress: Callable[[int, int], None] | None = None,
) -> CorpusCounts:
    """Reads, cleans and splits all corpus files below `raw_root` into `target`/train and `target`/heldout.

    Of documents with the same clean text the first is kept. Memory does not grow with the text, only by some 60
    bytes a document, for its id. An earlier corpus in `target` is replaced once the new one is whole, and left alone
    after an error.

    Args:
        raw_root: the user's folder.
        target: the folder for the result, made where missing.
        settings: `text_key`, `encoding`, `encoding_errors` and `text_split_bytes` as of documents.read_documents,
            `normalization` "NFC", "NFKC" or "none", `heldout_fraction` the share of documents to hold out, 0 to 1 (see
            splits.is_heldout), `on_bad_input` "fail", or "skip" to leave bad files and records out.
        results: what is kept of shards, so that only those that changed are read; nothing is if not given.
        kept: hashes of raw files, so that only those that changed are read for theirs.
        run: what cleans shards, here or in other processes.
        progress: called with the bytes of raw files done and in all.

    Raises:
        InputError: the input or a setting is at fault (see read_documents, clean, is_heldout); nothing is left for
            training; nothing was held out; `target` holds files that are no cleaned corpus.
    """
    files = read_corpus_files(raw_root, kept)
    _refuse_foreign_files(target)
    if results is not None:
        with results.alone():
            return _write_from_shards(raw_root, files, target, settings, results, run, progress)
    scratch = ShardCache(staging_path(target / "shards"))
    try:
        scratch.path.mkdir()
        return _write_from_shards(raw_root, files, target, settings, scratch, run, progress)
    finally:
        remove(scratch.path)


def _write_from_shards(
    raw_root: Path,
    files: Sequence[CorpusFile],
    target: Path,
    settings: CleaningSettings,
    results: ShardCache,
    run: Map,
    progress: Callable[[int, int], None] | None,
) -> CorpusCounts:
    tasks = {
        result_key(CLEANING, asdict(settings), [(file.name, file.content.hex()) for file in shard]): (
            raw_root,
            shard,
            settings,
        )
        for shard in shards_of(files)
    }
    done, total = 0, sum(file.size for file in files)

    def advance(key: str) -> None:
        nonlocal done
        done += sum(file.size for file in tasks[key][1])
        if progress:
            progress(done, total)

    results.complete(_write_shard, tasks, run, advance)
    counts = Counter(files=len(files), files_ignored=len(ignored_files(raw_root)), bytes_read=total)
    for key in tasks:
        counts.update(json.loads((results.place(key) / _COUNTS).read_text(encoding="utf-8")))
    in_use = set(tasks)
    with atomic_write(target / "train") as train, atomic_write(target / "heldout") as heldout:
        for split, folder in (("train", train), ("heldout", heldout)):
            parts = [part for key in tasks for part in _parts_in(results.place(key) / split)]
            kept, documents, size, found = _without_duplicates(parts, results, run)
            in_use.update(part.relative_to(results.path).parts[0] for part in kept)
            folder.mkdir(parents=True)
            for number, part in enumerate(kept):
                link(part, folder / f"part-{number:05d}.parquet")
            counts[f"{split}_documents"], counts[f"{split}_bytes"] = documents, size
            counts["dropped_duplicates"] += found
        result = CorpusCounts(**{field.name: counts[field.name] for field in fields(CorpusCounts)})
        dropped = result.dropped_empty + result.dropped_duplicates
        if result.documents_read != result.train_documents + result.heldout_documents + dropped:
            raise RuntimeError(f"documents were lost between shards and corpus: {result}")
        _refuse_empty_splits(result, raw_root, settings.heldout_fraction)
    results.keep_only(in_use)
    return result


def _write_shard(task: tuple[Path, list[CorpusFile], CleaningSettings], target: Path) -> None:
    """The documents of some files, cleaned, on both sides of the split, duplicates included, and counts of them."""
    raw_root, files, settings = task
    counts: Counter[str] = Counter()

    def skip(kind: str, _: InputError) -> None:
        counts[f"skipped_{kind}s"] += 1

    with _SplitWriter(target / "train") as train, _SplitWriter(target / "heldout") as heldout:
        for file in files:
            for document in read_documents(
                file.path,
                raw_root,
                text_key=settings.text_key,
                encoding=settings.encoding,
                encoding_errors=settings.encoding_errors,
                text_split_bytes=settings.text_split_bytes,
                on_skip=skip if settings.on_bad_input == "skip" else None,
            ):
                counts["documents_read"] += 1
                text, effects = clean(document.text, normalization=settings.normalization)
                counts["control_characters_dropped"] += effects.control_characters_dropped
                counts["normalized_documents"] += effects.normalized
                if is_empty(text):
                    counts["dropped_empty"] += 1
                    continue
                row_id = document_id(text)
                side = heldout if is_heldout(row_id, settings.heldout_fraction) else train
                side.add(row_id, text, document.source)
    for file in files:
        if hash_content(file.path) != file.content:  # or it would stand for what the file held before
            raise InputError(
                "the file changed while it was read", where=file.path, remedy="Run again once it keeps still"
            )
    (target / _COUNTS).write_text(json.dumps(counts), encoding="utf-8")


def _without_duplicates(parts: Sequence[Path], results: ShardCache, run: Map) -> tuple[list[Path], int, int, int]:
    """Parts of one side of the split without those documents that occurred before.

    Returns:
        The parts in order, those without any document left out; the documents in them; the UTF-8 bytes of their texts;
        the duplicates.
    """
    ends = [0, *accumulate(map(rows_of, parts))]
    ids, sizes = np.empty((ends[-1], 2), np.uint64), np.empty(ends[-1], np.int64)
    filled = 0
    for part in parts:
        for names, lengths in _columns(part, "document_id", "bytes"):
            group = slice(filled, filled := filled + len(names))
            ids[group] = np.frombuffer(bytes.fromhex("".join(names)), np.uint64).reshape(-1, 2)
            sizes[group] = lengths
    first = _first_occurrences(ids)
    kept: list[Path] = []
    fewer: dict[str, tuple[Path, np.ndarray]] = {}
    for part, (start, end) in zip(parts, pairwise(ends), strict=True):
        is_kept = first[start:end]
        if is_kept.all():
            kept.append(part)
        elif is_kept.any():
            key = result_key(part.relative_to(results.path).as_posix(), np.packbits(is_kept).tobytes().hex())
            fewer[key] = part, is_kept
            kept.append(results.place(key) / _REST)
    results.complete(_write_rest, fewer, run)
    return kept, int(first.sum()), int(sizes[first].sum()), int((~first).sum())


def _write_rest(task: tuple[Path, np.ndarray], target: Path) -> None:
    """A part with those of its rows that are to be kept, bool [rows]."""
    part, is_kept = task
    done = 0
    with _opened(part) as opened, _part_writer(target / _REST) as writer:
        for group in range(opened.num_row_groups):
            table = opened.read_row_group(group)
            rest = table.filter(number_column(is_kept[done : done + len(table)]))
            done += len(table)
            if len(rest):
                writer.write_table(rest)


def _first_occurrences(ids: np.ndarray) -> np.ndarray:
    """Which of ids, uint64 [n, 2], did not occur before, bool [n]."""
    order = np.lexsort((ids[:, 1], ids[:, 0]))  # stable: of equal ones the first comes first
    ordered = ids[order]
    repeated = (ordered[1:] == ordered[:-1]).all(axis=1)
    first = np.ones(len(ids), dtype=bool)
    first[order[1:][repeated]] = False
    return first


def rows_of(part: Path) -> int:
    """The number of a part's documents, without reading them."""
    with _opened(part) as opened:
        rows: int = opened.metadata.num_rows
        return rows


def _refuse_foreign_files(target: Path) -> None:
    """`target` is the user's choice and its folders are replaced whole: make sure nobody loses a file of theirs."""
    for split in SPLITS:
        folder = target / split
        foreign = [folder] if folder.exists() and not folder.is_dir() else []
        if folder.is_dir():
            foreign = sorted(
                path for path in folder.iterdir() if not _PART.fullmatch(path.name) and path.name[0] != "."
            )
        if foreign:
            raise InputError(
                "is in the way of the cleaned corpus, whose folders are replaced whole",
                where=foreign[0],
                remedy="Name another folder with --cleaned-corpora-dir",
            )


def _refuse_empty_splits(counts: CorpusCounts, raw_root: Path, heldout_fraction: float) -> None:
    skipped = (
        f"; {counts.skipped_files} files and {counts.skipped_records} records were skipped"
        if counts.skipped_files or counts.skipped_records
        else ""
    )
    if not counts.train_documents:
        raise InputError(
            f"no document is left for training: of {counts.documents_read} read, {counts.dropped_empty} were empty, "
            f"{counts.dropped_duplicates} duplicates and {counts.heldout_documents} held out (a share of "
            f"{heldout_fraction})" + skipped,
            where=raw_root,
            remedy="Add documents, or lower --heldout-fraction" if counts.heldout_documents else "Add documents",
        )
    if not counts.heldout_documents:
        raise InputError(
            f"no document was held out: a share of {heldout_fraction} of {counts.train_documents}" + skipped,
            where=raw_root,
            remedy="Raise --heldout-fraction or add documents",
        )


def _part_writer(path: Path) -> Any:
    # neither dictionaries nor minima and maxima help for columns whose every value is different and long
    return pq.ParquetWriter(path, SCHEMA, compression="zstd", use_dictionary=False, write_statistics=False)


class _SplitWriter:
    """Writes documents into the parts of one folder, which it makes."""

    def __init__(self, folder: Path) -> None:
        self.documents = 0
        self.bytes = 0
        self._folder = folder
        self._rows: list[tuple[str, str, str, int]] = []
        self._group_bytes = 0
        self._part_bytes = 0
        self._parts = 0
        self._part: Any = None

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True)
        return self

    def add(self, row_id: str, text: str, source: str) -> None:
        size = len(text.encode())
        if size > MOST_BYTES:  # normalization may have made it longer
            raise InputError(
                f"the text has {size:,} bytes once cleaned, {MOST_BYTES:,} are the most that one document can have",
                where=source,
                remedy="Have long texts cut into documents with --text-split-bytes, or cut this one up",
            )
        if self._group_bytes + size > MOST_BYTES:
            self._write_group()
        self._rows.append((row_id, text, source, size))
        self.documents += 1
        self.bytes += size
        self._group_bytes += size
        if self._group_bytes >= _ROW_GROUP_BYTES or len(self._rows) >= _ROW_GROUP_ROWS:
            self._write_group()

    def _write_group(self) -> None:
        if self._part is None:
            self._part = _part_writer(self._folder / f"part-{self._parts:05d}.parquet")
            self._parts += 1
        *strings, sizes = zip(*self._rows, strict=True)
        arrays = [*map(string_column, strings), number_column(sizes)]
        self._part.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA))
        self._part_bytes += self._group_bytes
        self._rows, self._group_bytes = [], 0
        if self._part_bytes >= _PART_BYTES:
            self._close_part()

    def _close_part(self) -> None:
        if self._part is not None:
            self._part.close()
        self._part, self._part_bytes = None, 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and self._rows:
            self._write_group()
        self._close_part()
