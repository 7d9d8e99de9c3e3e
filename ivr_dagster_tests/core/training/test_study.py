"""A search over settings: draws, pruning, and resuming after a kill."""

from pathlib import Path
from typing import Any

import pytest
from optuna import TrialPruned
from optuna.distributions import CategoricalDistribution, FloatDistribution

from ivr_dagster.core.training.study import (
    COMPLETE,
    KILLED,
    PRUNED,
    Objective,
    Report,
    Space,
    Study,
    Trial,
    best_of,
)
from ivr_dagster.errors import InputError

DEFAULT = {"rate": 1.2345678e-3, "phase": 0.0, "batch": 4}
SPACE = Space(
    {
        "rate": FloatDistribution(1e-4, 1e-2, log=True),
        "phase": FloatDistribution(0.0, 0.3),
        "batch": CategoricalDistribution((2, 4, 8)),
    },
    DEFAULT,
)


def bowl(parameters: dict[str, Any], report: Report) -> tuple[float, dict[str, Any]]:
    """A value with its minimum at a higher rate than the default."""
    value = (parameters["rate"] * 1e3 - 3) ** 2 + parameters["phase"] + parameters["batch"] / 10
    for place in (1, 2, 3):
        report(place, value + 1 / place)
    return value, {"seen": parameters["batch"]}


def found(folder: Path, objective: Objective = bowl, name: str = "one", **options: Any) -> list[Trial]:
    return Study(folder / "study.db", name).search(SPACE, objective, **({"trials": 6, "seed": 3} | options))


def tried(trials: list[Trial]) -> list[dict[str, Any]]:
    return [trial.parameters for trial in trials if trial.state != KILLED]


def test_first_trial_has_the_default_settings(tmp_path: Path) -> None:
    trials = found(tmp_path)
    best = best_of(trials)
    assert trials[0].parameters == DEFAULT
    assert best is not None and best.value is not None and trials[0].value is not None
    assert best.value <= trials[0].value
    assert trials[0].figures == {"seen": 4}
    assert [trial.number for trial in trials] == list(range(6))


def test_seed_determines_the_settings(tmp_path: Path) -> None:
    seeds = {"a": 3, "b": 3, "c": 4}
    first, again, other = (found(tmp_path, name=name, seed=seed, trials=3) for name, seed in seeds.items())
    assert tried(first) == tried(again)
    assert tried(first)[0] == tried(other)[0] == DEFAULT
    assert tried(first)[1:] != tried(other)[1:]


def test_drawn_settings_are_within_bounds_and_have_few_digits(tmp_path: Path) -> None:
    for parameters in tried(found(tmp_path, trials=8))[1:]:
        assert 1e-4 <= parameters["rate"] <= 1e-2
        assert 0 <= parameters["phase"] <= 0.3
        assert parameters["batch"] in (2, 4, 8)
        assert parameters["rate"] == float(f"{parameters['rate']:.3g}")


class Killed(BaseException):
    """Stands for a signal that ends the process."""


def killed_in(number: int) -> Objective:
    """An objective that is killed in trial `number`, from 0, after its first validation."""
    calls = iter(range(100))

    def objective(parameters: dict[str, Any], report: Report) -> tuple[float, dict[str, Any]]:
        if next(calls) == number:
            report(1, 5.0)
            raise Killed
        return bowl(parameters, report)

    return objective


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 4])
def test_killed_search_repeats_its_trial_and_ends_as_an_uninterrupted_one(tmp_path: Path, number: int) -> None:
    with pytest.raises(Killed):
        found(tmp_path, killed_in(number))
    trials = found(tmp_path)
    assert [trial.state for trial in trials].count(KILLED) == 1
    assert trials[number].state == KILLED
    assert trials[number].parameters == trials[number + 1].parameters
    assert tried(trials) == tried(found(tmp_path, name="undisturbed"))
    assert len(tried(trials)) == 6


def test_search_resumes_to_more_trials_and_runs_none_if_it_has_enough(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    first = found(tmp_path, trials=2)
    more = found(tmp_path, trials=5, on_trial=lambda trial, done: told.append((trial.number, done)))
    assert more[:2] == first
    assert told == [(2, 3), (3, 4), (4, 5)]
    assert found(tmp_path, trials=4) == more


def test_studies_in_the_same_file_do_not_interfere(tmp_path: Path) -> None:
    one = found(tmp_path, trials=3)
    assert len(found(tmp_path, name="two", trials=2)) == 2
    assert found(tmp_path, trials=3) == one


def test_trial_worse_than_the_median_is_pruned_and_counts(tmp_path: Path) -> None:
    def worse_and_worse(parameters: dict[str, Any], report: Report) -> tuple[float, dict[str, Any]]:
        value = float(next(calls))
        report(1, value)
        report(2, value)
        return value, {}

    calls = iter(range(100))
    trials = found(tmp_path, worse_and_worse, trials=5)
    assert [trial.state for trial in trials] == [COMPLETE, COMPLETE, COMPLETE, PRUNED, PRUNED]
    assert trials[3].validations == ((1, 3.0), (2, 3.0))
    assert trials[3].value == 3.0
    assert "median" in trials[3].note


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_trial_without_a_finite_result_is_pruned(tmp_path: Path, value: float) -> None:
    trials = found(tmp_path, lambda parameters, report: (value, {}), trials=2)
    assert [(trial.state, trial.value, trial.note) for trial in trials] == [
        (PRUNED, None, f"the result is {value}")
    ] * 2
    assert best_of(trials) is None


def test_pruned_trial_keeps_its_reason(tmp_path: Path) -> None:
    def hopeless(parameters: dict[str, Any], report: Report) -> tuple[float, dict[str, Any]]:
        raise TrialPruned("no memory")

    assert found(tmp_path, hopeless, trials=1)[0].note == "no memory"


def test_no_trial_starts_after_the_time_limit(tmp_path: Path) -> None:
    assert len(found(tmp_path, trials=50, seconds=1e-9)) == 0
    assert len(found(tmp_path, trials=3, seconds=60)) == 3


def test_invalid_study_file_is_rejected_by_name(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("not a database, and long enough to be looked at as one" * 100)
    with pytest.raises(InputError, match="file is not a database") as error:
        found(tmp_path)
    assert error.value.where == tmp_path / "study.db"


def test_plots_are_png_and_leave_the_style_of_matplotlib_alone(tmp_path: Path) -> None:
    import matplotlib

    found(tmp_path, trials=3)
    before = matplotlib.rcParams.copy()
    plots = Study(tmp_path / "study.db", "one").plots()
    assert all(png.startswith(b"\x89PNG") for png in plots.values()) and len(plots) == 2
    assert matplotlib.rcParams["axes.facecolor"] == before["axes.facecolor"]
