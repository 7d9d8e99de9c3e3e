"""Everything that is counted about the train split under the base tokenizer, part by part, in one pass over the text.

What belongs here: the counts and id sequences of one part of the cleaned corpus, which stay as long as part and
tokenizer do, and their sums over all parts.
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

from ivr_dagster.core.corpus.cleaned import CleanedCorpus, part_digest, read_part, rows_of
from ivr_dagster.core.tokens.counts import PretokenCounter, PretokenCounts, sum_of
from ivr_dagster.core.tokens.sequences import (
    Encoder,
    SequencesWriter,
    built_in_encoder,
    encoder_by_types,
    reference_encoder,
)
from ivr_dagster.core.tokens.tokenizer_file import read_tokenizer
from ivr_dagster.storage.atomic import link
from ivr_dagster.storage.content_hash import content_hash
from ivr_dagster.storage.shard_cache import Map, ShardCache, result_key

# the number is raised when the same part and tokenizer come out otherwise than before; libraries may have it so too
STATISTICS = (3, *(version(name) for name in ("gigatoken", "polars", "regex", "tokenizers")))
# rows of counts that are added up at once, and that can be read by themselves
MERGED_ROWS, GROUP_ROWS = 2_000_000, 50_000
# hashes and their counts, which are numbers, that are added up at once
SUMMED_HASHES = 8_000_000
# times the types that are kept: so many hashes are held at most
MOST_ALIKE = 8
# Results that are added up into one, until there are few: of a corpus that changed in one place, only the sums that it
# is part of are made anew
SUMMED, MOST_SUMS = 8, 16
_PRETOKENS, _SEQUENCES, _FREQUENCIES, _SUMMARY = (
    "pretokens.parquet",
    "sequences.parquet",
    "frequencies.parquet",
    "summary.json",
)


@dataclass(frozen=True)
class CorpusStatistics:
    """What was counted, part by part; each property reads what it needs.

    Attributes:
        places: the results of the parts, in order.
        sums: results that hold the counts of all parts between them.
        counts: the result that holds the counts of the types that are kept.
    """

    places: tuple[Path, ...]
    sums: tuple[Path, ...]
    counts: Path

    @cached_property
    def totals(self) -> Counter[str]:
        """`texts`, `bytes` (UTF-8), `pretokens` and `tokens` of all parts."""
        return sum((Counter(each["totals"]) for each in map(_summary_of, self.sums)), Counter())

    def frequencies(self, size: int) -> np.ndarray:
        """How often each id stands in the sequences, int64 [size]."""
        total = np.zeros(size, dtype=np.int64)
        for place in self.sums:
            part = pl.read_parquet(place / _FREQUENCIES)
            total[part["token_id"].to_numpy()] += part["frequency"].to_numpy()
        return total

    def pretoken_counts(self) -> tuple[PretokenCounts, int]:
        """Counts of the pre-token types that are kept, the most frequent ones, and how many types there are."""
        found, summary = pl.read_parquet(self.counts / _PRETOKENS), _summary_of(self.counts)
        types, counts = found["pretoken"].to_list(), found["count"].to_numpy()
        totals = self.totals
        return PretokenCounts(types, counts, summary["added"], totals["bytes"], totals["texts"]), summary["types"]

    def write_sequences(self, target: Path) -> str:
        """The parts' id sequences as the parts of one folder, see :class:`TokenSequences`; a hash of what they hold."""
        for number, place in enumerate(self.places):
            link(place / _SEQUENCES, target / f"part-{number:05d}.parquet")
        return content_hash(" ".join(_summary_of(place)["sequences"] for place in self.places))


def read_statistics(
    corpus: CleanedCorpus,
    tokenizer: Path,
    results: ShardCache,
    *,
    max_texts: int = 0,
    max_types: int = 0,
    reference: bool = False,
    run: Map = map,
    progress: Callable[[int, int], None] | None = None,
) -> CorpusStatistics:
    """Statistics of the train split; parts that were not counted yet are, and those of other texts forgotten.

    Other runs must be kept off the results (:meth:`ShardCache.alone`) as long as the statistics are read.

    Args:
        corpus: the cleaned corpus.
        tokenizer: the base tokenizer's tokenizer.json.
        results: what is kept of parts.
        max_texts: look at the first so many documents only, 0 for all.
        max_types: keep the counts of so many pre-token types, the most frequent ones, 0 for all.
        reference: whether `tokenizers` itself encodes all text.
        run: what counts parts, here or in other processes.
        progress: called with documents done and in all.
    """
    content = content_hash(tokenizer.read_text(encoding="utf-8"))
    tasks: dict[str, _PartTask] = {}
    of_all: dict[bool, list[str]] = {False: [], True: []}
    total, most = 0, max_texts or corpus.count("train")
    for part in corpus.parts("train"):
        digest, all_rows = part_digest(part), rows_of(part)
        rows = min(all_rows, most - total)
        if rows > 0:
            tasks[result_key(STATISTICS, content, digest, rows, reference)] = _PartTask(
                part, rows, tokenizer, content, reference
            )
            total += rows
        for way, keys in of_all.items():
            keys.append(result_key(STATISTICS, content, digest, all_rows, way))
    # a look at a few texts, or another way, does not cost what is known of all
    in_use = {key for keys in of_all.values() for level in _levels(keys) for key in level}
    done = 0

    def advance(key: str) -> None:
        nonlocal done
        done += tasks[key].rows
        if progress:
            progress(done, total)

    results.complete(_write_part, tasks, run, advance)
    levels = list(_levels(list(tasks)))
    for level in levels:
        sums = {key: [*map(results.place, parts)] for key, parts in level.items() if parts}
        results.complete(_write_sum, sums, run)
        in_use.update(level)
    tops = tuple(map(results.place, levels[-1]))
    counts = result_key(STATISTICS, "counts", list(levels[-1]), max_types)
    results.complete(_write_counts, {counts: (tops, max_types)})
    results.keep_only(in_use | {counts})
    return CorpusStatistics(tuple(map(results.place, tasks)), tops, results.place(counts))


def _levels(keys: Sequence[str]) -> Iterator[dict[str, list[str]]]:
    """The parts, and sums of them and of sums until there are few: by key what each adds up, nothing for parts."""
    level: dict[str, list[str]] = {key: [] for key in keys}
    yield level
    while len(level) > MOST_SUMS:
        level = {result_key(STATISTICS, "sum", parts): parts for parts in _groups(list(level))}
        yield level


def _groups(keys: Sequence[str]) -> Iterator[list[str]]:
    """Neighbours together, two or more, about `SUMMED` of them.

    Where a group ends is decided by each key itself, so that a part that changes moves hardly a boundary but its own.
    """
    group: list[str] = []
    for n, key in enumerate(keys):
        group.append(key)
        is_end = int(key, 16) % SUMMED == 0 or len(group) == 4 * SUMMED
        if is_end and len(group) > 1 and n != len(keys) - 2:  # none is left alone
            yield group
            group = []
    if group:
        yield group


@dataclass(frozen=True, slots=True)
class _PartTask:
    part: Path
    rows: int
    tokenizer: Path
    content: str
    reference: bool


def _write_part(task: _PartTask, target: Path) -> None:
    tokenizer, counter, fast = _tools(task.tokenizer, task.content)
    reference = reference_encoder(tokenizer)
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    totals: Counter[str] = Counter()
    added: Counter[str] = Counter()
    pretokens: list[pl.DataFrame] = []
    with SequencesWriter(target / _SEQUENCES, size) as sequences:
        left = task.rows
        for ids, texts in read_part(task.part):
            ids, texts = ids[:left], texts[:left]
            left -= len(ids)
            counts = counter.count(texts)
            encode = reference if task.reference else fast or encoder_by_types(tokenizer, counts.types)
            sequences.write(ids, encode(texts))
            pretokens.append(counts.frame())
            added.update(counts.added)
            totals.update(texts=counts.texts, bytes=counts.bytes, pretokens=counts.occurrences)
            if not left:
                break
    totals["tokens"] = int(sequences.frequencies.sum())
    counts_by_hash = sum_of(pretokens).with_columns(hash=pl.col("pretoken").hash()).sort("hash", "pretoken")
    counts_by_hash.write_parquet(target / _PRETOKENS, row_group_size=GROUP_ROWS)
    used = np.flatnonzero(sequences.frequencies)
    pl.DataFrame({"token_id": used, "frequency": sequences.frequencies[used]}).write_parquet(target / _FREQUENCIES)
    (target / _SUMMARY).write_text(
        json.dumps({"totals": totals, "added": added, "rows": len(counts_by_hash), "sequences": sequences.digest()}),
        encoding="utf-8",
    )


@lru_cache(maxsize=1)
def _tools(file: Path, content: str) -> tuple[Tokenizer, PretokenCounter, Encoder | None]:
    """What a process needs of a tokenizer for every part; `content` is the file's hash."""
    tokenizer = read_tokenizer(file)
    return tokenizer, PretokenCounter(tokenizer), built_in_encoder(tokenizer)


def _summary_of(place: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((place / _SUMMARY).read_text(encoding="utf-8"))
    return content


def _lots(places: Sequence[Path], columns: Sequence[str], most: int) -> Iterator[pl.DataFrame]:
    """Counts of several results, a range of hashes at a time, about `most` rows.

    Memory does not grow with the types: files are sorted by hash, so that of each only what is wanted is read.
    """
    lots = -(-sum(_summary_of(place)["rows"] for place in places) // most)
    scans = [pl.scan_parquet(place / _PRETOKENS).select(columns) for place in places]
    for lot in range(lots):
        ours = pl.col("hash").is_between(lot * 2**64 // lots, (lot + 1) * 2**64 // lots - 1)
        yield pl.concat(pl.collect_all([scan.filter(ours) if lots > 1 else scan for scan in scans]))


def _merged(places: Sequence[Path]) -> Iterator[pl.DataFrame]:
    """`hash`, `pretoken` and `count` of all that these results hold, some of the types at a time, by hash."""
    for rows in _lots(places, ("hash", "pretoken", "count"), MERGED_ROWS):
        yield rows.group_by("hash", "pretoken").agg(pl.col("count").sum()).sort("hash", "pretoken")


def _most_frequent(places: Sequence[Path], most: int) -> tuple[pl.DataFrame, int]:
    """Counts of the `most` most frequent types, in their order, and how many types there are.

    Most types are rare, and are not compared as texts: only those are whose hash occurs often enough.
    """
    hashes, least, types = _frequent_hashes(places, most)
    found = _first(places, most, hashes)
    if hashes is not None and found["count"][-1] < least:  # types that share a hash passed for a more frequent one
        found = _first(places, most, None)
    return found, types


def _first(places: Sequence[Path], most: int, hashes: pl.DataFrame | None) -> pl.DataFrame:
    """The most frequent of the types with these hashes, or of all, ties by code points."""
    found = sum_of([])
    for rows in _lots(places, ("hash", "pretoken", "count"), MERGED_ROWS):
        ours = rows if hashes is None else rows.join(hashes, on="hash", how="semi")
        found = (
            pl.concat([found, sum_of([ours.drop("hash")])])
            .sort(["count", "pretoken"], descending=[True, False])
            .head(most)
        )
    return found


def _frequent_hashes(places: Sequence[Path], most: int) -> tuple[pl.DataFrame | None, int, int]:
    """Hashes of types that may be among the most frequent, the least count among them, and how many hashes there are.

    No type occurs more often than its hash. None where all may be, or too many occur alike to tell them apart.
    """
    kept, types, least = pl.DataFrame(schema={"hash": pl.UInt64, "count": pl.Int64}), 0, 0
    for rows in _lots(places, ("hash", "count"), SUMMED_HASHES):
        sums = rows.group_by("hash").agg(pl.col("count").sum())
        types += len(sums)
        kept = pl.concat([kept, sums.filter(pl.col("count") >= least)])
        if len(kept) > most:
            least = int(kept["count"].top_k(most).min())  # type: ignore[arg-type]
            kept = kept.filter(pl.col("count") >= least)
        if len(kept) > MOST_ALIKE * most:  # of all that occur as often as the last
            kept, least = kept.clear(), sys.maxsize
    if types <= most or least == sys.maxsize:
        return None, least, types
    return kept.select("hash"), least, types


def _added_up(places: Sequence[Path], name: str) -> Counter[str]:
    total: Counter[str] = Counter()
    for place in places:
        total.update(_summary_of(place)[name])
    return total


def _write_sum(places: Sequence[Path], target: Path) -> None:
    """Counts and frequencies of several results as one; their sequences stay where they are."""
    rows = 0
    schema = pa.schema([("pretoken", pa.large_string()), ("count", pa.int64()), ("hash", pa.uint64())])
    with pq.ParquetWriter(target / _PRETOKENS, schema, compression="zstd") as writer:
        for lot in _merged(places):
            writer.write_table(lot.select(schema.names).to_arrow().cast(schema), row_group_size=GROUP_ROWS)
            rows += len(lot)
    frequencies = pl.concat([pl.read_parquet(place / _FREQUENCIES) for place in places])
    frequencies.group_by("token_id").agg(pl.col("frequency").sum()).sort("token_id").write_parquet(
        target / _FREQUENCIES
    )
    summary = {"totals": _added_up(places, "totals"), "added": _added_up(places, "added"), "rows": rows}
    (target / _SUMMARY).write_text(json.dumps(summary), encoding="utf-8")


def _write_counts(task: tuple[Sequence[Path], int], target: Path) -> None:
    """The types that are kept, the most frequent first, and how many there are."""
    places, most = task
    found, types = _most_frequent(places, most or sys.maxsize)
    found.write_parquet(target / _PRETOKENS)
    summary = {"added": _added_up(places, "added"), "types": types}
    (target / _SUMMARY).write_text(json.dumps(summary), encoding="utf-8")
