"""A search for training settings on a tiny model: its trials, its files, and resuming after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from ivr_dagster.core.training.sft_config import DEFAULTS, read_sft_config
from ivr_dagster.core.training.study import KILLED
from ivr_dagster.core.training.tune import (
    NEW_TOKENS,
    TrialInput,
    TuneOptions,
    Tuning,
    search_space,
    tune,
    write_result,
)
from ivr_dagster.errors import InputError
from ivr_dagster.settings.groups import TuningSettings
from ivr_dagster_tests.small_pipeline import tiny_validation

NEW = {3: "Ġthe", 7: "Ġthat"}
SETTINGS = (
    "learning_rate: 1.0e-3   # per step\nper_device_train_batch_size: 4\nseed: 5\nvanilla:\n  learning_rate: 1.0e-4\n"
)


def given(tiny: Path) -> TrialInput:
    return TrialInput(tiny / "model", tiny / "tokenizer", tiny / "blocks", tiny_validation(3), NEW, 0.25)


def source_in(folder: Path, text: str = SETTINGS) -> Path:
    (folder / "mine.yaml").write_text(text)
    return folder / "mine.yaml"


def tuned(
    tiny: Path, folder: Path, source: Path | None = None, *, fingerprint: str = "one", trials: int = 3, **options: Any
) -> Tuning:
    return tune(
        folder / "tuning",
        source or source_in(folder),
        lambda number: given(tiny),
        [len(NEW)],
        TuningSettings(tune_trials=trials),
        fingerprint,
        TuneOptions(1, **options),
    )


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tuning]:
    """The folder, and the result of three trials."""
    folder = tmp_path_factory.mktemp("tuned")
    tuning = tuned(tiny, folder)
    write_result(folder / "tuning", folder / "mine.yaml", tuning, len(NEW))
    return folder, tuning


def test_first_trial_has_the_current_settings(
    finished: tuple[Path, Tuning],
) -> None:
    _, tuning = finished
    assert tuning.default is tuning.trials[0]
    assert tuning.default.parameters == {
        "learning_rate": 1e-3,
        "new_row_rate": 5.0,
        "shared_row_rate": 5.0,
        "embedding_phase": 0.0,
        "per_device_train_batch_size": 4,
    }
    assert tuning.best.value is not None and tuning.default.value is not None
    assert tuning.best.value <= tuning.default.value
    assert (tuning.finished, tuning.done_before, tuning.other_studies) == (3, 0, 0)


def test_trial_is_one_pass_over_its_text_and_leaves_no_files(finished: tuple[Path, Tuning]) -> None:
    folder, tuning = finished
    assert tuning.steps == tuning.default.figures["steps"] == 13  # 50 blocks by 4, the last step with what is left
    assert tuning.default.figures["tokens_per_byte"] == 0.25
    assert {file.name for file in (folder / "tuning").iterdir()} == {"study.db", "study.json", "sft_config.yaml"}


def test_written_settings_are_those_of_the_best_trial_and_otherwise_current(
    finished: tuple[Path, Tuning],
) -> None:
    folder, tuning = finished
    written = folder / "tuning/sft_config.yaml"
    best, before = read_sft_config(written), read_sft_config(folder / "mine.yaml")
    assert best == replace(read_sft_config(folder / "mine.yaml", **tuning.best.parameters), source=written)
    assert read_sft_config(written, vanilla=True).arguments["learning_rate"] == 1e-4
    assert best.arguments["num_train_epochs"] == before.arguments["num_train_epochs"] == 3
    assert best.arguments["seed"] == 5
    text = written.read_text()
    assert f"{tuning.best.value:.4f} bits per byte" in text
    assert "# per step" in text
    assert "save_steps: 500" in text


def test_study_file_has_every_trial(finished: tuple[Path, Tuning]) -> None:
    folder, tuning = finished
    told = json.loads((folder / "tuning/study.json").read_text())
    assert told["best_bits_per_byte"] == tuning.best.value
    assert [trial["parameters"] for trial in told["trials"]] == [trial.parameters for trial in tuning.trials]
    assert told["settings"] == tuning.best.parameters
    assert told["new_tokens"] == len(NEW)


def test_vanilla_baseline_is_tuned_by_its_own_settings(
    tiny: Path, finished: tuple[Path, Tuning], tmp_path: Path
) -> None:
    _, adapted = finished
    source = source_in(tmp_path)
    vanilla = tune(
        tmp_path / "tuning",
        source,
        lambda _: replace(given(tiny), new_tokens={}),
        [0],
        TuningSettings(tune_trials=3),
        "vanilla",
        TuneOptions(1),
        vanilla=True,
    )
    assert vanilla.default.parameters == {"learning_rate": 1e-4, "per_device_train_batch_size": 4}
    write_result(tmp_path, source, adapted, len(NEW), vanilla)
    written = tmp_path / "sft_config.yaml"
    alone = read_sft_config(source, vanilla=True, **adapted.best.parameters | vanilla.best.parameters)
    assert read_sft_config(written, vanilla=True) == replace(alone, source=written)
    assert read_sft_config(written) == replace(read_sft_config(source, **adapted.best.parameters), source=written)
    told = json.loads((tmp_path / "study.json").read_text())["vanilla"]
    assert told["settings"] == vanilla.best.parameters
    assert [trial["value"] for trial in told["trials"]] == [trial.value for trial in vanilla.trials]


@pytest.mark.slow
def test_search_killed_with_sigkill_keeps_its_trials_and_repeats_the_killed_one(
    tiny: Path, finished: tuple[Path, Tuning], tmp_path: Path
) -> None:
    source_in(tmp_path)
    program = (
        "import sys, time; from pathlib import Path; from ivr_dagster_tests.core.training import test_tune as t\n"
        "tiny, folder, trials = Path(sys.argv[1]), Path(sys.argv[2]), []\n"
        "def on_step(done, steps):\n"
        "    if len(trials) == 1 and done > 4:\n"
        "        (folder / 'in the midst').touch(); time.sleep(60)\n"
        "t.tuned(tiny, folder, on_step=on_step, on_trial=lambda trial, done: trials.append(trial))\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, tiny, tmp_path], env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not (tmp_path / "in the midst").exists() and time.monotonic() < deadline:
        assert child.poll() is None, "the search ended before it could be killed"
        time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    child.wait()

    tuning = tuned(tiny, tmp_path)
    assert (tuning.finished, tuning.done_before) == (3, 1)
    assert [trial.state == KILLED for trial in tuning.trials] == [False, True, False, False]
    assert tuning.trials[1].parameters == tuning.trials[2].parameters
    undisturbed = [(trial.parameters, trial.value) for trial in finished[1].trials]
    assert [(trial.parameters, trial.value) for trial in tuning.trials if trial.state != KILLED] == undisturbed


def test_other_fingerprint_starts_another_study_in_the_same_file(tiny: Path, tmp_path: Path) -> None:
    first = tuned(tiny, tmp_path, trials=1)
    other = tuned(tiny, tmp_path, trials=1, fingerprint="two")
    assert (first.other_studies, other.other_studies) == (0, 1)
    assert other.done_before == 0
    assert tuned(tiny, tmp_path, trials=1).done_before == 1


def test_diverged_trials_are_pruned(tiny: Path, tmp_path: Path) -> None:
    source = source_in(tmp_path, "learning_rate: 1.0e+20\nmax_grad_norm: 0.0\noptim: sgd\n")
    with pytest.raises(InputError, match=r"none of 2 trials completed.*learning_rate"):
        tuned(tiny, tmp_path, source, trials=2)
    assert not list((tmp_path / "tuning").glob(".trial*"))


def test_text_for_too_few_steps_is_rejected(tiny: Path, tmp_path: Path) -> None:
    source = source_in(tmp_path, "per_device_train_batch_size: 20\n")
    with pytest.raises(InputError, match=r"50 blocks, 3 steps.*--tune-bytes"):
        tuned(tiny, tmp_path, source)


class TestTheSpace:
    """`search_space`."""

    def test_surrounds_the_current_settings(self) -> None:
        found = search_space(read_sft_config(), 1_000, [4000, 2000])
        space, default = found.distributions, found.default
        assert space["learning_rate"] == FloatDistribution(1e-5, 2.5e-4, log=True)
        assert space["new_row_rate"] == FloatDistribution(1.0, 25.0, log=True)
        assert space["embedding_phase"] == FloatDistribution(0.0, 0.3)
        assert space["per_device_train_batch_size"] == CategoricalDistribution((4, 8, 16))
        assert space[NEW_TOKENS] == CategoricalDistribution((4000, 2000))
        assert default[NEW_TOKENS] == 4000
        assert space.keys() == default.keys()

    def test_has_no_batch_with_too_few_steps(self) -> None:
        space = search_space(read_sft_config(), 40, [10]).distributions
        assert space["per_device_train_batch_size"] == CategoricalDistribution((4, 8))
        accumulating = read_sft_config(gradient_accumulation_steps=4)
        space = search_space(accumulating, 120, [10]).distributions
        assert space["per_device_train_batch_size"] == CategoricalDistribution((4, 8))

    def test_omits_rates_that_are_off_and_settings_without_a_choice(self) -> None:
        space = search_space(read_sft_config(shared_row_rate=0.0), 1_000, [10]).distributions
        assert not {"shared_row_rate", NEW_TOKENS} & space.keys()
        space = search_space(read_sft_config(), 1_000, [0]).distributions
        assert space.keys() == {"learning_rate", "per_device_train_batch_size"}

    def test_includes_a_long_current_phase(self) -> None:
        space = search_space(read_sft_config(embedding_phase=0.5), 1_000, [9]).distributions
        assert space["embedding_phase"] == FloatDistribution(0.0, 0.5)


@pytest.mark.slow
def test_best_number_of_new_tokens_is_written_beside_the_settings(tiny: Path, tmp_path: Path) -> None:
    asked: list[int] = []

    def inputs(number: int) -> TrialInput:
        asked.append(number)
        return given(tiny)

    source = source_in(tmp_path)
    tuning = tune(tmp_path, source, inputs, [2, 1], TuningSettings(tune_trials=6), "n", TuneOptions(3))
    assert asked[0] == 2 and sorted(asked) == [1, 2]
    tuning.best.parameters[NEW_TOKENS] = 1
    write_result(tmp_path, source, tuning, 2)
    assert "max_candidates: 1\n" in (tmp_path / "settings.yaml").read_text()
    assert read_sft_config(tmp_path / "sft_config.yaml").arguments["seed"] == 5
    tuning.best.parameters[NEW_TOKENS] = 2
    write_result(tmp_path, source, tuning, 2)
    assert not (tmp_path / "settings.yaml").exists()


def test_settings_keep_the_name_they_have_in_the_file(tmp_path: Path) -> None:
    from ivr_dagster.core.training.sft_config import sft_config_with

    source = source_in(tmp_path, "per_gpu_train_batch_size: 3  # small\nwarmup_steps: 7\n")
    text = sft_config_with(source, {"per_device_train_batch_size": 6})
    (tmp_path / "written.yaml").write_text(text)
    assert "per_gpu_train_batch_size: 6  # small" in text
    config = read_sft_config(tmp_path / "written.yaml")
    assert (config.arguments["per_device_train_batch_size"], config.arguments["warmup_steps"]) == (6, 7)
    assert read_sft_config(DEFAULTS).arguments["weight_decay"] == config.arguments["weight_decay"]
