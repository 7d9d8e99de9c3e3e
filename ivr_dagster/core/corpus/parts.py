"""Parts of a cleaned corpus (Parquet files part-00000.parquet, part-00001.parquet, ...): schema, readers and writer."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ivr_dagster.core.corpus.documents import MAX_TEXT_BYTES
from ivr_dagster.errors import InputError
from ivr_dagster.storage.content_hash import new_digest

SCHEMA = pa.schema(
    [
        pa.field("document_id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
    ]
)
PART_NAME = re.compile(r"part-\d{5,}\.parquet")

_ROW_GROUP_BYTES = 8 << 20
_ROW_GROUP_ROWS = 1 << 16  # limits memory: row groups of many tiny documents become Python objects
_PART_BYTES = 64 << 20


def parts_in(folder: Path) -> list[Path]:
    """The parts in a folder, sorted by number."""
    parts = (path for path in folder.glob("*.parquet") if PART_NAME.fullmatch(path.name))
    return sorted(parts, key=lambda path: (len(path.name), path.name))


def part_name(number: int) -> str:
    """The file name of a part."""
    return f"part-{number:05d}.parquet"


def read_columns(path: Path, *names: str) -> Iterator[list[list[Any]]]:
    """Yields columns of a part, one row group (about 8 MB of text) at a time.

    Raises:
        InputError: the part cannot be read.
    """
    with _open_part(path) as part:
        for group in range(part.num_row_groups):
            table = part.read_row_group(group, columns=list(names))
            yield [table.column(name).to_pylist() for name in names]


def add_document_ids(path: Path, digest: blake2b) -> None:
    """Adds the document ids of a part, in order, to a digest. Sources are ignored."""
    for (ids,) in read_columns(path, "document_id"):
        digest.update("".join(ids).encode())


def part_digest(path: Path) -> str:
    """Hexadecimal hash of a part's documents, in order."""
    digest = new_digest()
    add_document_ids(path, digest)
    return digest.hexdigest()


def count_rows(path: Path) -> int:
    """The number of documents in a part, from its metadata."""
    with _open_part(path) as part:
        rows: int = part.metadata.num_rows
        return rows


def copy_rows(part: Path, keep: np.ndarray, target: Path) -> None:
    """Copies the rows of a part where `keep` (bool, [rows]) is true, and keeps the row groups."""
    done = 0
    with _open_part(part) as source, _parquet_writer(target) as writer:
        for group in range(source.num_row_groups):
            table = source.read_row_group(group)
            kept = table.filter(pl.Series(keep[done : done + len(table)]).to_arrow())
            done += len(table)
            if len(kept):
                writer.write_table(kept)


@contextmanager
def _open_part(path: Path) -> Iterator[Any]:
    try:
        with pq.ParquetFile(path) as part:
            yield part
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"cannot be read ({error})", where=path, remedy="Rebuild the corpus: `ivr init`") from error


def _parquet_writer(path: Path) -> Any:
    # Dictionaries and statistics are useless for columns of long, distinct values.
    return pq.ParquetWriter(path, SCHEMA, compression="zstd", use_dictionary=False, write_statistics=False)


class PartsWriter:
    """Writes documents to numbered parts in a new folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: list[tuple[str, str, str, int]] = []
        self._group_bytes = 0
        self._part_bytes = 0
        self._parts = 0
        self._part: Any = None

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True)
        return self

    def add(self, document_id: str, text: str, source: str) -> None:
        """Adds a cleaned document.

        Raises:
            InputError: the text is too long for an Arrow string.
        """
        size = len(text.encode())
        if size > MAX_TEXT_BYTES:  # normalization may have made it longer
            raise InputError(
                f"the text has {size:,} bytes after cleaning; one document may have {MAX_TEXT_BYTES:,}",
                where=source,
                remedy="Cut long texts into documents with --text-split-bytes, or divide this one",
            )
        if self._group_bytes + size > MAX_TEXT_BYTES:
            self._write_group()
        self._rows.append((document_id, text, source, size))
        self._group_bytes += size
        if self._group_bytes >= _ROW_GROUP_BYTES or len(self._rows) >= _ROW_GROUP_ROWS:
            self._write_group()

    def _write_group(self) -> None:
        if self._part is None:
            self._part = _parquet_writer(self._folder / part_name(self._parts))
            self._parts += 1
        # Uses polars, because `pyarrow.array` imports pandas, which takes half a second in every worker.
        table = pl.DataFrame(self._rows, schema=SCHEMA.names, orient="row").to_arrow()
        self._part.write_table(table.cast(SCHEMA))
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
