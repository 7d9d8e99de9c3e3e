"""A search: what it tries, what it gives up, and that a kill changes nothing."""

from pathlib import Path
from typing import Any

import pytest

from ivr_dagster.core.training.study import (
    COMPLETE,
    KILLED,
    PRUNED,
    Choice,
    GivenUp,
    Objective,
    Range,
    Report,
    Trial,
    best_of,
    search,
)
from ivr_dagster.errors import InputError

SPACE = {"rate": Range(1e-4, 1e-2, log=True), "phase": Range(0.0, 0.3), "batch": Choice((2, 4, 8))}
DEFAULT = {"rate": 1.2345678e-3, "phase": 0.0, "batch": 4}


def bowl(parameters: dict[str, Any], report: Report) -> tuple[float, dict[str, Any]]:
    """Least at the default's right."""
    value = (parameters["rate"] * 1e3 - 3) ** 2 + parameters["phase"] + parameters["batch"] / 10
    for place in (1, 2, 3):
        report(place, value + 1 / place)
    return value, {"seen": parameters["batch"]}


def found(folder: Path, objective: Objective = bowl, name: str = "one", **options: Any) -> list[Trial]:
    return search(folder / "study.db", name, SPACE, DEFAULT, objective, **({"trials": 6, "seed": 3} | options))


def tried(trials: list[Trial]) -> list[dict[str, Any]]:
    return [trial.parameters for trial in trials if trial.state != KILLED]


def test_the_first_trial_is_the_default_so_the_best_is_as_good_or_better(tmp_path: Path) -> None:
    trials = found(tmp_path)
    best = best_of(trials)
    assert trials[0].parameters == DEFAULT
    assert best is not None and best.value is not None and trials[0].value is not None
    assert best.value <= trials[0].value
    assert trials[0].figures == {"seen": 4}
    assert [trial.number for trial in trials] == list(range(6))


def test_the_same_seed_tries_the_same_settings_and_another_seed_others(tmp_path: Path) -> None:
    first, again, other = (found(tmp_path, name=name, seed=seed) for name, seed in (("a", 3), ("b", 3), ("c", 4)))
    assert tried(first) == tried(again)
    assert tried(first)[0] == tried(other)[0] == DEFAULT
    assert tried(first)[1:] != tried(other)[1:]


def test_what_is_tried_lies_within_its_bounds_and_has_few_digits(tmp_path: Path) -> None:
    for parameters in tried(found(tmp_path, trials=12))[1:]:
        assert 1e-4 <= parameters["rate"] <= 1e-2
        assert 0 <= parameters["phase"] <= 0.3
        assert parameters["batch"] in (2, 4, 8)
        assert parameters["rate"] == float(f"{parameters['rate']:.3g}")


class Killed(BaseException):
    """Stands for a signal: nothing in the search may catch it."""


def killed_in(number: int) -> Objective:
    """An objective that is killed in its trial `number`, counted from 0, after its first validation."""
    calls = iter(range(100))

    def objective(parameters: dict[str, Any], report: Report) -> tuple[float, dict[str, Any]]:
        if next(calls) == number:
            report(1, 5.0)
            raise Killed
        return bowl(parameters, report)

    return objective


@pytest.mark.parametrize("number", [0, 1, 4])
def test_a_search_killed_in_a_trial_runs_that_trial_again_and_ends_as_an_undisturbed_one(
    tmp_path: Path, number: int
) -> None:
    with pytest.raises(Killed):
        found(tmp_path, killed_in(number))
    trials = found(tmp_path)
    assert [trial.state for trial in trials].count(KILLED) == 1
    assert trials[number].state == KILLED
    assert trials[number].parameters == trials[number + 1].parameters
    assert tried(trials) == tried(found(tmp_path, name="undisturbed"))
    assert len(tried(trials)) == 6


def test_a_search_goes_on_to_more_trials_and_makes_none_when_it_has_enough(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    first = found(tmp_path, trials=2)
    more = found(tmp_path, trials=5, on_trial=lambda trial, done: told.append((trial.number, done)))
    assert more[:2] == first
    assert told == [(2, 3), (3, 4), (4, 5)]
    assert found(tmp_path, trials=4) == more


def test_studies_of_other_names_in_the_same_file_are_left_alone(tmp_path: Path) -> None:
    one = found(tmp_path, trials=3)
    assert len(found(tmp_path, name="two", trials=2)) == 2
    assert found(tmp_path, trials=3) == one


def test_a_trial_worse_than_the_median_is_given_up_and_counts(tmp_path: Path) -> None:
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
def test_a_trial_that_comes_to_no_number_is_given_up(tmp_path: Path, value: float) -> None:
    trials = found(tmp_path, lambda parameters, report: (value, {}), trials=2)
    assert [(trial.state, trial.value, trial.note) for trial in trials] == [(PRUNED, None, f"it came to {value}")] * 2
    assert best_of(trials) is None


def test_a_trial_that_gives_itself_up_keeps_the_reason(tmp_path: Path) -> None:
    def hopeless(parameters: dict[str, Any], report: Report) -> tuple[float, dict[str, Any]]:
        raise GivenUp("no memory")

    assert found(tmp_path, hopeless, trials=1)[0].note == "no memory"


def test_no_trial_is_started_when_time_is_up(tmp_path: Path) -> None:
    assert len(found(tmp_path, trials=50, seconds=1e-9)) == 0
    assert len(found(tmp_path, trials=3, seconds=60)) == 3


def test_a_file_that_is_no_study_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("not a database, and long enough to be looked at as one" * 100)
    with pytest.raises(InputError, match="file is not a database") as error:
        found(tmp_path)
    assert error.value.where == tmp_path / "study.db"
