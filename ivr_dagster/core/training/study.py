"""A search over settings with Optuna that can be killed at any moment and resumed.

A trial's settings follow from the earlier trials and its position among them by a seed: a search that was killed and
resumed tries the same settings as an uninterrupted one. `tune` decides what a trial is.
"""

import io
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ivr_dagster.errors import InputError

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

# trials before Optuna's sampler has enough to model, and before any is pruned
STARTUP_TRIALS = 3
# the first validation is in the warmup or the embedding phase and says little about the last one
FIRST_PRUNED_AT = 2
SIGNIFICANT_DIGITS = 3
COMPLETE, PRUNED, KILLED = "complete", "pruned", "killed"

# position of a validation within a trial, from 1, and its value; raises `optuna.TrialPruned` for a hopeless trial
Report = Callable[[int, float], None]
# settings and where to report validations; returns the value to minimize and further figures
Objective = Callable[[dict[str, Any], Report], tuple[float, dict[str, Any]]]


@dataclass(frozen=True)
class Space:
    """The settings that a search varies.

    Attributes:
        distributions: by name; floats and categories.
        default: the current settings, a value for each name.
    """

    distributions: Mapping[str, "BaseDistribution"]
    default: Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """A finished or killed trial.

    Attributes:
        number: Optuna's, from 0; a killed trial is repeated under another number.
        state: complete, pruned or killed.
        parameters: its settings.
        value: the objective; for a pruned trial its last validation, None if it had none.
        validations: (position within the trial, value).
        seconds: wall clock, 0 for a killed trial.
        figures: further results of the objective.
        note: why it was pruned, otherwise empty.
    """

    number: int
    state: str
    parameters: dict[str, Any]
    value: float | None
    validations: tuple[tuple[int, float], ...] = ()
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Study:
    """A search that is kept in a file.

    Attributes:
        file: an SQLite file, created if missing; it may hold other studies.
        name: name of the study.
    """

    file: Path
    name: str

    def search(
        self,
        space: Space,
        objective: Objective,
        *,
        trials: int,
        seed: int,
        seconds: float = 0.0,
        on_trial: Callable[[Trial, int], None] | None = None,
    ) -> list[Trial]:
        """Run trials until the study has `trials` of them, including those of earlier calls.

        The first trial has the default settings, so the best one is at least as good. The tree-structured Parzen
        estimator (Bergstra et al. 2011) draws the others. A trial whose best validation is worse than the median of
        the others at that position is pruned. One process at a time: an unfinished trial of another call counts as
        killed and is repeated.

        Args:
            space: the settings to vary.
            objective: runs a trial; its exceptions, except `optuna.TrialPruned`, end the search.
            trials: number of complete and pruned trials.
            seed: seed of the draws.
            seconds: start no further trial after this time; 0 for no limit.
            on_trial: called after every trial with the number of finished trials.

        Returns:
            All trials of the study by number, including killed ones.

        Raises:
            InputError: `file` is not a study of this version of Optuna.
        """
        from optuna.samplers import TPESampler
        from optuna.trial import TrialState

        study = self._open()
        _repeat_killed(study, space)

        def reseed() -> int:
            finished = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))
            study.sampler = TPESampler(n_startup_trials=STARTUP_TRIALS, seed=seed + finished)
            return finished

        def after(_: "optuna.Study", frozen: "optuna.trial.FrozenTrial") -> None:
            finished = reseed()
            if on_trial:
                on_trial(_trial(frozen), finished)

        finished = reseed()
        if finished < trials:
            study.optimize(
                lambda trial: _run(trial, space, objective),
                n_trials=trials - finished,
                timeout=seconds or None,
                callbacks=[after],
            )
        return [_trial(each) for each in study.trials if each.state != TrialState.WAITING]

    def others(self) -> int:
        """Number of studies with other names in the file.

        Raises:
            InputError: as of :meth:`search`.
        """
        import optuna

        return sum(each != self.name for each in optuna.get_all_study_names(_storage(self.file)))

    def plots(self) -> dict[str, bytes]:
        """Optuna's plots as PNG: the values by trial, and by each setting."""
        import matplotlib
        from matplotlib import pyplot
        from optuna.visualization.matplotlib import plot_optimization_history, plot_slice

        study, plots = self._open(), {}
        pyplot.switch_backend("agg")
        # Optuna sets a style for the whole process, and warns of its experimental functions and of single values
        with matplotlib.rc_context(), warnings.catch_warnings(action="ignore"):
            for file_name, plot in (("history.png", plot_optimization_history), ("settings.png", plot_slice)):
                axes: Any = plot(study, target_name="bits per byte")
                figure = np.ravel(axes)[0].figure
                buffer = io.BytesIO()
                figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight", metadata={"Software": None})
                pyplot.close(figure)
                plots[file_name] = buffer.getvalue()
        return plots

    def _open(self) -> "optuna.Study":
        import optuna

        return optuna.create_study(
            storage=_storage(self.file),
            study_name=self.name,
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=FIRST_PRUNED_AT),
        )


def best_of(trials: list[Trial]) -> Trial | None:
    """The complete trial with the least value, the earliest of equals; None if no trial is complete."""
    complete = [trial for trial in trials if trial.state == COMPLETE]
    return min(complete, key=lambda trial: (trial.value, trial.number), default=None)


def _storage(file: Path) -> "optuna.storages.RDBStorage":
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # `on_trial` reports
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        return optuna.storages.RDBStorage(f"sqlite:///{file}", engine_kwargs={"connect_args": {"timeout": 60}})
    except (SQLAlchemyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"cannot read a study of Optuna {optuna.__version__} ({reason})",
            where=file,
            remedy="Move the file away to start a new search.",
        ) from error


def _repeat_killed(study: "optuna.Study", space: Space) -> None:
    """Mark running trials as failed and enqueue their settings; enqueue the default for the first trial."""
    from optuna.trial import TrialState

    for killed in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(killed.number, state=TrialState.FAIL)
        # if it was killed before all its settings were drawn, the same ones will be drawn again
        if killed.params.keys() == space.distributions.keys():
            study.enqueue_trial(killed.params)
    if not study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.WAITING)):
        study.enqueue_trial(dict(space.default))


def _run(trial: "optuna.Trial", space: Space, objective: Objective) -> float:
    """Run a trial and record its settings, figures, time and, if it is pruned, the reason; returns its value."""
    from optuna import TrialPruned

    parameters = _suggest(trial, space)
    trial.set_user_attr("parameters", parameters)
    started = time.monotonic()
    try:
        value, figures = objective(dict(parameters), lambda place, value: _report(trial, place, value))
        if not math.isfinite(value):
            raise TrialPruned(f"the result is {value}")
        trial.set_user_attr("figures", figures)
    except TrialPruned as reason:
        trial.set_user_attr("note", str(reason))
        raise
    finally:
        trial.set_user_attr("seconds", round(time.monotonic() - started, 2))
    return value


def _suggest(trial: "optuna.Trial", space: Space) -> dict[str, Any]:
    """Draw settings. Drawn numbers are rounded to few digits, defaults are exact."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    parameters: dict[str, Any] = {}
    for name, each in space.distributions.items():
        if isinstance(each, FloatDistribution):
            drawn = trial.suggest_float(name, each.low, each.high, log=each.log)
            parameters[name] = drawn if drawn == space.default[name] else float(f"{drawn:.{SIGNIFICANT_DIGITS}g}")
        elif isinstance(each, CategoricalDistribution):
            parameters[name] = trial.suggest_categorical(name, each.choices)
    return parameters


def _report(trial: "optuna.Trial", place: int, value: float) -> None:
    from optuna import TrialPruned

    trial.report(value, place)
    if trial.should_prune():
        raise TrialPruned("worse than the median of the others at this point")


def _trial(frozen: "optuna.trial.FrozenTrial") -> Trial:
    from optuna.trial import TrialState

    state = {TrialState.COMPLETE: COMPLETE, TrialState.PRUNED: PRUNED}.get(frozen.state, KILLED)
    validations = tuple(each for each in sorted(frozen.intermediate_values.items()) if math.isfinite(each[1]))
    last = validations[-1][1] if validations else None
    return Trial(
        frozen.number,
        state,
        dict(frozen.user_attrs.get("parameters", frozen.params)),
        frozen.value if state == COMPLETE else last,
        validations,
        0.0 if state == KILLED else float(frozen.user_attrs.get("seconds", 0.0)),
        dict(frozen.user_attrs.get("figures", {})),
        str(frozen.user_attrs.get("note", "")),
    )
