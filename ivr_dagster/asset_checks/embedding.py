"""Kept rows are the base's, bit for bit, wherever rows were moved or filled in."""

from typing import Any

import dagster as dg

from ivr_dagster.asset_checks import beside, verdict
from ivr_dagster.core.embedding.extract import read_embeddings
from ivr_dagster.core.embedding.reorder import kept_rows_equal, row_sources
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.tokenizer.bpe import strings_by_id
from ivr_dagster.core.tokenizer.folder import TokenizerFolder

REMEDY = (
    "Materialize the embeddings again, from original_embeddings on; the model and its tokenizers must belong together."
)


@dg.asset_check(
    asset="reordered_embeddings",
    name="kept_rows_bitwise",
    blocking=True,
    additional_ins=beside("original_embeddings", "original_tokenizer", "remapped_tokenizer"),
)
def reordered_kept_rows(
    reordered_embeddings: dict[str, Any],
    original_embeddings: dict[str, Any],
    original_tokenizer: TokenizerFolder,
    remapped_tokenizer: TokenizerFolder,
) -> dg.AssetCheckResult:
    """Rows of tokens that kept their string are bitwise the base model's."""
    return _kept(original_embeddings, reordered_embeddings, original_tokenizer, remapped_tokenizer)


@dg.asset_check(
    asset="initialized_model",
    name="kept_rows_bitwise",
    blocking=True,
    additional_ins=beside("original_embeddings", "original_tokenizer", "remapped_tokenizer"),
)
def initialized_kept_rows(
    initialized_model: ModelFolder,
    original_embeddings: dict[str, Any],
    original_tokenizer: TokenizerFolder,
    remapped_tokenizer: TokenizerFolder,
) -> dg.AssetCheckResult:
    """In the saved model, too, rows of tokens that kept their string are bitwise the base model's."""
    return _kept(original_embeddings, read_embeddings(initialized_model.path), original_tokenizer, remapped_tokenizer)


def _kept(
    base: dict[str, Any], other: dict[str, Any], original: TokenizerFolder, remapped: TokenizerFolder
) -> dg.AssetCheckResult:
    sources = row_sources(original.bpe().ids, strings_by_id(remapped.backend()))
    new = sum(source < 0 for source in sources)
    return verdict(kept_rows_equal(base, other, sources), remedy=REMEDY, kept_rows=len(base["wte"]) - new, new_rows=new)
