"""Fine-tuning on the domain: the adapted model, and the vanilla baseline on the same text."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import numpy as np

from ivr_dagster.assets import OWNERS
from ivr_dagster.assets.display import curves, inline_png
from ivr_dagster.core.corpus.cleaned import SPLITS, CleanedCorpus
from ivr_dagster.core.corpus.other_text import read_other_documents, select_other_texts
from ivr_dagster.core.corpus.subset import document_sizes, ids_within, validation_ids
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokens.sequences import Encoder, TokenSequences, reference_encoder
from ivr_dagster.core.training.folders import TrainedModel, TrainingBlocks
from ivr_dagster.core.vocabulary.rules import RemapRules
from ivr_dagster.io_managers.artifacts import mark_folder, refuse_foreign
from ivr_dagster.pipeline import settings_hash
from ivr_dagster.resources.accelerator import POOL, Accelerator, AcceleratorResource
from ivr_dagster.resources.base_model import BaseModelResource
from ivr_dagster.resources.progress import track
from ivr_dagster.resources.settings import SettingsResource
from ivr_dagster.storage.atomic import atomic_write, remove
from ivr_dagster.storage.content_hash import content_hash

if TYPE_CHECKING:
    from ivr_dagster.core.training.blocks import BlockCounts
    from ivr_dagster.core.training.sft import SftResult

Advance = Callable[[float, float], None]

GROUP = "training"
COLD, WARM = "the model as it is before training", "the model fine-tuned before"
# settings that decide which text is held out
DIVIDED_BY = ("heldout_fraction", "normalization", "text_split_bytes", "text_key", "encoding")


@dg.asset(
    deps=["general_corpus"],
    group_name=GROUP,
    kinds={"arrow", "huggingface"},
    owners=OWNERS,
    io_manager_key="blocks_io",
    code_version="3",
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
    the vanilla baseline. Some documents are kept from both, to validate on: `validation_remapped/` and
    `validation_base/`. General text, where some is to be mixed in, stands behind the corpus; training shuffles blocks.
    """
    from ivr_dagster.core.training.blocks import write_blocks, write_validation_blocks

    started = time.monotonic()
    block_size = settings.training.block_size or initialized_model.sequence_tokens()
    encoded = {document_id for document_id, _ in token_sequences.documents()}
    encode_remapped = reference_encoder(remapped_tokenizer.backend())
    train, validation, size, validation_size = _divided(
        settings,
        cleaned_corpus,
        encoded,
        fills_a_block=lambda texts: sum(len(ids) + 1 for ids in encode_remapped(texts)) >= block_size,
    )
    general = _general_texts(settings, cleaned_corpus, size)
    tokenizer = remapped_tokenizer.load()
    common = {"block_size": block_size, "eos_id": remapped_tokenizer.end_of_text_id(), "vocab_size": len(tokenizer)}
    tokenizers = {"remapped": remapped_tokenizer} | ({"base": original_tokenizer} if settings.training.vanilla else {})

    with settings.staging("training_blocks") as folder:
        blocks = TrainingBlocks(folder)
        packed: dict[str, BlockCounts] = {}
        tokens: dict[str, dict[str, int]] = {}
        for name, each in tokenizers.items():
            encode = reference_encoder(each.backend())
            advance = track(context.log, f"packing under the {name} tokenizer", "documents")

            def sequences(
                wanted: set[str], name: str = name, encode: Encoder = encode, advance: Advance = advance
            ) -> Iterator[np.ndarray]:
                texts = ((i, text) for i, text in cleaned_corpus.documents("train") if i in wanted)
                known = ((i, ids) for i, ids in token_sequences.documents() if i in wanted)
                ids = (ids for _, ids in known) if name == "base" else (encode([text])[0] for _, text in texts)
                for done, sequence in enumerate(ids, start=1):
                    yield sequence
                    advance(done, len(wanted))

            mixed = (encode([text])[0] for text in general)
            packed[name] = write_blocks(chain(sequences(train), mixed), folder / name, **common)
            tokens[name] = {"train": packed[name].tokens}
            if validation:
                kept = [ids.copy() for ids in sequences(validation)]
                tokens[name]["validation"] = write_validation_blocks(kept, blocks.validation(name), **common)
        size += sum(len(text.encode()) for text in general)
        blocks.write_counts({"train": size, "validation": validation_size}, tokens)
    adapted, vanilla = packed["remapped"], packed.get("base")
    return dg.MaterializeResult(
        value=blocks,
        data_version=dg.DataVersion(content_hash(folder)),
        metadata={
            "documents": adapted.documents,
            "bytes": size,
            "validation_bytes": validation_size,
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
    code_version="3",
)
def sft_checkpoint(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    accelerator: AcceleratorResource,
    base: BaseModelResource,
    initialized_model: ModelFolder,
    remapped_tokenizer: TokenizerFolder,
    remap_rules: RemapRules,
    training_blocks: TrainingBlocks,
) -> dg.MaterializeResult[TrainedModel]:
    """The adapted model, fine-tuned on the domain: `final_model/` holds it with its tokenizer.

    Training settings come from `sft_config.yaml`. With the setting `warm_start` it goes on from the model fine-tuned
    before, where the vocabulary is nearly the same; rows of ids that changed their string start anew. A stopped
    training goes on from its last complete checkpoint; `logs/` is for TensorBoard.
    """
    return _fine_tuned(
        context,
        settings,
        accelerator,
        "sft_checkpoint",
        initialized_model,
        remapped_tokenizer,
        training_blocks,
        "remapped",
        new_tokens=remap_rules.new_tokens(),
        made_of=base.version() + settings_hash({name: settings.get(name) for name in DIVIDED_BY}),
    )


@dg.asset(
    deps=["base_model"],
    group_name=GROUP,
    kinds={"huggingface", "pytorch"},
    owners=OWNERS,
    io_manager_key="trained_model_io",
    pool=POOL,
    code_version="3",
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
        context,
        settings,
        accelerator,
        "vanilla_sft_checkpoint",
        base.model(),
        original_tokenizer,
        training_blocks,
        "base",
    )


@dg.asset(
    deps=["base_model"],
    group_name=GROUP,
    kinds={"huggingface", "pytorch"},
    owners=OWNERS,
    io_manager_key="trained_model_io",
    pool=POOL,
    code_version="3",
)
def vanilla_compute_checkpoint(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    accelerator: AcceleratorResource,
    base: BaseModelResource,
    original_tokenizer: TokenizerFolder,
    training_blocks: TrainingBlocks,
    sft_checkpoint: TrainedModel,
) -> dg.MaterializeResult[TrainedModel]:
    """The base model with its own tokenizer, fine-tuned with as much computation as the adapted model was.

    The same number of tokens of the same text, in as many steps; what was computed before training counts too.
    """
    block_tokens = sft_checkpoint.history()["tokens"] / sft_checkpoint.history()["steps"]
    extra = round(_tokens_before_training(context) / block_tokens)
    return _fine_tuned(
        context,
        settings,
        accelerator,
        "vanilla_compute_checkpoint",
        base.model(),
        original_tokenizer,
        training_blocks,
        "base",
        max_steps=sft_checkpoint.history()["steps"] + extra,
    )


def _tokens_before_training(context: dg.AssetExecutionContext) -> float:
    """How many tokens could have been trained on with what calibration and token distillation computed.

    A training step's forward and backward pass cost one and two parts; a frozen model's reading costs one, the way
    back to its embeddings another. The few products with the output matrix that calibration takes are left out.
    """
    event = context.instance.get_latest_materialization_event(dg.AssetKey("fitted_embeddings"))
    found = event.asset_materialization.metadata if event and event.asset_materialization else {}
    read, base, calibration = (
        float(found[name].value or 0) if name in found else 0.0
        for name in ("distillation_tokens", "distillation_base_tokens", "calibration_tokens")
    )
    return read * 2 / 3 + (base + calibration) / 3


def _fine_tuned(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    accelerator: Accelerator,
    asset: str,
    model: ModelFolder,
    tokenizer: TokenizerFolder,
    blocks: TrainingBlocks,
    text: str,
    *,
    new_tokens: Mapping[int, str] | None = None,
    max_steps: int | None = None,
    made_of: str | None = None,
) -> dg.MaterializeResult[TrainedModel]:
    from ivr_dagster.core.training.progress import describe_progress
    from ivr_dagster.core.training.sft import Training, Validation, fine_tune
    from ivr_dagster.core.training.sft_config import read_sft_config
    from ivr_dagster.core.training.worker import TrainingRequest
    from ivr_dagster.resources.launcher import accelerator_for, train_with_torchrun

    config_file, launch = settings.sft_config_file(), settings.launch()
    config = read_sft_config(config_file, vanilla=text == "base", max_steps=max_steps)
    config.shared_by(launch.processes)  # a batch that cannot be shared is told before anything is started
    accelerator = accelerator_for(launch, accelerator)
    device, dtype = accelerator.resolved_device(), accelerator.resolved_dtype()
    place = settings.paths[asset]
    refuse_foreign(place)
    mark_folder(place, asset, context.run.run_id)
    train = blocks.path / text
    kept = blocks.validation(text)
    folders = [model.path, tokenizer.path, train, *([kept] if kept.is_dir() else [])]
    ingredients = [*map(content_hash, folders), config.digest(), dtype]
    start, told = model, COLD
    if made_of is not None:
        wanted = tokenizer if settings.training.warm_start else None
        start, told = _start(context, place, model, wanted, len(new_tokens or {}), "".join(ingredients), made_of)
        if start != model:
            ingredients.append(content_hash(start.path))
    advance = track(context.log, f"training {asset}", "steps")
    text_bytes = blocks.bytes_per_token(text)

    def on_log(entry: dict[str, float]) -> None:
        if "loss" in entry:
            advance(entry["step"], entry["max_steps"])
        (context.log.warning if "micro_batch" in entry else context.log.info)(describe_progress(entry, text_bytes))

    bytes_per_token = blocks.bytes_per_token(text, "validation")
    training = Training(
        start.path,
        train,
        place,
        config,
        tokenizer_dir=tokenizer.path,
        fingerprint=content_hash("".join(ingredients)),
        device=device,
        dtype=dtype,
        new_tokens=new_tokens,
        validation=Validation(kept, bytes_per_token) if kept.is_dir() and bytes_per_token else None,
    )
    if launch.processes > 1:
        result = train_with_torchrun(context, TrainingRequest(training, text_bytes), launch)
    else:
        result = fine_tune(training, on_log=on_log)
    trained = TrainedModel(place)
    trained.write_history(
        result.steps,
        result.tokens,
        result.loss_history,
        result.validation,
        bytes_per_token=text_bytes,
        text_bytes=blocks.text_bytes(),
    )
    return dg.MaterializeResult(
        value=trained,
        data_version=dg.DataVersion(content_hash(result.final_model)),
        metadata=_figures(result)
        | _speed(result, text_bytes)
        | {
            "started from": told,
            "device": device,
            "dtype": dtype,
            "processes": launch.processes,
            "training settings": dg.MetadataValue.path(config_file),
            "TensorBoard logs": dg.MetadataValue.path(place / "logs"),
        },
    )


def _start(
    context: dg.AssetExecutionContext,
    place: Path,
    cold: ModelFolder,
    tokenizer: TokenizerFolder | None,
    new: int,
    ingredients: str,
    made_of: str,
) -> tuple[ModelFolder, str]:
    """The model to start from and what it is; a run gone on with, or made again, starts from what it started from.

    Without a tokenizer a warm start is not wanted. `made_of` stands for what a model must have in common with this run
    to be gone on from: the base model, and how the corpus is cleaned and divided, since text that is held out now must
    not have been trained on before.
    """
    start, note = place / "warm_start", place / "started.json"
    said = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    if tokenizer is not None and said.get("ingredients") == ingredients:
        return (ModelFolder(start), WARM) if said["warm"] else (cold, COLD)
    obstacle = _write_start(start, TrainedModel(place).final_model.path, cold, tokenizer, new)
    if not obstacle and said.get("made_of") != made_of:
        obstacle = "it was made of another base model, or of a corpus divided otherwise"
    if tokenizer is not None:
        context.log.info(f"no warm start: {obstacle}" if obstacle else "a warm start")
    with atomic_write(note) as staged:
        content = {"ingredients": ingredients, "made_of": made_of, "warm": not obstacle}
        staged.write_text(json.dumps(content) + "\n", encoding="utf-8")
    if obstacle:
        remove(start)
    return (cold, COLD) if obstacle else (ModelFolder(start), WARM)


def _write_start(start: Path, before: Path, cold: ModelFolder, tokenizer: TokenizerFolder | None, new: int) -> str:
    """Write the model to go on from to `start`; why there is none, empty where it was written."""
    from ivr_dagster.core.training.warm_start import look_at, write_warm_start

    if tokenizer is None:
        return "not asked for"
    seen = look_at(before, tokenizer.path, new)
    if seen.obstacle:
        return seen.obstacle
    with atomic_write(start) as staged:
        staged.mkdir()
        return write_warm_start(before, cold.path, seen.changed, staged)


def _divided(
    settings: SettingsResource,
    corpus: CleanedCorpus,
    encoded: set[str],
    fills_a_block: Callable[[list[str]], bool],
) -> tuple[set[str], set[str], int, int]:
    """Documents to train on and to validate on, and the UTF-8 bytes of both; with few, none to validate on."""

    sizes = document_sizes((i, text) for i, text in corpus.documents("train") if i in encoded)
    validation, kept = validation_ids(sizes, settings.training.validation_bytes, settings.training.train_bytes)
    if not fills_a_block([text for i, text in corpus.documents("train") if i in validation]):
        validation, kept = set(), 0
    others = {document_id: size for document_id, size in sizes.items() if document_id not in validation}
    train, size = ids_within(others, settings.training.train_bytes)
    return train, validation, size, kept


def _general_texts(settings: SettingsResource, corpus: CleanedCorpus, size: int) -> list[str]:
    """Documents of general text, as much as `general_share` of all bytes asks for beside `size` bytes of the corpus."""
    folder = settings.other_corpus_dir("general_corpora_dir")
    if folder is None:
        return []
    documents = list(read_other_documents(folder, settings.corpus, "general_corpora_dir"))
    known = {document_id for split in SPLITS for document_id in corpus.ids(split)}
    measured: set[str] = set()
    if settings.other_corpus_dir("retention_corpora_dir") == folder:
        measured = set(
            select_other_texts(
                documents,
                known,
                settings.evaluation.retention_bytes,
                normalization=settings.corpus.normalization,
                from_the_end=True,
            )
        )
    most = max(1, round(size * settings.training.general_share / (1 - settings.training.general_share)))
    texts = select_other_texts(documents, known, most, normalization=settings.corpus.normalization)
    return [text for text in texts if text not in measured]


def _speed(result: "SftResult", bytes_per_token: float | None) -> dict[str, float]:
    """Tokens, bytes of text and FLOPs a second, and MFU where it is known; nothing where nothing was left to train."""
    if not result.tokens_per_second:
        return {}
    of_text = {"bytes_per_second": round(result.tokens_per_second * bytes_per_token)} if bytes_per_token else {}
    return {
        "tokens_per_second": round(result.tokens_per_second, 1),
        **of_text,
        "flops_per_second": round(result.flops_per_second),
        **({} if result.mfu is None else {"mfu": round(result.mfu, 4)}),
    }


def _figures(result: "SftResult") -> dict[str, dg.MetadataValue | float | int | str]:
    steps, losses = zip(*result.loss_history, strict=True) if result.loss_history else ((), ())
    validated = dict(result.validation)
    return {
        **({"validation_bits_per_byte": validated[result.best_step]} if result.best_step in validated else {}),
        "train_loss": result.train_loss,
        "steps": result.steps,
        "tokens": result.tokens,
        "seconds": round(result.seconds, 2),
        "resumed_from_step": result.resumed_from or 0,
        "best_step": result.best_step,
        "micro_batch": result.micro_batch,
        "gradient_accumulation_steps": result.accumulated,
        "training loss": inline_png(
            curves(steps, {"loss": losses}, x="step", y="loss, nats per token"), "training loss"
        ),
    }
