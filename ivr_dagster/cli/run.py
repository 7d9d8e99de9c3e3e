"""Commands that build assets: one for each stage, `tune`, and `run`."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ivr_dagster.cli.options import ALL_OPTIONS, Invocation, SettingsCommand, settings_options
from ivr_dagster.cli.status import print_json, show_states
from ivr_dagster.errors import InputError
from ivr_dagster.pipeline import ASSETS, LAST_STAGE, STAGES, requested_stages, stage_options, stages_of_side
from ivr_dagster.settings.loading import read_settings_file

if TYPE_CHECKING:
    from ivr_dagster.cli.project import Project, StageResult


def stage_command(stage: str) -> click.Command:
    """The command that builds the assets of a stage, stale or not."""

    def command(
        invocation: Invocation,
        /,
        settings: dict[str, Any],
        normalize_force: bool = False,
        dry_run: bool = False,
    ) -> None:
        if dry_run:
            _show_plan(invocation, invocation.open_project(settings, observe=False))
            return
        project = invocation.open_project(settings, task=stage, check=lambda project: _check_stage(project, stage))
        _require_passed_checks(project, stage)
        _show_stage(invocation, stage, _build(invocation, project, stage, project.stage_assets(stage)))

    decorated: Callable[..., None] = settings_options(*stage_options(stage), command=stage)(click.pass_obj(command))
    if stage == "init":
        decorated = click.option(
            "--normalize-force", is_flag=True, help="Clean the corpus even if nothing changed, as a stage always does."
        )(decorated)
    if stage == "select":
        decorated = click.option(
            "--dry-run", is_flag=True, help="Only show the selection and its saving by number of new tokens."
        )(decorated)
    return click.command(name=stage, help=STAGES[stage].help, cls=SettingsCommand)(decorated)


@click.command(cls=SettingsCommand)
@settings_options(*stage_options("tune"), command="tune")
@click.pass_obj
def tune(invocation: Invocation, /, settings: dict[str, Any]) -> None:
    """Search for better training settings. An interrupted search resumes."""
    project = invocation.open_project(settings, task="tune", check=lambda project: project.check_training_settings())
    _require_passed_checks(project, "train", command="tune")
    (study,) = (asset.name for asset in ASSETS.values() if asset.stage == "tune")
    _show_tuning(invocation, project, study, _build(invocation, project, "tune", [study]))


@click.command(cls=SettingsCommand)
@click.option("--sample", is_flag=True, help="Packaged model and the standard library's docstrings. Offline, minutes.")
@click.option("--until", type=click.Choice(list(STAGES)), help=f"The last stage to build.  [default: {LAST_STAGE}]")
@click.option("--dry-run", is_flag=True, help="Only show what would be built, and why.")
@settings_options(*ALL_OPTIONS)
@click.pass_obj
def run(invocation: Invocation, /, sample: bool, until: str | None, dry_run: bool, settings: dict[str, Any]) -> None:
    """Build everything that is stale, in order."""
    if sample:
        _refuse_own_sources(invocation)
        settings["preset"] = "sample"
    stages = requested_stages(until)
    if dry_run:
        states = invocation.open_project(settings).states(stages)
        show_states(invocation, [state for state in states if state.stale and state.stage in stages])
        return
    project = invocation.open_project(settings, task="run", check=lambda project: _check_later_stages(project, stages))
    results: dict[str, StageResult] = {}
    # a Dagster run costs about half a second, so the fast stages share one
    fast = [stage for stage in stages if stage in stages_of_side("tokenizer")]
    for group in [fast, *([stage] for stage in stages if stage not in fast)]:
        for stage, result in _build_stale(invocation, project, group).items():
            results[stage] = result
            if not invocation.as_json:
                _show_stage(invocation, stage, result)
    if failed := project.failed_blocking_checks():
        raise InputError(f"a blocking check failed: {failed}")
    _show_run(invocation, project, results)


def _build_stale(invocation: Invocation, project: "Project", stages: Sequence[str]) -> dict[str, "StageResult"]:
    """Build the stale assets of stages until none is left; the results of each stage that built something.

    Raises:
        InputError: a blocking check before the first stale stage failed. Stages before the check are built.
    """
    from ivr_dagster.cli.project import merge_results

    results: list[StageResult] = []
    while assets := [
        name
        for name in project.directly_stale(stages)
        if not any(name in result.figures for result in results)  # built once, whatever its checks say
    ]:
        due = [stage for stage in stages if not set(assets).isdisjoint(project.stage_assets(stage))]
        ready = [stage for stage in due if not project.failed_blocking_checks(before_stage=stage)]
        if not ready:
            failed = project.failed_blocking_checks(before_stage=due[0])
            raise InputError(f"{due[0]} is next, but a blocking check before it failed: {failed}")
        assets = [name for stage in ready for name in project.stage_assets(stage) if name in assets]
        title = ready[0] if len(ready) == 1 else f"{ready[0]} … {ready[-1]}"
        results.append(_build(invocation, project, title, assets))
    merged = merge_results(results)
    by_stage = {stage: merged.of_assets(project.stage_assets(stage)) for stage in stages}
    return {stage: result for stage, result in by_stage.items() if result.figures}


def _build(invocation: Invocation, project: "Project", title: str, assets: list[str]) -> "StageResult":
    from ivr_dagster.cli.rendering import ProgressBars
    from ivr_dagster.resources.progress import progress_listener

    with ProgressBars(title, len(assets), quiet=invocation.as_json) as bars, progress_listener(bars):
        try:
            return project.run(assets, log_level=invocation.log_level, tags={"ivr/stage": title})
        except InputError:
            invocation.restore_settings()
            raise


def _require_passed_checks(project: "Project", stage: str, command: str = "") -> None:
    if failed := project.failed_blocking_checks(before_stage=stage):
        raise InputError(f"{command or stage} was requested, but a blocking check before it failed: {failed}")


def _check_stage(project: "Project", stage: str) -> None:
    """Check what a user provides for a stage before it starts."""
    if stage == "train":
        project.check_training_settings()
    if stage == "export":
        project.check_export()


def _check_later_stages(project: "Project", stages: Sequence[str]) -> None:
    """Check what a user provides for stages that start long after this command."""
    if "remap" in stages:
        project.check_remap_rules()
    if "train" not in stages:
        return
    if any(state.stale for state in project.states() if state.stage == "train"):
        project.check_training_settings()
    elif "export" in stages:
        project.check_export()


def _refuse_own_sources(invocation: Invocation) -> None:
    """Raise an InputError if the settings file names another model or corpus than the sample's."""
    file = invocation.settings_file
    settings = read_settings_file(file)[0] if file.is_file() else {}
    for name in ("model_name", "raw_corpora_dir"):
        if settings.get(name) not in (None, "", "sample"):
            raise InputError(
                f"--sample was requested, but {name} is set to {settings[name]!r}",
                where=file,
                remedy="Use another --artifacts-dir for the sample.",
            )


def _show_plan(invocation: Invocation, project: "Project") -> None:
    from ivr_dagster.cli.rendering import ProgressBars, print_plan_tables
    from ivr_dagster.core.vocabulary.log import saving_curve, verdict

    with ProgressBars("select, dry run", 1, quiet=invocation.as_json) as bars:
        plan = project.plan_selection(lambda done, total: bars.advance("selecting", done, total, "new tokens"))
    points = saving_curve(plan.table)
    sentence = verdict(plan.saving_heldout, len(plan.table), project.settings.selection.saving_floor)
    if not invocation.as_json:
        print_plan_tables(plan, points, sentence)
        return
    print_json(
        stage="select",
        dry_run=True,
        candidates=len(plan.table),
        token_saving_train=plan.saving_train,
        token_saving_heldout=plan.saving_heldout,
        rules_kept=plan.kept,
        rules_moved=plan.moved,
        rules_dropped=plan.dropped,
        stays_in_force=plan.rejected_gain is not None,
        verdict=sentence,
        curve=[asdict(point) for point in points],
    )


def _show_stage(invocation: Invocation, stage: str, result: "StageResult") -> None:
    if invocation.as_json:
        print_json(stage=stage, run_id=result.run_id, assets=result.figures, checks=result.checks)
        return
    from ivr_dagster.cli.rendering import print_stage_table

    print_stage_table(stage, result)


def _show_tuning(invocation: Invocation, project: "Project", asset: str, result: "StageResult") -> None:
    from ivr_dagster.core.training.folders import TuningFolder

    folder = TuningFolder(project.paths[asset])
    study = folder.study()
    if invocation.as_json:
        print_json(stage="tune", run_id=result.run_id, assets=result.figures, checks=[], **study)
        return
    from ivr_dagster.cli.rendering import print_tuning_table

    print_tuning_table(study, folder.sft_config, f"ivr --artifacts-dir {invocation.artifacts_dir}")


def _show_run(invocation: Invocation, project: "Project", results: dict[str, "StageResult"]) -> None:
    fresh = {state.name: state.figures for state in project.states() if not state.stale}
    built = [name for result in results.values() for name in result.figures]
    if invocation.as_json:
        checks = [check for result in results.values() for check in result.checks]
        print_json(stage="run", materialized=built, assets=fresh, checks=checks)
        return
    from ivr_dagster.cli.rendering import print_run_table

    print_run_table(fresh, project.paths, project.failed_checks(), materialized=len(built))
