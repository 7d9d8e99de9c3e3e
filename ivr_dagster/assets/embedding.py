"""Embeddings: extracted from the base model, reordered to the remapped tokenizer, fitted, and written into a copy."""

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import dagster as dg

from ivr_dagster.assets import OWNERS
from ivr_dagster.assets.display import curves, histograms, inline_png
from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.embedding.calibrate import MIN_EXPLAINED
from ivr_dagster.core.embedding.extract import read_embeddings, write_model
from ivr_dagster.core.embedding.fit import EmbeddingFit, FitOptions, FittedEmbeddings, fit_embeddings
from ivr_dagster.core.embedding.initialize import STRATEGIES
from ivr_dagster.core.embedding.reorder import reorder_embeddings, row_sources
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.scoring.bits_per_byte import ScoringTokenizer, bits_per_byte
from ivr_dagster.core.tokenizer.bpe import strings_by_id
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokenizer.write import write_copy
from ivr_dagster.resources.accelerator import POOL, AcceleratorResource
from ivr_dagster.resources.base_model import BaseModelResource
from ivr_dagster.resources.progress import track
from ivr_dagster.resources.settings import SettingsResource
from ivr_dagster.storage.content_hash import content_hash

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GROUP = "embedding"
KINDS = {"safetensors", "pytorch"}


@dg.asset(
    deps=["base_model"],
    group_name=GROUP,
    kinds=KINDS,
    owners=OWNERS,
    io_manager_key="tensors_io",
    code_version="2",
)
def original_embeddings(base: BaseModelResource) -> dg.MaterializeResult[dict[str, Any]]:
    """The base model's embedding matrices by base id: `wte` [V, d], and `lm_head` [V, d] unless tied.

    Read from the model's files in the stored dtype, without loading the model.
    """
    tensors = read_embeddings(base.model().path)
    return dg.MaterializeResult(
        value=tensors,
        data_version=dg.DataVersion(content_hash(tensors)),
        metadata=_shape(tensors) | {"tied": "lm_head" not in tensors},
    )


@dg.asset(group_name=GROUP, kinds=KINDS, owners=OWNERS, io_manager_key="tensors_io", code_version="1")
def reordered_embeddings(
    original_embeddings: dict[str, Any], remapped_tokenizer: TokenizerFolder
) -> dg.MaterializeResult[dict[str, Any]]:
    """The base model's rows in the order of the remapped tokenizer: kept rows bit for bit, rows of new tokens zero."""
    sources = row_sources(remapped_tokenizer.base_bpe().ids, strings_by_id(remapped_tokenizer.backend()))
    tensors = reorder_embeddings(original_embeddings, sources)
    new = sum(source < 0 for source in sources)
    return dg.MaterializeResult(
        value=tensors,
        data_version=dg.DataVersion(content_hash(tensors)),
        metadata=_shape(tensors) | {"kept_rows": len(sources) - new, "new_rows": new},
    )


@dg.asset(
    deps=["base_model"],
    group_name=GROUP,
    kinds=KINDS,
    owners=OWNERS,
    io_manager_key="fitted_embeddings_io",
    pool=POOL,
    code_version="3",
)
def fitted_embeddings(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    base: BaseModelResource,
    accelerator: AcceleratorResource,
    cleaned_corpus: CleanedCorpus,
    reordered_embeddings: dict[str, Any],
    remapped_tokenizer: TokenizerFolder,
) -> dg.MaterializeResult[FittedEmbeddings]:
    """The reordered embeddings with the rows of new tokens initialized, calibrated and, if enabled, distilled.

    Initialization uses the base model's rows. Calibration makes each new token as probable as it is frequent in a part
    of the train split. Token distillation trains the new rows, all else frozen, to replace their constituents in the
    base model. Kept rows stay bit for bit. Bits per byte before and after distillation are on validation documents.
    The safetensors metadata records how many tokens were computed.
    """
    started = time.monotonic()
    remapped = remapped_tokenizer.in_form(settings.tokenizer.tokenizer_model)
    device, progress = accelerator.resolved_device(), partial(track, context.log)

    def score(model: "PreTrainedModel", texts: list[str], length: int) -> float:
        tokenizer = ScoringTokenizer.of(remapped.backend(), remapped.end_of_text_id())
        advance = progress("bits per byte", "tokens")
        return bits_per_byte(model, tokenizer, texts, context=length, device=device, progress=advance).bpb

    fit = fit_embeddings(
        base.model(),
        reordered_embeddings,
        remapped,
        cleaned_corpus,
        settings.embedding,
        settings.training,
        FitOptions(
            max_texts=settings.corpus.max_texts,
            seed=settings.compute.seed,
            device=device,
            dtype=accelerator.resolved_dtype(),
            checkpoint=settings.paths["fitted_embeddings"].with_name(".token_distillation.safetensors"),
            score=score,
            progress=progress,
        ),
    )
    if fit.calibration and not fit.calibration[0].is_applied:
        context.log.warning(
            "New rows are not calibrated: this model's hidden states have no common direction to carry a bias"
            f" (explained share {fit.calibration[0].explained:.0%}, required {MIN_EXPLAINED:.0%})."
        )
    strategy = settings.embedding.init_strategy
    return dg.MaterializeResult(
        value=fit.fitted,
        data_version=dg.DataVersion(content_hash(fit.fitted.tensors)),
        metadata={
            "strategy": f"{strategy}: {STRATEGIES[strategy].description}",
            "seconds": round(time.monotonic() - started, 2),
            **_fit_metadata(fit),
        },
    )


@dg.asset(
    deps=["base_model"],
    group_name=GROUP,
    kinds={"huggingface", "pytorch"},
    owners=OWNERS,
    io_manager_key="model_io",
    code_version="4",
)
def initialized_model(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    base: BaseModelResource,
    fitted_embeddings: FittedEmbeddings,
    remapped_tokenizer: TokenizerFolder,
) -> dg.MaterializeResult[ModelFolder]:
    """The base model with the remapped tokenizer and the fitted embeddings; everything else stays byte for byte.

    Copies the base model's files and overwrites the embeddings in the copy, without loading the model. The folder also
    holds the tokenizer's BPE form, the base tokenizer, the remap rules, and in `initialization_compute.json` the tokens
    computed so far.
    """
    started = time.monotonic()
    with settings.staging("initialized_model") as folder:
        progress = track(context.log, "copying", "bytes")
        layout = write_model(base.model().path, fitted_embeddings.tensors, folder, progress=progress)
        write_copy(remapped_tokenizer.in_form(settings.tokenizer.tokenizer_model), folder)
        fitted_embeddings.compute.write(folder)
    return dg.MaterializeResult(
        value=ModelFolder(folder),
        data_version=dg.DataVersion(content_hash(folder)),
        metadata={"parameters": layout.parameters, "seconds": round(time.monotonic() - started, 2)},
    )


def _fit_metadata(fit: EmbeddingFit) -> dict[str, Any]:
    new, norms = fit.new_ids, fit.norms
    metadata: dict[str, Any] = {
        "new_rows": len(new),
        "mean_norm_of_new_rows": float(norms[new].mean()) if new else 0.0,
        "mean_norm_of_all_rows": float(norms.mean()),
        "calibrated": fit.calibration is not None and fit.calibration[0].is_applied,
        "token_distillation": fit.distillation is not None,
    }
    if new:
        groups = {
            "all rows of the base model": fit.base_norms,
            "sacrificed tokens, before": fit.base_norms[new],
            "new tokens, after": norms[new],
        }
        picture = histograms(groups, x="norm of an embedding row", y="share of rows")
        metadata["row norms"] = inline_png(picture, "row norms before and after")
    if fit.calibration is not None:
        calibration, size = fit.calibration
        metadata |= {
            "calibration_bytes": size,
            "calibration_tokens": calibration.tokens,
            "calibration_direction_explains": round(calibration.explained, 4),
        }
    if fit.distillation is not None:
        fitted, size = fit.distillation
        steps, losses = zip(*fitted.losses, strict=True)
        metadata |= {
            "distillation_bytes": size,
            "distillation_tokens": fitted.tokens,
            "distillation_base_tokens": fitted.base_tokens,
            "resumed_from_step": fitted.resumed_from or 0,
            "token distillation": inline_png(curves(steps, {"loss": losses}, x="step", y="loss"), "token distillation"),
        }
    if fit.bpb is not None:
        metadata["bpb_before"], metadata["bpb_after"] = fit.bpb
    return metadata


def _shape(tensors: dict[str, Any]) -> dict[str, Any]:
    rows, columns = tensors["wte"].shape
    return {"rows": rows, "columns": columns, "dtype": str(tensors["wte"].dtype).removeprefix("torch.")}
