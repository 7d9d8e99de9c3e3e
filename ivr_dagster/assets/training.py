"""Fine-tuning on the domain: the adapted model, and the vanilla baseline on the same text."""

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import numpy as np

from ivr_dagster.assets import OWNERS, SFT_CONFIG, depends_on_settings
from ivr_dagster.assets.display import curves, inline_png
from ivr_dagster.core.content_hash import content_hash
from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.corpus.subset import documents_within
from ivr_dagster.core.handles import ModelFolder, TokenizerFolder, TrainedModel, TrainingBlocks
from ivr_dagster.core.tokens.sequences import TokenSequences, reference_encoder
from ivr_dagster.io_managers.artifacts import mark_folder, refuse_foreign
from ivr_dagster.progress import track
from ivr_dagster.resources.accelerator import POOL, AcceleratorResource
from ivr_dagster.resources.base_model import BaseModelResource
from ivr_dagster.resources.settings import SettingsResource

if TYPE_CHECKING:
    from ivr_dagster.core.training.sft import SftResult

GROUP = "training"
LONGEST_BLOCK = 1024


@dg.asset(
    group_name=GROUP,
    kinds={"arrow", "huggingface"},
    owners=OWNERS,
    io_manager_key="blocks_io",
    code_version="1",
    metadata=depends_on_settings("block_size", "train_bytes", "vanilla"),
)
def training_blocks(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    cleaned_corpus: CleanedCorpus,
    token_sequences: TokenSequences,
    original_tokenizer: TokenizerFolder,
    remapped_tokenizer: TokenizerFolder,
    initialized_model: ModelFolder,
) -> dg.MaterializeResult[TrainingBlocks]:
    """The train split as full blocks of tokens, documents separated by the end-of-text token; no text is cut off.

    `remapped/` holds it under the remapped tokenizer, `base/` the very same documents under the base tokenizer, for
    the vanilla baseline.
    """
    from ivr_dagster.core.training.blocks import write_blocks

    started = time.monotonic()
    block_size = settings.block_size or min(_context_of(initialized_model.path), LONGEST_BLOCK)
    encoded = {document_id for document_id, _ in token_sequences.documents()}
    train = ((document_id, text) for document_id, text in cleaned_corpus.documents("train") if document_id in encoded)
    wanted, size = documents_within(train, settings.train_bytes)
    tokenizer = remapped_tokenizer.load()
    advance = track(context.log, "packing", "documents")

    def remapped_sequences() -> Iterator[np.ndarray]:
        encode = reference_encoder(remapped_tokenizer.backend())
        for done, text in enumerate((text for i, text in cleaned_corpus.documents("train") if i in wanted), start=1):
            yield encode([text])[0]
            advance(done, len(wanted))

    with settings.staged("training_blocks") as folder:
        blocks = TrainingBlocks(folder)
        common = {"block_size": block_size, "eos_id": _end_of_text(tokenizer), "vocab_size": len(tokenizer)}
        adapted = write_blocks(remapped_sequences(), blocks.remapped, **common)
        vanilla = None
        if settings.vanilla:
            sequences = (ids for document_id, ids in token_sequences.documents() if document_id in wanted)
            vanilla = write_blocks(sequences, blocks.base, **common)
        blocks.write_counts(size, {"remapped": adapted.tokens} | ({"base": vanilla.tokens} if vanilla else {}))
    return dg.MaterializeResult(
        value=blocks,
        data_version=dg.DataVersion(content_hash(folder)),
        metadata={
            "documents": adapted.documents,
            "bytes": size,
            "block_size": block_size,
            "blocks": adapted.blocks,
            "tokens": adapted.tokens,
        }
        | ({"blocks_base": vanilla.blocks, "tokens_base": vanilla.tokens} if vanilla else {})
        | {"seconds": round(time.monotonic() - started, 2)},
    )


@dg.asset(
    group_name=GROUP,
    kinds={"huggingface", "pytorch"},
    owners=OWNERS,
    io_manager_key="trained_model_io",
    pool=POOL,
    code_version="1",
    metadata=depends_on_settings("dtype", SFT_CONFIG),
)
def sft_checkpoint(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    accelerator: AcceleratorResource,
    initialized_model: ModelFolder,
    remapped_tokenizer: TokenizerFolder,
    training_blocks: TrainingBlocks,
) -> dg.MaterializeResult[TrainedModel]:
    """The adapted model, fine-tuned on the domain: `final_model/` holds it with its tokenizer.

    Training settings come from `sft_config.yaml`. A stopped training goes on from its last complete checkpoint;
    `logs/` is for TensorBoard.
    """
    return _fine_tuned(
        context,
        settings,
        accelerator,
        "sft_checkpoint",
        initialized_model,
        remapped_tokenizer,
        training_blocks.remapped,
    )


@dg.asset(
    deps=["base_model"],
    group_name=GROUP,
    kinds={"huggingface", "pytorch"},
    owners=OWNERS,
    io_manager_key="trained_model_io",
    pool=POOL,
    code_version="1",
    metadata=depends_on_settings("dtype", SFT_CONFIG),
)
def vanilla_sft_checkpoint(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    accelerator: AcceleratorResource,
    base: BaseModelResource,
    original_tokenizer: TokenizerFolder,
    training_blocks: TrainingBlocks,
) -> dg.MaterializeResult[TrainedModel]:
    """The base model with its own tokenizer, fine-tuned on the same text: what the new vocabulary has to beat."""
    return _fine_tuned(
        context, settings, accelerator, "vanilla_sft_checkpoint", base.model(), original_tokenizer, training_blocks.base
    )


def _fine_tuned(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    accelerator: AcceleratorResource,
    asset: str,
    model: ModelFolder,
    tokenizer: TokenizerFolder,
    blocks: Path,
) -> dg.MaterializeResult[TrainedModel]:
    from ivr_dagster.core.training.sft import fine_tune
    from ivr_dagster.core.training.sft_config import read_sft_config

    config_file = settings.sft_config_file()
    config = read_sft_config(config_file)
    arguments = json.dumps(dict(config.arguments), sort_keys=True)
    device, dtype = accelerator.resolved_device(), accelerator.resolved_dtype()
    ingredients = [content_hash(model.path), content_hash(tokenizer.path), content_hash(blocks), arguments, dtype]
    place = settings.places[asset]
    refuse_foreign(place)
    mark_folder(place, asset, context.run.run_id)
    advance = track(context.log, f"training {asset}", "steps")

    def on_log(entry: dict[str, float]) -> None:
        advance(entry["step"], entry["max_steps"])
        context.log.info(
            f"step {entry['step']:.0f} of {entry['max_steps']:.0f}: loss {entry['loss']:.4f} nats/token, "
            f"{entry['tokens_per_second']:,.0f} tokens/s, {entry['seconds_left']:,.0f} s left"
        )

    result = fine_tune(
        model.path,
        blocks,
        place,
        config,
        tokenizer_dir=tokenizer.path,
        fingerprint=hashlib.blake2b("".join(ingredients).encode(), digest_size=16).hexdigest(),
        device=device,
        dtype=dtype,
        on_log=on_log,
    )
    trained = TrainedModel(place)
    trained.write_history(result.steps, result.tokens, result.loss_history)
    return dg.MaterializeResult(
        value=trained,
        data_version=dg.DataVersion(content_hash(result.final_model)),
        metadata=_figures(result)
        | {
            "device": device,
            "dtype": dtype,
            "training settings": dg.MetadataValue.path(config_file),
            "TensorBoard logs": dg.MetadataValue.path(place / "logs"),
        },
    )


def _figures(result: "SftResult") -> dict[str, dg.MetadataValue | float | int | str]:
    steps, losses = zip(*result.loss_history, strict=True) if result.loss_history else ((), ())
    return {
        "train_loss": result.train_loss,
        "steps": result.steps,
        "tokens": result.tokens,
        "seconds": round(result.seconds, 2),
        "tokens_per_second": round(result.tokens_per_second, 1),
        "resumed_from_step": result.resumed_from or 0,
        "training loss": inline_png(
            curves(steps, {"loss": losses}, x="step", y="loss, nats per token"), "training loss"
        ),
    }


def _context_of(folder: Path) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return int(getattr(config, "max_position_embeddings", None) or LONGEST_BLOCK)


def _end_of_text(tokenizer: "object") -> int:
    from ivr_dagster.core.errors import InputError

    eos_id = getattr(tokenizer, "eos_token_id", None)
    if eos_id is None:
        raise InputError(
            "the tokenizer has no end-of-text token",
            where="model_name",
            remedy="Set eos_token in tokenizer_config.json.",
        )
    return int(eos_id)
