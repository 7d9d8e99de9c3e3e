"""Fine-tuning a causal language model on packed blocks, by transformers' Trainer.

What belongs here: one run from a model folder to a model folder, that can be stopped at any moment and gone on with.
Its settings are read by `sft_config`, its data packed by `blocks`, its steps made by `row_trainer`. Called in each of
several processes that torch's launcher started, it is one run of all of them.
"""

import gc
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ivr_dagster.core.embedding.new_rows import embedding_parameters
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.tokenizer.folder import BASE_TOKENIZER, REMAP_RULES, TOKENIZER
from ivr_dagster.core.training.blocks import COLUMN, largest_id, read_blocks
from ivr_dagster.core.training.checkpoints import discard_useless, mark_complete, newest_complete, step_of
from ivr_dagster.core.training.flops import Compute, compute_of
from ivr_dagster.core.training.row_trainer import BITS_PER_BYTE, collate, trainer_class
from ivr_dagster.core.training.sft_config import SftConfig, read_sft_config
from ivr_dagster.errors import InputError, short_message
from ivr_dagster.storage.atomic import atomic_write

if TYPE_CHECKING:
    import torch
    from transformers import TrainerCallback, TrainerState, TrainingArguments

__all__ = ["OutOfMemory", "SftConfig", "SftResult", "Training", "TrainingDiverged", "fine_tune", "read_sft_config"]

_PRECISIONS = {"float32": {}, "bfloat16": {"bf16": True}, "float16": {"fp16": True}}
# a loss so many times what guessing costs, ln V nats a token, has exploded, and twice of where it began
_GUESSES, _BEGINNINGS = 10, 2
# what libraries say, in a RuntimeError, of memory that a smaller batch may do with; `errors` knows of other kinds
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "_ALLOC_FAILED")


class TrainingDiverged(RuntimeError):
    """The loss has exploded, or it, the gradient or a weight is no longer a finite number."""


class OutOfMemory(RuntimeError):
    """The device has too little memory, even for one block at a time."""


@dataclass(frozen=True)
class SftResult:
    """What a run came to.

    Attributes:
        final_model: the folder with the fine-tuned model and its tokenizer.
        steps: optimizer steps of the whole run.
        tokens: tokens trained on in the whole run, repetitions counted.
        seconds: wall clock of this call; what an earlier, stopped one took is not in it.
        tokens_per_second: of this call's training, loading and saving the model left out; 0 where nothing was left.
        flops_per_second: what these tokens took, by :mod:`~ivr_dagster.core.training.flops`.
        mfu: the share of what all devices together could do; None where that is not known.
        resumed_from: the step this call went on from, None when it began at the beginning.
        train_loss: nats per token, mean over all steps of the whole run.
        loss_history: (step, mean loss in nats per token of the steps since the entry before), the whole run.
        validation: (step, bits per byte of the validation blocks), the whole run; empty without such blocks.
        best_step: the step whose weights the final model has; the last one unless `load_best_model_at_end` is set.
        micro_batch: blocks that this process read at a time; fewer than the settings say where memory did not suffice.
        accumulated: micro-batches whose gradients made a step.
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
class Validation:
    """Blocks that a run is validated on.

    Attributes:
        blocks: their folder, as :func:`~ivr_dagster.core.training.blocks.write_blocks` wrote it.
        bytes_per_token: UTF-8 bytes of the packed text over its tokens: makes bits per byte of a loss.
    """

    blocks: Path
    bytes_per_token: float


@dataclass(frozen=True)
class Training:
    """What a run is made of and where it goes.

    Attributes:
        model_dir: a folder for `AutoModelForCausalLM.from_pretrained`; loaded offline, without remote code.
        blocks: the folder that :func:`~ivr_dagster.core.training.blocks.write_blocks` wrote.
        output_dir: the run's folder; made if it is not there.
        config: the settings.
        tokenizer_dir: a folder for `AutoTokenizer.from_pretrained`, kept with the final model.
        fingerprint: a string that differs when the model, the blocks or the settings do.
        device: cpu, cuda or mps. Which of several GPUs is the launcher's or CUDA_VISIBLE_DEVICES' choice.
        dtype: float32, or bfloat16 or float16 for mixed precision; the weights are trained in float32 whichever it
            is. `bf16`, `fp16` and `use_cpu` in the settings go before `dtype` and `device`.
        new_tokens: byte-level string by id of the tokens whose rows learn at rates of their own; without them all rows
            learn at the kept ones' rate, and there is no phase of embeddings only.
        validation: blocks to measure bits per byte on, as often as `eval_strategy` and `eval_steps` say.
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
    training: Training,
    *,
    on_log: Callable[[dict[str, float]], None] | None = None,
    final_dir: Path | None = None,
    keep_model: bool = True,
) -> SftResult:
    """Fine-tune a model on blocks: causal language modelling, every token a label, nothing masked.

    `output_dir` receives `checkpoint-N/` and `logs/` (TensorBoard). A call goes on from the newest complete
    checkpoint of the same `fingerprint` and ends, on the CPU, with the very bits that an undisturbed run ends with;
    checkpoints of another fingerprint, and half-written ones, are removed. When the last checkpoint is already that
    of the last step, the final model is written anew from it. No pickle is read: a checkpoint's weights are
    safetensors, and Trainer reads optimizer, scheduler and generator states with `weights_only`.

    Several processes share each step's blocks among them and come to the losses of one, up to rounding and to what
    dropout leaves out; all are given the same arguments, and the first of them writes and calls `on_log`. What some
    number of processes left, another number goes on from.

    Where memory does not suffice, the run goes on from its newest checkpoint with smaller micro-batches, as many more
    of them a step: the same batches, and the same losses up to rounding and to what dropout leaves out.

    Args:
        training: what the run is made of and where it goes.
        on_log: called every `logging_steps` steps with step, max_steps, loss (nats per token), learning_rate,
            tokens_per_second, flops_per_second, mfu where it is known, and seconds_left; after every validation
            with step, max_steps and bits_per_byte; and where it goes on with smaller micro-batches, with step,
            max_steps, micro_batch (blocks) and accumulated (micro-batches a step).
        final_dir: where the final model goes, `output_dir/final_model` by default. It appears whole, in the dtype
            of the model in `model_dir`.
        keep_model: whether it is written at all; not where only the figures are wanted.

    Raises:
        InputError: a folder that holds no model, tokenizer or blocks; blocks longer than the model's context; a
            device that is not there; settings that contradict each other.
        TrainingDiverged: the loss is no number any more, or has exploded. No checkpoint holds that state.
        OutOfMemory: the device's memory does not suffice for one block at a time, or, of several processes, for the
            blocks of one.
    """
    started = time.monotonic()
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # torch's launcher tells each process so
    training, smaller = replace(training, config=training.config.shared_by(processes)), False
    while True:
        try:
            result = _run(training, on_log, final_dir or training.output_dir / "final_model", keep_model, smaller)
        except Exception as error:
            if not _is_of_memory(error):
                raise
            validated = training.validation is not None
            fewer = _in_smaller_pieces(training.config, validated=validated) if processes == 1 else None
            if fewer is None:
                raise _out_of_memory(error, training, processes) from error
            training, smaller = replace(training, config=fewer), True
        else:
            return replace(result, seconds=time.monotonic() - started)
        _free_memory()  # here, where the error no longer holds on to the model


def _run(
    training: Training,
    on_log: Callable[[dict[str, float]], None] | None,
    final_dir: Path,
    keep_model: bool,
    smaller: bool,
) -> SftResult:
    """What :func:`fine_tune` does, under settings of this process; `smaller`: micro-batches were too large before."""
    from transformers import PrinterCallback, TrainerState, set_seed
    from transformers.integrations.integration_utils import TensorBoardCallback
    from transformers.trainer_utils import rotate_checkpoints

    started = time.monotonic()
    config, output_dir, validation = training.config, training.output_dir, training.validation
    arguments = _training_arguments(training)
    dataset = read_blocks(training.blocks)
    with _quiet_libraries(), ExitStack() as stack:
        tokenizer = _load_tokenizer(training.tokenizer_dir)
        set_seed(arguments.seed)
        model, stored_dtype = _load_model(training.model_dir)
        _check_fit(model, tokenizer, len(dataset[0][COLUMN]), training.model_dir)
        _check_ids(model, largest_id(dataset), training.blocks)
        use_cache = model.config.use_cache
        compute = compute_of(model, len(dataset[0][COLUMN]), arguments)

        run: dict[str, object] = {"fingerprint": training.fingerprint}
        with arguments.main_process_first(local=False):
            discard_useless(output_dir, run)
            checkpoint = newest_complete(output_dir, run)
            logging_dir = Path(config.logging_dir or output_dir / "logs")
            if checkpoint is None and arguments.should_save and config.logging_dir is None:
                shutil.rmtree(logging_dir, ignore_errors=True)
        resumed_from = None if checkpoint is None else step_of(checkpoint)
        state = None if checkpoint is None else TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        tokens_before = 0 if state is None else int(state.num_input_tokens_seen)

        training_began = time.monotonic()
        patience = config.early_stopping_patience
        if checkpoint is not None and state is not None and _is_finished(state, patience):
            # Trainer would take one step too many here where the last step lies inside an epoch
            best = state.best_model_checkpoint if arguments.load_best_model_at_end else None
            model, _ = _load_model(Path(best or checkpoint))
            if arguments.should_save:  # stopped between writing the last one and removing those before
                rotate_checkpoints(str(output_dir), arguments.save_total_limit, state.best_model_checkpoint)
        else:
            limit, arguments.save_total_limit = arguments.save_total_limit, None
            phase = config.embedding_phase if training.new_tokens else 0.0
            keeper = _run_callback(run, limit, patience, compute, on_log, config.source, smaller)
            callbacks: list[TrainerCallback] = [keeper, _phase_callback(phase)]
            reporters = list(arguments.report_to or ())
            arguments.report_to = [name for name in reporters if name != "tensorboard"]
            if "tensorboard" in reporters and arguments.process_index == 0:
                tensorboard: Any = TensorBoardCallback
                callbacks.append(tensorboard(stack.enter_context(_writer(logging_dir, resumed_from))))
            # a checkpoint was made under these settings: what fails then is something else
            with _settings_at_fault(config.source, unless=lambda: checkpoint is not None or keeper.began > 0):
                trainer = trainer_class()(
                    model=model,
                    args=arguments,
                    train_dataset=dataset,
                    eval_dataset=None if validation is None else read_blocks(validation.blocks),
                    data_collator=collate,
                    callbacks=callbacks,
                )
                trainer.rates, trainer.new_tokens = config.rates, training.new_tokens or {}
                trainer.bytes_per_token = 1.0 if validation is None else validation.bytes_per_token
                trainer.remove_callback(PrinterCallback)
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            state = trainer.state
        training_seconds = time.monotonic() - training_began

        if arguments.should_save and keep_model:
            # Trainer switches it off for training; the final model is for generating too
            model.config.use_cache = use_cache
            with atomic_write(final_dir) as folder:
                model.to(stored_dtype).save_pretrained(folder)
                _copy_tokenizer(tokenizer, training.tokenizer_dir, folder)
    history = _history(state, "loss")
    tokens_per_second = (int(state.num_input_tokens_seen) - tokens_before) / training_seconds
    computed = compute.figures(tokens_per_second)
    return SftResult(
        final_model=final_dir,
        steps=state.global_step,
        tokens=int(state.num_input_tokens_seen),
        seconds=time.monotonic() - started,
        tokens_per_second=tokens_per_second,
        flops_per_second=computed["flops_per_second"],
        mfu=computed.get("mfu"),
        resumed_from=resumed_from,
        train_loss=_mean_loss(history),
        loss_history=history,
        validation=_history(state, BITS_PER_BYTE),
        best_step=_best_step(state) if arguments.load_best_model_at_end else state.global_step,
        micro_batch=arguments.per_device_train_batch_size,
        accumulated=arguments.gradient_accumulation_steps,
    )


def _is_of_memory(error: Exception) -> bool:
    """Whether too little memory, of the device or of this machine, is what went wrong."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def _in_smaller_pieces(config: SftConfig, *, validated: bool) -> SftConfig | None:
    """The same steps with micro-batches of half the blocks, or of the next share that goes into a step's without rest.

    None where they are of one block, or must not change: where a last, smaller batch is left out.
    """
    batch = config.arguments["per_device_train_batch_size"]
    read = config.arguments.get("per_device_eval_batch_size", 8) if validated else 1  # Trainer's default
    pieces = next((n for n in range(2, batch + 1) if batch % n == 0), 1)
    if (pieces == 1 and read == 1) or config.arguments.get("dataloader_drop_last"):
        return None
    changed = {
        "per_device_train_batch_size": batch // pieces,
        "gradient_accumulation_steps": config.arguments.get("gradient_accumulation_steps", 1) * pieces,
        "per_device_eval_batch_size": min(read, batch // pieces),
    }
    return replace(config, arguments={**config.arguments, **changed})


def _out_of_memory(error: Exception, training: Training, processes: int) -> OutOfMemory:
    batch = training.config.arguments["per_device_train_batch_size"]
    smaller = f"a smaller per_device_train_batch_size than {batch}, with more gradient_accumulation_steps, "
    return OutOfMemory(
        f"{training.config.source}: out of memory on {training.device} with {batch} block{'s' * (batch > 1)} of "
        f"{len(read_blocks(training.blocks)[0][COLUMN]):,} tokens at a time"
        f"{f' in each of {processes} processes' if processes > 1 else ''} ({short_message(error)}): take "
        f"{smaller if batch > 1 else ''}a smaller --block-size, gradient_checkpointing: true, --dtype bfloat16 where "
        "the device computes with it, or a device with more memory. What checkpoints hold is not lost"
    )


def _free_memory() -> None:
    import torch

    gc.collect()  # a Trainer refers to itself
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


@contextmanager
def _settings_at_fault(source: Path, *, unless: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """What libraries say of settings before the first step, told as a fault of these."""
    try:
        yield
    except (ValueError, TypeError, ImportError, AttributeError, RuntimeError) as error:
        if _is_of_memory(error) or isinstance(error, TrainingDiverged) or unless():
            raise
        raise InputError(
            f"the training settings contradict each other or this machine ({short_message(error)})",
            where=source,
            remedy="Change or delete the settings it names",
        ) from error


def _training_arguments(training: Training) -> "TrainingArguments":
    """The settings, and what the run itself depends on, as Trainer takes them."""
    import torch
    from transformers import TrainingArguments

    config, device, dtype = training.config, training.device, training.dtype
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device not in available:
        raise InputError(
            f"the device {device!r} is none of {', '.join(available)}",
            where="device",
            remedy="Choose one of several GPUs with CUDA_VISIBLE_DEVICES",
        )
    if not available[device]:
        raise InputError(
            f"the device {device} was asked for, and torch finds none",
            where="device",
            remedy="Take cpu, or install a torch build for it",
        )
    if dtype not in _PRECISIONS:
        raise InputError(
            f"the dtype {dtype!r} is none of {', '.join(_PRECISIONS)}",
            where="dtype",
            remedy="Training is in float32 or in mixed precision",
        )
    precision = {} if {"bf16", "fp16"} & config.arguments.keys() else _PRECISIONS[dtype]
    ours: dict[str, Any] = {
        "output_dir": str(training.output_dir),
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": "all",
        "remove_unused_columns": False,
        "prediction_loss_only": True,
        "metric_for_best_model": BITS_PER_BYTE,
        "greater_is_better": False,
    }
    if config.embedding_phase:
        ours |= {"ddp_find_unused_parameters": True}
    if training.validation is None:
        ours |= {"eval_strategy": "no", "load_best_model_at_end": False}
    chosen = {"use_cpu": device == "cpu", "dataloader_pin_memory": device == "cuda", **precision}
    with _settings_at_fault(config.source):
        arguments = TrainingArguments(**{**chosen, **config.arguments, **ours})
    if arguments.fp16 and arguments.device.type == "cpu":
        raise InputError("float16 does not train on the CPU", where=config.source, remedy="Take bfloat16 or float32")
    return arguments


def _load_model(folder: Path) -> "tuple[Any, torch.dtype]":
    """A causal LM in float32, and the dtype it is stored in."""
    model: Any = ModelFolder(folder).load()
    # transformers knows the loss by the class name, not by GPT2LMHeadModel's: there Trainer would count a label too
    # many in every block and scale loss and gradient down by it
    model.loss_type = "ForCausalLM"
    # tied weights are stored once; not told so, Trainer warns of missing ones whenever it resumes
    model._keys_to_ignore_on_save = set(model.all_tied_weights_keys)
    stored = model.dtype
    return model.float(), stored


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    remedy = "Give a folder with tokenizer.json and tokenizer_config.json"
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a class makes of settings that make no sense
        raise InputError(f"no tokenizer can be loaded ({short_message(error)})", where=folder, remedy=remedy) from error
    # beside a model's config.json AutoTokenizer makes an empty tokenizer out of nothing
    if not any((folder / name).is_file() for name in ("tokenizer.json", *tokenizer.vocab_files_names.values())):
        raise InputError("this folder holds no tokenizer", where=folder, remedy=remedy)
    return tokenizer


def _copy_tokenizer(tokenizer: Any, source: Path, target: Path) -> None:
    """Copy the tokenizer's files as they are; save_pretrained would write how it was loaded into them."""
    names = {TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
    names |= {BASE_TOKENIZER, REMAP_RULES}
    for name in sorted(names | {"chat_template.jinja"} | set(tokenizer.vocab_files_names.values())):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _check_fit(model: Any, tokenizer: Any, block_size: int, model_dir: Path) -> None:
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and block_size > context:
        raise InputError(
            f"the blocks have {block_size:,} tokens, the model's context {context:,}",
            where=model_dir,
            remedy=f"Pack with --block-size {context} or less",
        )
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise InputError(
            f"the tokenizer has {len(tokenizer):,} tokens, the model {rows:,} embedding rows",
            where=model_dir,
            remedy="Give the model and the tokenizer of the same run",
        )


def _check_ids(model: Any, largest: int, blocks: Path) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if largest >= rows:
        raise InputError(
            f"the blocks hold the id {largest:,}, the model has {rows:,} embedding rows",
            where=blocks,
            remedy="Give the model and the blocks of the same run",
        )


def _phase_callback(share: float) -> "TrainerCallback":
    """Keeps everything but the embeddings as it is for the first `share` of all steps."""
    from transformers import TrainerCallback

    class PhaseCallback(TrainerCallback):
        def on_step_begin(self, args: Any, state: "TrainerState", control: Any, **kwargs: Any) -> None:
            model = kwargs["model"]
            model = getattr(model, "module", model)
            embeddings = {id(each) for each in embedding_parameters(model)}
            learns = state.global_step >= share * state.max_steps
            for parameter in model.parameters():
                if id(parameter) not in embeddings:
                    parameter.requires_grad_(learns)

    return PhaseCallback()


def _run_callback(
    run: dict[str, object],
    save_total_limit: int | None,
    patience: int,
    compute: Compute,
    on_log: Callable[[dict[str, float]], None] | None,
    settings: Path,
    smaller: bool,
) -> Any:
    """What we add to Trainer's loop: progress, the end of a run, marked checkpoints."""
    from accelerate import PartialState
    from transformers import TrainerCallback, TrainerControl, set_seed
    from transformers.trainer_utils import rotate_checkpoints

    def diverged(what: str, args: "TrainingArguments", state: "TrainerState") -> TrainingDiverged:
        kept = newest_complete(Path(str(args.output_dir)), run)
        return TrainingDiverged(
            f"{settings}: {what} at step {state.global_step} of {state.max_steps} (looked at every "
            f"{state.logging_steps} steps): take a lower learning_rate or a longer warmup, which begins anew; "
            + (
                f"{kept.name} is kept, and with the settings as they are training goes on from it"
                if kept
                else "there is no checkpoint from before it"
            )
        )

    def see_that_weights_are_finite(args: "TrainingArguments", state: "TrainerState", model: Any) -> None:
        for name, parameter in model.named_parameters():
            if not parameter.isfinite().all():
                raise diverged(f"{name} holds what is no finite number", args, state)

    class RunCallback(TrainerCallback):
        began = 0.0

        def on_train_begin(
            self, args: "TrainingArguments", state: "TrainerState", control: TrainerControl, **kwargs: Any
        ) -> None:
            self.began, self.first_step, self.first_token = (
                time.monotonic(),
                state.global_step,
                state.num_input_tokens_seen,
            )
            if args.world_size > 1:
                # else all processes would leave out the same places of their blocks; which blocks is settled by now
                set_seed(args.seed + args.process_index)
            model = kwargs["model"]
            self.guessing = math.log(getattr(model, "module", model).get_input_embeddings().weight.shape[0])
            if smaller and on_log is not None and state.is_world_process_zero:
                on_log(
                    {
                        "step": state.global_step,
                        "max_steps": state.max_steps,
                        "micro_batch": args.per_device_train_batch_size,
                        "accumulated": args.gradient_accumulation_steps,
                    }
                )

        def on_step_end(
            self, args: "TrainingArguments", state: "TrainerState", control: TrainerControl, **kwargs: Any
        ) -> None:
            # What is not logged when a checkpoint is written is lost to a run resumed from it, and a loss that is
            # no number has to be seen before it is written.
            control.should_log |= control.should_save or control.should_training_stop

        on_epoch_end = on_step_end

        def on_log(
            self, args: "TrainingArguments", state: "TrainerState", control: TrainerControl, **kwargs: Any
        ) -> None:
            logs: dict[str, float] = kwargs["logs"]
            if "loss" not in logs:
                return
            # the loss scaler of float16 meets infinite gradients as a matter of course, and skips those steps
            for name in ("loss",) if args.fp16 else ("loss", "grad_norm"):
                if not math.isfinite(logs.get(name, 0.0)):
                    raise diverged(f"the {name} is {logs[name]}", args, state)
            beginning = _history(state, "loss")[0][1]
            if logs["loss"] > max(_GUESSES * self.guessing, _BEGINNINGS * beginning):
                raise diverged(f"the loss has exploded to {logs['loss']:,.4g} nats per token", args, state)
            if on_log is None or not state.is_world_process_zero:
                return
            seconds, steps = time.monotonic() - self.began, state.global_step - self.first_step
            tokens_per_second = (state.num_input_tokens_seen - self.first_token) / seconds
            on_log(
                {
                    "step": state.global_step,
                    "max_steps": state.max_steps,
                    "loss": logs["loss"],
                    "learning_rate": logs["learning_rate"],
                    "tokens_per_second": tokens_per_second,
                    **compute.figures(tokens_per_second),
                    "seconds_left": seconds / steps * (state.max_steps - state.global_step),
                }
            )

        def on_evaluate(
            self, args: "TrainingArguments", state: "TrainerState", control: TrainerControl, **kwargs: Any
        ) -> None:
            bits = _history(state, BITS_PER_BYTE)[-1][1]
            if not math.isfinite(bits):
                raise diverged(f"the validation is {bits} bits per byte", args, state)
            # from the state's own history, which a resumed run has too
            control.should_training_stop |= _gets_no_better(state, patience)
            if on_log is not None and state.is_world_process_zero:
                on_log({"step": state.global_step, "max_steps": state.max_steps, "bits_per_byte": bits})

        def on_save(
            self, args: "TrainingArguments", state: "TrainerState", control: TrainerControl, **kwargs: Any
        ) -> None:
            # a last update can spoil what the loss was still good for
            see_that_weights_are_finite(args, state, kwargs["model"])
            # every process writes its own generator states
            PartialState().wait_for_everyone()
            if args.should_save:
                mark_complete(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}", run)
                # here and not in Trainer, which would remove the last whole checkpoint before this one is marked
                rotate_checkpoints(str(args.output_dir), save_total_limit, state.best_model_checkpoint)

        def on_train_end(
            self, args: "TrainingArguments", state: "TrainerState", control: TrainerControl, **kwargs: Any
        ) -> None:
            see_that_weights_are_finite(args, state, kwargs["model"])

    return RunCallback()


def _writer(logging_dir: Path, resumed_from: int | None) -> Any:
    """TensorBoard's writer; what a stopped run logged past its last checkpoint is hidden."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(logging_dir), purge_step=None if resumed_from is None else resumed_from + 1)


def _history(state: "TrainerState", name: str) -> list[tuple[int, float]]:
    return [(int(entry["step"]), float(entry[name])) for entry in state.log_history if name in entry]


def _gets_no_better(state: "TrainerState", patience: int) -> bool:
    """Whether the last `patience` validations were all worse than one before them; 0 is never."""
    found = [value for _, value in _history(state, BITS_PER_BYTE)]
    return bool(patience and found) and len(found) - 1 - int(np.argmin(found)) >= patience


def _is_finished(state: "TrainerState", patience: int) -> bool:
    return state.global_step >= state.max_steps or _gets_no_better(state, patience)


def _best_step(state: "TrainerState") -> int:
    return step_of(Path(state.best_model_checkpoint)) if state.best_model_checkpoint else state.global_step


def _mean_loss(history: list[tuple[int, float]]) -> float:
    """Every entry is a mean over the steps since the one before."""
    steps = np.diff([0, *(step for step, _ in history)])
    return float(np.average([loss for _, loss in history], weights=steps))


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Progress bars of transformers off for a while: progress goes through `on_log`."""
    from transformers.utils import logging as library

    logging: Any = library
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
