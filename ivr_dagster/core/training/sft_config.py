"""The settings of a fine-tuning run: `sft_config.yaml` in, arguments of transformers' Trainer out.

What belongs here: the names that users know and what became of them in transformers 5, what may not be set because
the run itself depends on it, and the checks. The defaults are in `sft_config.yaml`, beside this file.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ivr_dagster.core.errors import InputError

DEFAULTS = Path(__file__).with_name("sft_config.yaml")

# name until transformers 4 → name in 5 (its migration guide, and the deprecations in training_args.py 5.23)
RENAMED = {
    "warmup_ratio": "warmup_steps",  # a float below 1 is read as a share of all steps
    "no_cuda": "use_cpu",
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}

# accepted and without effect, so that a file written for transformers 4 keeps working
DROPPED = {
    "overwrite_output_dir": "checkpoints of other settings are discarded, those of these settings resumed",
    "group_by_length": "all blocks have one length",
    "save_safetensors": "weights are always written as safetensors",
    "jit_mode_eval": "transformers no longer has it",
    "use_mps_device": "the device is an option of the stage",
    "include_tokens_per_second": "tokens per second are always reported",
    "ray_scope": "transformers no longer has it",
}

_EVALUATION = "quality is measured by a stage of its own, evaluate"
_UPLOAD = "nothing is uploaded; the final model is a folder that `hf upload` takes"
_RESUMING = "a resumed run could not equal an undisturbed one"
_BLOCKS = "blocks have one column, input_ids, which is input and label"
OURS = {
    "output_dir": "the stage has --output-dir for it",
    "resume_from_checkpoint": "a stopped run goes on from its newest complete checkpoint by itself",
    "do_train": "the stage train trains",
    "do_eval": _EVALUATION,
    "do_predict": _EVALUATION,
    "ignore_data_skip": _RESUMING,
    "save_only_model": _RESUMING,
    "restore_callback_states_from_checkpoint": _RESUMING,
    "enable_jit_checkpoint": "its checkpoints cannot be told from half-written ones",
    "disable_tqdm": "progress goes to the terminal and to Dagster's log",
    "logging_nan_inf_filter": "a loss that is no number has to stop the run and may not be hidden",
    "include_num_input_tokens_seen": "tokens are always counted",
    "parallelism_config": "the launch settings belong into accelerate_config.yaml",
    "local_rank": "the launcher sets it",
    "remove_unused_columns": _BLOCKS,
    "label_names": _BLOCKS,
    "length_column_name": _BLOCKS,
    "load_best_model_at_end": _EVALUATION,
    "metric_for_best_model": _EVALUATION,
    "greater_is_better": _EVALUATION,
    "eval_strategy": _EVALUATION,
    "eval_steps": _EVALUATION,
    "eval_delay": _EVALUATION,
    "eval_on_start": _EVALUATION,
    "eval_do_concat_batches": _EVALUATION,
    "eval_use_gather_object": _EVALUATION,
    "eval_accumulation_steps": _EVALUATION,
    "per_device_eval_batch_size": _EVALUATION,
    "prediction_loss_only": _EVALUATION,
    "include_for_metrics": _EVALUATION,
    "batch_eval_metrics": _EVALUATION,
    "bf16_full_eval": _EVALUATION,
    "fp16_full_eval": _EVALUATION,
    "push_to_hub": _UPLOAD,
    "hub_token": _UPLOAD,
    "hub_private_repo": _UPLOAD,
    "hub_model_id": _UPLOAD,
    "hub_strategy": _UPLOAD,
    "hub_always_push": _UPLOAD,
    "hub_revision": _UPLOAD,
}

# values that only work with an evaluation during training
_NEEDS_EVALUATION = {"lr_scheduler_type": ("reduce_lr_on_plateau", "greedy"), "save_strategy": ("best",)}

_ABOVE_ZERO = ("num_train_epochs", "learning_rate", "logging_steps", "save_steps")
_AT_LEAST = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "save_total_limit": 1,
    "torch_empty_cache_steps": 1,
    "warmup_steps": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "adam_epsilon": 0,
    "seed": 0,
    "data_seed": 0,
    "dataloader_num_workers": 0,
}
_BELOW_ONE = ("warmup_ratio", "adam_beta1", "adam_beta2", "label_smoothing_factor")
# a share below 1, a number of steps from 1 on
_STEPS_OR_SHARE = ("logging_steps", "save_steps", "warmup_steps")


@dataclass(frozen=True)
class SftConfig:
    """The settings of one run, checked.

    Attributes:
        arguments: keyword arguments of `transformers.TrainingArguments`, by its own names; plain JSON values.
        logging_dir: where TensorBoard's files go, if not to `logs/` in the run's folder.
        notes: a sentence for every setting that was accepted and has no effect.
        source: the file that was read.
    """

    arguments: Mapping[str, Any]
    logging_dir: str | None
    notes: tuple[str, ...]
    source: Path


def read_sft_config(path: Path | None = None, **overrides: Any) -> SftConfig:
    """Read the settings of a run: an override goes before the file, the file before the defaults.

    Args:
        path: a YAML file with settings by their names in TrainingArguments, of transformers 4 or 5; None for the
            defaults alone.
        overrides: settings by the same names; None stands for "not given".

    Raises:
        InputError: the file cannot be read, or settings are unknown, of the wrong type, out of range or not the
            user's to set. All of them are named together, with their lines.
    """
    source = path or DEFAULTS
    given = {key: value for key, value in overrides.items() if value is not None}
    values, lines = _read_yaml(source)
    faults: list[tuple[int | None, str]] = []
    notes: list[str] = []
    arguments = _translated(_read_yaml(DEFAULTS)[0], {}, faults, notes)
    arguments |= _translated(values, lines, faults, notes)
    arguments |= _translated(given, {}, faults, notes)
    if faults:
        _refuse(source, faults)
    logging_dir = arguments.pop("logging_dir", None)
    return SftConfig(arguments, logging_dir, tuple(notes), source)


def _translated(
    values: Mapping[str, Any], lines: Mapping[str, int], faults: list[tuple[int | None, str]], notes: list[str]
) -> dict[str, Any]:
    """The settings by the names of transformers 5; what is wrong goes to `faults`, what has no effect to `notes`."""
    hints = _argument_types()
    result: dict[str, Any] = {}
    for key, value in values.items():
        name = RENAMED.get(key, key)
        if key in DROPPED:
            notes.append(f"{key} has no effect: {DROPPED[key]}")
        elif name in OURS:
            faults.append((lines.get(key), f"{key} cannot be set: {OURS[name]}"))
        elif key == "adafactor":
            result |= {"optim": "adafactor"} if value else {}
        elif name not in hints:
            near = difflib.get_close_matches(key, [*hints, *RENAMED, *DROPPED], 1)
            faults.append((lines.get(key), f"{key} is no setting" + (f", did you mean {near[0]}?" if near else "")))
        elif fault := _fault_of_value(key, name, value, hints[name]):
            faults.append((lines.get(key), fault))
        elif name in result:
            faults.append((lines.get(key), f"{key} says the same as another setting, {name}"))
        else:
            result[name] = value
    return result


def _argument_types() -> dict[str, Any]:
    """Name → type of every setting that TrainingArguments takes, and `logging_dir`, which we take in its stead."""
    from transformers import TrainingArguments

    hints = get_type_hints(TrainingArguments)
    result = {field.name: hints[field.name] for field in fields(TrainingArguments) if field.init}
    # typed as a string there, while its help recommends `true`
    return result | {"logging_dir": str | None, "fsdp": result["fsdp"] | bool}


def _fault_of_value(key: str, name: str, value: Any, hint: Any) -> str | None:
    """What is wrong with a setting's value, or None."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    try:
        TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value, strict=True)
    except ValidationError:
        kinds = [str(getattr(kind, "__name__", kind)) for kind in get_args(hint) or (hint,)]
        wanted = " or ".join("none" if kind == "NoneType" else kind for kind in kinds)
        return f"{key} is {value!r}, {wanted} is wanted"
    choices = _choices(name, hint)
    if choices and value is not None and value not in choices:
        near = difflib.get_close_matches(str(value), choices, 1)
        return f"{key} is {value!r}, one of {', '.join(near or choices)} is wanted"
    if value in _NEEDS_EVALUATION.get(name, ()):
        return f"{key} is {value!r}, which needs an evaluation during training: {_EVALUATION}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not math.isfinite(value):
        return f"{key} is {value}, a finite number is wanted"
    if name in _ABOVE_ZERO and value <= 0:
        return f"{key} is {value}, more than 0 is wanted"
    if name in _AT_LEAST and value < _AT_LEAST[name]:
        return f"{key} is {value}, {_AT_LEAST[name]} or more is wanted"
    if key in _BELOW_ONE and not 0 <= value < 1:
        return f"{key} is {value}, 0 or more and less than 1 is wanted"
    if name in _STEPS_OR_SHARE and value > 1 and value != int(value):
        return f"{key} is {value}, a share below 1 or a whole number of steps is wanted"
    return None


def _choices(name: str, hint: Any) -> list[str]:
    """The values that a setting is limited to, or nothing."""
    from transformers import TrainingArguments

    for kind in get_args(hint):
        if isinstance(kind, type) and issubclass(kind, Enum):
            return [str(member.value) for member in kind]
    return [
        str(choice)
        for field in fields(TrainingArguments)
        if field.name == name
        for choice in field.metadata.get("choices", ())
    ]


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """A YAML file's settings and the line, from 1, that each stands on.

    YAML 1.2, so 5e-5 is a number (in 1.1, which PyYAML reads, it is a string).
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the training settings cannot be read ({error})", where=path, remedy=f"Start from a copy of {DEFAULTS}"
        ) from error
    try:
        values = YAML(typ="safe", pure=True).load(text)
        marked = YAML().load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(
            f"this is no YAML ({error.problem})",
            where=f"{path}:{line}",
            remedy="Write one `name: value` a line, each name once",
        ) from error
    if values is None:
        return {}, {}
    if not isinstance(values, dict):
        raise InputError(
            f"the training settings are a {type(values).__name__}", where=path, remedy="Write one `name: value` a line"
        )
    return {str(key): value for key, value in values.items()}, {str(key): marked.lc.key(key)[0] + 1 for key in values}


def _refuse(source: Path, faults: list[tuple[int | None, str]]) -> None:
    """Raise one error that names all the faults."""
    remedy = f"The settings are those of transformers' TrainingArguments; {DEFAULTS.name} shows the usual ones"
    if len(faults) == 1:
        line, fault = faults[0]
        raise InputError(fault, where=f"{source}:{line}" if line else "the training settings", remedy=remedy)
    told = "; ".join(f"line {line}: {fault}" if line else fault for line, fault in faults)
    raise InputError(f"{len(faults)} settings are at fault: {told}", where=source, remedy=remedy)
