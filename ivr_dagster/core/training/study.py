"""A search over settings by Optuna, that may be killed at any moment and gone on with.

What belongs here: the study in its file, which settings are tried next, when a trial is given up, what became of each.
What a trial is belongs to `tune`.

A trial's settings follow from the trials before it and its place among them, by a seed: a search that was killed and
gone on with tries the very settings that an undisturbed one does.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivr_dagster.errors import InputError

if TYPE_CHECKING:
    import optuna

# trials before Optuna's sampler has enough of them to model, and before any is given up
STARTUP_TRIALS = 3
# the first validation lies in the warm-up, or in the phase of embeddings only, and says little of the end
FIRST_PRUNED_AT = 2
SIGNIFICANT_DIGITS = 3
COMPLETE, PRUNED, KILLED = "complete", "pruned", "killed"

# place of a validation within a trial, from 1, and what it found; raises `GivenUp` where the trial is not worth its end
Report = Callable[[int, float], None]


class GivenUp(Exception):
    """A trial is not taken to its end; the message says why."""


@dataclass(frozen=True)
class Range:
    """A real number between two, both included; `log` for one that is multiplied rather than added to."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Choice:
    """One of some numbers."""

    values: tuple[int, ...]


Space = Mapping[str, Range | Choice]
# settings, and whom to tell of validations; returns the value to minimise and figures to keep beside it
Objective = Callable[[dict[str, Any], Report], tuple[float, dict[str, Any]]]


@dataclass(frozen=True)
class Trial:
    """What became of a trial.

    Attributes:
        number: Optuna's, from 0; a killed trial keeps its own, and runs again under another.
        state: complete, pruned (given up) or killed.
        parameters: the settings it was run with.
        value: what the objective came to; of a pruned trial the last validation, None where it had none.
        validations: (place within the trial, value).
        seconds: wall clock, 0 for a killed one.
        figures: what the objective returned beside its value.
        note: why it was given up, empty otherwise.
    """

    number: int
    state: str
    parameters: dict[str, Any]
    value: float | None
    validations: tuple[tuple[int, float], ...] = ()
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    note: str = ""


def search(
    file: Path,
    name: str,
    space: Space,
    default: Mapping[str, Any],
    objective: Objective,
    *,
    trials: int,
    seed: int,
    seconds: float = 0.0,
    on_trial: Callable[[Trial, int], None] | None = None,
) -> list[Trial]:
    """Try settings until `trials` of them are done; those done in earlier calls count.

    The first trial is `default`, so the best is as good or better. Then come draws by the tree-structured Parzen
    estimator (Bergstra et al. 2011). A trial whose best validation is worse than the median of the others at that
    place is given up. One process at a time: a trial that another call left unfinished is taken for killed and run
    again.

    Args:
        file: an SQLite file, made if it is not there; it may hold other studies.
        name: of the study; another name is another study.
        space: the settings that are tried, by name.
        default: the settings as they are, a value for each name in `space`.
        objective: runs a trial. What it raises ends the search, but for `GivenUp`.
        trials: how many trials, complete or pruned, the study is to have.
        seed: of the draws.
        seconds: start no further trial after so many; 0 for no limit.
        on_trial: called with every trial done in this call, and how many are done in all.

    Returns:
        All trials of the study, by number, killed ones among them.

    Raises:
        InputError: `file` is no study of this version of Optuna's.
    """
    import optuna

    began = time.monotonic()
    study = _opened(file, name)
    distributions = {key: _distribution(dimension) for key, dimension in space.items()}
    _run_killed_again(study, space, default)
    while (done := _done(study)) < trials and not 0 < seconds <= time.monotonic() - began:
        study.sampler = optuna.samplers.TPESampler(n_startup_trials=STARTUP_TRIALS, seed=seed + done)
        asked = study.ask(distributions)
        parameters = _tidy(asked.params, default)
        asked.set_user_attr("parameters", parameters)
        started = time.monotonic()
        try:
            value, figures = objective(dict(parameters), _reporter(asked))
            if not math.isfinite(value):  # Optuna would take it for a failure and count no trial
                raise GivenUp(f"it came to {value}")
        except GivenUp as reason:
            asked.set_user_attr("note", str(reason))
            asked.set_user_attr("seconds", round(time.monotonic() - started, 2))
            study.tell(asked, state=optuna.trial.TrialState.PRUNED)
        else:
            asked.set_user_attr("figures", figures)
            asked.set_user_attr("seconds", round(time.monotonic() - started, 2))
            study.tell(asked, value)
        if on_trial:
            on_trial(_trial(study.trials[asked.number]), done + 1)
    waiting = optuna.trial.TrialState.WAITING
    return [_trial(each) for each in study.trials if each.state != waiting]


def other_studies(file: Path, name: str) -> int:
    """How many studies of other names the file holds; none where there is no file.

    Raises:
        InputError: as of :func:`search`.
    """
    import optuna

    return sum(each != name for each in optuna.get_all_study_names(_storage(file))) if file.is_file() else 0


def best_of(trials: list[Trial]) -> Trial | None:
    """The complete trial with the least value, the earlier one of equals; None where none is complete."""
    complete = [trial for trial in trials if trial.state == COMPLETE]
    return min(complete, key=lambda trial: (trial.value, trial.number), default=None)


def _opened(file: Path, name: str) -> "optuna.Study":
    import optuna

    return optuna.create_study(
        storage=_storage(file),
        study_name=name,
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=FIRST_PRUNED_AT),
    )


def _storage(file: Path) -> "optuna.storages.RDBStorage":
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # what is worth telling goes through `on_trial`
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        # a transaction is there or not, whenever a process is killed
        return optuna.storages.RDBStorage(f"sqlite:///{file}", engine_kwargs={"connect_args": {"timeout": 60}})
    except (SQLAlchemyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"no study of Optuna {optuna.__version__} can be read here ({reason})",
            where=file,
            remedy="Move the file away; the search then begins anew.",
        ) from error


def _distribution(dimension: Range | Choice) -> "optuna.distributions.BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(dimension, Choice):
        return CategoricalDistribution(dimension.values)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _run_killed_again(study: "optuna.Study", space: Space, default: Mapping[str, Any]) -> None:
    """Mark trials left under way as failed and queue their settings; queue the default where no trial was done."""
    from optuna.trial import TrialState

    for left in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(left.number, state=TrialState.FAIL)
        # killed before all its settings were drawn, it has none to run again; the same ones are drawn anew
        if left.params.keys() == space.keys():
            study.enqueue_trial(left.params)
    if not study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.WAITING)):
        study.enqueue_trial(dict(default))


def _done(study: "optuna.Study") -> int:
    from optuna.trial import TrialState

    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))


def _tidy(drawn: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """Drawn numbers with digits that a person would write; defaults as they are."""
    return {
        key: float(f"{value:.{SIGNIFICANT_DIGITS}g}") if isinstance(value, float) and value != default[key] else value
        for key, value in drawn.items()
    }


def _reporter(asked: "optuna.Trial") -> Report:
    def report(place: int, value: float) -> None:
        asked.report(value, place)
        if asked.should_prune():
            raise GivenUp("worse than the median of the others at this point")

    return report


def _trial(frozen: "optuna.trial.FrozenTrial") -> Trial:
    from optuna.trial import TrialState

    states = {TrialState.COMPLETE: COMPLETE, TrialState.PRUNED: PRUNED}
    validations = tuple(each for each in sorted(frozen.intermediate_values.items()) if math.isfinite(each[1]))
    seen = validations[-1][1] if validations else None
    return Trial(
        frozen.number,
        states.get(frozen.state, KILLED),
        dict(frozen.user_attrs.get("parameters", frozen.params)),
        frozen.value if frozen.state == TrialState.COMPLETE else seen,
        validations,
        float(frozen.user_attrs.get("seconds", 0.0)),
        dict(frozen.user_attrs.get("figures", {})),
        str(frozen.user_attrs.get("note", "")),
    )
