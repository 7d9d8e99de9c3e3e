"""Embeddings: taken out of the base model, reordered to the remapped tokenizer, new rows initialized, put back."""

import json
import time
from itertools import islice
from typing import TYPE_CHECKING, Any

import dagster as dg

from ivr_dagster.assets import OWNERS
from ivr_dagster.assets.display import curves, histograms, inline_png
from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.corpus.subset import document_sizes, ids_within, validation_ids
from ivr_dagster.core.embedding.extract import read_embeddings, write_model
from ivr_dagster.core.embedding.initialize import STRATEGIES, initialize_embeddings
from ivr_dagster.core.embedding.reorder import check_new_ids, reorder_embeddings, row_sources
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.tokenizer.bpe import strings_by_id
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokenizer.write import write_copy
from ivr_dagster.core.tokens.sequences import reference_encoder
from ivr_dagster.core.vocabulary.rules import RemapRules
from ivr_dagster.resources.accelerator import POOL, Accelerator, AcceleratorResource
from ivr_dagster.resources.base_model import BaseModelResource
from ivr_dagster.resources.progress import track
from ivr_dagster.resources.settings import SettingsResource
from ivr_dagster.storage.content_hash import content_hash

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GROUP = "embedding"
# base tokens of a snippet, and of the context that bits per byte are measured with
SNIPPET_TOKENS = 512
# bytes of text that bits per byte before and after are measured on
MEASURED_BYTES = 40_000


@dg.asset(
    deps=["base_model"],
    group_name=GROUP,
    kinds={"safetensors", "pytorch"},
    owners=OWNERS,
    io_manager_key="tensors_io",
    code_version="2",
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
    bpe = original_tokenizer.bpe()
    sources = row_sources(bpe.ids, strings_by_id(remapped_tokenizer.backend()))
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
    kinds={"safetensors", "pytorch"},
    owners=OWNERS,
    io_manager_key="tensors_io",
    pool=POOL,
    code_version="2",
)
def fitted_embeddings(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    base: BaseModelResource,
    accelerator: AcceleratorResource,
    cleaned_corpus: CleanedCorpus,
    original_embeddings: dict[str, Any],
    reordered_embeddings: dict[str, Any],
    original_tokenizer: TokenizerFolder,
    remapped_tokenizer: TokenizerFolder,
    remap_rules: RemapRules,
) -> dg.MaterializeResult[dict[str, Any]]:
    """The reordered embeddings with the rows of new tokens initialized, calibrated and, where it is wanted, fitted.

    Initialized from the base's rows, then calibrated: each new token becomes as probable, over a part of the train
    split, as it is frequent there. Fitted by token distillation: the frozen base model reads text with the new
    tokens' rows, which learn to stand for their constituents and to be predicted in their place. Rows of kept tokens
    stay bit for bit. Bits per byte before and after that fit are of other documents of the split.
    """
    import torch

    bpe = original_tokenizer.bpe()
    constituents = {rule.id: [bpe.ids[part] for part in rule.constituents] for rule in remap_rules}
    check_new_ids(row_sources(bpe.ids, strings_by_id(remapped_tokenizer.backend())), constituents)
    tensors = initialize_embeddings(
        reordered_embeddings,
        original_embeddings,
        constituents,
        strategy=settings.embedding.init_strategy,
        seed=settings.compute.seed,
        vocabulary_size=bpe.size,
    )
    figures: dict[str, Any] = {"calibrated": False, "token_distillation": False}
    if constituents and (settings.embedding.calibration_bytes or settings.embedding.token_distillation_bytes):
        text = _Text(settings, cleaned_corpus, remapped_tokenizer)
        folder = base.model()
        model, length = folder.load("float32"), _snippet_tokens(folder)
        if settings.embedding.calibration_bytes:
            tensors, found = _calibrated(
                context, settings, accelerator, model, length, text, tensors, list(constituents)
            )
            figures |= found
        if settings.embedding.token_distillation_bytes:
            new_tokens = remap_rules.new_tokens()
            tensors, found = _distilled(
                context,
                settings,
                accelerator,
                model,
                length,
                text,
                original_embeddings,
                tensors,
                new_tokens,
                constituents,
            )
            figures |= found
    norms = tensors["wte"][: bpe.size].norm(dim=1, dtype=torch.float32)
    new = sorted(constituents)
    return dg.MaterializeResult(
        value=tensors,
        data_version=dg.DataVersion(content_hash(tensors)),
        metadata={
            "strategy": f"{settings.embedding.init_strategy}: "
            + STRATEGIES[settings.embedding.init_strategy].description,
            "new_rows": len(new),
            "mean_norm_of_new_rows": float(norms[new].mean()) if new else 0.0,
            "mean_norm_of_all_rows": float(norms.mean()),
            **_norms(original_embeddings["wte"], tensors["wte"], new, bpe.size),
            **figures,
        },
    )


@dg.asset(
    deps=["base_model"],
    group_name=GROUP,
    kinds={"huggingface", "pytorch"},
    owners=OWNERS,
    io_manager_key="model_io",
    code_version="3",
)
def initialized_model(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    base: BaseModelResource,
    fitted_embeddings: dict[str, Any],
    remapped_tokenizer: TokenizerFolder,
) -> dg.MaterializeResult[ModelFolder]:
    """The base model with the remapped tokenizer and the fitted embeddings, all else byte for byte as it was.

    The base's files are copied and its embedding overwritten in the copy; the model is not loaded.
    """
    started = time.monotonic()
    with settings.staging("initialized_model") as folder:
        layout = write_model(
            base.model().path, fitted_embeddings, folder, progress=track(context.log, "copying", "bytes")
        )
        write_copy(remapped_tokenizer, folder)
    return dg.MaterializeResult(
        value=ModelFolder(folder),
        data_version=dg.DataVersion(content_hash(folder)),
        metadata={"parameters": layout.parameters, "seconds": round(time.monotonic() - started, 2)},
    )


def _norms(before: Any, after: Any, new: list[int], size: int) -> dict[str, dg.MetadataValue]:
    """A picture of the row norms of the ids that changed their string, before and after, beside all of the base."""
    import torch

    if not new:
        return {}
    base, now = (matrix[:size].norm(dim=1, dtype=torch.float32).numpy() for matrix in (before, after))
    groups = {"all rows of the base": base, "sacrificed tokens, before": base[new], "new tokens, after": now[new]}
    picture = histograms(groups, x="norm of an embedding row", y="share of rows")
    return {"row norms": inline_png(picture, "row norms before and after")}


class _Text:
    """The train split as rows are fitted to it, without the documents that training validates on."""

    def __init__(self, settings: SettingsResource, corpus: CleanedCorpus, tokenizer: TokenizerFolder) -> None:
        self._corpus = corpus
        self._sizes = document_sizes(islice(corpus.documents("train"), settings.corpus.max_texts or None))
        self._validation, _ = validation_ids(
            self._sizes, settings.training.validation_bytes, settings.training.train_bytes
        )
        self.encode, self.eos_id = reference_encoder(tokenizer.backend()), tokenizer.end_of_text_id()

    def to_fit(self, most_bytes: int) -> tuple[list[str], int]:
        """Documents of about so many bytes, and how many these are."""
        return self._within({i: size for i, size in self._sizes.items() if i not in self._validation}, most_bytes)

    def to_measure(self) -> list[str]:
        """Documents that are validated on, `MEASURED_BYTES` of them."""
        return self._within({i: self._sizes[i] for i in self._validation}, MEASURED_BYTES)[0]

    def _within(self, sizes: dict[str, int], most_bytes: int) -> tuple[list[str], int]:
        wanted, size = ids_within(sizes, most_bytes)
        texts = {i: text for i, text in self._corpus.documents("train") if i in wanted}
        return [texts[i] for i in sorted(wanted)], size


def _snippet_tokens(model: ModelFolder) -> int:
    return min(SNIPPET_TOKENS, model.context() or SNIPPET_TOKENS)


def _calibrated(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    accelerator: Accelerator,
    model: "PreTrainedModel",
    length: int,
    text: _Text,
    initial: dict[str, Any],
    new_ids: list[int],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The embeddings with new rows calibrated, and its figures."""
    from ivr_dagster.core.embedding.calibrate import MIN_EXPLAINED, calibrate_new_rows

    started = time.monotonic()
    most = min(
        settings.embedding.calibration_bytes, settings.training.train_bytes or settings.embedding.calibration_bytes
    )
    texts, size = text.to_fit(most)
    calibration = calibrate_new_rows(
        model,
        initial,
        new_ids,
        text.encode(texts),
        eos_id=text.eos_id,
        length=length,
        seed=settings.compute.seed,
        device=accelerator.resolved_device(),
        dtype=accelerator.resolved_dtype(),
        progress=track(context.log, "calibration", "tokens"),
    )
    done = calibration.is_applied
    if not done:
        context.log.warning(
            f"new rows stay as initialized: hidden states of this model have no common direction to calibrate along "
            f"(one explains {calibration.explained:.0%} of a constant, {MIN_EXPLAINED:.0%} are needed)"
        )
    return calibration.tensors, {
        "calibrated": done,
        "calibration_bytes": size,
        "calibration_tokens": calibration.tokens,
        "calibration_direction_explains": round(calibration.explained, 4),
        "calibration_seconds": round(time.monotonic() - started, 2),
    }


def _distilled(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    accelerator: Accelerator,
    model: "PreTrainedModel",
    length: int,
    text: _Text,
    original: dict[str, Any],
    initial: dict[str, Any],
    new_tokens: dict[int, str],
    constituents: dict[int, list[int]],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The embeddings after token distillation, and its figures; stopped, it goes on from its checkpoint."""
    from ivr_dagster.core.embedding.extract import replace_embeddings
    from ivr_dagster.core.embedding.token_distillation import cut_snippets, fit_new_rows
    from ivr_dagster.core.evaluation.bits_per_byte import bits_per_byte

    started = time.monotonic()
    replace_embeddings(model, initial)
    measured = text.to_measure()
    texts, size = text.to_fit(settings.embedding.token_distillation_bytes)
    sequences = [ids.tolist() for ids in text.encode(texts)]
    snippets = list(cut_snippets(sequences, constituents, eos_id=text.eos_id, length=length))
    device, dtype = accelerator.resolved_device(), accelerator.resolved_dtype()

    def bpb(tensors: dict[str, Any]) -> float | None:
        if not measured:
            return None
        replace_embeddings(model, tensors)
        return bits_per_byte(
            model,
            text.encode,
            measured,
            eos_id=text.eos_id,
            context=length,
            device=device,
            progress=track(context.log, "bits per byte", "tokens"),
        ).bpb

    before = bpb(initial)
    advance = track(context.log, "token distillation", "steps")
    checkpoint = settings.paths["fitted_embeddings"].with_name(".token_distillation.safetensors")
    options: dict[str, Any] = {
        "learning_rate": settings.embedding.token_distillation_learning_rate,
        "hidden_weight": settings.embedding.token_distillation_hidden_weight,
        "seed": settings.compute.seed,
        "device": device,
        "dtype": dtype,
    }
    texts_and_rules = json.dumps([sequences, sorted(constituents.items()), {k: str(v) for k, v in options.items()}])
    fitted = fit_new_rows(
        model,
        original,
        initial,
        new_tokens,
        snippets,
        **options,
        checkpoint=checkpoint,
        run=content_hash(content_hash(original) + content_hash(initial) + texts_and_rules),
        progress=lambda done, steps, _: advance(done, steps),
    )
    after = bpb(fitted.tensors)
    checkpoint.unlink(missing_ok=True)
    steps, losses = zip(*fitted.losses, strict=True)
    return fitted.tensors, {
        "token_distillation": True,
        "distillation_bytes": size,
        "distillation_tokens": fitted.tokens,
        "distillation_base_tokens": fitted.base_tokens,
        "resumed_from_step": fitted.resumed_from or 0,
        "seconds": round(time.monotonic() - started, 2),
        **({"bpb_before": before, "bpb_after": after} if before is not None and after is not None else {}),
        "token distillation": inline_png(curves(steps, {"loss": losses}, x="step", y="loss"), "token distillation"),
    }


def _shape(tensors: dict[str, Any]) -> dict[str, Any]:
    rows, columns = tensors["wte"].shape
    return {"rows": rows, "columns": columns, "dtype": str(tensors["wte"].dtype).removeprefix("torch.")}
