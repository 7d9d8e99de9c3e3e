"""Token statistics of the train split under the base tokenizer."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
import numpy as np
import polars as pl

from ivr_dagster.assets import OWNERS
from ivr_dagster.assets.display import columns, curves, inline_png, markdown_table
from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.tokenizer.bpe import strings_by_id
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokens.counts import counts_from_table, counts_table, frequency_table, token_frequencies
from ivr_dagster.core.tokens.sequences import TokenSequences, ids_of_types
from ivr_dagster.core.tokens.statistics import CorpusStatistics, read_statistics
from ivr_dagster.errors import InputError
from ivr_dagster.resources.progress import track
from ivr_dagster.resources.settings import SettingsResource
from ivr_dagster.storage.content_hash import content_hash

GROUP = "tokens"


@dg.asset(
    group_name=GROUP,
    kinds={"parquet", "polars"},
    owners=OWNERS,
    io_manager_key="parquet_io",
    code_version="1",
    metadata=columns(
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
    with its space, a run of digits, of symbols) stands in the train split. All new tokens inside pre-tokens follow
    from these counts alone. The text is read once, part by part, for these counts, the token frequencies and the id
    sequences together; parts that stay as they are are not read again.
    """
    started = time.monotonic()
    with _statistics(context, settings, cleaned_corpus, original_tokenizer) as statistics:
        counts, types = statistics.pretoken_counts()
    table, seconds = counts_table(counts), time.monotonic() - started
    return dg.MaterializeResult(
        value=table,
        data_version=dg.DataVersion(content_hash(table)),
        metadata={
            "documents": counts.texts,
            "bytes": counts.bytes,
            "pretoken_types": types,
            "pretoken_types_kept": len(counts.types),
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
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    cleaned_corpus: CleanedCorpus,
    original_tokenizer: TokenizerFolder,
    pretoken_counts: pl.DataFrame,
) -> dg.MaterializeResult[pl.DataFrame]:
    """How often the base tokenizer yields each of its ids on the train split, zeros included: ids that
    the domain never uses are those that can be given to strings it uses all the time.
    """
    tokenizer = original_tokenizer.backend()
    counts = counts_from_table(pretoken_counts)
    expected = token_frequencies(counts, tokenizer, ids_of_types(tokenizer, counts.types))
    for reference in (False, True):
        with _statistics(context, settings, cleaned_corpus, original_tokenizer, reference=reference) as statistics:
            frequencies, totals = statistics.frequencies(len(expected)), statistics.totals
        # types that were not kept bring what is missing
        all_kept = counts.occurrences == totals["pretokens"]
        differing = expected != frequencies if all_kept else expected > frequencies
        if not differing.any():
            break
        context.log.warning(f"a fast encoder is not exact on {differing.sum():,} ids of this tokenizer and is left out")
    else:
        raise RuntimeError(
            f"the id sequences and the pre-token counts differ on {differing.sum()} ids, the first "
            f"{differing.argmax()}: the libraries read this tokenizer differently; please report it"
        )
    table = frequency_table(strings_by_id(tokenizer), frequencies)
    tokens, unused = int(frequencies.sum()), int((frequencies == 0).sum())
    used = np.sort(frequencies[frequencies > 0])[::-1]
    return dg.MaterializeResult(
        value=table,
        data_version=dg.DataVersion(content_hash(table)),
        metadata={
            "vocabulary_size": len(table),
            "tokens": tokens,
            "bytes_per_token": totals["bytes"] / max(tokens, 1),
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
    metadata=columns(
        document_id=("string", "Hash of the document's text, as in the cleaned corpus"),
        ids=("list<uint16 or uint32>", "Ids of the base tokenizer, in order"),
    ),
)
def token_sequences(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    cleaned_corpus: CleanedCorpus,
    original_tokenizer: TokenizerFolder,
    token_stats: pl.DataFrame,
) -> dg.MaterializeResult[TokenSequences]:
    """The train split as ids of the base tokenizer, document by document (uint16 where the vocabulary
    fits into it, else uint32). The vanilla baseline is trained on them.
    """
    started = time.monotonic()
    expected = token_stats["frequency"].to_numpy()
    for reference in (False, True):  # as it was for `token_stats`
        with _statistics(context, settings, cleaned_corpus, original_tokenizer, reference=reference) as statistics:
            if not np.array_equal(statistics.frequencies(len(expected)), expected):
                context.log.warning("token_stats was not made of these sequences, all text is encoded by `tokenizers`")
                continue
            with settings.staging("token_sequences") as folder:
                version = statistics.write_sequences(folder)
            tokens, seconds = statistics.totals["tokens"], time.monotonic() - started
            break
    else:
        raise InputError(
            "token_stats is of another text than the cleaned corpus",
            where=settings.paths["token_stats"],
            remedy="Materialize pretoken_counts and token_stats first: `ivr analyze`.",
        )
    return dg.MaterializeResult(
        value=TokenSequences(folder),
        data_version=dg.DataVersion(version),
        metadata={"tokens": tokens, "seconds": round(seconds, 2), "tokens_per_second": round(tokens / seconds)},
    )


@contextmanager
def _statistics(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    corpus: CleanedCorpus,
    tokenizer: TokenizerFolder,
    *,
    reference: bool = False,
) -> Iterator[CorpusStatistics]:
    """The statistics of all parts; only the first asset that asks for them has them made."""
    results = settings.paths.shard_cache("token_statistics")
    with results.alone():
        yield read_statistics(
            corpus,
            tokenizer.path / "tokenizer.json",
            results,
            max_texts=settings.corpus.max_texts,
            max_types=settings.tokenizer.max_pretoken_types,
            reference=reference,
            run=settings.map_shards,
            progress=track(context.log, "counting and encoding", "documents"),
        )
