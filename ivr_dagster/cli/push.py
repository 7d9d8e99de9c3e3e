"""`ivr push`: upload exported files to the Hugging Face Hub."""

from typing import TYPE_CHECKING

import click

from ivr_dagster.cli.options import Invocation
from ivr_dagster.cli.status import print_json
from ivr_dagster.errors import InputError
from ivr_dagster.pipeline import ASSETS

if TYPE_CHECKING:
    from ivr_dagster.cli.project import Project
    from ivr_dagster.core.export.folder import ExportFolder

_ASSET_OF = {asset.format: name for name, asset in ASSETS.items() if asset.format}


@click.command()
@click.argument("repository", metavar="ID")
@click.option(
    "--formats",
    "wanted",  # not the setting of this name
    default="huggingface",
    show_default=True,
    help=f"Formats to upload, separated by commas: {', '.join(_ASSET_OF)}.",
)
@click.option("--public", is_flag=True, help="Make a new repository public. By default it is private.")
@click.option("--dry-run", is_flag=True, help="Only list the files that would be uploaded, with their sizes.")
@click.pass_obj
def push(invocation: Invocation, /, repository: str, wanted: str, public: bool, dry_run: bool) -> None:
    """Upload the exported model to the Hugging Face Hub as the repository ID (owner/name).

    Needs a token with write access in HF_TOKEN. Build the files with `ivr export` first.
    """
    from ivr_dagster.core.export.hub import hub_files, upload

    names = _names(wanted)
    project = invocation.open_project(observe=False)
    files = hub_files({name: _exported(project, name) for name in names})
    total = sum(each.bytes for each in files)
    address = "" if dry_run else upload(repository, files, private=not public)
    if invocation.as_json:
        rows = [{"name": each.name, "bytes": each.bytes} for each in files]
        print_json(repository=repository, dry_run=dry_run, files=rows, bytes=total, commit=address)
        return
    for each in files:
        click.echo(f"{each.bytes:>15,}  {each.name}")
    verb = "would be uploaded" if dry_run else "uploaded"
    click.echo(f"{total:>15,}  bytes in {len(files)} files {verb} to {address or repository}")


def _names(formats: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in formats.split(",") if name.strip()))
    if not names or not set(names) <= _ASSET_OF.keys():
        raise InputError(f"formats are {formats!r}, expected one or more of {', '.join(_ASSET_OF)}", where="--formats")
    return names


def _exported(project: "Project", name: str) -> "ExportFolder":
    """The exported folder of a format, with a note on standard error if it is stale.

    Raises:
        InputError: it does not exist or is damaged.
    """
    asset = _ASSET_OF[name]
    path = project.paths[asset]
    state = next((each for each in project.states() if each.name == asset), None)
    if not path.exists() or state is None:
        raise InputError(
            f"{name} was to be uploaded, but was not exported yet",
            where=path,
            remedy=f"Run `ivr export --formats {name}` first.",
        )
    if state.stale:
        click.echo(f"ivr: {asset} is stale ({state.stale}); `ivr export` writes it again", err=True)
    folder: ExportFolder = project.load(asset)
    return folder
