"""Checks that kept rows are bitwise the base model's after reordering and in the initialized model."""

from typing import Any

import dagster as dg

from ivr_dagster.asset_checks import beside, verdict
from ivr_dagster.core.embedding.extract import read_embeddings
from ivr_dagster.core.embedding.reorder import kept_rows_equal, row_sources
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.tokenizer.bpe import strings_by_id
from ivr_dagster.core.tokenizer.folder import TokenizerFolder


@dg.asset_check(
    asset="reordered_embeddings",
    name="kept_rows_bitwise",
    blocking=True,
    additional_ins=beside("original_embeddings", "remapped_tokenizer"),
)
def reordered_kept_rows(
    reordered_embeddings: dict[str, Any], original_embeddings: dict[str, Any], remapped_tokenizer: TokenizerFolder
) -> dg.AssetCheckResult:
    """Rows of kept tokens are bitwise the base model's."""
    return _compare_kept_rows(original_embeddings, reordered_embeddings, remapped_tokenizer)


@dg.asset_check(
    asset="initialized_model",
    name="kept_rows_bitwise",
    blocking=True,
    additional_ins=beside("original_embeddings"),
)
def initialized_kept_rows(initialized_model: ModelFolder, original_embeddings: dict[str, Any]) -> dg.AssetCheckResult:
    """Rows of kept tokens in the saved model are bitwise the base model's."""
    path = initialized_model.path
    return _compare_kept_rows(original_embeddings, read_embeddings(path), TokenizerFolder(path))


def _compare_kept_rows(base: dict[str, Any], other: dict[str, Any], tokenizer: TokenizerFolder) -> dg.AssetCheckResult:
    sources = row_sources(tokenizer.base_bpe().ids, strings_by_id(tokenizer.backend()))
    new = sum(source < 0 for source in sources)
    return verdict(
        kept_rows_equal(base, other, sources),
        remedy="Materialize the embeddings again, starting with original_embeddings. Base model and tokenizers must"
        " belong together.",
        kept_rows=len(base["wte"]) - new,
        new_rows=new,
    )
