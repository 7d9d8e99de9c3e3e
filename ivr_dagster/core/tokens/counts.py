"""Token statistics as sums over a corpus: pre-token counts and, from them, token frequencies.

BPE encodes each pre-token by itself, so the counts of pre-token types hold everything that frequencies and
within-pre-token reassignment depend on: a corpus is read once, and all later work grows with the types.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import polars as pl
from tokenizers import Tokenizer

from ivr_dagster.core.tokens.byte_level import text_of
from ivr_dagster.core.tokens.pretokens import (
    BATCH_CHARACTERS,
    PreTokenization,
    batches_of,
    read_pretokenization,
    verify_splitter,
)

# how many texts, and characters of them, are split both ways before the pattern is trusted with the rest
VERIFIED_TEXTS, VERIFIED_CHARACTERS = 200, 200_000
# parts of counts that are kept before they are added up
MERGED_PARTS = 16


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

    @property
    def occurrences(self) -> int:
        """Pre-tokens in the text, added tokens left out."""
        return int(self.counts.sum())


def count_pretokens(texts: Iterable[str], tokenizer: Tokenizer) -> PretokenCounts:
    """Counts of all pre-token types of `texts`, read once; memory grows with the types."""
    pretokenization = read_pretokenization(tokenizer)
    texts = iter(texts)
    sample = list(islice(texts, VERIFIED_TEXTS))
    split = trusted_splitter(pretokenization, tokenizer, sample)
    parts: list[pl.DataFrame] = []
    added: Counter[str] = Counter()
    size = read = 0
    for batch in batches_of(chain(sample, texts), len, BATCH_CHARACTERS):
        column = split(batch).rename("piece").explode(empty_as_null=False)
        parts.append(column.to_frame().group_by("piece").len())
        if len(parts) >= MERGED_PARTS:
            parts = [_merged(parts)]
        for text in batch:
            added.update(pretokenization.count_added_tokens(text))
            size += len(text.encode("utf-8"))
        read += len(batch)
    counted = _merged(parts).sort(["len", "piece"], descending=[True, False])
    types, counts = counted["piece"].to_list(), counted["len"].to_numpy().astype(np.int64)
    return PretokenCounts(types, counts, dict(added), size, read)


def trusted_splitter(
    pretokenization: PreTokenization, tokenizer: Tokenizer, sample: list[str]
) -> Callable[[list[str]], pl.Series]:
    """A function from texts to columns of pre-tokens that cuts a sample of texts as `tokenizer` does."""
    each = VERIFIED_CHARACTERS // max(len(sample), 1)
    plain = [text[:each] for text in sample if not pretokenization.holds_added_token(text)]
    split = pretokenization.column_splitter(tokenizer)
    if verify_splitter(lambda text: split([text])[0].to_list(), tokenizer, plain) is None:
        return split
    return PreTokenization(None, pretokenization.added_tokens).column_splitter(tokenizer)


def _merged(parts: list[pl.DataFrame]) -> pl.DataFrame:
    empty = pl.DataFrame(schema={"piece": pl.String, "len": pl.UInt32})
    return pl.concat([empty, *parts], how="vertical_relaxed").group_by("piece").agg(pl.col("len").cast(pl.Int64).sum())


def encode_types(tokenizer: Tokenizer, types: list[str]) -> list[list[int]]:
    """Ids of every pre-token type under `tokenizer`, special tokens not added."""
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(types, add_special_tokens=False)]


def token_frequencies(counts: PretokenCounts, tokenizer: Tokenizer) -> np.ndarray:
    """How often `tokenizer` yields each id on the counted text, int64 [V], zeros included."""
    ids = encode_types(tokenizer, counts.types)
    frequencies = np.zeros(tokenizer.get_vocab_size(with_added_tokens=True), dtype=np.int64)
    lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
    np.add.at(frequencies, np.fromiter(chain.from_iterable(ids), np.int64), np.repeat(counts.counts, lengths))
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
            "text": [text_of(string) for string in strings],
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
