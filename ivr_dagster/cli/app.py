"""The `ivr` command group. Errors become an exit code and one line on standard error.

Results go to standard output (`--json`: one object), everything else to standard error. Heavy libraries are imported
where a command needs them, so that `--help` is fast.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import click

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.cli.experiments import experiment, experiments
from ivr_dagster.cli.options import Invocation, SettingsCommand, experiment_folder, settings_options
from ivr_dagster.cli.push import push
from ivr_dagster.cli.run import run, stage_command, tune
from ivr_dagster.cli.status import status
from ivr_dagster.errors import InputError, describe_shortage, is_out_of_memory
from ivr_dagster.pipeline import STAGES, stage_options
from ivr_dagster.settings.loading import load_settings, save_settings

SUCCESS, FAILURE, INVALID = 0, 1, 2
INTERRUPTED = "interrupted; run the same command again to resume"
# errors whose message is sufficient without the class name
SELF_EXPLANATORY = (
    "StageFailedError",
    "TrainingDivergedError",
    "TrainingOutOfMemoryError",
    "WorkerLostError",
    "UploadError",
)


class _OrderedGroup(click.Group):
    """Lists commands in the order in which they are used, and accepts `--json` anywhere on the command line."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--json" in args:
            args = ["--json", *(each for each in args if each != "--json")]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_OrderedGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option(
    "--artifacts-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default="artifacts",
    envvar="IVR_ARTIFACTS_DIR",
    show_default=True,
    help="Artifacts folder.",
)
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="IVR_CONFIG",
    help="Settings file. Default: ivr.yaml in the artifacts folder. Options given to a stage are saved there.",
)
@click.option(
    "--experiment",
    envvar="IVR_EXPERIMENT",
    help="Work on this experiment instead of the artifacts folder; `ivr experiment` creates one.",
)
@click.option(
    "--log-level",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
    default="WARNING",
    envvar="IVR_LOG_LEVEL",
    show_default=True,
    help="Level of messages on standard error. DEBUG adds tracebacks.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as one JSON object on standard output.")
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
    """Move a pretrained causal language model to a better vocabulary of the same size.

    Each stage materializes Dagster assets in the instance that `ivr ui` shows. Options override environment variables
    (such as IVR_MAX_CANDIDATES), which override the settings file.
    """
    if experiment:
        artifacts_dir = experiment_folder(artifacts_dir, experiment, config)
        # each experiment has its own instance
        os.environ["DAGSTER_HOME"] = str(ArtifactPaths(artifacts_dir).dagster_home)
    context.obj = invocation = Invocation(artifacts_dir, config, log_level.upper(), as_json)
    context.call_on_close(invocation.close)


@click.command(hidden=True, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1)
def join(arguments: tuple[str, ...]) -> None:
    """Removed: torchrun starts the processes on other machines."""
    raise InputError(
        "`ivr join` was removed", remedy="On each node, run the torchrun command that the training log prints."
    )


@click.command(cls=SettingsCommand)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=3000,
    show_default=True,
    help="Port of the web server, on 127.0.0.1.",
)
@settings_options(*stage_options("ui"))
@click.pass_obj
def ui(invocation: Invocation, /, port: int, settings: dict[str, object]) -> None:
    """Run the Dagster UI, on 127.0.0.1, and the Dagster daemon until stopped."""
    from ivr_dagster.cli.ui import serve

    # invalid settings are reported here, not in the browser
    load_settings(invocation.artifacts_dir, config=invocation.config, options=settings)
    save_settings(invocation.settings_file, settings)
    raise SystemExit(serve(invocation.artifacts_dir, invocation.config, port))


for command in (*map(stage_command, STAGES), tune, run, push, experiment, experiments, status, join, ui):
    cli.add_command(command)


def main() -> None:
    """The console script."""
    arguments = sys.argv[1:]
    # a failing step may leave Dagster's redirection of these streams in place, for example on a full disk
    streams = [os.dup(number) for number in (1, 2)]
    try:
        cli.main(args=arguments, prog_name="ivr", standalone_mode=False)
        sys.exit(SUCCESS)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 (every error becomes one line)
        for number, stream in zip((1, 2), streams, strict=True):
            os.dup2(stream, number)
        _exit_with(error, arguments)
    finally:
        for stream in streams:
            os.close(stream)


def _exit_with(error: BaseException, arguments: Sequence[str]) -> NoReturn:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        sys.exit(INVALID)
    level = [*arguments, os.environ.get("IVR_LOG_LEVEL", "")]
    if "DEBUG" in (argument.upper() for argument in level):
        traceback.print_exception(error)
    code, message = _describe(error, arguments)
    print_error(message)
    sys.exit(code)


def _describe(error: BaseException, arguments: Sequence[str]) -> tuple[int, str]:
    """The exit code and the message for an error."""
    name = type(error).__name__
    if isinstance(error, InputError) and is_out_of_memory(error):
        return FAILURE, str(describe_shortage(error))
    if isinstance(error, InputError):
        return INVALID, str(error)
    if isinstance(error, (KeyboardInterrupt, click.Abort)) or name == "InterruptedRunError":
        return FAILURE, INTERRUPTED
    if isinstance(error, click.ClickException):
        return INVALID, error.format_message()
    if name in SELF_EXPLANATORY:
        return FAILURE, str(error)
    folder = dict(pairwise(arguments)).get("--artifacts-dir") or os.environ.get("IVR_ARTIFACTS_DIR") or "artifacts"
    shortage = describe_shortage(error, Path(folder).expanduser().resolve())
    return FAILURE, shortage or f"{name}: {error} (--log-level DEBUG shows the traceback)"


def print_error(message: str) -> None:
    """Print a message as one line on standard error, without the control characters that a file name may contain."""
    line = " ".join(message.split())
    printable = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in line)
    click.echo(f"ivr: {printable}", err=True)


if __name__ == "__main__":
    main()
