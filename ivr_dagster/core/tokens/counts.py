"""Pre-token counts of a corpus and the token frequencies that follow from them.

BPE encodes each pre-token independently, so frequencies and reassignment within pre-tokens depend only on the counts
of pre-token types. The corpus is read once; all later work depends on the number of types.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice

import numpy as np
import polars as pl
from gigatoken.gigatoken_rs import pretokenized_counts
from tokenizers import Tokenizer

from ivr_dagster.core.tokens.byte_level import texts_of
from ivr_dagster.core.tokens.pretokens import GPT2_PATTERN, iter_batches, read_pretokenization
from ivr_dagster.errors import panics_as_errors

# A sample of the first texts is also split by `tokenizers`: this many texts, and of their characters one in
# VERIFIED_SHARE, within the bounds.
VERIFIED_TEXTS, VERIFIED_SHARE = 200, 64
MIN_VERIFIED, MAX_VERIFIED = 2_000, 100_000
# Does not occur in cleaned text.
_SEPARATOR = "\x00"
# Partial counts that are kept before they are summed.
MAX_PARTIAL_COUNTS = 16

# From texts to the counts of their pre-tokens, with columns `pretoken` and `count`.
CountTexts = Callable[[list[str]], pl.DataFrame]


@dataclass(frozen=True)
class PretokenCounts:
    """How often each pre-token type occurs in a corpus.

    Attributes:
        types: texts of the types, most frequent first, ties by code points.
        counts: occurrences of each type, int64 [types].
        added: occurrences of added tokens (`<|endoftext|>`) in the text.
        bytes: UTF-8 bytes of the text.
        texts: number of texts.
    """

    types: list[str]
    counts: np.ndarray
    added: dict[str, int]
    bytes: int
    texts: int

    def frame(self) -> pl.DataFrame:
        """The types with columns `pretoken` and `count`."""
        return pl.DataFrame({"pretoken": pl.Series(self.types, dtype=pl.String), "count": self.counts})

    @property
    def occurrences(self) -> int:
        """Number of pre-tokens in the text, without added tokens."""
        return int(self.counts.sum())


class PretokenCounter:
    """Counts the pre-tokens of texts as a tokenizer splits them.

    GPT-2's pattern is counted by `gigatoken`, other patterns by `polars`, `regex` or `tokenizers`. The counts of a
    sample are verified against `tokenizers`, which counts all texts if they differ.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._pretokenization = read_pretokenization(tokenizer)
        self._split = self._pretokenization.column_splitter(tokenizer)
        self._exact_split = replace(self._pretokenization, pattern=None).column_splitter(tokenizer)
        self._use_gigatoken = self._pretokenization.pattern == GPT2_PATTERN and tokenizer.normalizer is None

    def count(self, texts: Iterable[str]) -> PretokenCounts:
        """Counts all pre-token types of `texts`, which are read once. Memory depends on the number of types."""
        texts = iter(texts)
        sample = list(islice(texts, VERIFIED_TEXTS))
        count_texts = self._fastest_exact_count(sample)
        parts: list[pl.DataFrame] = []
        added: Counter[str] = Counter()
        total_bytes = total_texts = 0
        for batch in iter_batches(chain(sample, texts)):
            parts.append(count_texts(batch))
            if len(parts) >= MAX_PARTIAL_COUNTS:
                parts = [sum_counts(parts)]
            for text in batch:
                added.update(self._pretokenization.count_added_tokens(text))
                total_bytes += len(text.encode("utf-8"))
            total_texts += len(batch)
        counted = sum_counts(parts).sort(["count", "pretoken"], descending=[True, False])
        types, counts = counted["pretoken"].to_list(), counted["count"].to_numpy()
        return PretokenCounts(types, counts, dict(added), total_bytes, total_texts)

    def _fastest_exact_count(self, sample: list[str]) -> CountTexts:
        """The fastest function whose counts of a sample equal those of `tokenizers`."""
        plain = [text for text in sample if not self._pretokenization.has_added_token(text)]
        characters = min(max(sum(map(len, plain)) // VERIFIED_SHARE, MIN_VERIFIED), MAX_VERIFIED)
        verified = [text[: max(characters // len(plain), 1)] for text in plain]
        expected = self._count_exactly(verified)
        candidates: list[CountTexts] = [self._count_with_gigatoken] if self._use_gigatoken else []
        for count_texts in [*candidates, self._count_by_pattern]:
            if count_texts(verified).sort("pretoken").equals(expected.sort("pretoken")):
                return count_texts
        return self._count_exactly

    def _count_exactly(self, texts: list[str]) -> pl.DataFrame:
        return _count_column(self._exact_split(texts))

    def _count_by_pattern(self, texts: list[str]) -> pl.DataFrame:
        return _count_column(self._split(texts))

    def _count_with_gigatoken(self, texts: list[str]) -> pl.DataFrame:
        special = [_SEPARATOR in text or self._pretokenization.has_added_token(text) for text in texts]
        joined = _SEPARATOR.join(text for text, is_special in zip(texts, special, strict=True) if not is_special)
        with _silent_stderr(), panics_as_errors():
            found = pretokenized_counts(joined.encode("utf-8"), _SEPARATOR.encode())
        pieces, counts = [piece for piece, _ in found], [count for _, count in found]
        plain = pl.DataFrame(
            {
                "pretoken": pl.Series(pieces, dtype=pl.Binary).cast(pl.String),
                "count": pl.Series(counts, dtype=pl.Int64),
            }
        )
        rest = [text for text, is_special in zip(texts, special, strict=True) if is_special]
        return sum_counts([plain, self._count_by_pattern(rest)])


def count_pretokens(texts: Iterable[str], tokenizer: Tokenizer) -> PretokenCounts:
    """Counts all pre-token types of `texts`, see :meth:`PretokenCounter.count`."""
    return PretokenCounter(tokenizer).count(texts)


def sum_counts(parts: list[pl.DataFrame]) -> pl.DataFrame:
    """Sum of several counts (`pretoken`, `count`), in no particular order."""
    empty = pl.DataFrame(schema={"pretoken": pl.String, "count": pl.Int64})
    return pl.concat([empty, *parts]).group_by("pretoken").agg(pl.col("count").sum())


def _count_column(pieces: pl.Series) -> pl.DataFrame:
    column = pieces.rename("pretoken").explode(empty_as_null=False)
    return column.to_frame().group_by("pretoken").agg(pl.len().cast(pl.Int64).alias("count"))


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discards standard error of this process: `gigatoken` prints its number of threads."""
    original = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(original, 2)
        os.close(null)
        os.close(original)


def encode_types(tokenizer: Tokenizer, types: list[str]) -> list[list[int]]:
    """Ids of each pre-token type, without special tokens."""
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(types, add_special_tokens=False)]


def flat_ids_of_types(tokenizer: Tokenizer, types: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """All ids of pre-token types, int64 [tokens], and the offsets of each type's ids and of the end, int64 [types + 1].

    `sequences.ids_of_types` is faster for some tokenizers.
    """
    ids_by_type = encode_types(tokenizer, types)
    offsets = np.cumsum([0, *map(len, ids_by_type)], dtype=np.int64)
    return np.fromiter(chain.from_iterable(ids_by_type), np.int64, offsets[-1]), offsets


def token_frequencies(
    counts: PretokenCounts, tokenizer: Tokenizer, encoded: tuple[np.ndarray, np.ndarray] | None = None
) -> np.ndarray:
    """Occurrences of each id in the counted text, int64 [V], including zeros.

    Args:
        counts: of the text.
        tokenizer: has V ids.
        encoded: ids and offsets of the types, if known (see `flat_ids_of_types`).
    """
    ids, offsets = encoded or flat_ids_of_types(tokenizer, counts.types)
    lengths = np.diff(offsets)
    frequencies = np.zeros(tokenizer.get_vocab_size(with_added_tokens=True), dtype=np.int64)
    np.add.at(frequencies, ids, np.repeat(counts.counts, lengths))
    for token, count in counts.added.items():
        frequencies[tokenizer.token_to_id(token)] += count
    return frequencies


def frequency_table(strings: Iterable[str], frequencies: np.ndarray) -> pl.DataFrame:
    """Table of all ids: `token_id`, `token` (byte-level string), `text` (see `byte_level.text_of`), `frequency`."""
    strings = list(strings)
    return pl.DataFrame(
        {
            "token_id": pl.Series(range(len(strings)), dtype=pl.UInt32),
            "token": strings,
            "text": texts_of(strings),
            "frequency": pl.Series(frequencies, dtype=pl.Int64),
        }
    )


def counts_table(counts: PretokenCounts) -> pl.DataFrame:
    """Table of counts: `pretoken` (text), `count`, `kind` ("pretoken" or "added"), most frequent first."""
    return pl.DataFrame(
        {
            "pretoken": pl.Series([*counts.types, *counts.added], dtype=pl.String),
            "count": pl.Series([*counts.counts.tolist(), *counts.added.values()], dtype=pl.Int64),
            "kind": pl.Series(["pretoken"] * len(counts.types) + ["added"] * len(counts.added), dtype=pl.String),
        }
    )


def counts_from_table(table: pl.DataFrame) -> PretokenCounts:
    """Inverse of :func:`counts_table`, except that `bytes` is the size of the pre-tokens and `texts` is 0."""
    types = table.filter(pl.col("kind") == "pretoken")
    added = table.filter(pl.col("kind") == "added")
    size = int((table["pretoken"].str.len_bytes().cast(pl.Int64) * table["count"]).sum())
    return PretokenCounts(
        types["pretoken"].to_list(),
        types["count"].to_numpy(),
        dict(zip(added["pretoken"], added["count"], strict=True)),
        size,
        0,
    )
