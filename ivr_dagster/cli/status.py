"""`ivr status`: every asset, fresh or stale, with its key figures."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from ivr_dagster.cli.options import Invocation
from ivr_dagster.errors import InputError
from ivr_dagster.pipeline import stage_of

if TYPE_CHECKING:
    from ivr_dagster.cli.project import AssetState


@click.command()
@click.option(
    "--verify", is_flag=True, help="Also compare every artifact with its manifest; exit code 1 if one is damaged."
)
@click.pass_obj
def status(invocation: Invocation, /, verify: bool) -> None:
    """Show every asset, fresh or stale, with its key figures."""
    if not invocation.artifacts_dir.is_dir():
        raise InputError(
            "no artifacts folder",
            where=invocation.artifacts_dir,
            remedy="Check --artifacts-dir. `ivr init` or `ivr run` creates a new folder.",
        )
    project = invocation.open_project(observe=False)
    try:
        project.observe_sources()
    except InputError as error:
        click.echo(f"ivr: sources cannot be observed; showing their last known state: {error}", err=True)
    damage = project.find_damage() if verify else None
    show_states(invocation, project.states(), project.failed_checks(), damage)
    if damage and any(damage.values()):
        raise SystemExit(1)


def show_states(
    invocation: Invocation,
    states: Sequence["AssetState"],
    failed_checks: Sequence[str] = (),
    damage: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Print assets with their staleness, failed checks, and the damage of each artifact if it was searched for."""
    if invocation.as_json:
        rows = [
            {
                "asset": state.name,
                "stage": state.stage,
                "fresh": not state.stale,
                "stale": state.stale,
                "waiting": state.waiting,
                "figures": state.figures,
                "materialized": state.materialized.isoformat() if state.materialized else None,
            }
            for state in states
        ]
        verified = {} if damage is None else {"damaged": damage}
        print_json(assets=rows, failed_checks=list(failed_checks), **verified)
        return
    from ivr_dagster.cli.rendering import print_states_table

    print_states_table(states)
    if failed_checks:
        click.echo(f"failed checks: {', '.join(failed_checks)}")
    if damage is not None:
        for name, problems in damage.items():
            for problem in problems:
                click.echo(f"{name}: {problem}; rebuild it with `ivr {stage_of(name)}`")
        intact = sum(not problems for problems in damage.values())
        click.echo(f"{intact} of {len(damage)} artifacts are intact")


def print_json(**values: Any) -> None:
    """Print one JSON object on standard output."""
    click.echo(json.dumps(values))
