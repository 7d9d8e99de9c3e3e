from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from ivr_dagster.core.training.sft_arguments import SftArguments
from ivr_dagster.core.training.sft_config import DROPPED, RENAMED, RESERVED, read_sft_config
from ivr_dagster.errors import InputError


def written(folder: Path, text: str) -> Path:
    path = folder / "sft_config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_are_valid_arguments_and_their_warmup_is_a_share_of_the_steps(tmp_path: Path) -> None:
    arguments = SftArguments(output_dir=str(tmp_path), use_cpu=True, **read_sft_config().arguments)
    assert arguments.get_warmup_steps(1000) == 30


def test_override_takes_precedence_over_file_and_file_over_defaults(tmp_path: Path) -> None:
    path = written(tmp_path, "learning_rate: 1e-3\nsave_steps: 7\n")
    config = read_sft_config(path, save_steps=9, seed=None)
    assert (config.arguments["learning_rate"], config.arguments["save_steps"], config.arguments["seed"]) == (
        1e-3,
        9,
        42,
    )
    assert config.source == path


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("warmup_ratio: 0.1", "warmup_steps", 0.1),
        ("warmup_steps: 20", "warmup_steps", 20),
        ("logging_dir: boards", "logging_dir", "boards"),
        ("no_cuda: true", "use_cpu", True),
        ("per_gpu_train_batch_size: 4", "per_device_train_batch_size", 4),
        ("gradient_checkpointing: true", "activation_checkpointing", True),
        ("adafactor: true", "optim", "adafactor"),
        ("save_total_limit: null", "save_total_limit", None),
        ("fsdp: true", "fsdp", True),
        ("lr_scheduler_kwargs: {num_cycles: 0.5}", "lr_scheduler_kwargs", {"num_cycles": 0.5}),
    ],
)
def test_setting_is_read_by_its_old_or_new_name(tmp_path: Path, text: str, name: str, value: object) -> None:
    assert read_sft_config(written(tmp_path, text)).arguments[name] == value


def test_vanilla_settings_apply_to_the_baseline_only(tmp_path: Path) -> None:
    path = written(tmp_path, "learning_rate: 1e-3\nvanilla:\n  learning_rate: 2e-4\n  max_steps: 7")
    adapted, vanilla = read_sft_config(path), read_sft_config(path, vanilla=True)
    assert (adapted.arguments["learning_rate"], vanilla.arguments["learning_rate"]) == (1e-3, 2e-4)
    assert ("max_steps" in adapted.arguments, vanilla.arguments["max_steps"]) == (False, 7)


@pytest.mark.parametrize(
    "text", ["learning_rate: 1e-3", "new_row_rate: 7", "second_moment_floor: false", "embedding_phase: 0.5"]
)
def test_digest_changes_with_each_setting(tmp_path: Path, text: str) -> None:
    assert read_sft_config(written(tmp_path, text)).digest() != read_sft_config().digest()


def test_digest_of_the_vanilla_baseline_ignores_rates_of_new_rows(tmp_path: Path) -> None:
    of_new_rows = written(tmp_path, "new_row_rate: 7\nshared_row_rate: 2\nembedding_phase: 0.5")
    assert read_sft_config(of_new_rows, vanilla=True).digest() == read_sft_config(vanilla=True).digest()
    of_all_rows = written(tmp_path, "kept_row_rate: 0.5")
    assert read_sft_config(of_all_rows, vanilla=True).digest() != read_sft_config(vanilla=True).digest()


def test_settings_without_effect_are_accepted_with_a_note(tmp_path: Path) -> None:
    config = read_sft_config(written(tmp_path, "overwrite_output_dir: true\ngroup_by_length: false\n"))
    assert [note.split()[0] for note in config.notes] == ["overwrite_output_dir", "group_by_length"]
    assert config.arguments == read_sft_config().arguments


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learnig_rate: 1", r":1: unknown setting 'learnig_rate' \(did you mean 'learning_rate'\?\)"),
        ("xyzzy: 1", ":1: unknown setting 'xyzzy'"),
        ("\n\nlearning_rate: '5e-5'", ":3: learning_rate is '5e-5', expected float"),
        ("learning_rate: 0", ":1: learning_rate is 0, expected more than 0"),
        ("learning_rate: .inf", ":1: learning_rate is inf, expected a finite number"),
        ("per_device_train_batch_size: 0", ":1: per_device_train_batch_size is 0, expected 1 or more"),
        ("per_device_train_batch_size: 8.5", ":1: per_device_train_batch_size is 8.5, expected int"),
        ("per_device_train_batch_size: true", ":1: per_device_train_batch_size is True, expected int"),
        ("save_total_limit: two", ":1: save_total_limit is 'two', expected int or none"),
        ("warmup_ratio: 1.0", ":1: warmup_ratio is 1.0, expected 0 or more and less than 1"),
        ("save_steps: 10.5", ":1: save_steps is 10.5, expected a share below 1 or an integer"),
        ("lr_scheduler_type: cosin", ":1: lr_scheduler_type is 'cosin', expected one of cosine"),
        ("lr_scheduler_type: reduce_lr_on_plateau", "is 'reduce_lr_on_plateau', which is not supported: a resumed"),
        ("train_sampling_strategy: randomly", ":1: train_sampling_strategy is 'randomly', expected one of random"),
        ("output_dir: here", ":1: output_dir cannot be set: use --output-dir"),
        ("do_eval: true", ":1: do_eval cannot be set: the stage train trains"),
        ("metric_for_best_model: loss", ":1: metric_for_best_model cannot be set: validation measures bits per byte"),
        ("second_moment_floor: 1", ":1: second_moment_floor is 1, expected bool"),
        ("kept_row_rate: 0.0", ":1: kept_row_rate is 0.0, expected 1e-06 or more"),
        ("embedding_phase: 1.0", ":1: embedding_phase is 1.0, expected 0 or more and less than 1"),
        ("early_stopping_patience: 3", ":1: early_stopping_patience requires load_best_model_at_end: true"),
        ("vanilla: 3", ":1: vanilla is 3, expected settings of the baseline"),
        ("seed: 1\nvanilla:\n  learnig_rate: 1.0", ":2: unknown setting 'learnig_rate'"),
        ("warmup_ratio: 0.1\nwarmup_steps: 5", ":2: warmup_steps duplicates another setting"),
        ("seed: 0x" + "f" * 9000, ":1: seed is an integer of 36,000 bits, expected at most 4,294,967,295"),
        (
            "max_steps: 9223372036854775808",
            ":1: max_steps is 9223372036854775808, expected at most 9,223,372",
        ),
        ("learning_rate: .nan", ":1: learning_rate is nan, expected a finite number"),
        ("vanilla: {5: 1}", ":1: unknown setting '5'"),
    ],
)
def test_invalid_setting_is_rejected_with_its_line_and_value(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_sft_config(written(tmp_path, text))


def test_error_names_all_invalid_settings(tmp_path: Path) -> None:
    path = written(tmp_path, "sed: 1\nlearning_rate: -1\nmax_steps: 5\n")
    with pytest.raises(InputError, match=r"4 settings are invalid: line 1: .*sed.*; line 2: learning_rate .*; seed is"):
        read_sft_config(path, seed=-3, do_eval=True)


def test_invalid_override_is_rejected_by_name() -> None:
    with pytest.raises(InputError, match="training settings: num_train_epochs is 0, expected more than 0"):
        read_sft_config(None, num_train_epochs=0)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_unreadable_file_is_rejected_by_name(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"mine\.yaml(:1)?: the training settings cannot be read"):
        read_sft_config(path)


def test_empty_file_means_the_defaults(tmp_path: Path) -> None:
    assert read_sft_config(written(tmp_path, "# nothing\n")).arguments == read_sft_config().arguments


def test_special_names_fit_the_installed_transformers() -> None:
    from transformers import TrainingArguments

    known: set[Any] = {field.name for field in fields(TrainingArguments)}
    assert set(RESERVED) <= known
    assert set(RENAMED.values()) <= known
    assert not set(DROPPED) & known


@pytest.mark.parametrize(
    ("batch", "accumulated", "processes", "each"),
    [(8, 1, 2, (4, 1)), (8, 4, 2, (8, 2)), (4, 6, 8, (1, 3)), (1, 8, 4, (1, 2)), (8, 1, 1, (8, 1))],
)
def test_processes_share_the_batch_of_one(batch: int, accumulated: int, processes: int, each: tuple[int, int]) -> None:
    config = read_sft_config(None, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulated)
    shared = config.shared_by(processes).arguments
    taken = shared["per_device_train_batch_size"], shared.get("gradient_accumulation_steps", 1)
    assert taken == each
    assert taken[0] * taken[1] * processes == batch * accumulated


@pytest.mark.parametrize(
    ("given", "processes", "said"),
    [
        ({"per_device_train_batch_size": 8}, 3, "are not divisible by 3 processes"),
        ({"per_device_train_batch_size": 1}, 2, "a multiple of 2"),
        (
            {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "dataloader_drop_last": True},
            2,
            "a multiple of 2",
        ),
        ({"auto_find_batch_size": True}, 2, "auto_find_batch_size True does not support 2 processes"),
        ({"train_sampling_strategy": "group_by_length"}, 2, "group_by_length"),
    ],
)
def test_settings_that_processes_cannot_share_are_rejected(given: dict[str, Any], processes: int, said: str) -> None:
    with pytest.raises(InputError, match=r"Set|Delete") as raised:
        read_sft_config(None, **given).shared_by(processes)
    assert said in str(raised.value)
