"""Better training settings for a model and a corpus: short fine-tunings on a part of the text, compared by BPB.

This module defines the search space, a trial, and the files with the result; `study` runs and resumes the search.

A trial is one pass over a part of the train split, validated four times on other documents of the train split; the
held-out text is never read. Short trainings tolerate and need higher learning rates than long ones, and hardly train
rare rows: the longer the trials, the better their order predicts that of full trainings.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ivr_dagster.core.training.blocks import read_blocks
from ivr_dagster.core.training.folders import STUDY, TuningFolder
from ivr_dagster.core.training.memory import TrainingOutOfMemoryError, free_memory
from ivr_dagster.core.training.sft import Training, TrainingDivergedError, fine_tune
from ivr_dagster.core.training.sft_config import VANILLA, SftConfig, read_sft_config, sft_config_with
from ivr_dagster.core.training.study import COMPLETE, KILLED, Report, Space, Study, Trial, best_of
from ivr_dagster.core.training.validation import Validation
from ivr_dagster.errors import InputError
from ivr_dagster.settings.groups import TuningSettings
from ivr_dagster.storage.atomic import atomic_write, remove
from ivr_dagster.storage.content_hash import content_hash

STUDY_FILE, SETTINGS = "study.db", "settings.yaml"

VALIDATIONS = 4
# size of the validation text as a share of the trial's text
VALIDATION_SHARE = 0.2
# rates are searched between the current one divided and multiplied by this
FACTOR = 5.0
MAX_EMBEDDING_PHASE = 0.3
# steps of a trial at least, and steps that its rank needs to mean something
MIN_STEPS, ENOUGH_STEPS = VALIDATIONS, 20

NEW_TOKENS = "new_tokens"
_RATES = ("learning_rate", "new_row_rate", "shared_row_rate")
_BATCH = "per_device_train_batch_size"
# settings that differ between a trial and a training
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
    """The inputs of trials with one number of new tokens.

    Attributes:
        model, tokenizer: folders, as of :class:`~ivr_dagster.core.training.sft.Training`.
        blocks: the packed text of a trial.
        validation: other documents of the train split.
        new_tokens: byte-level string by id.
        tokens_per_byte: tokens per UTF-8 byte of the text of a trial.
    """

    model: Path
    tokenizer: Path
    blocks: Path
    validation: Validation
    new_tokens: Mapping[int, str]
    tokens_per_byte: float


@dataclass(frozen=True)
class TuneOptions:
    """How to run trials, apart from the settings of tuning.

    Attributes:
        seed: of the draws.
        device, dtype: as of :class:`~ivr_dagster.core.training.sft.Training`.
        on_step: called with the finished steps and all steps of the current trial.
        on_trial: called after every trial with the number of finished trials.
    """

    seed: int
    device: str = "cpu"
    dtype: str = "float32"
    on_step: Callable[[int, int], None] | None = None
    on_trial: Callable[[Trial, int], None] | None = None


@dataclass(frozen=True)
class Tuning:
    """The result of a search.

    Attributes:
        study: the study.
        trials: all trials of the study by number.
        best: the trial with the least BPB.
        default: the trial with the current settings; it is pruned if they diverge.
        done_before: trials that earlier calls finished.
        other_studies: studies with other models, text or settings in the same file.
        steps: optimizer steps of a trial with the current batch.
    """

    study: Study
    trials: tuple[Trial, ...]
    best: Trial
    default: Trial
    done_before: int
    other_studies: int
    steps: int

    @property
    def finished(self) -> int:
        """Number of complete and pruned trials."""
        return sum(trial.state != KILLED for trial in self.trials)


def tune(
    folder: Path,
    source: Path,
    inputs: Callable[[int], TrialInput],
    new_tokens: Sequence[int],
    settings: TuningSettings,
    fingerprint: str,
    options: TuneOptions,
    *,
    vanilla: bool = False,
) -> Tuning:
    """Search for training settings with a lower validation BPB than those of `source`.

    The study is kept in `folder`; a call with the same `fingerprint` resumes it. Studies with other fingerprints stay
    in the same file.

    Args:
        folder: the study's folder.
        source: the current training settings, a file as of :func:`read_sft_config`.
        inputs: the inputs of trials with a number of new tokens; called when the first such trial starts.
        new_tokens: numbers of new tokens to try, the current one first.
        settings: number of trials and time limit.
        fingerprint: a string that identifies models, text and settings.
        options: everything else.
        vanilla: search for settings of the vanilla baseline, with `new_tokens` [0].

    Raises:
        InputError: invalid settings, models or blocks; an unreadable study; a trial with the current settings has fewer
            steps than validations; no trial completed.
    """
    current = read_sft_config(source, vanilla=vanilla)
    known: dict[int, TrialInput] = {}
    started: list[int] = []

    def input_of(number: int) -> TrialInput:
        if number not in known:
            known[number] = inputs(number)
        return known[number]

    def run(parameters: dict[str, Any], report: Report) -> tuple[float, dict[str, Any]]:
        number = parameters.pop(NEW_TOKENS, new_tokens[0])
        started.append(number)
        config = read_sft_config(source, vanilla=vanilla, **_TRIAL, **parameters)
        return _run_trial(folder / ".trial", input_of(number), config, report, options)

    blocks = len(read_blocks(input_of(new_tokens[0]).blocks))
    steps = _steps_of_trial(current, blocks)
    space = search_space(current, blocks, new_tokens)
    # Optuna rejects trials with other bounds in the same study
    study = Study(folder / STUDY_FILE, content_hash(f"{fingerprint} {space.distributions}"))
    found = study.search(
        space,
        run,
        trials=settings.tune_trials,
        seed=options.seed,
        seconds=settings.tune_seconds,
        on_trial=options.on_trial,
    )
    best = _best_trial(found, source)
    first = next(trial for trial in found if trial.state != KILLED)
    done_before = sum(trial.state != KILLED for trial in found) - len(started)
    return Tuning(study, tuple(found), best, first, done_before, study.others(), steps)


def _steps_of_trial(config: SftConfig, blocks: int) -> int:
    """Optimizer steps of a trial with the current batch."""
    steps = config.steps_per_epoch(blocks)
    if steps < MIN_STEPS:
        raise InputError(
            f"a trial has {blocks:,} blocks, {steps} steps with the current batch, {MIN_STEPS} are required",
            where="tune_bytes",
            remedy="Increase --tune-bytes, or set a smaller --block-size",
        )
    return steps


def _best_trial(trials: list[Trial], source: Path) -> Trial:
    best = best_of(trials)
    if best is None:
        reasons = "; ".join(sorted({trial.note for trial in trials if trial.note}))
        raise InputError(
            f"none of {len(trials)} trials completed ({reasons or 'no time for one'})",
            where=source,
            remedy="Start with settings that train: a lower learning_rate, a smaller batch",
        )
    return best


def search_space(config: SftConfig, blocks: int, new_tokens: Sequence[int]) -> Space:
    """The settings to try around those of `config`.

    Args:
        config: the current settings.
        blocks: blocks of a trial; every batch leaves at least `MIN_STEPS` steps.
        new_tokens: numbers of new tokens to try, the current one first; without new tokens (0) there are no rates.
    """
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

    batch, phase = config.batch, float(config.arguments["embedding_phase"])
    default: dict[str, Any] = {
        **{name: float(config.arguments[name]) for name in _RATES},
        "embedding_phase": phase,
        _BATCH: batch,
        NEW_TOKENS: new_tokens[0],
    }
    others = [
        each
        for each in (batch // 2, 2 * batch)
        if each and config.with_arguments(**{_BATCH: each}).steps_per_epoch(blocks) >= MIN_STEPS
    ]
    space: dict[str, BaseDistribution] = {
        name: FloatDistribution(default[name] / FACTOR, default[name] * FACTOR, log=True)
        for name in _RATES
        if default[name] > 0
    }
    space["embedding_phase"] = FloatDistribution(0.0, max(MAX_EMBEDDING_PHASE, phase))
    for name, values in {
        _BATCH: sorted([batch, *others]),
        NEW_TOKENS: sorted(set(new_tokens), reverse=True),
    }.items():
        if len(values) > 1:
            space[name] = CategoricalDistribution(values)
    if not new_tokens[0]:
        space = {name: each for name, each in space.items() if name in ("learning_rate", _BATCH)}
    return Space(space, {name: default[name] for name in space})


def _run_trial(
    folder: Path,
    given: TrialInput,
    config: SftConfig,
    report: Report,
    options: TuneOptions,
) -> tuple[float, dict[str, Any]]:
    """One short fine-tuning; returns its last BPB and further figures, and removes its folder."""
    from optuna import TrialPruned

    def on_log(entry: dict[str, float]) -> None:
        step, steps = int(entry["step"]), int(entry["max_steps"])
        if options.on_step:
            options.on_step(step, steps)
        if "bits_per_byte" in entry and step < steps:
            # positions are shares of the run, which do not depend on the batch
            report(VALIDATIONS * step // steps, entry["bits_per_byte"])

    training = Training(
        given.model,
        given.blocks,
        folder,
        config,
        given.tokenizer,
        fingerprint="",
        device=options.device,
        dtype=options.dtype,
        new_tokens=given.new_tokens,
        validation=given.validation,
    )
    remove(folder)
    try:
        result = fine_tune(training, on_log=on_log, keep_model=False)
    except (TrainingDivergedError, TrainingOutOfMemoryError) as error:
        raise TrialPruned(str(error)) from error
    finally:
        remove(folder)
        free_memory()
    figures = {
        "tokens_per_byte": round(given.tokens_per_byte, 4),
        "steps": result.steps,
        "tokens_per_second": round(result.tokens_per_second, 1),
    }
    return result.validation[-1][1], figures


def write_result(folder: Path, source: Path, tuning: Tuning, new_tokens: int, vanilla: Tuning | None = None) -> None:
    """Write the best settings to `sft_config.yaml`, with all defaults, and all trials to `study.json`.

    If the best trial had fewer new tokens, `settings.yaml` says how many to select.

    Args:
        folder: output folder.
        source: the current settings file; its comments are kept.
        tuning: the result.
        new_tokens: current number of new tokens.
        vanilla: the result for the vanilla baseline, None if it was not tuned.
    """
    best, default = tuning.best, tuning.default
    header = f"{_describe(tuning)}# The current settings, {source}, {_reached(default)}.\n"
    chosen = best.parameters.get(NEW_TOKENS, new_tokens)
    if chosen != new_tokens:
        header += f"# It had {chosen:,} new tokens instead of {new_tokens:,}; use it together with {SETTINGS}.\n"
    if vanilla is not None:
        header += f"# Vanilla baseline: {_describe(vanilla)[2:]}# Its current settings {_reached(vanilla.default)}.\n"
    settings = {key: value for key, value in best.parameters.items() if key != NEW_TOKENS}
    baseline = None if vanilla is None else vanilla_settings(source, vanilla)
    with atomic_write(TuningFolder(folder).sft_config) as staged:
        staged.write_text(header + sft_config_with(source, settings, baseline), encoding="utf-8")
    if chosen != new_tokens:
        with atomic_write(folder / SETTINGS) as staged:
            staged.write_text(f"{header}max_candidates: {chosen}\n", encoding="utf-8")
    else:
        remove(folder / SETTINGS)
    content = {
        **_study_content(tuning),
        "settings": settings,
        "new_tokens": chosen,
        VANILLA: None if vanilla is None else _study_content(vanilla) | {"settings": baseline},
    }
    with atomic_write(folder / STUDY) as staged:
        staged.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def vanilla_settings(source: Path, tuning: Tuning) -> dict[str, Any]:
    """The best settings of the vanilla baseline, including those that it would inherit from the adapted model's."""
    current = read_sft_config(source, vanilla=True).arguments
    return {name: current[name] for name in ("learning_rate", _BATCH)} | tuning.best.parameters


def _describe(tuning: Tuning) -> str:
    best = tuning.best
    return (
        f"# Trial {best.number} of study.db, the best of {tuning.finished}: {best.value:.4f} bits per byte on "
        "validation text.\n"
    )


def _reached(default: Trial) -> str:
    return f"reached {default.value:.4f}" if default.state == COMPLETE else "did not complete"


def _study_content(tuning: Tuning) -> dict[str, Any]:
    best, default = tuning.best, tuning.default
    return {
        "best": best.number,
        "default": default.number,
        "best_bits_per_byte": best.value,
        "default_bits_per_byte": default.value,
        "done_before": tuning.done_before,
        "other_studies": tuning.other_studies,
        "trials": [asdict(trial) for trial in tuning.trials],
    }
