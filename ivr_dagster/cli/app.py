"""`ivr`: parse, choose assets, materialize, show.

Figures go to standard output (`--json`: one object), everything else to standard error. Exit codes: 0 done, 1 failed,
2 the request or the input is at fault. Heavy libraries are imported where a stage needs them, so that help is quick.
"""

import gc
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

from ivr_dagster.errors import InputError, describe_shortage, is_out_of_memory
from ivr_dagster.pipeline import (
    ASSETS,
    SHARES,
    STAGES,
    ArtifactPaths,
    stage_of,
    stage_options,
    stages_of_side,
)
from ivr_dagster.settings.loading import (
    FIELDS,
    INFO,
    OUTPUT_PATHS,
    load_settings,
    option_name,
    read_settings_file,
    save_settings,
)
from ivr_dagster.storage.atomic import atomic_write

if TYPE_CHECKING:
    from ivr_dagster.cli.workbench import StageResult, Workbench

DONE, FAILED, AT_FAULT = 0, 1, 2
TUNING = ("tuning_study",)

# figures that experiments are compared by: heading, asset, figure
COMPARED = (
    ("new tokens", "remapped_tokenizer", "tokens_reassigned"),
    ("token saving", "remapped_tokenizer", "token_saving"),
    ("bytes per token", "remapped_tokenizer", "bytes_per_token"),
    ("BPB, base", "evaluation_report", "bpb_base"),
    ("before training", "evaluation_report", "bpb_initialized"),
    ("trained", "evaluation_report", "bpb_sft"),
    ("vanilla", "evaluation_report", "bpb_vanilla_sft"),
    ("rise on other text", "evaluation_report", "retention_rise_sft"),
)
# of `run` and `experiment`
ALL_OPTIONS = tuple(
    dict.fromkeys(name for stage in STAGES for name in stage_options(stage) if name != "train_model_name")
)


class Request:
    """What was asked before the stage: artifacts folder, settings file, log level, form of the output."""

    def __init__(self, artifacts_dir: Path, config: Path | None, log_level: str, as_json: bool) -> None:
        self.artifacts_dir = artifacts_dir.expanduser().resolve()
        self.config, self.log_level, self.as_json = config, log_level, as_json
        self._until_the_end = ExitStack()
        self._file_before: bytes | None = None
        self._remembered = False

    @property
    def settings_file(self) -> Path:
        return self.config or ArtifactPaths(self.artifacts_dir).settings_file

    def workbench(
        self,
        given: dict[str, Any],
        *,
        remember: bool = True,
        observe: bool = True,
        title: str = "",
        check: Callable[["Workbench"], None] = lambda bench: None,
    ) -> "Workbench":
        """The assets under the settings, options included, once sources were looked at.

        Unless the command only looks (`remember` or `observe` false), options are remembered and the command holds
        the artifacts folder until it ends.

        Args:
            given: options by key.
            remember: whether they are written into the settings file.
            observe: whether sources are looked at.
            title: the command, for others who find the folder in use.
            check: called before options are remembered; raises where they are at fault.
        """
        settings = load_settings(self.artifacts_dir, config=self.config, options=given)
        _quiet_libraries(self.log_level)
        from ivr_dagster.cli.workbench import Workbench, exclusive_use

        if remember and observe:
            self._until_the_end.enter_context(
                exclusive_use(ArtifactPaths.of(settings, self.artifacts_dir), f"ivr {title}")
            )
        workbench = Workbench(settings, self.artifacts_dir)
        if observe:
            workbench.observe_sources()
        check(workbench)
        if remember and given:
            self._file_before = self.settings_file.read_bytes() if self.settings_file.is_file() else None
            save_settings(self.settings_file, given)
            self._remembered = True
        return workbench

    def close(self) -> None:
        """Give back what was held for the command."""
        self._until_the_end.close()

    def forget(self) -> None:
        """Take back the options that were remembered: what they asked for was at fault."""
        if not self._remembered:
            return
        if self._file_before is None:
            self.settings_file.unlink(missing_ok=True)
        else:
            with atomic_write(self.settings_file) as staged:
                staged.write_bytes(self._file_before)


class NumberOrWord(click.ParamType):  # type: ignore[type-arg]
    """A whole number, or one of the words that stand for one."""

    def __init__(self, words: dict[str, int]) -> None:
        self.words, self.name = words, "|".join(["integer", *words])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if str(value) in self.words:
            return str(value)
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a whole number nor {' nor '.join(self.words)}", param, ctx)


class InOrder(click.Group):
    """Commands as they are used, not by the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option(
    "--artifacts-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default="artifacts",
    envvar="IVR_ARTIFACTS_DIR",
    show_default=True,
    help="Folder of all artifacts.",
)
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="IVR_CONFIG",
    help="Settings file. Default: ivr.yaml in the artifacts folder; options given to a stage are remembered there.",
)
@click.option(
    "--experiment",
    envvar="IVR_EXPERIMENT",
    help="Work on this experiment in place of the artifacts folder itself; `ivr experiment` begins one.",
)
@click.option(
    "--log-level",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
    default="WARNING",
    envvar="IVR_LOG_LEVEL",
    show_default=True,
    help="What goes to standard error; DEBUG adds tracebacks.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object of figures on standard output.")
@click.version_option(package_name="ivr-dagster")
@click.pass_context
def cli(
    context: click.Context,
    artifacts_dir: Path,
    config: Path | None,
    experiment: str | None,
    log_level: str,
    as_json: bool,
) -> None:
    """Move a pretrained GPT-2-style model onto a better vocabulary of the same size.

    Each stage materializes Dagster assets on the instance that `ivr ui` shows. Settings: option, then environment
    (IVR_MAX_CANDIDATES and so on), then settings file, then default.
    """
    if experiment:
        artifacts_dir = _experiment_folder(artifacts_dir, experiment, config)
    context.obj = request = Request(artifacts_dir, config, log_level.upper(), as_json)
    context.call_on_close(request.close)


def _experiment_folder(artifacts_dir: Path, name: str, config: Path | None) -> Path:
    place = ArtifactPaths(artifacts_dir.expanduser().resolve()).experiment(name)
    if not place.is_dir():
        raise InputError(
            f"no experiment {name!r}",
            where=place,
            remedy=f"Begin it by `ivr experiment {name}`; `ivr experiments` shows those that there are.",
        )
    if config is not None:
        raise InputError(
            f"a settings file was given beside --experiment, which has settings of its own: {place / 'ivr.yaml'}",
            where="--config or IVR_CONFIG",
            remedy="Leave one of them out.",
        )
    elsewhere = [f"IVR_{key.upper()}" for key in OUTPUT_PATHS if f"IVR_{key.upper()}" in os.environ]
    if elsewhere:
        raise InputError(
            f"{', '.join(elsewhere)} would have the experiment write where others do",
            where="environment",
            remedy="Unset it.",
        )
    os.environ["DAGSTER_HOME"] = str(ArtifactPaths(place).dagster_home)  # each has an instance of its own
    return place


def settings_options(*names: str, stage: str = "") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Options for settings, with their help and default; those not given are None."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for name in reversed(names):
            field, info = FIELDS[name], INFO[name]
            default = "empty" if field.default == "" else field.default
            help_text = f"{field.description}  [default: {default}]"
            option = (info.options or {}).get(stage)
            options = [f"--{option}"] if name == "train_model_name" and option else [option_name(name)]
            if option and name != "train_model_name":
                options.append(f"--{option}")
            if field.annotation is bool:
                both = f"--{name.replace('_', '-')}/--no-{name.replace('_', '-')}"
                command = click.option(both, name, default=None, help=help_text)(command)
                continue
            kind: Any = field.annotation
            if get_origin(kind) is Literal:
                kind = click.Choice(get_args(kind))
            elif info.words:
                kind = NumberOrWord(dict(info.words))
            command = click.option(*options, name, type=kind, default=None, help=help_text)(command)
        return command

    return decorate


def _stage_command(stage: str) -> None:
    @click.pass_obj
    def command(request: Request, /, normalize_force: bool = False, dry_run: bool = False, **options: Any) -> None:
        given = {key: value for key, value in options.items() if value is not None}
        if dry_run:
            _show_plan(request, request.workbench(given, remember=False, observe=False))
            return
        workbench = request.workbench(
            given,
            title=stage,
            check=lambda bench: bench.check_training_settings() if stage == "train" else None,
        )
        failed = workbench.failed_blocking_checks(before_stage=stage)
        if failed:
            raise InputError(f"{stage} was asked for, but a blocking check has failed before it: {failed}")
        result = _run_assets(request, workbench, stage, workbench.stage_assets(stage))
        _show_stage(request, stage, result)

    decorated: Callable[..., None] = settings_options(*stage_options(stage), stage=stage)(command)
    if stage == "init":
        decorated = click.option(
            "--normalize-force",
            is_flag=True,
            help="Clean the corpus again even if nothing changed (a stage run by name always does).",
        )(decorated)
    if stage == "select":
        decorated = click.option(
            "--dry-run", is_flag=True, help="Only show what would be chosen, and the saving by number of new tokens."
        )(decorated)
    cli.command(name=stage, help=STAGES[stage].help)(decorated)


for _stage in STAGES:
    _stage_command(_stage)


@cli.command()
@settings_options(*stage_options("tune"), stage="tune")
@click.pass_obj
def tune(request: Request, /, **options: Any) -> None:
    """Search for better training settings; a search that was stopped goes on."""
    given = {key: value for key, value in options.items() if value is not None}
    workbench = request.workbench(given, title="tune", check=lambda bench: bench.check_training_settings())
    failed = workbench.failed_blocking_checks(before_stage="train")
    if failed:
        raise InputError(f"tune was asked for, but a blocking check has failed before it: {failed}")
    result = _run_assets(request, workbench, "tune", list(TUNING))
    _show_tuning(request, workbench, result)


@cli.command()
@click.option(
    "--sample",
    is_flag=True,
    help="The embedded default: packaged model, standard library's docstrings. Offline, minutes.",
)
@click.option(
    "--until", type=click.Choice(list(STAGES)), help="The last stage to bring up to date.  [default: evaluate]"
)
@click.option("--dry-run", is_flag=True, help="Only show what would be materialized, and why.")
@settings_options(*ALL_OPTIONS)
@click.pass_obj
def run(request: Request, /, sample: bool, until: str | None, dry_run: bool, **options: Any) -> None:
    """Materialize everything that is stale, in order."""
    given = {key: value for key, value in options.items() if value is not None} | (
        {"preset": "sample"} if sample else {}
    )
    if sample:
        _refuse_other_sources(request)
    stages = list(STAGES)
    stages = stages[: stages.index(until) + 1 if until else None]
    if dry_run:
        workbench = request.workbench(given, remember=False)
        _show_states(request, [state for state in workbench.states() if state.stale])
        return
    workbench = request.workbench(
        given,
        title="run",
        check=lambda bench: _check_what_comes_later(bench, stages),
    )
    from ivr_dagster.cli.workbench import together

    done: dict[str, StageResult] = {}
    for group in _run_groups(stages):
        made: list[StageResult] = []
        while stale := [
            name for name in workbench.stale_by_themselves(group) if not any(name in result.figures for result in made)
        ]:
            due = [stage for stage in group if not set(stale).isdisjoint(workbench.stage_assets(stage))]
            # those before the first stage that a failed check holds up are made all the same
            held = {stage: failed for stage in due if (failed := workbench.failed_blocking_checks(before_stage=stage))}
            if due[0] in held:
                raise InputError(f"{due[0]} is next, but a blocking check has failed before it: {held[due[0]]}")
            due = [stage for stage in due if stage not in held]
            stale = [name for stage in due for name in workbench.stage_assets(stage) if name in stale]
            title = due[0] if len(due) == 1 else f"{due[0]} … {due[-1]}"
            made.append(_run_assets(request, workbench, title, stale))
        for stage in group:
            result = together(made).of(workbench.stage_assets(stage))
            if result.figures:
                done[stage] = result
                if not request.as_json:
                    _show_stage(request, stage, result)
    failed = workbench.failed_blocking_checks()
    if failed:
        raise InputError(f"a blocking check has failed: {failed}")
    _show_run(request, workbench, done)


@cli.command()
@click.argument("name")
@settings_options(*(key for key in ALL_OPTIONS if key not in OUTPUT_PATHS))
@click.pass_obj
def experiment(request: Request, /, name: str, **options: Any) -> None:
    """Begin an experiment: what is there now under other settings, in a folder of its own.

    It starts from a copy of all artifacts and settings, so that only what depends on the settings given here is made
    anew. Then: `ivr --experiment NAME run`, `… status`, `… ui --port 3001`.
    """
    given = {key: value for key, value in options.items() if value is not None}
    workbench = request.workbench({}, title=f"experiment {name}")
    same = all(getattr(workbench.settings, key) == value for key, value in given.items())
    from ivr_dagster.cli.experiments import begin

    paths = begin(workbench, name, given)
    if request.as_json:
        click.echo(json.dumps({"experiment": name, "artifacts_dir": str(paths.root), "settings": given}))
        return
    if same:
        click.echo("Nothing differs from where it was begun: change its ivr.yaml or sft_config.yaml.", err=True)
    click.echo(f"{paths.root}\nGo on with: ivr --artifacts-dir {request.artifacts_dir} --experiment {name} run")


@cli.command()
@click.pass_obj
def experiments(request: Request) -> None:
    """Show all experiments beside each other: what differs, and what came of it."""
    workbench = request.workbench({}, observe=False)
    from ivr_dagster.cli.experiments import compare

    found = compare(workbench)
    if request.as_json:
        click.echo(json.dumps({"experiments": [asdict(each) for each in found]}))
        return
    from ivr_dagster.cli.rendering import experiments_table

    experiments_table(found, COMPARED, _number)


@cli.command()
@click.option(
    "--verify",
    is_flag=True,
    help="Also read every artifact and hold it against its manifest; the exit code is 1 where one is damaged.",
)
@click.pass_obj
def status(request: Request, /, verify: bool) -> None:
    """Show every asset, fresh or stale, with its key figures."""
    workbench = request.workbench({}, observe=False)
    try:
        workbench.observe_sources()
    except InputError as error:
        _complain(f"the sources cannot be looked at, what follows is as they were last: {error}", debug=False)
    found = workbench.damaged() if verify else None
    _show_states(request, workbench.states(), workbench.failed_checks(), found)
    if found and any(found.values()):
        raise SystemExit(FAILED)


@cli.command(hidden=True, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1)
def join(arguments: tuple[str, ...]) -> None:
    """Removed: torchrun starts the processes on other machines."""
    raise InputError(
        "`ivr join` was removed", remedy="Run the torchrun command that the log of the training prints for each node."
    )


@cli.command()
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=3000,
    show_default=True,
    help="Port of the web server, on 127.0.0.1.",
)
@settings_options(*stage_options("ui"))
@click.pass_obj
def ui(request: Request, /, port: int, **options: Any) -> None:
    """Serve the Dagster UI and its daemon on 127.0.0.1 until stopped."""
    from ivr_dagster.cli.ui import serve

    given = {key: value for key, value in options.items() if value is not None}
    # a fault in the settings is told here, not in the browser
    load_settings(request.artifacts_dir, config=request.config, options=given)
    save_settings(request.settings_file, given)
    raise SystemExit(serve(request.artifacts_dir, request.config, port))


def _run_groups(stages: Sequence[str]) -> list[list[str]]:
    """Stages that one Dagster run builds together: a run costs about half a second, so the fast ones share it."""
    fast = [stage for stage in stages if stage in stages_of_side("tokenizer")]
    return [fast, *([stage] for stage in stages if stage not in fast)]


def _check_what_comes_later(workbench: "Workbench", stages: Sequence[str]) -> None:
    """What a person gave for stages that begin when others have worked for long."""
    if "remap" in stages:
        workbench.check_remap_rules()
    if "train" in stages and any(state.stale for state in workbench.states() if state.stage == "train"):
        workbench.check_training_settings()


def _refuse_other_sources(request: Request) -> None:
    """The sample beside somebody's own model or corpus would be neither."""
    there = read_settings_file(request.settings_file)[0] if request.settings_file.is_file() else {}
    own = [key for key in ("model_name", "raw_corpora_dir") if there.get(key) not in (None, "", "sample")]
    if own:
        raise InputError(
            f"--sample was asked for, but {own[0]} is set to {there[own[0]]!r}",
            where=request.settings_file,
            remedy="Give the sample an --artifacts-dir of its own.",
        )


def _run_assets(request: Request, workbench: "Workbench", stage: str, assets: list[str]) -> "StageResult":
    from ivr_dagster.cli.rendering import ProgressBars
    from ivr_dagster.resources.progress import progress_listener

    with ProgressBars(stage, len(assets), quiet=request.as_json) as bars, progress_listener(bars.advance):
        try:
            return workbench.run(assets, log_level=request.log_level, tags={"ivr/stage": stage})
        except InputError:
            request.forget()
            raise


def _show_plan(request: Request, workbench: "Workbench") -> None:
    from ivr_dagster.cli.rendering import ProgressBars, plan_tables
    from ivr_dagster.core.vocabulary.log import saving_curve, verdict

    with ProgressBars("select, dry run", 1, quiet=request.as_json) as bars:
        plan = workbench.plan_selection(lambda done, total: bars.advance("selecting", done, total, "new tokens"))
    points = saving_curve(plan.table)
    sentence = verdict(plan.saving_heldout, len(plan.table), workbench.settings.selection.saving_floor)
    if not request.as_json:
        plan_tables(plan, points, sentence)
        return
    click.echo(
        json.dumps(
            {
                "stage": "select",
                "dry_run": True,
                "candidates": len(plan.table),
                "token_saving_train": plan.saving_train,
                "token_saving_heldout": plan.saving_heldout,
                "rules_kept": plan.kept,
                "rules_moved": plan.moved,
                "rules_dropped": plan.dropped,
                "stays_in_force": plan.rejected_gain is not None,
                "verdict": sentence,
                "curve": [asdict(point) for point in points],
            }
        )
    )


def _show_stage(request: Request, stage: str, result: "StageResult") -> None:
    if request.as_json:
        click.echo(
            json.dumps({"stage": stage, "run_id": result.run_id, "assets": result.figures, "checks": result.checks})
        )
        return
    from ivr_dagster.cli.rendering import figures_table

    figures_table(stage, {name: _key_figures(name, figures) for name, figures in result.figures.items()}, result.checks)


def _show_tuning(request: Request, workbench: "Workbench", result: "StageResult") -> None:
    from ivr_dagster.core.training.folders import TuningFolder

    folder = TuningFolder(workbench.paths[TUNING[0]])
    study = folder.study()
    if request.as_json:
        click.echo(
            json.dumps({"stage": "tune", "run_id": result.run_id, "assets": result.figures, "checks": [], **study})
        )
        return
    from ivr_dagster.cli.rendering import tuning_table

    tuning_table(study, folder.sft_config, f"ivr --artifacts-dir {request.artifacts_dir}")


def _show_states(
    request: Request,
    states: list[Any],
    failed_checks: Sequence[str] = (),
    damaged: Mapping[str, Sequence[str]] | None = None,
) -> None:
    if request.as_json:
        rows = [
            {"asset": s.name, "stage": s.stage, "fresh": not s.stale, "stale": s.stale, "figures": s.figures,
             "materialized": s.materialized.isoformat() if s.materialized else None} for s in states
        ]  # fmt: skip
        verified = {} if damaged is None else {"damaged": damaged}
        click.echo(json.dumps({"assets": rows, "failed_checks": list(failed_checks), **verified}))
        return
    from ivr_dagster.cli.rendering import states_table

    states_table(states, lambda state: _key_figures(state.name, state.figures))
    if failed_checks:
        click.echo(f"checks that did not pass: {', '.join(failed_checks)}")
    for name, faults in (damaged or {}).items():
        for fault in faults:
            click.echo(f"{name}: {fault}; `ivr {stage_of(name)}` makes it again")
    if damaged is not None:
        whole = sum(not faults for faults in damaged.values())
        click.echo(f"{whole} of {len(damaged)} artifacts are as they were written")


def _show_run(request: Request, workbench: "Workbench", done: dict[str, "StageResult"]) -> None:
    states = {state.name: state for state in workbench.states() if not state.stale}
    if request.as_json:
        materialized = [name for result in done.values() for name in result.figures]
        checks = [check for result in done.values() for check in result.checks]
        figures = {name: state.figures for name, state in states.items()}
        click.echo(json.dumps({"stage": "run", "materialized": materialized, "assets": figures, "checks": checks}))
        return
    from ivr_dagster.cli.rendering import run_table

    made = sum(len(result.figures) for result in done.values())
    run_table(states, workbench.paths, workbench.failed_checks(), materialized=made)


def _key_figures(asset: str, figures: dict[str, Any]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {_number(name, figures[name])}"
        for name in (ASSETS[asset].figures if asset in ASSETS else ())
        if name in figures
    )


def _number(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name in SHARES:
        return f"{value:.3%}"
    return f"{value:,.3f}" if isinstance(value, float) and value < 1000 else f"{value:,.0f}"


def _quiet_libraries(log_level: str) -> None:
    level = getattr(logging, log_level)
    # standard output belongs to figures; libraries that draw bars or warn by themselves are told not to
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error" if level > logging.INFO else "info")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if level > logging.DEBUG:
        import warnings

        warnings.filterwarnings("ignore", module="torch|transformers|datasets")


def main() -> None:
    """The console script: faults become one line on standard error and an exit code."""
    # hundreds of thousands of strings and classes that stay are not looked through for cycles again and again
    gc.set_threshold(100_000, 50, 50)
    arguments = sys.argv[1:]
    debug = (
        "DEBUG" in (argument.upper() for argument in arguments)
        or os.environ.get("IVR_LOG_LEVEL", "").upper() == "DEBUG"
    )
    # Dagster puts its own in their place while a step runs, and cannot give them back where the disk is full
    streams = [os.dup(number) for number in (1, 2)]
    try:
        _run_command(arguments, debug, streams)
    finally:
        for stream in streams:
            os.close(stream)


def _run_command(arguments: list[str], debug: bool, streams: Sequence[int]) -> None:
    try:
        cli.main(args=arguments, prog_name="ivr", standalone_mode=False)
    except click.exceptions.Exit as error:
        raise SystemExit(error.exit_code) from None
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        raise SystemExit(AT_FAULT) from None
    except click.ClickException as error:
        _complain(error.format_message(), debug)
        raise SystemExit(AT_FAULT) from None
    except InputError as error:
        if is_out_of_memory(error):
            _complain(str(describe_shortage(error)), debug)
            raise SystemExit(FAILED) from None
        _complain(str(error), debug)
        raise SystemExit(AT_FAULT) from None
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted; run the same command again to resume", debug)
        raise SystemExit(FAILED) from None
    except Exception as error:  # noqa: BLE001 (the last line before the person at the terminal)
        name = type(error).__name__
        for number, stream in zip((1, 2), streams, strict=True):
            os.dup2(stream, number)
        if name == "Interrupted":
            _complain("interrupted; run the same command again to resume", debug)
        elif name in ("StageFailed", "TrainingDiverged", "OutOfMemory"):
            _complain(str(error), debug)
        elif (short := describe_shortage(error, _artifacts_dir(arguments))) is not None:
            _complain(short, debug)
        else:
            _complain(f"{name}: {error} (--log-level DEBUG shows where)", debug)
        raise SystemExit(FAILED) from None
    raise SystemExit(DONE)


def _artifacts_dir(arguments: Sequence[str]) -> Path:
    given = dict(pairwise(arguments)).get("--artifacts-dir")
    return Path(given or os.environ.get("IVR_ARTIFACTS_DIR") or "artifacts").expanduser().resolve()


def _complain(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    line = " ".join(message.split())
    # a file's name may hold what a terminal obeys
    click.echo(
        "ivr: " + "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in line), err=True
    )


if __name__ == "__main__":
    main()
