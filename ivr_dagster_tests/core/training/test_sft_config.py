from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from ivr_dagster.core.training.sft_config import DROPPED, OURS, RENAMED, read_sft_config
from ivr_dagster.errors import InputError


def written(folder: Path, text: str) -> Path:
    path = folder / "sft_config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_defaults_are_those_of_the_packaged_file_by_the_names_of_transformers_5() -> None:
    assert read_sft_config().arguments == {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 8,
        "learning_rate": 5e-5,
        "weight_decay": 0.01,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "logging_steps": 10,
        "save_steps": 500,
        "save_total_limit": 2,
        "seed": 42,
        "report_to": "tensorboard",
        "eval_strategy": "steps",
        "eval_steps": 0.1,
    }


def test_trainer_accepts_the_defaults_and_reads_the_warmup_as_a_share(tmp_path: Path) -> None:
    from transformers import TrainingArguments

    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **read_sft_config().arguments)
    assert arguments.get_warmup_steps(1000) == 30


def test_an_override_goes_before_the_file_and_the_file_before_the_defaults(tmp_path: Path) -> None:
    path = written(tmp_path, "learning_rate: 1e-3\nsave_steps: 7\n")
    config = read_sft_config(path, save_steps=9, seed=None)
    assert (config.arguments["learning_rate"], config.arguments["save_steps"], config.arguments["seed"]) == (
        1e-3,
        9,
        42,
    )
    assert config.source == path


def test_warmup_in_steps_takes_the_place_of_the_default_share(tmp_path: Path) -> None:
    assert read_sft_config(written(tmp_path, "warmup_steps: 20")).arguments["warmup_steps"] == 20


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("warmup_ratio: 0.1", "warmup_steps", 0.1),
        ("no_cuda: true", "use_cpu", True),
        ("per_gpu_train_batch_size: 4", "per_device_train_batch_size", 4),
        ("gradient_checkpointing: true", "activation_checkpointing", True),
        ("adafactor: true", "optim", "adafactor"),
        ("save_total_limit: null", "save_total_limit", None),
        ("fsdp: true", "fsdp", True),
        ("lr_scheduler_kwargs: {num_cycles: 0.5}", "lr_scheduler_kwargs", {"num_cycles": 0.5}),
    ],
)
def test_a_setting_is_taken_by_the_name_its_users_know(tmp_path: Path, text: str, name: str, value: object) -> None:
    assert read_sft_config(written(tmp_path, text)).arguments[name] == value


def test_logging_dir_is_kept_apart_from_trainers_arguments(tmp_path: Path) -> None:
    config = read_sft_config(written(tmp_path, "logging_dir: boards"))
    assert config.logging_dir == "boards"
    assert "logging_dir" not in config.arguments


def test_rates_of_rows_are_kept_apart_from_trainers_arguments(tmp_path: Path) -> None:
    config = read_sft_config(written(tmp_path, "new_row_rate: 7\nembedding_phase: 0.25"))
    assert (config.rates.new, config.rates.kept, config.embedding_phase) == (7, 1, 0.25)
    assert not {"new_row_rate", "embedding_phase"} & set(config.arguments)


def test_the_baselines_own_settings_hold_for_the_baseline_alone(tmp_path: Path) -> None:
    path = written(tmp_path, "learning_rate: 1e-3\nvanilla:\n  learning_rate: 2e-4\n  max_steps: 7")
    adapted, vanilla = read_sft_config(path), read_sft_config(path, vanilla=True)
    assert (adapted.arguments["learning_rate"], vanilla.arguments["learning_rate"]) == (1e-3, 2e-4)
    assert ("max_steps" in adapted.arguments, vanilla.arguments["max_steps"]) == (False, 7)


@pytest.mark.parametrize(
    "text", ["learning_rate: 1e-3", "new_row_rate: 7", "second_moment_floor: false", "embedding_phase: 0.5"]
)
def test_whatever_decides_the_outcome_changes_the_digest(tmp_path: Path, text: str) -> None:
    assert read_sft_config(written(tmp_path, text)).digest() != read_sft_config().digest()


def test_rates_of_new_rows_change_nothing_for_the_vanilla_baseline_which_has_none(tmp_path: Path) -> None:
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
        ("learnig_rate: 1", r":1: learnig_rate is no setting, did you mean learning_rate\?"),
        ("xyzzy: 1", ":1: xyzzy is no setting"),
        ("\n\nlearning_rate: '5e-5'", ":3: learning_rate is '5e-5', float is wanted"),
        ("learning_rate: 0", ":1: learning_rate is 0, more than 0 is wanted"),
        ("learning_rate: .inf", ":1: learning_rate is inf, a finite number is wanted"),
        ("per_device_train_batch_size: 0", ":1: per_device_train_batch_size is 0, 1 or more is wanted"),
        ("per_device_train_batch_size: 8.5", ":1: per_device_train_batch_size is 8.5, int is wanted"),
        ("per_device_train_batch_size: true", ":1: per_device_train_batch_size is True, int is wanted"),
        ("save_total_limit: two", ":1: save_total_limit is 'two', int or none is wanted"),
        ("warmup_ratio: 1.0", ":1: warmup_ratio is 1.0, 0 or more and less than 1 is wanted"),
        ("save_steps: 10.5", ":1: save_steps is 10.5, a share below 1 or a whole number of steps is wanted"),
        ("lr_scheduler_type: cosin", ":1: lr_scheduler_type is 'cosin', one of cosine is wanted"),
        ("lr_scheduler_type: reduce_lr_on_plateau", "cannot be 'reduce_lr_on_plateau': a resumed run"),
        ("train_sampling_strategy: randomly", ":1: train_sampling_strategy is 'randomly', one of random is wanted"),
        ("output_dir: here", ":1: output_dir cannot be set: the stage has --output-dir for it"),
        ("do_eval: true", ":1: do_eval cannot be set: quality is measured by a stage of its own"),
        ("metric_for_best_model: loss", ":1: metric_for_best_model cannot be set: validation is in bits per byte"),
        ("second_moment_floor: 1", ":1: second_moment_floor is 1, bool is wanted"),
        ("kept_row_rate: 0.0", ":1: kept_row_rate is 0.0, 1e-06 or more is wanted"),
        ("embedding_phase: 1.0", ":1: embedding_phase is 1.0, 0 or more and less than 1 is wanted"),
        ("early_stopping_patience: 3", ":1: early_stopping_patience needs load_best_model_at_end: true"),
        ("vanilla: 3", ":1: vanilla is 3, settings of the vanilla baseline are wanted"),
        ("seed: 1\nvanilla:\n  learnig_rate: 1.0", ":2: learnig_rate is no setting, did you mean learning_rate"),
        ("warmup_ratio: 0.1\nwarmup_steps: 5", ":2: warmup_steps says the same as another setting"),
        ("seed: 1\nseed: 2", ":2: the key 'seed' is given twice, first in line 1"),
        ("seed: [1", ":1: the training settings cannot be read as YAML"),
        ("- seed", "sft_config.yaml: a mapping of settings was expected, found a list"),
        ("seed: &a 1\ndata_seed: *a", ":1: what stands at &a is used again by an alias"),
        ("seed: 0x" + "f" * 9000, ":1: seed is a whole number of 36,000 bits, 4,294,967,295 at most is possible"),
        ("max_steps: 9223372036854775808", ":1: max_steps is 9223372036854775808, 9,223,372,036,854,775,807 at most"),
        ("learning_rate: .nan", ":1: learning_rate is nan, a finite number is wanted"),
        ("5: 1", ":1: the name of a setting was expected, found '5'"),
        ("vanilla: {5: 1}", ":1: '5' is no setting"),
    ],
)
def test_a_faulty_setting_is_refused_with_its_line_and_value(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_sft_config(written(tmp_path, text))


def test_all_faults_are_named_together(tmp_path: Path) -> None:
    path = written(tmp_path, "sed: 1\nlearning_rate: -1\nmax_steps: 5\n")
    with pytest.raises(InputError, match=r"4 settings are at fault: line 1: sed .*; line 2: learning_rate .*; seed is"):
        read_sft_config(path, seed=-3, do_eval=True)


def test_a_faulty_override_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="training settings: num_train_epochs is 0, more than 0"):
        read_sft_config(None, num_train_epochs=0)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"mine\.yaml(:1)?: the training settings cannot be read"):
        read_sft_config(path)


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    assert read_sft_config(written(tmp_path, "# nothing\n")).arguments == read_sft_config().arguments


def test_our_lists_of_names_fit_the_installed_transformers() -> None:
    from transformers import TrainingArguments

    known: set[Any] = {field.name for field in fields(TrainingArguments)}
    assert set(OURS) <= known
    assert set(RENAMED.values()) <= known
    assert not set(DROPPED) & known


@pytest.mark.parametrize(
    ("batch", "accumulated", "processes", "each"),
    [(8, 1, 2, (4, 1)), (8, 4, 2, (8, 2)), (4, 6, 8, (1, 3)), (1, 8, 4, (1, 2)), (8, 1, 1, (8, 1))],
)
def test_several_processes_take_the_batch_of_one_together(
    batch: int, accumulated: int, processes: int, each: tuple[int, int]
) -> None:
    config = read_sft_config(None, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulated)
    shared = config.shared_by(processes).arguments
    taken = shared["per_device_train_batch_size"], shared.get("gradient_accumulation_steps", 1)
    assert taken == each
    assert taken[0] * taken[1] * processes == batch * accumulated


@pytest.mark.parametrize(
    ("given", "processes", "said"),
    [
        ({"per_device_train_batch_size": 8}, 3, "blocks cannot be divided among 3 processes"),
        ({"per_device_train_batch_size": 1}, 2, "a multiple of 2"),
        (
            {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "dataloader_drop_last": True},
            2,
            "a multiple of 2",
        ),
        ({"auto_find_batch_size": True}, 2, "auto_find_batch_size is True, which 2 processes cannot share"),
        ({"train_sampling_strategy": "group_by_length"}, 2, "group_by_length"),
    ],
)
def test_what_several_processes_cannot_share_is_refused(given: dict[str, Any], processes: int, said: str) -> None:
    with pytest.raises(InputError, match=r"Take|take|Delete") as raised:
        read_sft_config(None, **given).shared_by(processes)
    assert said in str(raised.value)
