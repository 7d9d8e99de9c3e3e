"""Fine-tuning a causal language model on packed blocks, by transformers' Trainer.

What belongs here: one run from a model folder to a model folder, that can be stopped at any moment and gone on with.
Its settings are read by `sft_config`, its data packed by `blocks`, its steps made by `row_trainer`. Called in each of
several processes that torch's launcher started, it is one run of all of them.
"""

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ivr_dagster.core.atomic import replacing
from ivr_dagster.core.embedding.new_rows import embedding_parameters
from ivr_dagster.core.errors import InputError
from ivr_dagster.core.training.blocks import COLUMN, read_blocks
from ivr_dagster.core.training.checkpoints import discard_useless, mark_complete, newest_complete, step_of
from ivr_dagster.core.training.flops import Compute, compute_of
from ivr_dagster.core.training.row_trainer import BITS_PER_BYTE, collate, trainer_class
from ivr_dagster.core.training.sft_config import SftConfig, read_sft_config

if TYPE_CHECKING:
    import torch
    from transformers import TrainerCallback, TrainerState, TrainingArguments

__all__ = ["SftConfig", "SftResult", "TrainingDiverged", "fine_tune", "read_sft_config"]

_PRECISIONS = {"float32": {}, "bfloat16": {"bf16": True}, "float16": {"fp16": True}}


class TrainingDiverged(RuntimeError):
    """The loss, or the gradient, is no longer a finite number."""


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


@dataclass(frozen=True)
class Validation:
    """Blocks that a run is validated on.

    Attributes:
        blocks: their folder, as :func:`~ivr_dagster.core.training.blocks.write_blocks` wrote it.
        bytes_per_token: UTF-8 bytes of the packed text over its tokens: makes bits per byte of a loss.
    """

    blocks: Path
    bytes_per_token: float


def fine_tune(
    model_dir: Path,
    blocks: Path,
    output_dir: Path,
    config: SftConfig,
    *,
    tokenizer_dir: Path,
    fingerprint: str,
    device: str = "cpu",
    dtype: str = "float32",
    new_tokens: Mapping[int, str] | None = None,
    validation: Validation | None = None,
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

    Args:
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
        on_log: called every `logging_steps` steps with step, max_steps, loss (nats per token), learning_rate,
            tokens_per_second, flops_per_second, mfu where it is known, and seconds_left; and after every validation
            with step, max_steps and bits_per_byte.
        final_dir: where the final model goes, `output_dir/final_model` by default. It appears whole, in the dtype
            of the model in `model_dir`.
        keep_model: whether it is written at all; not where only the figures are wanted.

    Raises:
        InputError: a folder that holds no model, tokenizer or blocks; blocks longer than the model's context; a
            device that is not there; settings that contradict each other.
        TrainingDiverged: the loss is no number any more. No checkpoint holds that state.
    """
    from transformers import PrinterCallback, TrainerState, set_seed
    from transformers.integrations.integration_utils import TensorBoardCallback

    started = time.monotonic()
    final_dir = final_dir or output_dir / "final_model"
    config = config.shared_by(int(os.environ.get("WORLD_SIZE", "1")))  # torch's launcher tells each process so
    arguments = _training_arguments(config, output_dir, device, dtype, validated=validation is not None)
    dataset = read_blocks(blocks)
    with _quiet_libraries(), ExitStack() as stack:
        tokenizer = _load_tokenizer(tokenizer_dir)
        set_seed(arguments.seed)
        model, stored_dtype = _load_model(model_dir)
        _check_fit(model, tokenizer, len(dataset[0][COLUMN]), model_dir)
        use_cache = model.config.use_cache
        compute = compute_of(model, len(dataset[0][COLUMN]), arguments)

        run: dict[str, object] = {"fingerprint": fingerprint}
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
        else:
            limit, arguments.save_total_limit = arguments.save_total_limit, None
            phase = config.embedding_phase if new_tokens else 0.0
            callbacks: list[TrainerCallback] = [
                _run_callback(run, limit, patience, compute, on_log),
                _phase_callback(phase),
            ]
            reporters = list(arguments.report_to or ())
            arguments.report_to = [name for name in reporters if name != "tensorboard"]
            if "tensorboard" in reporters and arguments.process_index == 0:
                tensorboard: Any = TensorBoardCallback
                callbacks.append(tensorboard(stack.enter_context(_writer(logging_dir, resumed_from))))
            trainer = trainer_class()(
                model=model,
                args=arguments,
                train_dataset=dataset,
                eval_dataset=None if validation is None else read_blocks(validation.blocks),
                data_collator=collate,
                callbacks=callbacks,
            )
            trainer.rates, trainer.new_tokens = config.rates, new_tokens or {}
            trainer.bytes_per_token = 1.0 if validation is None else validation.bytes_per_token
            trainer.remove_callback(PrinterCallback)
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            state = trainer.state
        training_seconds = time.monotonic() - training_began

        if arguments.should_save and keep_model:
            # Trainer switches it off for training; the final model is for generating too
            model.config.use_cache = use_cache
            with replacing(final_dir) as folder:
                model.to(stored_dtype).save_pretrained(folder)
                _copy_tokenizer(tokenizer, tokenizer_dir, folder)
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
    )


def _training_arguments(
    config: SftConfig, output_dir: Path, device: str, dtype: str, *, validated: bool
) -> "TrainingArguments":
    """The settings, and what the run itself depends on, as Trainer takes them."""
    import torch
    from transformers import TrainingArguments

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
        "output_dir": str(output_dir),
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
    if not validated:
        ours |= {"eval_strategy": "no", "load_best_model_at_end": False}
    chosen = {"use_cpu": device == "cpu", "dataloader_pin_memory": device == "cuda", **precision}
    try:
        arguments = TrainingArguments(**{**chosen, **config.arguments, **ours})
    except (ValueError, TypeError, ImportError) as error:
        raise InputError(
            f"the training settings contradict each other or this machine ({error})",
            where=config.source,
            remedy="Change or delete the settings it names",
        ) from error
    if arguments.fp16 and arguments.device.type == "cpu":
        raise InputError("float16 does not train on the CPU", where=config.source, remedy="Take bfloat16 or float32")
    return arguments


def _load_model(folder: Path) -> "tuple[Any, torch.dtype]":
    """A causal LM in float32, and the dtype it is stored in."""
    from transformers import AutoModelForCausalLM

    if not (folder / "config.json").is_file():
        raise InputError(
            "this folder holds no model (no config.json)",
            where=folder,
            remedy="Give a folder that save_pretrained wrote",
        )
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"no causal language model can be loaded ({error})",
            where=folder,
            remedy="Give a folder that save_pretrained wrote",
        ) from error
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
    except (OSError, ValueError) as error:
        raise InputError(f"no tokenizer can be loaded ({error})", where=folder, remedy=remedy) from error
    # beside a model's config.json AutoTokenizer makes an empty tokenizer out of nothing
    if not any((folder / name).is_file() for name in ("tokenizer.json", *tokenizer.vocab_files_names.values())):
        raise InputError("this folder holds no tokenizer", where=folder, remedy=remedy)
    return tokenizer


def _copy_tokenizer(tokenizer: Any, source: Path, target: Path) -> None:
    """Copy the tokenizer's files as they are; save_pretrained would write how it was loaded into them."""
    names = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
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
) -> "TrainerCallback":
    """What we add to Trainer's loop: progress, the end of a run, marked checkpoints."""
    from accelerate import PartialState
    from transformers import TrainerCallback, TrainerControl, set_seed
    from transformers.trainer_utils import rotate_checkpoints

    class RunCallback(TrainerCallback):
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
                    raise TrainingDiverged(
                        f"the {name} is {logs[name]} at step {state.global_step} of {state.max_steps}"
                        f" (logged every {state.logging_steps} steps): take a lower learning_rate or a longer warmup"
                    )
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
            # from the state's own history, which a resumed run has too
            control.should_training_stop |= _gets_no_better(state, patience)
            if on_log is not None and state.is_world_process_zero:
                bits = _history(state, BITS_PER_BYTE)[-1][1]
                on_log({"step": state.global_step, "max_steps": state.max_steps, "bits_per_byte": bits})

        def on_save(
            self, args: "TrainingArguments", state: "TrainerState", control: TrainerControl, **kwargs: Any
        ) -> None:
            # every process writes its own generator states
            PartialState().wait_for_everyone()
            if args.should_save:
                mark_complete(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}", run)
                # here and not in Trainer, which would remove the last whole checkpoint before this one is marked
                rotate_checkpoints(str(args.output_dir), save_total_limit, state.best_model_checkpoint)

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
