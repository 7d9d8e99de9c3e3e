"""Fine-tuning of a causal language model on packed blocks with transformers' Trainer.

One run reads a model folder and writes a model folder; it can be stopped at any moment and resumed. Under torchrun,
all processes that call :func:`fine_tune` share one run.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivr_dagster.core.scoring.bits_per_byte import ScoringTokenizer
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokenizer.write import write_copy
from ivr_dagster.core.training.blocks import COLUMN, read_blocks
from ivr_dagster.core.training.checkpoints import FINAL_MODEL, discard_others, newest_complete, step_of
from ivr_dagster.core.training.flops import Compute, compute_of
from ivr_dagster.core.training.loading import check_fit, load_model
from ivr_dagster.core.training.memory import (
    free_memory,
    is_out_of_memory,
    out_of_memory_error,
    with_smaller_batches,
)
from ivr_dagster.core.training.sft_config import SftConfig
from ivr_dagster.core.training.trainable import ALL, LORA, load_lora, merge_lora, select_trainable
from ivr_dagster.core.training.validation import Validation
from ivr_dagster.errors import InputError, short_message
from ivr_dagster.storage.atomic import atomic_write

if TYPE_CHECKING:
    from transformers import TrainerState

    from ivr_dagster.core.training.sft_arguments import SftArguments

_PRECISIONS = {"float32": {}, "bfloat16": {"bf16": True}, "float16": {"fp16": True}}
OnLog = Callable[[dict[str, float]], None]


class TrainingDivergedError(RuntimeError):
    """The loss has exploded, or the loss, the gradient or a weight is not finite."""


@dataclass(frozen=True)
class SftResult:
    """The result of a training run.

    Attributes:
        final_model: folder of the fine-tuned model and its tokenizer.
        steps: optimizer steps of the whole run.
        tokens: tokens trained on in the whole run, counted in every epoch.
        seconds: wall clock of this call.
        tokens_per_second: speed of training in this call; 0 if no step was left.
        flops_per_second: FLOPs of these tokens, see :mod:`~ivr_dagster.core.training.flops`.
        mfu: share of the peak FLOPs of all devices; None if the peak is unknown.
        resumed_from: the step that this call resumed from, None if it started at the beginning.
        train_loss: nats per token, mean over all steps of the whole run.
        loss_history: (step, mean loss in nats per token since the previous entry) of the whole run.
        validation: (step, bits per byte of the validation text) of the whole run; empty without such text.
        best_step: the step whose weights the final model has; the last one unless `load_best_model_at_end` is set.
        micro_batch: blocks per micro-batch of this process; halved when out of memory.
        accumulated: micro-batches per optimizer step.
    """

    final_model: Path
    steps: int
    tokens: int
    seconds: float
    tokens_per_second: float
    flops_per_second: float
    mfu: float | None
    resumed_from: int | None
    train_loss: float
    loss_history: list[tuple[int, float]]
    validation: list[tuple[int, float]]
    best_step: int
    micro_batch: int
    accumulated: int


@dataclass(frozen=True)
class Training:
    """The inputs, the settings and the output folder of a run.

    Attributes:
        model_dir: a folder for `AutoModelForCausalLM.from_pretrained`; loaded offline, without remote code.
        blocks: the folder that :func:`~ivr_dagster.core.training.blocks.write_blocks` wrote.
        output_dir: the run's folder; created if missing.
        config: the settings.
        tokenizer_dir: a folder for `AutoTokenizer.from_pretrained`; copied into the final model.
        fingerprint: a string that identifies the model, the blocks and the settings.
        device: cpu, cuda or mps; CUDA_VISIBLE_DEVICES or torchrun choose among GPUs.
        dtype: float32, or bfloat16 or float16 for mixed precision with float32 weights. `bf16`, `fp16` and `use_cpu`
            in the settings take precedence over `dtype` and `device`.
        new_tokens: byte-level string by id of the tokens whose rows have separate learning rates; without them all
            rows have the rate of kept tokens and there is no embedding phase.
        validation: text to measure bits per byte on, as often as `eval_strategy` and `eval_steps` say.
    """

    model_dir: Path
    blocks: Path
    output_dir: Path
    config: SftConfig
    tokenizer_dir: Path
    fingerprint: str
    device: str = "cpu"
    dtype: str = "float32"
    new_tokens: Mapping[int, str] | None = None
    validation: Validation | None = None


def fine_tune(
    training: Training, *, on_log: OnLog | None = None, final_dir: Path | None = None, keep_model: bool = True
) -> SftResult:
    """Fine-tune a model on blocks: causal language modeling with every token as a label.

    `output_dir` receives `checkpoint-N/` and `logs/` (TensorBoard). A call resumes from the newest complete
    checkpoint of the same `fingerprint` and, on CPU, ends with the same bits as an uninterrupted run; it removes
    incomplete checkpoints and those of other fingerprints. If the run is finished, it only writes the final model.
    Nothing is unpickled: weights are safetensors, and Trainer reads its other states with `weights_only`.

    Several processes share the blocks of each step and reach the losses of one process up to rounding and dropout.
    All pass the same arguments; rank 0 writes and calls `on_log`. The number of processes may change on resume.

    When out of memory, a single process resumes from its newest checkpoint with smaller micro-batches and more
    accumulation: the same batches, and the same losses up to rounding and dropout.

    Args:
        training: inputs, settings and output folder.
        on_log: called every `logging_steps` steps with step, max_steps, loss (nats per token), learning_rate,
            tokens_per_second, flops_per_second, mfu if known, and seconds_left; after each validation with step,
            max_steps and bits_per_byte; and when micro-batches get smaller with step, max_steps, micro_batch (blocks)
            and accumulated (micro-batches per step).
        final_dir: folder of the final model, by default `output_dir/final_model`. It appears atomically, in the dtype
            of the model in `model_dir`.
        keep_model: whether to write the final model.

    Raises:
        InputError: a folder without a model, tokenizer or blocks; blocks longer than the model's context; a missing
            device; contradictory settings.
        TrainingDivergedError: the loss is not finite or has exploded. No checkpoint contains that state.
        TrainingOutOfMemoryError: the device's memory does not suffice for one block or, with several processes, for one
            micro-batch.
    """
    started = time.monotonic()
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # set by torchrun
    training, smaller = replace(training, config=training.config.shared_by(processes)), False
    while True:
        try:
            result = _run(training, on_log, final_dir or training.output_dir / FINAL_MODEL, keep_model, smaller)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            validated = training.validation is not None
            fewer = with_smaller_batches(training.config, validated=validated) if processes == 1 else None
            if fewer is None:
                size = len(read_blocks(training.blocks)[0][COLUMN])
                raise out_of_memory_error(error, training.config, training.device, size, processes) from error
            training, smaller = replace(training, config=fewer), True
        else:
            return replace(result, seconds=time.monotonic() - started)
        free_memory()  # outside the except block, where the error no longer references the model


def _run(training: Training, on_log: OnLog | None, final_dir: Path, keep_model: bool, smaller: bool) -> SftResult:
    """Run with the micro-batches in the settings; `smaller`: the previous attempt was out of memory."""
    from transformers import set_seed

    from ivr_dagster.core.training.callbacks import BITS_PER_BYTE, is_out_of_patience, mean_loss, read_history

    started = time.monotonic()
    arguments = _training_arguments(training)
    dataset = read_blocks(training.blocks)
    with _no_progress_bars():
        tokenizer = TokenizerFolder(training.tokenizer_dir)
        set_seed(arguments.seed)
        model, stored_dtype = load_model(training.model_dir)
        check_fit(model, tokenizer.load(), dataset, training.model_dir, training.blocks)
        select_trainable(model, arguments)
        use_cache = model.config.use_cache
        compute = compute_of(model, len(dataset[0][COLUMN]), arguments)

        checkpoint, state = _find_checkpoint(training, arguments)
        tokens_before = 0 if state is None else int(state.num_input_tokens_seen)
        training_began = time.monotonic()
        patience = arguments.early_stopping_patience
        if state is not None and (state.global_step >= state.max_steps or is_out_of_patience(state, patience)):
            model = _finished_model(training, arguments, checkpoint, state, model)
        else:
            state = _train(training, arguments, model, checkpoint, compute, on_log, smaller)
        training_seconds = time.monotonic() - training_began

        merge_lora(model)
        if arguments.should_save and keep_model:
            model.config.use_cache = use_cache  # Trainer disables it for training
            with atomic_write(final_dir) as folder:
                model.to(stored_dtype).save_pretrained(folder)
                write_copy(tokenizer, folder)
    history = read_history(state, "loss")
    tokens_per_second = (int(state.num_input_tokens_seen) - tokens_before) / training_seconds
    figures = compute.figures(tokens_per_second)
    best = state.best_model_checkpoint if arguments.load_best_model_at_end else None
    return SftResult(
        final_model=final_dir,
        steps=state.global_step,
        tokens=int(state.num_input_tokens_seen),
        seconds=time.monotonic() - started,
        tokens_per_second=tokens_per_second,
        flops_per_second=figures["flops_per_second"],
        mfu=figures.get("mfu"),
        resumed_from=None if checkpoint is None else step_of(checkpoint),
        train_loss=mean_loss(history),
        loss_history=history,
        validation=read_history(state, BITS_PER_BYTE),
        best_step=step_of(Path(best)) if best else state.global_step,
        micro_batch=arguments.per_device_train_batch_size,
        accumulated=arguments.gradient_accumulation_steps,
    )


def _find_checkpoint(training: Training, arguments: "SftArguments") -> "tuple[Path | None, TrainerState | None]":
    """The checkpoint to resume from and Trainer's state in it; removes checkpoints and logs of other runs."""
    from transformers import TrainerState

    run: dict[str, object] = {"fingerprint": training.fingerprint}
    with arguments.main_process_first(local=False):
        discard_others(training.output_dir, run)
        checkpoint = newest_complete(training.output_dir, run)
        if checkpoint is None and arguments.should_save and arguments.logging_dir is None:
            shutil.rmtree(training.output_dir / "logs", ignore_errors=True)
    if checkpoint is None:
        return None, None
    return checkpoint, TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def _finished_model(
    training: Training, arguments: "SftArguments", checkpoint: Path | None, state: "TrainerState", initial: Any
) -> Any:
    """The final model of a finished run, from its checkpoints; Trainer would train one step more inside an epoch."""
    from transformers.trainer_utils import rotate_checkpoints

    best = state.best_model_checkpoint if arguments.load_best_model_at_end else None
    if arguments.should_save:  # the run may have been killed before it removed older checkpoints
        rotate_checkpoints(str(training.output_dir), arguments.save_total_limit, state.best_model_checkpoint)
    folder = Path(best or str(checkpoint))
    if arguments.trainable == LORA:
        load_lora(initial, folder)
        return initial
    return load_model(folder)[0]


def _train(
    training: Training,
    arguments: "SftArguments",
    model: Any,
    checkpoint: Path | None,
    compute: Compute,
    on_log: OnLog | None,
    smaller: bool,
) -> "TrainerState":
    """Train the model in place, from the beginning or from a checkpoint."""
    from transformers import PrinterCallback, TrainerCallback
    from transformers.integrations.integration_utils import TensorBoardCallback

    from ivr_dagster.core.training.callbacks import EmbeddingPhaseCallback, RunCallback
    from ivr_dagster.core.training.row_trainer import RowTrainer, collate

    config = training.config
    evaluated: Any = training.validation
    # the run callback removes old checkpoints, after the new one is marked complete
    limit, arguments.save_total_limit = arguments.save_total_limit, None
    patience = arguments.early_stopping_patience
    run = RunCallback({"fingerprint": training.fingerprint}, limit, patience, compute, on_log, config.source, smaller)
    phase = EmbeddingPhaseCallback(arguments.embedding_phase if training.new_tokens else 0.0)
    callbacks: list[TrainerCallback] = [run, phase]
    reporters = list(arguments.report_to or ())
    arguments.report_to = [name for name in reporters if name != "tensorboard"]
    with ExitStack() as stack:
        if "tensorboard" in reporters and arguments.process_index == 0:
            folder = Path(arguments.logging_dir or training.output_dir / "logs")
            tensorboard: Any = TensorBoardCallback
            callbacks.append(tensorboard(stack.enter_context(_summary_writer(folder, checkpoint))))
        # a checkpoint proves that the settings work
        with _blame_settings(config.source, unless=lambda: checkpoint is not None or run.began > 0):
            trainer = RowTrainer(
                model=model,
                args=arguments,
                train_dataset=read_blocks(training.blocks),
                eval_dataset=evaluated,
                data_collator=collate,
                callbacks=callbacks,
            )
            trainer.rates, trainer.new_tokens = config.rates, training.new_tokens or {}
            if evaluated is not None:
                tokenizer = TokenizerFolder(training.tokenizer_dir)
                trainer.scoring = ScoringTokenizer.of(tokenizer.backend(), tokenizer.end_of_text_id())
            trainer.remove_callback(PrinterCallback)
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return trainer.state


def _summary_writer(folder: Path, checkpoint: Path | None) -> Any:
    """TensorBoard's writer; hides what a stopped run logged after the checkpoint."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=None if checkpoint is None else step_of(checkpoint) + 1)


@contextmanager
def _blame_settings(source: Path, *, unless: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Turn the errors that libraries raise before the first step into InputErrors about the settings file."""
    try:
        yield
    except (ValueError, TypeError, ImportError, AttributeError, RuntimeError) as error:
        if is_out_of_memory(error) or isinstance(error, TrainingDivergedError) or unless():
            raise
        raise InputError(
            f"the training settings contradict each other or do not fit this machine ({short_message(error)})",
            where=source,
            remedy="Change or delete the settings it names",
        ) from error


def _training_arguments(training: Training) -> "SftArguments":
    """Trainer's arguments: the settings, and the values that the run itself requires."""
    from ivr_dagster.core.training.callbacks import BITS_PER_BYTE
    from ivr_dagster.core.training.sft_arguments import SftArguments

    config, device, dtype = training.config, training.device, training.dtype
    _check_device(device, dtype)
    precision = {} if {"bf16", "fp16"} & config.arguments.keys() else _PRECISIONS[dtype]
    chosen = {"use_cpu": device == "cpu", "dataloader_pin_memory": device == "cuda", **precision}
    required: dict[str, Any] = {
        "output_dir": str(training.output_dir),
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": "all",
        "remove_unused_columns": False,
        "prediction_loss_only": True,
        "metric_for_best_model": BITS_PER_BYTE,
        "greater_is_better": False,
    }
    if config.arguments["embedding_phase"] or config.arguments["trainable"] != ALL:
        required |= {"ddp_find_unused_parameters": True}
    if training.validation is None:
        required |= {"eval_strategy": "no", "load_best_model_at_end": False}
    with _blame_settings(config.source):
        arguments = SftArguments(**{**chosen, **config.arguments, **required})
    if arguments.fp16 and arguments.device.type == "cpu":
        raise InputError("the CPU does not train in float16", where=config.source, remedy="Use bfloat16 or float32")
    return arguments


def _check_device(device: str, dtype: str) -> None:
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device not in available:
        raise InputError(
            f"unknown device {device!r}, expected one of {', '.join(available)}",
            where="device",
            remedy="Select one of several GPUs with CUDA_VISIBLE_DEVICES",
        )
    if not available[device]:
        raise InputError(
            f"device {device} requested, but torch finds none",
            where="device",
            remedy="Use cpu, or install a torch build for the device",
        )
    if dtype not in _PRECISIONS:
        raise InputError(f"unknown dtype {dtype!r}, expected one of {', '.join(_PRECISIONS)}", where="dtype")


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Disable the progress bars of transformers: `on_log` reports the progress."""
    from transformers.utils import logging as library

    logging: Any = library
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()
