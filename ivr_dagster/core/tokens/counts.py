"""Token statistics as sums over a corpus: pre-token counts and, from them, token frequencies.

BPE encodes each pre-token by itself, so the counts of pre-token types hold everything that frequencies and
within-pre-token reassignment depend on: a corpus is read once, and all later work grows with the types.
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
from ivr_dagster.core.tokens.pretokens import (
    BATCH_CHARACTERS,
    GPT2_PATTERN,
    batches_of,
    read_pretokenization,
)

# of how many texts the beginnings are cut by `tokenizers` too, and how many characters of them
VERIFIED_TEXTS, VERIFIED_SHARE = 200, 64
LEAST_VERIFIED, MOST_VERIFIED = 2_000, 100_000
# stands in no cleaned text
_SEPARATOR = "\x00"
# parts of counts that are kept before they are added up
MERGED_PARTS = 16


# texts to their pre-tokens' counts, `pretoken` and `count`
CountTexts = Callable[[list[str]], pl.DataFrame]


@dataclass(frozen=True)
class PretokenCounts:
    """How often each pre-token type stands in a corpus.

    Attributes:
        types: the types as text, the most frequent first, ties by code points.
        counts: occurrences, int64, as long as `types`.
        added: occurrences of added tokens (`<|endoftext|>`) written out in the text.
        bytes: UTF-8 bytes of the text read.
        texts: how many texts were read.
    """

    types: list[str]
    counts: np.ndarray
    added: dict[str, int]
    bytes: int
    texts: int

    def frame(self) -> pl.DataFrame:
        """`pretoken` and `count` of the types."""
        return pl.DataFrame({"pretoken": pl.Series(self.types, dtype=pl.String), "count": self.counts})

    @property
    def occurrences(self) -> int:
        """Pre-tokens in the text, added tokens left out."""
        return int(self.counts.sum())


class PretokenCounter:
    """Counts the pre-tokens of a tokenizer, again and again for different texts.

    Patterns that `gigatoken` has built in are left to it, all others to `polars`, `regex` or `tokenizers`. Of each lot
    of texts a sample is cut by `tokenizers` too; where that differs, `tokenizers` cuts the whole lot.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._pretokenization = read_pretokenization(tokenizer)
        self._split = self._pretokenization.column_splitter(tokenizer)
        self._exact = replace(self._pretokenization, pattern=None).column_splitter(tokenizer)
        self._built_in = self._pretokenization.pattern == GPT2_PATTERN and tokenizer.normalizer is None

    def count(self, texts: Iterable[str]) -> PretokenCounts:
        """Counts of all pre-token types of `texts`, read once; memory grows with the types."""
        texts = iter(texts)
        sample = list(islice(texts, VERIFIED_TEXTS))
        count = self._trusted(sample)
        parts: list[pl.DataFrame] = []
        added: Counter[str] = Counter()
        size = read = 0
        for batch in batches_of(chain(sample, texts), len, BATCH_CHARACTERS):
            parts.append(count(batch))
            if len(parts) >= MERGED_PARTS:
                parts = [sum_of(parts)]
            for text in batch:
                added.update(self._pretokenization.count_added_tokens(text))
                size += len(text.encode("utf-8"))
            read += len(batch)
        counted = sum_of(parts).sort(["count", "pretoken"], descending=[True, False])
        return PretokenCounts(counted["pretoken"].to_list(), counted["count"].to_numpy(), dict(added), size, read)

    def _trusted(self, sample: list[str]) -> CountTexts:
        """The fastest way of counting that cuts a sample as the tokenizer does."""
        plain = [text for text in sample if not self._pretokenization.holds_added_token(text)]
        most = min(max(sum(map(len, plain)) // VERIFIED_SHARE, LEAST_VERIFIED), MOST_VERIFIED)
        verified = [text[: max(most // len(plain), 1)] for text in plain]
        expected = self._count_exactly(verified)
        ways: list[CountTexts] = [self._count_built_in] if self._built_in else []
        for count in [*ways, self._count_by_pattern]:
            if count(verified).sort("pretoken").equals(expected.sort("pretoken")):
                return count
        return self._count_exactly

    def _count_exactly(self, texts: list[str]) -> pl.DataFrame:
        return _count_column(self._exact(texts))

    def _count_by_pattern(self, texts: list[str]) -> pl.DataFrame:
        return _count_column(self._split(texts))

    def _count_built_in(self, texts: list[str]) -> pl.DataFrame:
        odd = [_SEPARATOR in text or self._pretokenization.holds_added_token(text) for text in texts]
        joined = _SEPARATOR.join(text for text, is_odd in zip(texts, odd, strict=True) if not is_odd)
        with _silenced():
            found = pretokenized_counts(joined.encode("utf-8"), _SEPARATOR.encode())
        pieces, counts = [piece for piece, _ in found], [count for _, count in found]
        plain = pl.DataFrame(
            {
                "pretoken": pl.Series(pieces, dtype=pl.Binary).cast(pl.String),
                "count": pl.Series(counts, dtype=pl.Int64),
            }
        )
        rest = [text for text, is_odd in zip(texts, odd, strict=True) if is_odd]
        return sum_of([plain, self._count_by_pattern(rest)])


def count_pretokens(texts: Iterable[str], tokenizer: Tokenizer) -> PretokenCounts:
    """Counts of all pre-token types of `texts`, read once; memory grows with the types."""
    return PretokenCounter(tokenizer).count(texts)


def sum_of(parts: list[pl.DataFrame]) -> pl.DataFrame:
    """Counts (`pretoken`, `count`) of several texts as those of all of them, in no particular order."""
    empty = pl.DataFrame(schema={"pretoken": pl.String, "count": pl.Int64})
    return pl.concat([empty, *parts]).group_by("pretoken").agg(pl.col("count").sum())


def _count_column(pieces: pl.Series) -> pl.DataFrame:
    column = pieces.rename("pretoken").explode(empty_as_null=False)
    return column.to_frame().group_by("pretoken").agg(pl.len().cast(pl.Int64).alias("count"))


@contextmanager
def _silenced() -> Iterator[None]:
    """Standard error of this process goes nowhere: `gigatoken` tells there how many threads it counts with."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)


def encode_types(tokenizer: Tokenizer, types: list[str]) -> list[list[int]]:
    """Ids of every pre-token type under `tokenizer`, special tokens not added."""
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(types, add_special_tokens=False)]


def token_frequencies(
    counts: PretokenCounts, tokenizer: Tokenizer, known: tuple[np.ndarray, np.ndarray] | None = None
) -> np.ndarray:
    """How often `tokenizer` yields each id on the counted text, int64 [V], zeros included.

    Args:
        counts: of the text.
        tokenizer: V ids.
        known: the types' ids, where they are known, as of `sequences.ids_of_types`.
    """
    if known is None:
        encoded = encode_types(tokenizer, counts.types)
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        ids = np.fromiter(chain.from_iterable(encoded), np.int64, lengths.sum())
    else:
        ids, lengths = known[0], np.diff(known[1])
    frequencies = np.zeros(tokenizer.get_vocab_size(with_added_tokens=True), dtype=np.int64)
    np.add.at(frequencies, ids, np.repeat(counts.counts, lengths))
    for token, count in counts.added.items():
        frequencies[tokenizer.token_to_id(token)] += count
    return frequencies


def frequency_table(strings: Iterable[str], frequencies: np.ndarray) -> pl.DataFrame:
    """`token_id`, `token` (byte-level string), `text` (decoded, U+FFFD for part of a character), `frequency` by id."""
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
    """`pretoken` (text), `count` and `kind` ("pretoken" or "added"), most frequent first."""
    return pl.DataFrame(
        {
            "pretoken": pl.Series([*counts.types, *counts.added], dtype=pl.String),
            "count": pl.Series([*counts.counts.tolist(), *counts.added.values()], dtype=pl.Int64),
            "kind": pl.Series(["pretoken"] * len(counts.types) + ["added"] * len(counts.added), dtype=pl.String),
        }
    )


def counts_from_table(table: pl.DataFrame) -> PretokenCounts:
    """The inverse of :func:`counts_table`; bytes are those of the pre-tokens, the number of texts is not kept (0)."""
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
