"""Token statistics of the train split under the base tokenizer."""

import time
from collections.abc import Iterator
from itertools import islice
from typing import TypeVar

import dagster as dg
import numpy as np
import polars as pl

from ivr_dagster.assets import OWNERS, depends_on_settings
from ivr_dagster.assets.display import columns, curves, inline_png, markdown_table
from ivr_dagster.core.content_hash import content_hash
from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.handles import TokenizerFolder
from ivr_dagster.core.tokenizer.bpe import read_bpe
from ivr_dagster.core.tokens.counts import (
    count_pretokens,
    counts_from_table,
    counts_table,
    frequency_table,
    token_frequencies,
)
from ivr_dagster.core.tokens.sequences import TokenSequences, fast_encoder, write_token_sequences
from ivr_dagster.progress import track
from ivr_dagster.resources.settings import SettingsResource

GROUP = "tokens"
T = TypeVar("T")


@dg.asset(
    group_name=GROUP,
    kinds={"parquet", "polars"},
    owners=OWNERS,
    io_manager_key="parquet_io",
    code_version="1",
    metadata=depends_on_settings("max_texts")
    | columns(
        pretoken=("string", "The pre-token's text"),
        count=("int64", "Occurrences in the train split"),
        kind=("string", "`pretoken`, or `added` for tokens like <|endoftext|> in the text"),
    ),
)
def pretoken_counts(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    cleaned_corpus: CleanedCorpus,
    original_tokenizer: TokenizerFolder,
) -> dg.MaterializeResult[pl.DataFrame]:
    """How often each pre-token type (a piece of text that the base tokenizer encodes by itself: a word
    with its space, a run of digits, of symbols) stands in the train split. Token frequencies and all new tokens inside
    pre-tokens follow from these counts alone, so the text is read once.
    """
    started = time.monotonic()
    texts = cleaned_corpus.texts("train", max_texts=settings.max_texts or None)
    counts = count_pretokens(
        _tracked(context, texts, cleaned_corpus, "counting pre-tokens"), original_tokenizer.backend()
    )
    table, seconds = counts_table(counts), time.monotonic() - started
    return dg.MaterializeResult(
        value=table,
        data_version=dg.DataVersion(content_hash(table)),
        metadata={
            "documents": counts.texts,
            "bytes": counts.bytes,
            "pretoken_types": len(counts.types),
            "pretokens": counts.occurrences,
            "seconds": round(seconds, 2),
            "bytes_per_second": round(counts.bytes / seconds),
            "most frequent": dg.MetadataValue.md(markdown_table(table.head(20))),
        },
    )


@dg.asset(
    group_name=GROUP,
    kinds={"parquet", "polars"},
    owners=OWNERS,
    io_manager_key="parquet_io",
    code_version="1",
    metadata=columns(
        token_id=("uint32", "Id in the base tokenizer"),
        token=("string", "The token's string in the byte-level alphabet"),
        text=("string", "The token's text, U+FFFD where it is part of a character"),
        frequency=("int64", "Occurrences in the train split, zeros included"),
    ),
)
def token_stats(
    pretoken_counts: pl.DataFrame, original_tokenizer: TokenizerFolder
) -> dg.MaterializeResult[pl.DataFrame]:
    """How often the base tokenizer yields each of its ids on the train split, zeros included: ids that
    the domain never uses are those that can be given to strings it uses all the time.
    """
    tokenizer = original_tokenizer.backend()
    counts = counts_from_table(pretoken_counts)
    frequencies = token_frequencies(counts, tokenizer)
    table = frequency_table(read_bpe(tokenizer).strings, frequencies)
    tokens, unused = int(frequencies.sum()), int((frequencies == 0).sum())
    used = np.sort(frequencies[frequencies > 0])[::-1]
    return dg.MaterializeResult(
        value=table,
        data_version=dg.DataVersion(content_hash(table)),
        metadata={
            "vocabulary_size": len(table),
            "tokens": tokens,
            "bytes_per_token": counts.bytes / max(tokens, 1),
            "unused_ids": unused,
            "unused_share": unused / len(table),
            "most frequent": dg.MetadataValue.md(markdown_table(table.sort("frequency", descending=True).head(20))),
            "frequency by rank": inline_png(
                curves(range(1, len(used) + 1), {"frequency": used}, x="rank", y="occurrences", logarithmic=True),
                "frequency of tokens by rank",
            ),
        },
    )


@dg.asset(
    group_name=GROUP,
    kinds={"parquet", "numpy"},
    owners=OWNERS,
    io_manager_key="sequences_io",
    code_version="1",
    metadata=depends_on_settings("max_texts")
    | columns(
        document_id=("string", "Hash of the document's text, as in the cleaned corpus"),
        ids=("list<uint16 or uint32>", "Ids of the base tokenizer, in order"),
    ),
)
def token_sequences(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    cleaned_corpus: CleanedCorpus,
    original_tokenizer: TokenizerFolder,
    pretoken_counts: pl.DataFrame,
    token_stats: pl.DataFrame,
) -> dg.MaterializeResult[TokenSequences]:
    """The train split as ids of the base tokenizer, document by document (uint16 where the vocabulary
    fits into it, else uint32). The vanilla baseline is trained on them.
    """
    started = time.monotonic()
    encode = fast_encoder(original_tokenizer.backend(), counts_from_table(pretoken_counts).types)
    documents = islice(cleaned_corpus.documents("train"), settings.max_texts or None)
    with settings.staged("token_sequences") as folder:
        tokens = write_token_sequences(_tracked(context, documents, cleaned_corpus, "encoding"), encode, folder)
        sequences = TokenSequences(folder)
        differing = np.flatnonzero(sequences.frequencies(len(token_stats)) != token_stats["frequency"].to_numpy())
        if len(differing):
            raise RuntimeError(
                f"the id sequences and the pre-token counts differ on {len(differing)} ids, the first {differing[0]}: "
                "two libraries read the tokenizer differently; please report this tokenizer"
            )
    seconds = time.monotonic() - started
    return dg.MaterializeResult(
        value=sequences,
        data_version=dg.DataVersion(content_hash(folder)),
        metadata={"tokens": tokens, "seconds": round(seconds, 2), "tokens_per_second": round(tokens / seconds)},
    )


def _tracked(context: dg.AssetExecutionContext, items: Iterator[T], corpus: CleanedCorpus, label: str) -> Iterator[T]:
    total, advance = corpus.count("train"), track(context.log, label, "documents")
    for done, item in enumerate(items, start=1):
        yield item
        if done % 64 == 0:
            advance(done, total)
