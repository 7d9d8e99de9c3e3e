"""Better training settings for a model and a corpus: short fine-tunings on a part of the text, compared by BPB.

What belongs here: which settings are tried and between which bounds, what a trial is, what is written at the end. How
a search goes on after a kill is the business of `study`.

A trial is one pass over a part of the train split, validated four times on other documents of the train split. The
held-out text is never looked at. Short trainings bear, and want, higher rates than long ones, and have no time to learn
many rows: the longer the trials, the more their order says of the training itself.
"""

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ivr_dagster.core.training.blocks import read_blocks
from ivr_dagster.core.training.sft import OutOfMemory, Training, TrainingDiverged, Validation, fine_tune
from ivr_dagster.core.training.sft_config import SftConfig, read_sft_config, sft_config_with
from ivr_dagster.core.training.study import (
    COMPLETE,
    KILLED,
    Choice,
    GivenUp,
    Range,
    Report,
    Space,
    Trial,
    best_of,
    other_studies,
    search,
)
from ivr_dagster.errors import InputError
from ivr_dagster.storage.atomic import atomic_write, remove
from ivr_dagster.storage.content_hash import content_hash

STUDY, SETTINGS, TRIALS = "study.db", "settings.yaml", "study.json"
SFT_CONFIG = "sft_config.yaml"

VALIDATIONS = 4
# of the text of a trial, the share that validation takes beside it
VALIDATION_SHARE = 0.2
# how far rates may go from where they are, up and down
FACTOR = 5.0
LONGEST_PHASE = 0.3
# steps that a trial has at least, whatever the batch, and that its order among others takes to mean something
LEAST_STEPS, ENOUGH_STEPS = VALIDATIONS, 20

NEW_TOKENS = "new_tokens"
_RATES = ("learning_rate", "new_row_rate", "shared_row_rate")
# what the settings file says of these holds for the training itself
_TRIAL: dict[str, Any] = {
    "num_train_epochs": 1,
    "max_steps": -1,
    "eval_strategy": "steps",
    "eval_steps": 1 / VALIDATIONS,
    "eval_delay": 0,
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "early_stopping_patience": 0,
    "logging_strategy": "steps",
    "logging_steps": 0.02,
    "report_to": "none",
}


@dataclass(frozen=True)
class TrialInput:
    """What the trials with one number of new tokens start from.

    Attributes:
        model, tokenizer: folders, as of :func:`~ivr_dagster.core.training.sft.fine_tune`.
        blocks: the text of a trial, packed.
        validation: other documents of the train split, packed.
        new_tokens: byte-level string by id.
    """

    model: Path
    tokenizer: Path
    blocks: Path
    validation: Validation
    new_tokens: Mapping[int, str]


@dataclass(frozen=True)
class Tuning:
    """What a search came to.

    Attributes:
        trials: all of the study, by number.
        best: the one with the least BPB.
        default: the one with the settings as they were; it may have been given up, where these diverge.
        done_before: trials that earlier calls had done.
        other_studies: with other models, text or settings, that lie in the same file.
        steps: optimizer steps of a trial with the batch as it was.
    """

    trials: tuple[Trial, ...]
    best: Trial
    default: Trial
    done_before: int
    other_studies: int
    steps: int

    @property
    def finished(self) -> int:
        """Trials that were run to their end or given up."""
        return sum(trial.state != KILLED for trial in self.trials)


def tune(
    folder: Path,
    source: Path,
    inputs: Callable[[int], TrialInput],
    new_tokens: Sequence[int],
    *,
    fingerprint: str,
    trials: int,
    seed: int,
    seconds: float = 0.0,
    device: str = "cpu",
    dtype: str = "float32",
    on_step: Callable[[int, int], None] | None = None,
    on_trial: Callable[[Trial, int], None] | None = None,
) -> Tuning:
    """Search for training settings with a lower validation BPB than those of `source`.

    The study is kept in `folder`; a call with the same `fingerprint` goes on with it, whatever became of the call
    before. Studies with other fingerprints stay in the same file.

    Args:
        folder: where the study lies.
        source: the training settings as they are, a file as of :func:`read_sft_config`.
        inputs: what trials with so many new tokens start from; called when the first such trial begins.
        new_tokens: the numbers of new tokens to try, the one as it is first.
        fingerprint: a string that differs when models, text or settings do.
        trials, seed, seconds, on_trial: as of :func:`~ivr_dagster.core.training.study.search`.
        device, dtype: as of :func:`~ivr_dagster.core.training.sft.fine_tune`.
        on_step: called with steps done and all steps of the trial under way.

    Raises:
        InputError: the settings, a model or blocks are at fault; the study's file cannot be read; the trial with the
            settings as they are has fewer steps than validations; no trial came to its end.
    """
    current = read_sft_config(source)
    known: dict[int, TrialInput] = {}
    began: list[int] = []

    def input_of(number: int) -> TrialInput:
        if number not in known:
            known[number] = inputs(number)
        return known[number]

    def run(parameters: dict[str, Any], report: Report) -> tuple[float, dict[str, Any]]:
        number = parameters.pop(NEW_TOKENS, new_tokens[0])
        began.append(number)
        config = read_sft_config(source, **_TRIAL, **parameters)
        return _run_trial(folder / ".trial", input_of(number), config, report, device, dtype, on_step)

    blocks = len(read_blocks(input_of(new_tokens[0]).blocks))
    space, default = search_space(current, blocks, new_tokens)
    steps = _steps(current, blocks, _batch(current))
    if steps < LEAST_STEPS:
        raise InputError(
            f"a trial has {blocks:,} blocks, {steps} steps with the batch as it is, {LEAST_STEPS} are needed",
            where="tune_bytes",
            remedy="Give trials more text with --tune-bytes, or take a smaller --block-size",
        )
    # Optuna refuses trials between other bounds in a study that it knows
    name = content_hash(f"{fingerprint} {space}")
    found = search(
        folder / STUDY,
        name,
        space,
        default,
        run,
        trials=trials,
        seed=seed,
        seconds=seconds,
        on_trial=on_trial,
    )
    best = best_of(found)
    if best is None:
        reasons = "; ".join(sorted({trial.note for trial in found if trial.note}))
        raise InputError(
            f"none of {len(found)} trials came to its end ({reasons or 'there was no time for one'})",
            where=source,
            remedy="Begin with settings that train: a lower learning_rate, a smaller batch",
        )
    first = next(trial for trial in found if trial.state != KILLED)
    done_before = sum(trial.state != KILLED for trial in found) - len(began)
    return Tuning(tuple(found), best, first, done_before, other_studies(folder / STUDY, name), steps)


def search_space(config: SftConfig, blocks: int, new_tokens: Sequence[int]) -> tuple[Space, dict[str, Any]]:
    """The settings to try, around those of `config`, and their values there.

    Args:
        config: the settings as they are.
        blocks: of the text of a trial; no batch leaves fewer than `LEAST_STEPS` steps.
        new_tokens: numbers of new tokens to try, the one as it is first; 0 for none, which have no rates.
    """
    batch = _batch(config)
    default: dict[str, Any] = {
        "learning_rate": float(config.arguments["learning_rate"]),
        "new_row_rate": float(config.rates.new),
        "shared_row_rate": float(config.rates.shared),
        "embedding_phase": float(config.arguments["embedding_phase"]),
        "per_device_train_batch_size": batch,
        NEW_TOKENS: new_tokens[0],
    }
    others = {batch // 2, 2 * batch} - {0}
    batches = {batch} | {each for each in others if _steps(config, blocks, each) >= LEAST_STEPS}
    space: dict[str, Range | Choice] = {
        key: Range(default[key] / FACTOR, default[key] * FACTOR, log=True) for key in _RATES if default[key] > 0
    }
    space["embedding_phase"] = Range(0.0, max(LONGEST_PHASE, default["embedding_phase"]))
    space["per_device_train_batch_size"] = Choice(tuple(sorted(batches)))
    space[NEW_TOKENS] = Choice(tuple(sorted(set(new_tokens), reverse=True)))
    if not new_tokens[0]:
        space = {key: space[key] for key in ("learning_rate", "per_device_train_batch_size")}
    # a choice of one is none, and would only stand in every plot
    space = {key: each for key, each in space.items() if not isinstance(each, Choice) or len(each.values) > 1}
    return space, {key: default[key] for key in space}


def _batch(config: SftConfig) -> int:
    return int(config.arguments["per_device_train_batch_size"])


def _steps(config: SftConfig, blocks: int, batch: int) -> int:
    """Optimizer steps of one pass; the last takes what is left."""
    return -(-blocks // (batch * int(config.arguments.get("gradient_accumulation_steps", 1))))


def _run_trial(
    place: Path,
    given: TrialInput,
    config: SftConfig,
    report: Report,
    device: str,
    dtype: str,
    on_step: Callable[[int, int], None] | None,
) -> tuple[float, dict[str, Any]]:
    """One short fine-tuning, of which nothing is kept but its figures: BPB at its end, and others beside it."""
    import torch

    def on_log(entry: dict[str, float]) -> None:
        step, steps = int(entry["step"]), int(entry["max_steps"])
        if on_step:
            on_step(step, steps)
        if "bits_per_byte" in entry and step < steps:
            # by the share of the run, which batches of any size have in common
            report(VALIDATIONS * step // steps, entry["bits_per_byte"])

    remove(place)
    try:
        training = Training(
            given.model,
            given.blocks,
            place,
            config,
            given.tokenizer,
            fingerprint="",
            device=device,
            dtype=dtype,
            new_tokens=given.new_tokens,
            validation=given.validation,
        )
        result = fine_tune(training, on_log=on_log, keep_model=False)
    except (TrainingDiverged, OutOfMemory) as error:
        raise GivenUp(str(error)) from error
    finally:
        remove(place)
        gc.collect()  # a Trainer refers to itself
        if device == "cuda":
            torch.cuda.empty_cache()
    figures = {
        "tokens_per_byte": round(1 / given.validation.bytes_per_token, 4),
        "steps": result.steps,
        "tokens_per_second": round(result.tokens_per_second, 1),
    }
    return result.validation[-1][1], figures


def write_result(folder: Path, source: Path, tuning: Tuning, new_tokens: int) -> None:
    """Write the best settings into `folder`: `sft_config.yaml`, complete, and `study.json` with every trial.

    Where the best trial had fewer new tokens than there are, `settings.yaml` says how many to select.

    Args:
        folder: where they go.
        source: the settings file that the search began with; its comments are kept.
        tuning: what was found.
        new_tokens: how many there are.
    """
    best, default = tuning.best, tuning.default
    before = f"came to {default.value:.4f}" if default.state == COMPLETE else "did not come to an end"
    header = (
        f"# Trial {best.number} of study.db beside this file, the best of {tuning.finished}: {best.value:.4f} bits per "
        f"byte on validation text.\n# The settings it began with, {source}, {before}.\n"
    )
    chosen = best.parameters.get(NEW_TOKENS, new_tokens)
    if chosen != new_tokens:
        header += (
            f"# It had {chosen:,} new tokens, not {new_tokens:,}: see {SETTINGS}, these settings belong with it.\n"
        )
    settings = {key: value for key, value in best.parameters.items() if key != NEW_TOKENS}
    with atomic_write(folder / SFT_CONFIG) as staged:
        staged.write_text(header + sft_config_with(source, settings), encoding="utf-8")
    if chosen != new_tokens:
        with atomic_write(folder / SETTINGS) as staged:
            staged.write_text(f"{header}max_candidates: {chosen}\n", encoding="utf-8")
    else:
        remove(folder / SETTINGS)
    content = {
        "best": best.number,
        "default": default.number,
        "best_bits_per_byte": best.value,
        "default_bits_per_byte": default.value,
        "settings": settings,
        "new_tokens": chosen,
        "done_before": tuning.done_before,
        "other_studies": tuning.other_studies,
        "trials": [asdict(trial) for trial in tuning.trials],
    }
    with atomic_write(folder / TRIALS) as staged:
        staged.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
