"""Commands for experiments: `ivr experiment` creates one, `ivr experiments` compares them."""

from dataclasses import asdict
from typing import Any

import click

from ivr_dagster.cli.options import ALL_OPTIONS, Invocation, SettingsCommand, settings_options
from ivr_dagster.cli.status import print_json
from ivr_dagster.settings.loading import OUTPUT_PATHS


@click.command(cls=SettingsCommand)
@click.argument("name")
@settings_options(*(name for name in ALL_OPTIONS if name not in OUTPUT_PATHS))
@click.pass_obj
def experiment(invocation: Invocation, /, name: str, settings: dict[str, Any]) -> None:
    """Create an experiment: a copy of the artifacts in its own folder, under other settings.

    Only what depends on the settings given here is built again. Then: `ivr --experiment NAME run`, `… status`,
    `… ui --port 3001`.
    """
    project = invocation.open_project(task=f"experiment {name}")
    changes_nothing = all(project.settings.get(key) == value for key, value in settings.items())
    from ivr_dagster.cli.experiment_folders import create_experiment

    paths = create_experiment(project, name, settings)
    if invocation.as_json:
        print_json(experiment=name, artifacts_dir=str(paths.root), settings=settings)
        return
    if changes_nothing:
        click.echo("No setting differs from the original: change ivr.yaml or sft_config.yaml in its folder.", err=True)
    click.echo(f"{paths.root}\nContinue with: ivr --artifacts-dir {invocation.artifacts_dir} --experiment {name} run")


@click.command()
@click.pass_obj
def experiments(invocation: Invocation) -> None:
    """Compare all experiments: changed settings and key figures."""
    project = invocation.open_project(observe=False)
    from ivr_dagster.cli.experiment_folders import compare_experiments

    found = compare_experiments(project)
    if invocation.as_json:
        print_json(experiments=[asdict(each) for each in found])
        return
    from ivr_dagster.cli.rendering import print_experiments_table

    print_experiments_table(found)
