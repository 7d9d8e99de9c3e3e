"""Embeddings: taken out of the base model, re-ordered to the remapped tokenizer, new rows initialised, put back."""

import time
from typing import Any

import dagster as dg

from ivr_dagster.assets import OWNERS, depends_on_settings
from ivr_dagster.core.content_hash import content_hash
from ivr_dagster.core.embedding.extract import read_embeddings, write_model
from ivr_dagster.core.embedding.initialize import STRATEGIES, initialize_embeddings
from ivr_dagster.core.embedding.reorder import reorder_embeddings, row_sources
from ivr_dagster.core.handles import ModelFolder, TokenizerFolder
from ivr_dagster.core.tokenizer.bpe import read_bpe, strings_by_id
from ivr_dagster.core.vocabulary.remap import RemapRules
from ivr_dagster.progress import track
from ivr_dagster.resources.base_model import BaseModelResource
from ivr_dagster.resources.settings import SettingsResource

GROUP = "embedding"


@dg.asset(
    deps=["base_model"],
    group_name=GROUP,
    kinds={"safetensors", "pytorch"},
    owners=OWNERS,
    io_manager_key="tensors_io",
    code_version="2",
    metadata=depends_on_settings("model_name", "revision"),
)
def original_embeddings(base: BaseModelResource) -> dg.MaterializeResult[dict[str, Any]]:
    """The base model's embedding matrices by base id: `wte` [V, d], and `lm_head` [V, d] where it is not tied to it.

    They are read out of the model's files in the dtype they are stored in; the model is not loaded.
    """
    tensors = read_embeddings(base.model().path)
    return dg.MaterializeResult(
        value=tensors,
        data_version=dg.DataVersion(content_hash(tensors)),
        metadata=_shape(tensors) | {"tied": "lm_head" not in tensors},
    )


@dg.asset(
    group_name=GROUP, kinds={"safetensors", "pytorch"}, owners=OWNERS, io_manager_key="tensors_io", code_version="1"
)
def reordered_embeddings(
    original_embeddings: dict[str, Any], original_tokenizer: TokenizerFolder, remapped_tokenizer: TokenizerFolder
) -> dg.MaterializeResult[dict[str, Any]]:
    """The base's rows in the order of the remapped tokenizer: kept rows bit for bit, rows of new tokens zero."""
    bpe = read_bpe(original_tokenizer.backend())
    sources = row_sources(bpe.ids, strings_by_id(remapped_tokenizer.backend()))
    tensors = reorder_embeddings(original_embeddings, sources)
    new = sum(source < 0 for source in sources)
    return dg.MaterializeResult(
        value=tensors,
        data_version=dg.DataVersion(content_hash(tensors)),
        metadata=_shape(tensors) | {"kept_rows": len(sources) - new, "new_rows": new},
    )


@dg.asset(
    group_name=GROUP,
    kinds={"huggingface", "pytorch"},
    owners=OWNERS,
    io_manager_key="model_io",
    code_version="2",
    metadata=depends_on_settings("init_strategy", "seed", "model_name", "revision"),
)
def initialized_model(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    base: BaseModelResource,
    original_embeddings: dict[str, Any],
    reordered_embeddings: dict[str, Any],
    original_tokenizer: TokenizerFolder,
    remapped_tokenizer: TokenizerFolder,
    remap_rules: RemapRules,
) -> dg.MaterializeResult[ModelFolder]:
    """The base model with the remapped tokenizer, its new rows initialised, all else byte for byte as it was.

    The base's files are copied and its embedding overwritten in the copy; the model is not loaded.
    """
    import torch

    started = time.monotonic()
    bpe = read_bpe(original_tokenizer.backend())
    constituents = {rule.id: [bpe.ids[part] for part in rule.constituents] for rule in remap_rules}
    tensors = initialize_embeddings(
        reordered_embeddings,
        original_embeddings,
        constituents,
        strategy=settings.init_strategy,
        seed=settings.seed,
        vocabulary_size=bpe.size,
    )
    with settings.staged("initialized_model") as folder:
        layout = write_model(base.model().path, tensors, folder, progress=track(context.log, "copying", "bytes"))
        remapped_tokenizer.load().save_pretrained(folder)
    norms = tensors["wte"][: bpe.size].norm(dim=1, dtype=torch.float32)
    new = sorted(constituents)
    return dg.MaterializeResult(
        value=ModelFolder(folder),
        data_version=dg.DataVersion(content_hash(folder)),
        metadata={
            "strategy": f"{settings.init_strategy}: {STRATEGIES[settings.init_strategy].description}",
            "new_rows": len(new),
            "parameters": layout.parameters,
            "mean_norm_of_new_rows": float(norms[new].mean()) if new else 0.0,
            "mean_norm_of_all_rows": float(norms.mean()),
            "seconds": round(time.monotonic() - started, 2),
        },
    )


def _shape(tensors: dict[str, Any]) -> dict[str, Any]:
    rows, columns = tensors["wte"].shape
    return {"rows": rows, "columns": columns, "dtype": str(tensors["wte"].dtype).removeprefix("torch.")}
