"""Hashes of files, kept beside what the file system says of each, so that only those that changed are read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ivr_dagster.core.atomic import replacing


class KnownFile(NamedTuple):
    """A file as it was hashed.

    Attributes:
        said: what the file system said of it: size, times of change of content and of anything (ns), inode, device.
        content: the hash of its bytes.
    """

    said: tuple[int, ...]
    content: bytes


@dataclass(frozen=True)
class KnownFiles:
    """A file that keeps what is known of others, by path; it may be deleted at any time."""

    store: Path

    def read(self) -> dict[str, KnownFile]:
        """What is kept; nothing where it is not whole."""
        import polars as pl

        try:
            rows = pl.read_parquet(self.store).select("path", "said", "content").iter_rows()
            return {path: KnownFile(tuple(said), content) for path, said, content in rows}
        except (OSError, pl.exceptions.PolarsError):
            return {}

    def write(self, known: Mapping[str, KnownFile]) -> None:
        """Keep these in place of what was kept."""
        import polars as pl

        schema = {"path": pl.String(), "said": pl.List(pl.Int64), "content": pl.Binary()}
        rows = [(path, list(file.said), file.content) for path, file in known.items()]
        self.store.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.store) as staged:
            pl.DataFrame(rows, schema=schema, orient="row").write_parquet(staged)
