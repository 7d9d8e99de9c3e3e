"""What this project adds to Trainer's loop: progress, checks for divergence, complete checkpoints, the embedding phase.

Import this module inside functions: it imports transformers.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.trainer_utils import rotate_checkpoints

from ivr_dagster.core.embedding.new_rows import embedding_parameters
from ivr_dagster.core.training.checkpoints import PREFIX, mark_complete, newest_complete
from ivr_dagster.core.training.flops import Compute
from ivr_dagster.core.training.sft import TrainingDivergedError

BITS_PER_BYTE = "eval_bits_per_byte"
# a loss has exploded above 10 times that of a uniform guess, ln V nats per token, and twice the first loss
_GUESSES, _FIRST_LOSSES = 10, 2


@dataclass(eq=False)
class EmbeddingPhaseCallback(TrainerCallback):
    """Trains only the embeddings during the first `share` of all steps."""

    share: float

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model = kwargs["model"]
        model = getattr(model, "module", model)
        embeddings = {id(each) for each in embedding_parameters(model)}
        self._body = [each for each in model.parameters() if each.requires_grad and id(each) not in embeddings]

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        trains = state.global_step >= self.share * state.max_steps
        for parameter in self._body:
            parameter.requires_grad_(trains)


@dataclass(eq=False)
class RunCallback(TrainerCallback):
    """Reports progress, stops a diverged run before it writes a checkpoint, and marks complete checkpoints.

    Attributes:
        run: identifies the run in its checkpoints.
        save_total_limit: number of checkpoints to keep; None for all.
        patience: validations without improvement that end the run; 0 for no limit.
        compute: FLOPs of the run.
        report: `on_log` of :func:`~ivr_dagster.core.training.sft.fine_tune`.
        settings: the settings file, for messages.
        smaller: whether the run continues with smaller micro-batches.
        began: when training began; 0 before that.
    """

    run: dict[str, object]
    save_total_limit: int | None
    patience: int
    compute: Compute
    report: Callable[[dict[str, float]], None] | None
    settings: Path
    smaller: bool
    began: float = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.began, self.first_step, self.first_token = time.monotonic(), state.global_step, state.num_input_tokens_seen
        if args.world_size > 1:
            # the order of the blocks is drawn by now; dropout must differ between processes
            set_seed(args.seed + args.process_index)
        model = kwargs["model"]
        self.guess = math.log(getattr(model, "module", model).get_input_embeddings().weight.shape[0])
        if self.smaller:
            batch, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
            self._report(state, micro_batch=batch, accumulated=accumulated)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # log before every checkpoint: a resumed run needs the losses up to it, and a diverged loss must not be saved
        control.should_log |= control.should_save or control.should_training_stop

    on_epoch_end = on_step_end

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs: dict[str, float] = kwargs["logs"]
        if "loss" not in logs:
            return
        # the loss scaler of float16 skips steps with infinite gradients
        for name in ("loss",) if args.fp16 else ("loss", "grad_norm"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise self._diverged(f"the {name} is {logs[name]}", args, state)
        first = read_history(state, "loss")[0][1]
        if logs["loss"] > max(_GUESSES * self.guess, _FIRST_LOSSES * first):
            raise self._diverged(f"the loss has exploded to {logs['loss']:,.4g} nats per token", args, state)
        seconds, steps = time.monotonic() - self.began, state.global_step - self.first_step
        tokens_per_second = (state.num_input_tokens_seen - self.first_token) / seconds
        self._report(
            state,
            loss=logs["loss"],
            learning_rate=logs["learning_rate"],
            tokens_per_second=tokens_per_second,
            **self.compute.figures(tokens_per_second),
            seconds_left=seconds / steps * (state.max_steps - state.global_step),
        )

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        bits = read_history(state, BITS_PER_BYTE)[-1][1]
        if not math.isfinite(bits):
            raise self._diverged(f"the validation is {bits} bits per byte", args, state)
        control.should_training_stop |= is_out_of_patience(state, self.patience)
        self._report(state, bits_per_byte=bits)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # the last update can produce infinite weights after a finite loss
        self._check_weights(args, state, kwargs["model"])
        # every process writes its own random state
        PartialState().wait_for_everyone()
        if args.should_save:
            mark_complete(Path(str(args.output_dir)) / f"{PREFIX}{state.global_step}", self.run)
            # Trainer would delete the last complete checkpoint before this one is marked
            rotate_checkpoints(str(args.output_dir), self.save_total_limit, state.best_model_checkpoint)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._check_weights(args, state, kwargs["model"])

    def _report(self, state: TrainerState, **figures: float) -> None:
        if self.report is not None and state.is_world_process_zero:
            self.report({"step": state.global_step, "max_steps": state.max_steps, **figures})

    def _check_weights(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        for name, parameter in model.named_parameters():
            if not parameter.isfinite().all():
                raise self._diverged(f"{name} contains values that are not finite", args, state)

    def _diverged(self, what: str, args: TrainingArguments, state: TrainerState) -> TrainingDivergedError:
        kept = newest_complete(Path(str(args.output_dir)), self.run)
        return TrainingDivergedError(
            f"{self.settings}: {what} at step {state.global_step} of {state.max_steps} (checked every "
            f"{state.logging_steps} steps): set a lower learning_rate or a longer warmup, which restarts the training; "
            + (f"{kept.name} is kept, the same settings resume from it" if kept else "there is no earlier checkpoint")
        )


def read_history(state: TrainerState, name: str) -> list[tuple[int, float]]:
    """(step, value) of everything that the run logged under a name."""
    return [(int(entry["step"]), float(entry[name])) for entry in state.log_history if name in entry]


def is_out_of_patience(state: TrainerState, patience: int) -> bool:
    """Whether the last `patience` validations did not improve on the best one; never with 0.

    The state is part of a checkpoint, so a resumed run decides as an uninterrupted one.
    """
    values = [value for _, value in read_history(state, BITS_PER_BYTE)]
    return bool(patience and values) and len(values) - 1 - int(np.argmin(values)) >= patience


def mean_loss(history: list[tuple[int, float]]) -> float:
    """The mean over all steps; each entry is a mean over the steps since the previous one."""
    steps = np.diff([0, *(step for step, _ in history)])
    return float(np.average([loss for _, loss in history], weights=steps))
