"""Statistics of the train split under the base tokenizer: three assets computed in one pass over the text."""

import time
from collections.abc import Iterator
from typing import Any

import dagster as dg
import numpy as np
import polars as pl

from ivr_dagster.assets import OWNERS
from ivr_dagster.assets.display import columns, curves, inline_png
from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.tokenizer.bpe import strings_by_id
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokens.counts import counts_table, frequency_table
from ivr_dagster.core.tokens.display import markdown_table
from ivr_dagster.core.tokens.sequences import TokenSequences
from ivr_dagster.core.tokens.statistics import CorpusStatistics, read_statistics
from ivr_dagster.resources.progress import track
from ivr_dagster.resources.settings import SettingsResource
from ivr_dagster.storage.content_hash import content_hash

GROUP = "tokens"
FROM_SEQUENCES = {dg.AssetKey("token_sequences")}


@dg.multi_asset(
    name="token_statistics",
    group_name=GROUP,
    can_subset=True,
    internal_asset_deps={
        "token_sequences": {dg.AssetKey("cleaned_corpus"), dg.AssetKey("original_tokenizer")},
        "pretoken_counts": FROM_SEQUENCES,
        "token_stats": FROM_SEQUENCES,
    },
    outs={
        "token_sequences": dg.AssetOut(
            description="The train split as ids of the base tokenizer, document by document. The vanilla baseline is "
            "trained on them. The text is read once, part by part, for these ids, the token frequencies and the "
            "pre-token counts; unchanged parts are not read again.",
            is_required=False,
            kinds={"parquet", "numpy"},
            owners=OWNERS,
            io_manager_key="sequences_io",
            code_version="1",
            metadata=columns(
                document_id=("string", "Hash of the text, as in the cleaned corpus"),
                ids=("list<uint16 or uint32>", "Ids of the base tokenizer, uint16 if the vocabulary fits"),
            ),
        ),
        "pretoken_counts": dg.AssetOut(
            description="How often each pre-token type occurs in the train split. A pre-token is a piece of text that "
            "the base tokenizer encodes independently: a word with its space, a run of digits or symbols. New tokens "
            "within pre-tokens depend only on these counts.",
            is_required=False,
            kinds={"parquet", "polars"},
            owners=OWNERS,
            io_manager_key="parquet_io",
            code_version="1",
            metadata=columns(
                pretoken=("string", "Text of the pre-token"),
                count=("int64", "Occurrences in the train split"),
                kind=("string", "`pretoken`, or `added` for tokens such as <|endoftext|> in the text"),
            ),
        ),
        "token_stats": dg.AssetOut(
            description="How often each id of the base tokenizer occurs in the train split, including zeros. Ids that "
            "the domain never uses can be reassigned to strings that it uses often.",
            is_required=False,
            kinds={"parquet", "polars"},
            owners=OWNERS,
            io_manager_key="parquet_io",
            code_version="1",
            metadata=columns(
                token_id=("uint32", "Id in the base tokenizer"),
                token=("string", "String of the token in the byte-level alphabet"),
                text=("string", "Text of the token, with U+FFFD for incomplete characters"),
                frequency=("int64", "Occurrences in the train split"),
            ),
        ),
    },
)
def token_statistics(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    cleaned_corpus: CleanedCorpus,
    original_tokenizer: TokenizerFolder,
) -> Iterator[dg.MaterializeResult[Any]]:
    """Counts pre-tokens and encodes the train split, then yields the selected assets."""
    started = time.monotonic()
    selected = {key.path[-1] for key in context.selected_asset_keys}
    cache = settings.paths.shard_cache("token_statistics")
    with cache.locked():
        statistics = read_statistics(
            cleaned_corpus,
            original_tokenizer.path / "tokenizer.json",
            cache,
            max_texts=settings.corpus.max_texts,
            max_types=settings.tokenizer.max_pretoken_types,
            run=settings.map_shards,
            progress=track(context.log, "counting and encoding", "documents"),
        )
        seconds = time.monotonic() - started
        if reencoded := statistics.totals["reencoded"]:
            context.log.warning(
                f"gigatoken is not exact for this tokenizer: tokenizers encoded {reencoded:,} documents"
            )
        if "token_sequences" in selected:
            yield _sequences_result(settings, statistics, seconds)
        if "pretoken_counts" in selected:
            yield _counts_result(statistics, seconds)
        if "token_stats" in selected:
            yield _frequencies_result(statistics, original_tokenizer)


def _sequences_result(
    settings: SettingsResource, statistics: CorpusStatistics, seconds: float
) -> dg.MaterializeResult[TokenSequences]:
    with settings.staging("token_sequences") as folder:
        version = statistics.write_sequences(folder)
    tokens = statistics.totals["tokens"]
    return dg.MaterializeResult(
        asset_key="token_sequences",
        value=TokenSequences(folder),
        data_version=dg.DataVersion(version),
        metadata={"tokens": tokens, "seconds": round(seconds, 2), "tokens_per_second": round(tokens / seconds)},
    )


def _counts_result(statistics: CorpusStatistics, seconds: float) -> dg.MaterializeResult[pl.DataFrame]:
    counts, types = statistics.pretoken_counts()
    table = counts_table(counts)
    return dg.MaterializeResult(
        asset_key="pretoken_counts",
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


def _frequencies_result(statistics: CorpusStatistics, tokenizer: TokenizerFolder) -> dg.MaterializeResult[pl.DataFrame]:
    strings = strings_by_id(tokenizer.backend())
    frequencies = statistics.frequencies(len(strings))
    table = frequency_table(strings, frequencies)
    tokens, unused = int(frequencies.sum()), int((frequencies == 0).sum())
    used = np.sort(frequencies[frequencies > 0])[::-1]
    return dg.MaterializeResult(
        asset_key="token_stats",
        value=table,
        data_version=dg.DataVersion(content_hash(table)),
        metadata={
            "vocabulary_size": len(table),
            "tokens": tokens,
            "bytes_per_token": statistics.totals["bytes"] / max(tokens, 1),
            "unused_ids": unused,
            "unused_share": unused / len(table),
            "most frequent": dg.MetadataValue.md(markdown_table(table.sort("frequency", descending=True).head(20))),
            "frequency by rank": inline_png(
                curves(range(1, len(used) + 1), {"frequency": used}, x="rank", y="occurrences", logarithmic=True),
                "frequency of tokens by rank",
            ),
        },
    )
