"""Fine-tuning on the corpus: the adapted model, and the vanilla baselines on the same text."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np

from ivr_dagster.assets import OWNERS
from ivr_dagster.assets.training_figures import figures, speed
from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.corpus.other_text import read_other_documents
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokens.sequences import TokenSequences, reference_encoder
from ivr_dagster.core.training.documents import select_general_texts, split_train_documents
from ivr_dagster.core.training.folders import TrainedModel, TrainingBlocks
from ivr_dagster.core.vocabulary.rules import applied_rules
from ivr_dagster.io_managers.artifacts import mark_folder
from ivr_dagster.io_managers.tokenizers import training_tokenizer
from ivr_dagster.pipeline import settings_hash
from ivr_dagster.resources.accelerator import POOL, Accelerator, AcceleratorResource
from ivr_dagster.resources.base_model import BaseModelResource
from ivr_dagster.resources.progress import advance, track
from ivr_dagster.resources.settings import ProjectSettings, SettingsResource
from ivr_dagster.sample.other_text import general_code
from ivr_dagster.storage.content_hash import content_hash

if TYPE_CHECKING:
    from ivr_dagster.core.training.blocks import BlockCounts
    from ivr_dagster.core.training.sft import SftResult
    from ivr_dagster.core.training.sft_config import SftConfig

GROUP = "training"
# settings that decide which text is held out
SPLIT_SETTINGS = ("heldout_fraction", "normalization", "text_split_bytes", "text_key", "encoding")


def trained_model_asset(*deps: str) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """The decorator of all assets that are trained models."""
    return dg.asset(
        deps=deps,
        group_name=GROUP,
        kinds={"huggingface", "pytorch"},
        owners=OWNERS,
        io_manager_key="trained_model_io",
        pool=POOL,
        code_version="5",
    )


@dg.asset(group_name=GROUP, kinds={"arrow", "huggingface"}, owners=OWNERS, io_manager_key="blocks_io", code_version="5")
def training_blocks(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    cleaned_corpus: CleanedCorpus,
    token_sequences: TokenSequences,
    initialized_model: ModelFolder,
) -> dg.MaterializeResult[TrainingBlocks]:
    """The train split packed into blocks of equal length, with an end-of-text token after each document.

    `remapped/` contains it encoded with the remapped tokenizer, `base/` the same documents encoded with the base
    tokenizer, for the vanilla baselines. Both exclude the validation documents, which are in `validation.json`. General
    text, if there is any, follows the corpus; training shuffles the blocks. `tokenizers/` contains both tokenizers.
    """
    from ivr_dagster.core.scoring.bits_per_byte import ScoringTokenizer
    from ivr_dagster.core.training.blocks import write_blocks
    from ivr_dagster.core.training.validation import Validation

    started = time.monotonic()
    tokenizer = training_tokenizer(initialized_model.path, settings.paths)
    block_size = settings.training.block_size or initialized_model.sequence_tokens()
    encode = reference_encoder(tokenizer.backend())
    known = {document_id for document_id, _ in token_sequences.documents()}
    split = split_train_documents(cleaned_corpus, known, settings.training)
    general = _general_texts(settings, cleaned_corpus, split.train_bytes)

    def remapped(wanted: set[str]) -> Iterator[np.ndarray]:
        return (encode([text])[0] for i, text in cleaned_corpus.documents("train") if i in wanted)

    def base(wanted: set[str]) -> Iterator[np.ndarray]:
        return (ids for i, ids in token_sequences.documents() if i in wanted)

    packing = {"block_size": block_size, "eos_id": tokenizer.end_of_text_id(), "vocab_size": len(tokenizer.load())}
    packed: dict[str, BlockCounts] = {}
    vanilla = settings.training.vanilla
    with settings.staging("training_blocks") as folder:
        blocks = TrainingBlocks(folder)
        blocks.write_tokenizers(tokenizer, base=vanilla)
        for name, sequences in {"remapped": remapped, **({"base": base} if vanilla else {})}.items():
            encode_general = encode if name == "remapped" else reference_encoder(tokenizer.base_backend())
            mixed = (encode_general([text])[0] for text in general)
            train = _with_progress(context, name, sequences(split.train), len(split.train))
            packed[name] = write_blocks(chain(train, mixed), blocks.train(name), **packing)
        if split.validation:
            texts = [text for i, text in cleaned_corpus.documents("train") if i in split.validation]
            backend = tokenizer.base_backend() if vanilla else tokenizer.backend()
            scoring = ScoringTokenizer.of(backend, packing["eos_id"])
            Validation.of(texts, scoring, block_size).write(blocks.validation)
        train_bytes = split.train_bytes + sum(len(text.encode()) for text in general)
        tokens = {name: counts.tokens for name, counts in packed.items()}
        blocks.write_counts(train_bytes, tokens, initialized_model.initialization_compute().training_tokens)
    return dg.MaterializeResult(
        value=blocks,
        data_version=dg.DataVersion(blocks.digest()),
        metadata={
            **_block_figures(packed),
            "bytes": train_bytes,
            "validation_bytes": split.validation_bytes,
            "block_size": block_size,
            "seconds": round(time.monotonic() - started, 2),
        },
    )


def _block_figures(packed: "Mapping[str, BlockCounts]") -> dict[str, int]:
    """Key figures of packed blocks by tokenizer, `remapped` and maybe `base`."""
    counts, base = packed["remapped"], packed.get("base")
    counted = {"documents": counts.documents, "blocks": counts.blocks, "tokens": counts.tokens}
    return counted | ({} if base is None else {"blocks_base": base.blocks, "tokens_base": base.tokens})


@trained_model_asset()
def sft_checkpoint(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    accelerator: AcceleratorResource,
    base: BaseModelResource,
    initialized_model: ModelFolder,
    training_blocks: TrainingBlocks,
) -> dg.MaterializeResult[TrainedModel]:
    """The adapted model, fine-tuned on the corpus; `final_model/` contains it with its tokenizer.

    Training settings come from `sft_config.yaml`. With the setting `warm_start`, training starts from the previously
    fine-tuned model if the vocabulary has barely changed; rows of ids whose string changed are reinitialized.
    Interrupted training resumes from the last complete checkpoint; `logs/` contains TensorBoard logs.
    """
    tokenizer = training_blocks.tokenizer("remapped") or training_tokenizer(initialized_model.path, settings.paths)
    new_tokens = applied_rules(tokenizer).new_tokens() if tokenizer.rules_file.is_file() else {}
    origin = base.version() + settings_hash({name: settings.get(name) for name in SPLIT_SETTINGS})
    variant = _Variant("sft_checkpoint", initialized_model, tokenizer, new_tokens, origin)
    return _fine_tune(context, settings, accelerator, training_blocks, variant)


@trained_model_asset("base_model")
def vanilla_sft_checkpoint(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    accelerator: AcceleratorResource,
    base: BaseModelResource,
    training_blocks: TrainingBlocks,
) -> dg.MaterializeResult[TrainedModel]:
    """The base model with its own tokenizer, fine-tuned on the same text: the baseline for the new vocabulary."""
    tokenizer = training_blocks.tokenizer("base") or base.tokenizer()
    variant = _Variant("vanilla_sft_checkpoint", base.model(), tokenizer)
    return _fine_tune(context, settings, accelerator, training_blocks, variant)


@trained_model_asset("base_model", "initialized_model")  # initialization decides the number of extra steps
def vanilla_compute_checkpoint(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    accelerator: AcceleratorResource,
    base: BaseModelResource,
    training_blocks: TrainingBlocks,
) -> dg.MaterializeResult[TrainedModel]:
    """The base model with its own tokenizer, fine-tuned with as much compute as the adapted model.

    It trains on the same text for the same number of tokens and steps, plus extra steps that cost as much as
    initializing the new rows.
    """
    from ivr_dagster.core.training.blocks import read_blocks
    from ivr_dagster.core.training.sft_config import read_sft_config

    config = read_sft_config(settings.sft_config_file())
    adapted = read_blocks(training_blocks.train("remapped"))
    tokens_per_step = adapted.features["input_ids"].length * len(adapted) / config.steps_per_epoch(len(adapted))
    max_steps = config.steps(len(adapted)) + round(training_blocks.initialization_tokens() / tokens_per_step)
    tokenizer = training_blocks.tokenizer("base") or base.tokenizer()
    variant = _Variant("vanilla_compute_checkpoint", base.model(), tokenizer, max_steps=max_steps)
    return _fine_tune(context, settings, accelerator, training_blocks, variant)


@dataclass(frozen=True)
class _Variant:
    """What distinguishes the trained models.

    Attributes:
        asset: name of the asset.
        model, tokenizer: what training starts from.
        new_tokens: byte-level string by id; None for the vanilla baselines.
        origin: of the adapted model, see :func:`choose_start`.
        max_steps: optimizer steps instead of those in the settings.
    """

    asset: str
    model: ModelFolder
    tokenizer: TokenizerFolder
    new_tokens: Mapping[int, str] | None = None
    origin: str = ""
    max_steps: int | None = None

    @property
    def blocks(self) -> str:
        """Which of the blocks are read."""
        return "base" if self.new_tokens is None else "remapped"


def _fine_tune(
    context: dg.AssetExecutionContext,
    settings: ProjectSettings,
    accelerator: Accelerator,
    blocks: TrainingBlocks,
    variant: _Variant,
) -> dg.MaterializeResult[TrainedModel]:
    from ivr_dagster.core.training.sft import Training
    from ivr_dagster.core.training.validation import Validation
    from ivr_dagster.resources.torchrun import accelerator_for

    name, tokenizer = variant.blocks, variant.tokenizer
    launch = settings.launch()
    config = _read_config(context, settings, variant, launch.processes)
    accelerator = accelerator_for(launch, accelerator)
    device, dtype = accelerator.resolved_device(), accelerator.resolved_dtype()
    trained = TrainedModel(settings.paths[variant.asset])
    mark_folder(trained.path, variant.asset, context.run.run_id)
    folders = [variant.model.path, tokenizer.path, blocks.train(name)]
    validation = Validation.read(blocks.validation) if blocks.validation.is_file() else None
    known = [*map(content_hash, folders), *([validation.digest()] if validation else ())]
    inputs = "".join([*known, config.digest(), dtype])
    start = _choose_start(context, settings, trained, variant, inputs)
    if start != variant.model:
        inputs += content_hash(start.path)
    training = Training(
        start.path,
        blocks.train(name),
        trained.path,
        config,
        tokenizer_dir=tokenizer.path,
        fingerprint=content_hash(inputs),
        device=device,
        dtype=dtype,
        new_tokens=variant.new_tokens,
        validation=validation,
    )
    bytes_per_token = blocks.bytes_per_token(name)
    result = _run(context, training, settings, variant.asset, bytes_per_token)
    trained.write_history(
        result.steps,
        result.tokens,
        result.loss_history,
        result.validation,
        bytes_per_token=bytes_per_token,
        text_bytes=blocks.text_bytes(),
        hyperparameters=config.public() | {"dtype": dtype},
        unseen_new_tokens=_unseen(blocks.train(name), variant.new_tokens or ()),
    )
    return dg.MaterializeResult(
        value=trained,
        data_version=dg.DataVersion(content_hash(result.final_model)),
        metadata=figures(result)
        | speed(result, bytes_per_token)
        | {
            "started from": "the initial model" if start == variant.model else "the previously fine-tuned model",
            "device": device,
            "dtype": dtype,
            "processes": launch.processes,
            "training settings": dg.MetadataValue.path(config.source),
            "TensorBoard logs": dg.MetadataValue.path(trained.path / "logs"),
        },
    )


def _unseen(blocks: Path, new_ids: Collection[int]) -> list[int]:
    """New ids that training blocks do not contain."""
    from ivr_dagster.core.training.blocks import read_blocks, used_ids

    return sorted(set(new_ids).difference(used_ids(read_blocks(blocks)).tolist())) if new_ids else []


def _read_config(
    context: dg.AssetExecutionContext, settings: ProjectSettings, variant: _Variant, processes: int
) -> "SftConfig":
    from ivr_dagster.core.training.sft_config import read_sft_config

    is_vanilla = variant.new_tokens is None
    config = read_sft_config(settings.sft_config_file(), vanilla=is_vanilla, max_steps=variant.max_steps)
    config.shared_by(processes)  # raises before anything is started
    for note in config.notes:
        context.log.info(note)
    return config


def _choose_start(
    context: dg.AssetExecutionContext, settings: ProjectSettings, trained: TrainedModel, variant: _Variant, inputs: str
) -> ModelFolder:
    """The model to start from: the initial one, or with `warm_start` the previously fine-tuned one."""
    from ivr_dagster.core.training.warm_start import choose_start

    if variant.new_tokens is None:
        return variant.model
    warm = settings.training.warm_start
    known = {"inputs": inputs, "origin": variant.origin}
    new = len(variant.new_tokens)
    start, obstacle = choose_start(trained, variant.model, variant.tokenizer, new, warm=warm, **known)
    if warm:
        context.log.info(f"no warm start: {obstacle}" if obstacle else "warm start from the fine-tuned model")
    return start


def _run(
    context: dg.AssetExecutionContext,
    training: Any,
    settings: ProjectSettings,
    asset: str,
    bytes_per_token: float | None,
) -> "SftResult":
    """Train in this process, or with torchrun if the launch settings request several processes."""
    from ivr_dagster.core.training.progress import describe_progress
    from ivr_dagster.core.training.sft import fine_tune
    from ivr_dagster.resources.torchrun import train_with_torchrun
    from ivr_dagster.resources.training_worker import TrainingRequest

    launch = settings.launch()
    if launch.processes > 1:
        return train_with_torchrun(context, TrainingRequest(training, bytes_per_token), launch)

    def on_log(entry: dict[str, float]) -> None:
        if "loss" in entry:
            advance(f"training {asset}", entry["step"], entry["max_steps"], "steps")
        log = context.log.warning if "micro_batch" in entry else context.log.info
        log(describe_progress(entry, bytes_per_token))

    return fine_tune(training, on_log=on_log)


def _with_progress(
    context: dg.AssetExecutionContext, name: str, sequences: Iterator[np.ndarray], total: int
) -> Iterator[np.ndarray]:
    on_progress = track(context.log, f"packing with the {name} tokenizer", "documents")
    for done, sequence in enumerate(sequences, start=1):
        yield sequence
        on_progress(done, total)


def _general_texts(settings: ProjectSettings, corpus: CleanedCorpus, train_bytes: int) -> list[str]:
    """General texts to mix in; empty if there are none."""
    folder, share = settings.other_corpora.get("general_corpus"), settings.training.general_share
    reserved = 0
    if folder is not None:
        documents = list(read_other_documents(folder, settings.corpus, "general_corpora_dir"))
        if settings.other_corpora.get("retention_corpus") == folder:
            reserved = settings.evaluation.retention_bytes
    elif settings.uses_sample_code():
        documents = list(general_code())
    else:
        return []
    normalization = settings.corpus.normalization
    return select_general_texts(corpus, documents, share, train_bytes, normalization=normalization, reserved=reserved)
