"""The settings of a fine-tuning run: reads and validates `sft_config.yaml`.

`sft_arguments` declares the settings, `sft_config.yaml` beside this file holds the defaults. This module knows the
names of transformers 4, the settings that the pipeline itself decides, and the limits that transformers does not check.
"""

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ivr_dagster.core.embedding.new_rows import RowRates
from ivr_dagster.core.training.trainable import LORA, lora_obstacle
from ivr_dagster.errors import InputError, short_repr
from ivr_dagster.settings.groups import MAX_INTEGER, MAX_SEED
from ivr_dagster.storage.content_hash import content_hash
from ivr_dagster.storage.yaml_files import read_settings_yaml

DEFAULTS = Path(__file__).with_name("sft_config.yaml")

# name in transformers 4 → name in 5, from its migration guide
RENAMED = {
    "warmup_ratio": "warmup_steps",  # a float below 1 is a share of all steps
    "no_cuda": "use_cpu",
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}

# settings of transformers 4 that are accepted without effect
DROPPED = {
    "overwrite_output_dir": "a run resumes checkpoints with the same settings and discards others",
    "group_by_length": "all blocks have the same length",
    "save_safetensors": "weights are always saved as safetensors",
    "jit_mode_eval": "transformers 5 removed it",
    "use_mps_device": "the setting `device` selects the device",
    "include_tokens_per_second": "tokens per second are always reported",
    "ray_scope": "transformers 5 removed it",
}

# reason → settings that the pipeline itself decides
_RESUMING = "a resumed run would differ from an uninterrupted one"
_RESERVED = {
    "use --output-dir": ("output_dir",),
    "a stopped run resumes from its newest complete checkpoint": ("resume_from_checkpoint", "enable_jit_checkpoint"),
    "the stage train trains, the stage evaluate measures quality": (
        *("do_train", "do_eval", "do_predict", "bf16_full_eval", "fp16_full_eval"),
    ),
    _RESUMING: ("ignore_data_skip", "save_only_model", "restore_callback_states_from_checkpoint"),
    "Dagster's log and the terminal show the progress": ("disable_tqdm", "include_num_input_tokens_seen"),
    "a loss that is not finite must stop the run": ("logging_nan_inf_filter",),
    "launch settings belong in accelerate_config.yaml": ("parallelism_config", "local_rank"),
    "blocks have one column, input_ids": ("remove_unused_columns", "label_names", "length_column_name"),
    "validation measures bits per byte": (
        *("metric_for_best_model", "greater_is_better", "eval_do_concat_batches", "eval_use_gather_object"),
        *("eval_accumulation_steps", "prediction_loss_only", "include_for_metrics", "batch_eval_metrics"),
    ),
    "nothing is uploaded; use `hf upload` on the folder of the final model": (
        *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
        "hub_revision",
    ),
}
RESERVED = {name: reason for reason, names in _RESERVED.items() for name in names}

# key of the settings that apply to the vanilla baseline only
VANILLA = "vanilla"
# the vanilla baseline has no new rows
_NO_NEW_ROWS = {"new_row_rate": 1.0, "shared_row_rate": 0.0, "embedding_phase": 0.0}

# a resumed run cannot reproduce these values
_UNSUPPORTED = {"lr_scheduler_type": ("reduce_lr_on_plateau", "greedy"), "save_strategy": ("best",)}
# the values that several processes support
_MULTI_PROCESS: dict[str, tuple[Any, ...]] = {
    "auto_find_batch_size": (None, False),
    "train_sampling_strategy": (None, "random", "sequential"),
    "fsdp": (None, "", False, []),
    "deepspeed": (None,),
    "average_tokens_across_devices": (None, True),
}

_POSITIVE = ("num_train_epochs", "learning_rate", "logging_steps", "save_steps", "eval_steps")
_MINIMUM = {
    **dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps", "per_device_eval_batch_size"), 1),
    **dict.fromkeys(("save_total_limit", "torch_empty_cache_steps", "lora_rank"), 1),
    **dict.fromkeys(("warmup_steps", "weight_decay", "max_grad_norm", "adam_epsilon", "dataloader_num_workers"), 0),
    **dict.fromkeys(("seed", "data_seed", "new_row_rate", "shared_row_rate", "early_stopping_patience"), 0),
    "kept_row_rate": 1e-6,
}
_SEEDS = ("seed", "data_seed")
_BELOW_ONE = ("warmup_ratio", "embedding_phase", "adam_beta1", "adam_beta2", "label_smoothing_factor")
# a share below 1, or a number of steps
_STEPS_OR_SHARE = ("logging_steps", "save_steps", "eval_steps", "warmup_steps")


@dataclass(frozen=True)
class SftConfig:
    """The validated settings of a run.

    Attributes:
        arguments: keyword arguments of :class:`~ivr_dagster.core.training.sft_arguments.SftArguments` as JSON values.
        notes: a sentence for each accepted setting without effect.
        source: the file.
    """

    arguments: Mapping[str, Any]
    notes: tuple[str, ...]
    source: Path

    @property
    def rates(self) -> RowRates:
        """Learning rates of embedding rows, as factors of `learning_rate`."""
        given = self.arguments
        return RowRates(
            kept=given["kept_row_rate"],
            new=given["new_row_rate"],
            shared=given["shared_row_rate"],
            floored=given["second_moment_floor"],
        )

    @property
    def batch(self) -> int:
        """Blocks of a micro-batch."""
        return int(self.arguments["per_device_train_batch_size"])

    @property
    def accumulated(self) -> int:
        """Micro-batches of an optimizer step."""
        return int(self.arguments.get("gradient_accumulation_steps", 1))

    def steps_per_epoch(self, blocks: int) -> int:
        """Optimizer steps of one pass over so many blocks, as Trainer counts them."""
        drops_last = self.arguments.get("dataloader_drop_last")
        batches = blocks // self.batch if drops_last else math.ceil(blocks / self.batch)
        return max(1, math.ceil(batches / self.accumulated))

    def steps(self, blocks: int) -> int:
        """Optimizer steps of the whole run over so many blocks, as Trainer counts them."""
        max_steps = int(self.arguments.get("max_steps", -1))
        epochs = self.arguments["num_train_epochs"]
        return max_steps if max_steps > 0 else math.ceil(epochs * self.steps_per_epoch(blocks))

    def digest(self) -> str:
        """A hash of all settings."""
        content = {name: value for name, value in self.arguments.items() if name != "logging_dir"}
        return content_hash(json.dumps(content, sort_keys=True))

    def public(self) -> dict[str, Any]:
        """The arguments without paths of this machine, for reports."""
        return {name: v for name, v in self.arguments.items() if not (isinstance(v, str) and Path(v).is_absolute())}

    def with_arguments(self, **changed: Any) -> "SftConfig":
        """The same settings with some arguments changed."""
        return replace(self, arguments={**self.arguments, **changed})

    def shared_by(self, processes: int) -> "SftConfig":
        """The settings of each of several processes that divide every step's blocks among them.

        Each process accumulates fewer micro-batches, and takes smaller ones if that does not suffice.

        Raises:
            InputError: the blocks of a step are not divisible, or a setting supports one process only.
        """
        if processes == 1:
            return self
        for name, supported in _MULTI_PROCESS.items():
            if self.arguments.get(name) not in supported:
                raise InputError(
                    f"{name} {self.arguments[name]!r} does not support {processes} processes",
                    where=self.source,
                    remedy="Delete it, or train with one process",
                )
        # dropping the last incomplete batch requires the same batches as with one process
        fewer = 1 if self.arguments.get("dataloader_drop_last") else math.gcd(processes, self.accumulated)
        smaller = processes // fewer
        if self.batch % smaller:
            raise InputError(
                f"the blocks of a step (per_device_train_batch_size {self.batch}, gradient_accumulation_steps "
                f"{self.accumulated}) are not divisible by {processes} processes",
                where=self.source,
                remedy=f"Set per_device_train_batch_size, the batch of all processes together, to a multiple of "
                f"{smaller}, or change num_processes",
            )
        return self.with_arguments(
            per_device_train_batch_size=self.batch // smaller, gradient_accumulation_steps=self.accumulated // fewer
        )


def read_sft_config(path: Path | None = None, *, vanilla: bool = False, **overrides: Any) -> SftConfig:
    """Read the settings of a run. An override takes precedence over the file, the file over the defaults.

    Args:
        path: a YAML file with fields of SftArguments, by the names of transformers 4 or 5; None for the defaults.
        vanilla: read the settings of the vanilla baseline: those below `vanilla` in the file take precedence.
        overrides: settings by the same names; None means "not given".

    Raises:
        InputError: the file is unreadable, or settings are unknown, invalid or reserved. It names all of them.
    """
    source = path or DEFAULTS
    values, lines = _read_yaml(source)
    reader = _Reader()
    baseline = values.pop(VANILLA, None) or {}
    if not isinstance(baseline, dict):
        reader.report(f"{VANILLA} is {short_repr(baseline)}, expected settings of the baseline", lines.get(VANILLA))
        baseline = {}
    baseline = {str(key): value for key, value in baseline.items()}
    arguments = reader.read(_read_yaml(DEFAULTS)[0], {})
    arguments |= reader.read(values, lines)
    # validate the baseline's settings in every run: its training comes last
    baseline = reader.read(baseline, dict.fromkeys(baseline, lines.get(VANILLA, 1)))
    arguments |= baseline if vanilla else {}
    arguments |= reader.read({key: value for key, value in overrides.items() if value is not None}, {})
    if arguments["early_stopping_patience"] and not arguments.get("load_best_model_at_end"):
        name = "early_stopping_patience"
        reader.report(f"{name} requires load_best_model_at_end: true", lines.get(name))
    reader.raise_faults(source)
    return SftConfig(arguments | (_NO_NEW_ROWS if vanilla else {}), tuple(reader.notes), source)


def sft_config_with(path: Path, changed: Mapping[str, Any], vanilla: Mapping[str, Any] | None = None) -> str:
    """The text of a settings file with some settings changed and all defaults added; it keeps the comments.

    Args:
        path: a file that :func:`read_sft_config` reads.
        changed: settings by the names in `sft_config.yaml`; the file may use other names for them and keeps these.
        vanilla: settings to change for the vanilla baseline, by the same names.
    """
    from ruamel.yaml import YAML

    editor = YAML()
    editor.width = 1_000
    content = editor.load(path.read_text(encoding="utf-8")) or editor.map()
    _change(content, _read_yaml(DEFAULTS)[0], overwrite=False)
    _change(content, changed)
    if vanilla:
        content.setdefault(VANILLA, editor.map())
        content[VANILLA] = content[VANILLA] or editor.map()
        _change(content[VANILLA], vanilla)
    stream = StringIO()
    editor.dump(content, stream)
    return stream.getvalue()


def _change(content: Any, values: Mapping[str, Any], *, overwrite: bool = True) -> None:
    """Set values in a YAML mapping, by the names that it uses."""
    names = {RENAMED.get(key, key): key for key in content}
    for key, value in values.items():
        name = names.get(RENAMED.get(key, key), key)
        if overwrite or name not in content:
            content[name] = value


@dataclass
class _Reader:
    """Translates and validates settings; collects all faults before it raises."""

    faults: list[tuple[int | None, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def report(self, fault: str, line: int | None) -> None:
        self.faults.append((line, fault))

    def read(self, values: Mapping[str, Any], lines: Mapping[str, int]) -> dict[str, Any]:
        """The valid settings by their names in SftArguments."""
        types = _argument_types()
        result: dict[str, Any] = {}
        for key, value in values.items():
            name = RENAMED.get(key, key)
            if key in DROPPED:
                self.notes.append(f"{key} has no effect: {DROPPED[key]}")
            elif name in RESERVED:
                self.report(f"{key} cannot be set: {RESERVED[name]}", lines.get(key))
            elif key == "adafactor":
                result |= {"optim": "adafactor"} if value else {}
            elif name not in types:
                near = difflib.get_close_matches(key, [*types, *RENAMED, *DROPPED], 1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                self.report(f"unknown setting {short_repr(key)}{hint}", lines.get(key))
            elif fault := _find_fault(key, name, value, types[name]):
                self.report(f"{key} is {short_repr(value)}, {fault}", lines.get(key))
            elif name in result:
                self.report(f"{key} duplicates another setting, {name}", lines.get(key))
            else:
                result[name] = value
        return result

    def raise_faults(self, source: Path) -> None:
        """Raise one error that names all faults."""
        if not self.faults:
            return
        remedy = f"The settings are those of transformers' TrainingArguments; {DEFAULTS.name} shows the usual ones"
        if len(self.faults) == 1:
            line, fault = self.faults[0]
            raise InputError(fault, where=f"{source}:{line}" if line else "the training settings", remedy=remedy)
        faults = "; ".join(f"line {line}: {fault}" if line else fault for line, fault in self.faults)
        raise InputError(f"{len(self.faults)} settings are invalid: {faults}", where=source, remedy=remedy)


@cache  # resolving the annotations takes a tenth of a second
def _argument_types() -> dict[str, Any]:
    """Name → type of every setting."""
    from ivr_dagster.core.training.sft_arguments import SftArguments

    hints = get_type_hints(SftArguments)
    types = {each.name: hints[each.name] for each in fields(SftArguments) if each.init}
    return types | {"fsdp": types["fsdp"] | bool}  # its help recommends true, its type does not allow it


@cache
def _validator(name: str) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(_argument_types()[name], config=ConfigDict(arbitrary_types_allowed=True))


def _find_fault(key: str, name: str, value: Any, kind: Any) -> str | None:
    """Why a setting's value is invalid, or None."""
    from pydantic import ValidationError

    try:
        _validator(name).validate_python(value, strict=True)
    except ValidationError:
        kinds = [str(getattr(each, "__name__", each)) for each in get_args(kind) or (kind,)]
        return "expected " + " or ".join("none" if each == "NoneType" else each for each in kinds)
    choices = _choices(name, kind)
    if choices and value is not None and value not in choices:
        return f"expected one of {', '.join(difflib.get_close_matches(str(value), choices, 1) or choices)}"
    if name == "trainable" and value == LORA and (obstacle := lora_obstacle()):
        return obstacle
    if value in _UNSUPPORTED.get(name, ()):
        return f"which is not supported: {_RESUMING}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return _find_fault_of_number(key, name, value)


def _find_fault_of_number(key: str, name: str, value: float) -> str | None:
    if isinstance(value, int) and abs(value) > (most := MAX_SEED if name in _SEEDS else MAX_INTEGER):
        return f"expected at most {most:,}"
    if not math.isfinite(value):
        return "expected a finite number"
    if name in _POSITIVE and value <= 0:
        return "expected more than 0"
    if name in _MINIMUM and value < _MINIMUM[name]:
        return f"expected {_MINIMUM[name]:g} or more"
    if key in _BELOW_ONE and not 0 <= value < 1:
        return "expected 0 or more and less than 1"
    if name in _STEPS_OR_SHARE and value > 1 and value != int(value):
        return "expected a share below 1 or an integer number of steps"
    return None


def _choices(name: str, kind: Any) -> list[str]:
    """The values that a setting is limited to; empty for no limit."""
    from ivr_dagster.core.training.sft_arguments import SftArguments

    for each in get_args(kind):
        if isinstance(each, type) and issubclass(each, Enum):
            return [str(member.value) for member in each]
    declared = next(each for each in fields(SftArguments) if each.name == name)
    return [str(choice) for choice in declared.metadata.get("choices") or ()]


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The settings in a YAML file, and the line of each, from 1."""
    remedy = f"Write one `name: value` a line, each name once, or start from a copy of {DEFAULTS}"
    return read_settings_yaml(path, "the training settings", remedy)
