"""The settings of a fine-tuning run: `sft_config.yaml` in, arguments of transformers' Trainer out.

What belongs here: the names that users know and what became of them in transformers 5, what may not be set because
the run itself depends on it, and the checks. The defaults are in `sft_config.yaml`, beside this file.
"""

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ivr_dagster.core.embedding.new_rows import RowRates
from ivr_dagster.errors import InputError, short_repr
from ivr_dagster.storage.content_hash import content_hash
from ivr_dagster.storage.yaml_files import MOST_NUMBER, MOST_SEED, read_settings_yaml

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
_VALIDATION = "validation is in bits per byte, which needs nothing but the loss"
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
    "metric_for_best_model": _VALIDATION,
    "greater_is_better": _VALIDATION,
    "eval_do_concat_batches": _VALIDATION,
    "eval_use_gather_object": _VALIDATION,
    "eval_accumulation_steps": _VALIDATION,
    "prediction_loss_only": _VALIDATION,
    "include_for_metrics": _VALIDATION,
    "batch_eval_metrics": _VALIDATION,
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

# values that would make a resumed run another one than an undisturbed one
_UNSUPPORTED = {"lr_scheduler_type": ("reduce_lr_on_plateau", "greedy"), "save_strategy": ("best",)}

# settings that TrainingArguments does not have: type, least value, what they are
EXTRA: dict[str, tuple[type, float, str]] = {
    "new_row_rate": (float, 0.0, "rows of new tokens learn at this many times learning_rate"),
    "shared_row_rate": (float, 0.0, "and learn from each other, by their n-grams, at this many times; 0: not at all"),
    "kept_row_rate": (float, 1e-6, "rows of kept tokens learn at this many times learning_rate"),
    "second_moment_floor": (bool, 0, "whether Adam's second moments of embedding rows are at least their mean"),
    "embedding_phase": (float, 0.0, "share of all steps, at the beginning, in which only embeddings learn"),
    "early_stopping_patience": (int, 0, "stop after so many validations without a better one; 0: never"),
}
# a mapping of settings that the vanilla baseline has otherwise
VANILLA = "vanilla"

# of settings that do not all go with several processes, the values that do
_ONE_PROCESS_ONLY: dict[str, tuple[Any, ...]] = {
    "auto_find_batch_size": (None, False),
    "train_sampling_strategy": (None, "random", "sequential"),
    "fsdp": (None, "", False, []),
    "deepspeed": (None,),
    "average_tokens_across_devices": (None, True),
}

_ABOVE_ZERO = ("num_train_epochs", "learning_rate", "logging_steps", "save_steps", "eval_steps")
_AT_LEAST = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "per_device_eval_batch_size": 1,
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
_LONGEST_NAME = 80
_SEEDS = ("seed", "data_seed")
_BELOW_ONE = ("warmup_ratio", "embedding_phase", "adam_beta1", "adam_beta2", "label_smoothing_factor")
# a share below 1, a number of steps from 1 on
_STEPS_OR_SHARE = ("logging_steps", "save_steps", "eval_steps", "warmup_steps")


@dataclass(frozen=True)
class SftConfig:
    """The settings of one run, checked.

    Attributes:
        arguments: keyword arguments of `transformers.TrainingArguments`, by its own names; plain JSON values.
        rates: how fast rows of kept and new tokens learn, as factors of `learning_rate`.
        embedding_phase: share of all steps, at the beginning, in which only embeddings learn.
        early_stopping_patience: validations without a better one after which the run ends; 0 for never.
        logging_dir: where TensorBoard's files go, if not to `logs/` in the run's folder.
        notes: a sentence for every setting that was accepted and has no effect.
        source: the file that was read.
    """

    arguments: Mapping[str, Any]
    rates: RowRates
    embedding_phase: float
    early_stopping_patience: int
    logging_dir: str | None
    notes: tuple[str, ...]
    source: Path

    def digest(self) -> str:
        """A hash of everything that decides what the run comes to."""
        content = [dict(self.arguments), asdict(self.rates), self.embedding_phase, self.early_stopping_patience]
        return content_hash(json.dumps(content, sort_keys=True))

    def shared_by(self, processes: int) -> "SftConfig":
        """The settings of each of several processes that share every step's blocks, as many as one would have.

        As far as batches are accumulated, each takes fewer of them; beyond that, smaller ones.

        Raises:
            InputError: the blocks of a step cannot be divided among so many, or a setting is for one process alone.
        """
        if processes == 1:
            return self
        for name, usual in _ONE_PROCESS_ONLY.items():
            if self.arguments.get(name) not in usual:
                raise InputError(
                    f"{name} is {self.arguments[name]!r}, which {processes} processes cannot share",
                    where=self.source,
                    remedy="Delete it, or train with one process",
                )
        batch = self.arguments["per_device_train_batch_size"]
        accumulated = self.arguments.get("gradient_accumulation_steps", 1)
        # where a last, smaller batch is left out, batches must be those of one process
        fewer = 1 if self.arguments.get("dataloader_drop_last") else math.gcd(processes, accumulated)
        smaller = processes // fewer
        if batch % smaller:
            raise InputError(
                f"per_device_train_batch_size is {batch} and gradient_accumulation_steps {accumulated}, so a step's "
                f"blocks cannot be divided among {processes} processes",
                where=self.source,
                remedy="They are the batch of all processes together: take a per_device_train_batch_size that is a "
                f"multiple of {smaller}, or another num_processes",
            )
        shares = {
            "per_device_train_batch_size": batch // smaller,
            "gradient_accumulation_steps": accumulated // fewer,
        }
        return replace(self, arguments={**self.arguments, **shares})


def read_sft_config(path: Path | None = None, *, vanilla: bool = False, **overrides: Any) -> SftConfig:
    """Read the settings of a run: an override goes before the file, the file before the defaults.

    Args:
        path: a YAML file with settings by their names in TrainingArguments, of transformers 4 or 5, or in `EXTRA`;
            None for the defaults alone.
        vanilla: whether it is the vanilla baseline's run: what stands under `vanilla` in the file goes before the
            rest of it.
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
    for_vanilla = values.pop(VANILLA, None) or {}
    if not isinstance(for_vanilla, dict):
        faults.append(
            (lines.get(VANILLA), f"{VANILLA} is {short_repr(for_vanilla)}, settings of the vanilla baseline are wanted")
        )
        for_vanilla = {}
    arguments = _translated(_read_yaml(DEFAULTS)[0], {}, faults, notes)
    arguments |= _translated(values, lines, faults, notes)
    # looked at in every run, so that a fault in it does not show only after the first training
    for_vanilla = {str(key): value for key, value in for_vanilla.items()}
    baseline = _translated(for_vanilla, dict.fromkeys(for_vanilla, lines.get(VANILLA, 1)), faults, notes)
    arguments |= baseline if vanilla else {}
    arguments |= _translated(given, {}, faults, notes)
    if arguments["early_stopping_patience"] and not arguments.get("load_best_model_at_end"):
        fault = "early_stopping_patience needs load_best_model_at_end: true, which keeps the best checkpoint"
        faults.append((lines.get("early_stopping_patience"), fault))
    if faults:
        _refuse(source, faults)
    extra = {key: arguments.pop(key) for key in EXTRA}
    if vanilla:  # it has no new rows, and what is set for them must not train it again
        extra |= {"new_row_rate": 1.0, "shared_row_rate": 0.0, "embedding_phase": 0.0}
    return SftConfig(
        arguments,
        RowRates(
            kept=extra["kept_row_rate"],
            new=extra["new_row_rate"],
            shared=extra["shared_row_rate"],
            floored=extra["second_moment_floor"],
        ),
        extra["embedding_phase"],
        extra["early_stopping_patience"],
        arguments.pop("logging_dir", None),
        tuple(notes),
        source,
    )


def sft_config_with(path: Path, changed: Mapping[str, Any]) -> str:
    """The text of a settings file with some settings changed, its comments kept, what it leaves to the defaults added.

    Args:
        path: a file that :func:`read_sft_config` reads.
        changed: settings by the names of `sft_config.yaml`; a file that has one under another name keeps that name.
    """
    from io import StringIO

    from ruamel.yaml import YAML

    editor = YAML()
    editor.width = 1_000
    content = editor.load(path.read_text(encoding="utf-8")) or editor.map()
    names = {RENAMED.get(key, key): key for key in content}
    for key, value in _read_yaml(DEFAULTS)[0].items():
        if RENAMED.get(key, key) not in names:
            content[key] = value
    for key, value in changed.items():
        content[names.get(RENAMED.get(key, key), key)] = value
    stream = StringIO()
    editor.dump(content, stream)
    return stream.getvalue()


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
            faults.append(
                (lines.get(key), f"{_name(key)} is no setting" + (f", did you mean {near[0]}?" if near else ""))
            )
        elif fault := _fault_of_value(key, name, value, hints[name]):
            faults.append((lines.get(key), fault))
        elif name in result:
            faults.append((lines.get(key), f"{key} says the same as another setting, {name}"))
        else:
            result[name] = value
    return result


def _name(key: str) -> str:
    """A name as it was written where it is a name at all."""
    return key if key.isidentifier() and len(key) <= _LONGEST_NAME else short_repr(key)


@cache  # to resolve the annotations takes a tenth of a second
def _argument_types() -> dict[str, Any]:
    """Name → type of every setting that TrainingArguments takes, and `logging_dir`, which we take in its stead."""
    from transformers import TrainingArguments

    hints = get_type_hints(TrainingArguments)
    result = {field.name: hints[field.name] for field in fields(TrainingArguments) if field.init}
    result |= {name: kind for name, (kind, _, _) in EXTRA.items()}
    # typed as a string there, while its help recommends `true`
    return result | {"logging_dir": str | None, "fsdp": result["fsdp"] | bool}


@cache
def _validator(name: str) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(_argument_types()[name], config=ConfigDict(arbitrary_types_allowed=True))


def _fault_of_value(key: str, name: str, value: Any, hint: Any) -> str | None:
    """What is wrong with a setting's value, or None."""
    from pydantic import ValidationError

    try:
        _validator(name).validate_python(value, strict=True)
    except ValidationError:
        kinds = [str(getattr(kind, "__name__", kind)) for kind in get_args(hint) or (hint,)]
        wanted = " or ".join("none" if kind == "NoneType" else kind for kind in kinds)
        return f"{key} is {short_repr(value)}, {wanted} is wanted"
    choices = _choices(name, hint)
    if choices and value is not None and value not in choices:
        near = difflib.get_close_matches(str(value), choices, 1)
        return f"{key} is {short_repr(value)}, one of {', '.join(near or choices)} is wanted"
    if value in _UNSUPPORTED.get(name, ()):
        return f"{key} cannot be {value!r}: {_RESUMING}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int) and abs(value) > (most := MOST_SEED if name in _SEEDS else MOST_NUMBER):
        return f"{key} is {short_repr(value)}, {most:,} at most is possible"
    if not math.isfinite(value):
        return f"{key} is {value}, a finite number is wanted"
    if name in _ABOVE_ZERO and value <= 0:
        return f"{key} is {value}, more than 0 is wanted"
    least = EXTRA[name][1] if name in EXTRA else _AT_LEAST.get(name)
    if least is not None and value < least:
        return f"{key} is {value}, {least:g} or more is wanted"
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
    """A YAML file's settings and the line, from 1, that each stands on."""
    remedy = f"Write one `name: value` a line, each name once, or start from a copy of {DEFAULTS}"
    return read_settings_yaml(path, "the training settings", remedy)


def _refuse(source: Path, faults: list[tuple[int | None, str]]) -> None:
    """Raise one error that names all the faults."""
    remedy = f"The settings are those of transformers' TrainingArguments; {DEFAULTS.name} shows the usual ones"
    if len(faults) == 1:
        line, fault = faults[0]
        raise InputError(fault, where=f"{source}:{line}" if line else "the training settings", remedy=remedy)
    told = "; ".join(f"line {line}: {fault}" if line else fault for line, fault in faults)
    raise InputError(f"{len(faults)} settings are at fault: {told}", where=source, remedy=remedy)
