"""Everything that is counted about the train split under the base tokenizer, part by part, in one pass over the text.

What belongs here: the counts and id sequences of one part of the cleaned corpus, which stay as long as part and
tokenizer do, and their sums over all parts.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tokenizers import Tokenizer

from ivr_dagster.core.atomic import link
from ivr_dagster.core.content_hash import content_hash
from ivr_dagster.core.corpus.cleaned import CleanedCorpus, part_digest, read_part, rows_of
from ivr_dagster.core.shard_results import Map, ShardResults, result_key
from ivr_dagster.core.tokens.counts import PretokenCounter, PretokenCounts, sum_of
from ivr_dagster.core.tokens.sequences import (
    Encoder,
    SequencesWriter,
    built_in_encoder,
    encoder_by_types,
    reference_encoder,
)
from ivr_dagster.core.tokens.tokenizer_file import read_tokenizer

# the number is raised when the same part and tokenizer come out otherwise than before; libraries may have it so too
STATISTICS = (1, *(version(name) for name in ("gigatoken", "polars", "regex", "tokenizers")))
# rows of counts that are added up at once, and that can be read by themselves
MERGED_ROWS, GROUP_ROWS = 2_000_000, 50_000
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
    """

    places: tuple[Path, ...]

    @cached_property
    def totals(self) -> Counter[str]:
        """`texts`, `bytes` (UTF-8), `pretokens` and `tokens` of all parts, and the `rows` of their counts."""
        return sum((Counter(summary["totals"]) for summary in self._summaries), Counter())

    @cached_property
    def _summaries(self) -> list[dict[str, Any]]:
        return [json.loads((place / _SUMMARY).read_text(encoding="utf-8")) for place in self.places]

    def frequencies(self, size: int) -> np.ndarray:
        """How often each id stands in the sequences, int64 [size]."""
        total = np.zeros(size, dtype=np.int64)
        for place in self.places:
            part = pl.read_parquet(place / _FREQUENCIES)
            total[part["token_id"].to_numpy()] += part["frequency"].to_numpy()
        return total

    def pretoken_counts(self, most: int = 0) -> tuple[PretokenCounts, int]:
        """Counts of the `most` frequent pre-token types, 0 for all, and how many types there are.

        Memory grows with the types kept: counts are added up for some of the types at a time.
        """
        scans = [pl.scan_parquet(place / _PRETOKENS) for place in self.places]
        lots = -(-self.totals["rows"] // MERGED_ROWS)
        found = sum_of([])
        types = 0
        for lot in range(lots):
            # files are sorted by hash, so that of each only what is wanted is read
            ours = pl.col("hash").is_between(lot * 2**64 // lots, (lot + 1) * 2**64 // lots - 1)
            merged = sum_of([scan.filter(ours).drop("hash").collect() for scan in scans])
            types += len(merged)
            found = pl.concat([found, merged]).sort(["count", "pretoken"], descending=[True, False])
            found = found.head(most) if most else found
        added: Counter[str] = Counter()
        for summary in self._summaries:
            added.update(summary["added"])
        counts = PretokenCounts(
            found["pretoken"].to_list(),
            found["count"].to_numpy(),
            dict(added),
            self.totals["bytes"],
            self.totals["texts"],
        )
        return counts, types

    def write_sequences(self, target: Path) -> None:
        """The parts' id sequences as the parts of one folder; see :class:`TokenSequences`."""
        for number, place in enumerate(self.places):
            link(place / _SEQUENCES, target / f"part-{number:05d}.parquet")


def read_statistics(
    corpus: CleanedCorpus,
    tokenizer: Path,
    results: ShardResults,
    *,
    max_texts: int = 0,
    reference: bool = False,
    run: Map = map,
    progress: Callable[[int, int], None] | None = None,
) -> CorpusStatistics:
    """Statistics of the train split; parts that were not counted yet are, and those of other texts forgotten.

    Other runs must be kept off the results (:meth:`ShardResults.alone`) as long as the statistics are read.

    Args:
        corpus: the cleaned corpus.
        tokenizer: the base tokenizer's tokenizer.json.
        results: what is kept of parts.
        max_texts: look at the first so many documents only, 0 for all.
        reference: whether `tokenizers` itself encodes all text.
        run: what counts parts, here or in other processes.
        progress: called with documents done and in all.
    """
    content = content_hash(tokenizer.read_text(encoding="utf-8"))
    tasks: dict[str, _PartTask] = {}
    in_use: set[str] = set()
    total, most = 0, max_texts or corpus.count("train")
    for part in corpus.parts("train"):
        digest, all_rows = part_digest(part), rows_of(part)
        rows = min(all_rows, most - total)
        if rows > 0:
            tasks[result_key(STATISTICS, content, digest, rows, reference)] = _PartTask(
                part, rows, tokenizer, content, reference
            )
            total += rows
        # a look at a few texts does not cost what is known of all
        in_use.update(result_key(STATISTICS, content, digest, all_rows, way) for way in (False, True))
    in_use |= tasks.keys()
    done = 0

    def advance(key: str) -> None:
        nonlocal done
        done += tasks[key].rows
        if progress:
            progress(done, total)

    results.complete(_write_part, tasks, run, advance)
    results.keep_only(in_use)
    return CorpusStatistics(tuple(map(results.place, tasks)))


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
    totals["rows"] = len(counts_by_hash)
    used = np.flatnonzero(sequences.frequencies)
    pl.DataFrame({"token_id": used, "frequency": sequences.frequencies[used]}).write_parquet(target / _FREQUENCIES)
    (target / _SUMMARY).write_text(json.dumps({"totals": totals, "added": added}), encoding="utf-8")


@lru_cache(maxsize=1)
def _tools(file: Path, content: str) -> tuple[Tokenizer, PretokenCounter, Encoder | None]:
    """What a process needs of a tokenizer for every part; `content` is the file's hash."""
    tokenizer = read_tokenizer(file)
    return tokenizer, PretokenCounter(tokenizer), built_in_encoder(tokenizer)
