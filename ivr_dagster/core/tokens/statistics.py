"""Statistics of the train split under the base tokenizer, in one pass over the text.

Each part of the cleaned corpus gives pre-token counts, token frequencies and id sequences, which are cached as long as
the part and the tokenizer are unchanged. The statistics of the corpus are their sums.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.corpus.parts import count_rows, part_digest, part_name, read_columns
from ivr_dagster.core.tokens.counts import (
    PretokenCounter,
    PretokenCounts,
    flat_ids_of_types,
    sum_counts,
    token_frequencies,
)
from ivr_dagster.core.tokens.sequences import (
    SequencesWriter,
    gigatoken_encoder,
    ids_of_types,
    pretoken_encoder,
    reference_encoder,
)
from ivr_dagster.core.tokens.tokenizer_file import read_tokenizer
from ivr_dagster.storage.atomic import link
from ivr_dagster.storage.content_hash import content_hash
from ivr_dagster.storage.shard_cache import Map, ShardCache, result_key

# Part of the cache keys. Raise the number when the same part and tokenizer give another result; new versions of the
# libraries may do so too.
STATISTICS_VERSION = (4, *(version(name) for name in ("gigatoken", "polars", "regex", "tokenizers")))
# Rows of counts that are summed at once, and rows per row group.
MERGED_ROWS, GROUP_ROWS = 2_000_000, 50_000
# Hashes with counts that are summed at once.
SUMMED_HASHES = 8_000_000
# At most so many hashes are kept per type that is kept.
MAX_HASHES_PER_TYPE = 8
# About so many results are summed into one, repeatedly, until at most MAX_SUMS are left. After a local change of the
# corpus only the sums that contain the change are computed again (`python -m benchmarks.scaling change`).
SUM_SIZE, MAX_SUMS = 8, 16
_PRETOKENS, _SEQUENCES, _FREQUENCIES, _SUMMARY = (
    "pretokens.parquet",
    "sequences.parquet",
    "frequencies.parquet",
    "summary.json",
)


@dataclass(frozen=True)
class CorpusStatistics:
    """Handle of the statistics; each method reads what it needs.

    Attributes:
        parts: result folders of the parts, in order.
        sums: result folders that together have the counts and frequencies of all parts.
        counts: result folder with the counts of the types that are kept.
    """

    parts: tuple[Path, ...]
    sums: tuple[Path, ...]
    counts: Path

    @cached_property
    def totals(self) -> Counter[str]:
        """`texts`, `bytes` (UTF-8), `pretokens` and `tokens` of all parts, and texts that were `reencoded`."""
        return _sum_summaries(self.sums, "totals")

    def frequencies(self, size: int) -> np.ndarray:
        """Occurrences of each id in the sequences, int64 [size]."""
        total = np.zeros(size, dtype=np.int64)
        for folder in self.sums:
            part = pl.read_parquet(folder / _FREQUENCIES)
            total[part["token_id"].to_numpy()] += part["frequency"].to_numpy()
        return total

    def pretoken_counts(self) -> tuple[PretokenCounts, int]:
        """Counts of the most frequent pre-token types that are kept, and the number of all types."""
        found, summary = pl.read_parquet(self.counts / _PRETOKENS), _read_summary(self.counts)
        types, counts = found["pretoken"].to_list(), found["count"].to_numpy()
        totals = self.totals
        return PretokenCounts(types, counts, summary["added"], totals["bytes"], totals["texts"]), summary["types"]

    def write_sequences(self, target: Path) -> str:
        """Writes the id sequences into a folder (see :class:`TokenSequences`); returns a hash of their content."""
        for number, folder in enumerate(self.parts):
            link(folder / _SEQUENCES, target / part_name(number))
        return content_hash(" ".join(_read_summary(folder)["sequences"] for folder in self.parts))


@dataclass(frozen=True)
class _PartTask:
    part: Path
    rows: int
    tokenizer: Path
    tokenizer_hash: str


def read_statistics(
    corpus: CleanedCorpus,
    tokenizer: Path,
    cache: ShardCache,
    *,
    max_texts: int = 0,
    max_types: int = 0,
    run: Map = map,
    progress: Callable[[int, int], None] | None = None,
) -> CorpusStatistics:
    """Statistics of the train split. Computes the parts that are not cached and deletes results of other corpora.

    Hold the cache's lock (:meth:`ShardCache.locked`) while the statistics are in use.

    Args:
        corpus: the cleaned corpus.
        tokenizer: tokenizer.json of the base tokenizer.
        cache: results of parts.
        max_texts: read only so many first documents; 0 for all.
        max_types: keep the counts of so many most frequent pre-token types; 0 for all.
        run: applies the counting function to parts, here or in other processes.
        progress: called with the documents done and in total.
    """
    tokenizer_hash = content_hash(tokenizer.read_text(encoding="utf-8"))
    tasks: dict[str, _PartTask] = {}
    whole_parts: list[str] = []
    total, max_rows = 0, max_texts or corpus.count("train")
    for part in corpus.parts("train"):
        digest, all_rows = part_digest(part), count_rows(part)
        rows = min(all_rows, max_rows - total)
        if rows > 0:
            key = result_key(STATISTICS_VERSION, tokenizer_hash, digest, rows)
            tasks[key] = _PartTask(part, rows, tokenizer, tokenizer_hash)
            total += rows
        whole_parts.append(result_key(STATISTICS_VERSION, tokenizer_hash, digest, all_rows))
    done = 0

    def advance(key: str) -> None:
        nonlocal done
        done += tasks[key].rows
        if progress:
            progress(done, total)

    cache.complete(_write_part, tasks, run, advance)
    # A run with `max_texts` does not delete the results of the whole corpus.
    in_use = {key for level in _sum_levels(whole_parts) for key in level}
    levels = list(_sum_levels(list(tasks)))
    for level in levels:
        sums = {key: [*map(cache.result_folder, addends)] for key, addends in level.items() if addends}
        cache.complete(_write_sum, sums, run)
        in_use.update(level)
    top = tuple(map(cache.result_folder, levels[-1]))
    counts = result_key(STATISTICS_VERSION, "counts", list(levels[-1]), max_types)
    cache.complete(_write_counts, {counts: (top, max_types)})
    cache.keep_only(in_use | {counts})
    return CorpusStatistics(tuple(map(cache.result_folder, tasks)), top, cache.result_folder(counts))


def _sum_levels(parts: Sequence[str]) -> Iterator[dict[str, list[str]]]:
    """Yields the keys of the parts, then of sums of them, then of sums of sums, each with the keys of its addends."""
    level: dict[str, list[str]] = {key: [] for key in parts}
    yield level
    while len(level) > MAX_SUMS:
        level = {result_key(STATISTICS_VERSION, "sum", addends): addends for addends in _group_keys(list(level))}
        yield level


def _group_keys(keys: Sequence[str]) -> Iterator[list[str]]:
    """Groups neighbors, at least two and about `SUM_SIZE`.

    Each key itself decides whether a group ends there, so a changed part hardly moves other boundaries.
    """
    group: list[str] = []
    for n, key in enumerate(keys):
        group.append(key)
        is_end = int(key, 16) % SUM_SIZE == 0 or len(group) == 4 * SUM_SIZE
        if is_end and len(group) > 1 and n != len(keys) - 2:  # leaves no single key at the end
            yield group
            group = []
    if group:
        yield group


def _write_part(task: _PartTask, target: Path) -> None:
    """Counts and encodes the first documents of a part."""
    tools = _load_tools(task.tokenizer, task.tokenizer_hash)
    totals: Counter[str] = Counter()
    added: Counter[str] = Counter()
    pretokens: list[pl.DataFrame] = []
    with SequencesWriter(target / _SEQUENCES, tools.size) as writer:
        left = task.rows
        for ids, texts in read_columns(task.part, "document_id", "text"):
            ids, texts = ids[:left], texts[:left]
            left -= len(ids)
            counts = tools.counter.count(texts)
            sequences, is_reencoded = tools.encode(texts, counts)
            writer.write(ids, sequences)
            pretokens.append(counts.frame())
            added.update(counts.added)
            totals.update(
                texts=counts.texts,
                bytes=counts.bytes,
                pretokens=counts.occurrences,
                reencoded=len(texts) if is_reencoded else 0,
            )
            if not left:
                break
    totals["tokens"] = int(writer.frequencies.sum())
    counts_by_hash = sum_counts(pretokens).with_columns(hash=pl.col("pretoken").hash()).sort("hash", "pretoken")
    counts_by_hash.write_parquet(target / _PRETOKENS, row_group_size=GROUP_ROWS)
    used = np.flatnonzero(writer.frequencies)
    pl.DataFrame({"token_id": used, "frequency": writer.frequencies[used]}).write_parquet(target / _FREQUENCIES)
    summary = {"totals": totals, "added": added, "rows": len(counts_by_hash), "sequences": writer.digest()}
    (target / _SUMMARY).write_text(json.dumps(summary), encoding="utf-8")


class _Tools:
    """Counter and encoders of a tokenizer, created once per process."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.size = tokenizer.get_vocab_size(with_added_tokens=True)
        self.counter = PretokenCounter(tokenizer)
        self._tokenizer = tokenizer
        self._reference = reference_encoder(tokenizer)
        self._fast = gigatoken_encoder(tokenizer)

    def encode(self, texts: list[str], counts: PretokenCounts) -> tuple[list[np.ndarray], bool]:
        """Ids of texts with these pre-token counts, and whether `tokenizers` encoded all of them.

        Their frequencies are verified against those that follow from the counts. If a fast encoder differs,
        `tokenizers` encodes the texts.
        """
        encoded = ids_of_types(self._tokenizer, counts.types) or flat_ids_of_types(self._tokenizer, counts.types)
        expected = token_frequencies(counts, self._tokenizer, encoded)
        encode = self._fast or pretoken_encoder(self._tokenizer, counts.types, encoded)
        sequences = encode(texts)
        if np.array_equal(self._frequencies(sequences), expected):
            return sequences, False
        sequences = self._reference(texts)
        difference = self._frequencies(sequences) != expected
        if difference.any():
            raise RuntimeError(
                f"id sequences and pre-token counts differ on {difference.sum()} ids, first on {difference.argmax()}: "
                "gigatoken and tokenizers disagree on this tokenizer; please report it"
            )
        return sequences, True

    def _frequencies(self, sequences: list[np.ndarray]) -> np.ndarray:
        return np.bincount(np.concatenate(sequences), minlength=self.size)


@lru_cache(maxsize=1)
def _load_tools(file: Path, content: str) -> _Tools:
    """The tools of a tokenizer file whose hash is `content`."""
    return _Tools(read_tokenizer(file))


def _read_summary(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / _SUMMARY).read_text(encoding="utf-8"))
    return summary


def _sum_summaries(folders: Sequence[Path], name: str) -> Counter[str]:
    total: Counter[str] = Counter()
    for folder in folders:
        total.update(_read_summary(folder)[name])
    return total


def _iter_hash_partitions(folders: Sequence[Path], columns: Sequence[str], max_rows: int) -> Iterator[pl.DataFrame]:
    """Yields counts of several results, one range of hashes with about `max_rows` rows at a time.

    The files are sorted by hash, so only the range is read and memory does not depend on the number of types.
    """
    partitions = -(-sum(_read_summary(folder)["rows"] for folder in folders) // max_rows)
    scans = [pl.scan_parquet(folder / _PRETOKENS).select(columns) for folder in folders]
    for number in range(partitions):
        first, last = number * 2**64 // partitions, (number + 1) * 2**64 // partitions - 1
        in_range = pl.col("hash").is_between(first, last)
        yield pl.concat(pl.collect_all([scan.filter(in_range) if partitions > 1 else scan for scan in scans]))


def _most_frequent(folders: Sequence[Path], max_types: int) -> tuple[pl.DataFrame, int]:
    """Counts of the `max_types` most frequent types, sorted, and the number of all types.

    Most types are rare. Only types whose hash occurs often enough are compared as texts: see the `analyze` times of
    `python -m benchmarks.scaling run`.
    """
    hashes, min_count, types = _frequent_hashes(folders, max_types)
    found = _most_frequent_among(folders, max_types, hashes)
    if hashes is not None and found["count"][-1] < min_count:  # several types with one hash counted as a frequent type
        found = _most_frequent_among(folders, max_types, None)
    return found, types


def _most_frequent_among(folders: Sequence[Path], max_types: int, hashes: pl.DataFrame | None) -> pl.DataFrame:
    """The most frequent types with one of these hashes, or of all types if None; ties by code points."""
    found = sum_counts([])
    for rows in _iter_hash_partitions(folders, ("hash", "pretoken", "count"), MERGED_ROWS):
        candidates = rows if hashes is None else rows.join(hashes, on="hash", how="semi")
        merged = pl.concat([found, sum_counts([candidates.drop("hash")])])
        found = merged.sort(["count", "pretoken"], descending=[True, False]).head(max_types)
    return found


def _frequent_hashes(folders: Sequence[Path], max_types: int) -> tuple[pl.DataFrame | None, int, int]:
    """Hashes of the types that may be among the most frequent, their smallest count, and the number of all hashes.

    A type occurs at most as often as its hash. The hashes are None if all types may be among the most frequent, or if
    too many have the same count.
    """
    kept, types, min_count = pl.DataFrame(schema={"hash": pl.UInt64, "count": pl.Int64}), 0, 0
    for rows in _iter_hash_partitions(folders, ("hash", "count"), SUMMED_HASHES):
        sums = rows.group_by("hash").agg(pl.col("count").sum())
        types += len(sums)
        kept = pl.concat([kept, sums.filter(pl.col("count") >= min_count)])
        if len(kept) > max_types:
            min_count = int(kept["count"].top_k(max_types).min())  # type: ignore[arg-type]
            kept = kept.filter(pl.col("count") >= min_count)
        if len(kept) > MAX_HASHES_PER_TYPE * max_types:
            kept, min_count = kept.clear(), sys.maxsize
    if types <= max_types or min_count == sys.maxsize:
        return None, min_count, types
    return kept.select("hash"), min_count, types


def _write_sum(folders: Sequence[Path], target: Path) -> None:
    """Sums the counts and frequencies of several results."""
    rows = 0
    schema = pa.schema([("pretoken", pa.large_string()), ("count", pa.int64()), ("hash", pa.uint64())])
    with pq.ParquetWriter(target / _PRETOKENS, schema, compression="zstd") as writer:
        for partition in _iter_hash_partitions(folders, ("hash", "pretoken", "count"), MERGED_ROWS):
            merged = partition.group_by("hash", "pretoken").agg(pl.col("count").sum()).sort("hash", "pretoken")
            writer.write_table(merged.select(schema.names).to_arrow().cast(schema), row_group_size=GROUP_ROWS)
            rows += len(merged)
    frequencies = pl.concat([pl.read_parquet(folder / _FREQUENCIES) for folder in folders])
    total = frequencies.group_by("token_id").agg(pl.col("frequency").sum()).sort("token_id")
    total.write_parquet(target / _FREQUENCIES)
    summary = {"totals": _sum_summaries(folders, "totals"), "added": _sum_summaries(folders, "added"), "rows": rows}
    (target / _SUMMARY).write_text(json.dumps(summary), encoding="utf-8")


def _write_counts(task: tuple[Sequence[Path], int], target: Path) -> None:
    """Writes the types that are kept, most frequent first, and the number of all types."""
    folders, max_types = task
    found, types = _most_frequent(folders, max_types or sys.maxsize)
    found.write_parquet(target / _PRETOKENS)
    summary = {"added": _sum_summaries(folders, "added"), "types": types}
    (target / _SUMMARY).write_text(json.dumps(summary), encoding="utf-8")
