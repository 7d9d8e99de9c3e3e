"""Options that commands share: the global options of `ivr`, and one option per setting."""

import functools
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.errors import InputError
from ivr_dagster.pipeline import STAGES, stage_options
from ivr_dagster.settings.loading import FIELDS, GROUP_OF, INFO, load_settings, option_name, save_settings
from ivr_dagster.storage.atomic import atomic_write

if TYPE_CHECKING:
    from ivr_dagster.cli.project import Project

# the options of `run` and `experiment`
ALL_OPTIONS = tuple(dict.fromkeys(name for stage in STAGES for name in stage_options(stage)))


class Invocation:
    """One invocation of `ivr`: its global options, the lock to release, and the settings file to restore on failure.

    Attributes:
        artifacts_dir: the artifacts folder, absolute.
        config: the settings file given by `--config`.
        log_level: the name of a logging level, in upper case.
        as_json: whether to print one JSON object instead of tables.
    """

    def __init__(self, artifacts_dir: Path, config: Path | None, log_level: str, as_json: bool) -> None:
        self.artifacts_dir = artifacts_dir.expanduser().resolve()
        self.config, self.log_level, self.as_json = config, log_level, as_json
        self._held = ExitStack()
        self._saved = False
        self._previous_settings: bytes | None = None

    @property
    def settings_file(self) -> Path:
        """The settings file, which may not exist."""
        return self.config or ArtifactPaths(self.artifacts_dir).settings_file

    def open_project(
        self,
        options: Mapping[str, Any] | None = None,
        *,
        task: str = "",
        observe: bool = True,
        check: Callable[["Project"], None] = lambda project: None,
    ) -> "Project":
        """Open the project with the current settings and `options`.

        Args:
            options: settings given on the command line.
            task: what the command builds. If given, the command locks the artifacts folder until it ends, and
                `options` are saved in the settings file.
            observe: whether to observe the sources first.
            check: called before `options` are saved; raises an InputError if they do not fit the project.
        """
        settings = load_settings(self.artifacts_dir, config=self.config, options=options)
        _quiet_libraries(getattr(logging, self.log_level))
        from ivr_dagster.cli.project import Project, exclusive_use

        if task:
            paths = ArtifactPaths.of(settings, self.artifacts_dir)
            self._held.enter_context(exclusive_use(paths, f"ivr {task}"))
        project = Project(settings, self.artifacts_dir)
        if observe:
            project.observe_sources()
        check(project)
        if task and options:
            self._save_settings(options)
        return project

    def _save_settings(self, options: Mapping[str, Any]) -> None:
        self._previous_settings = self.settings_file.read_bytes() if self.settings_file.is_file() else None
        save_settings(self.settings_file, options)
        self._saved = True

    def restore_settings(self) -> None:
        """Undo saving the options in the settings file, because they turned out to be invalid."""
        if self._saved and self._previous_settings is None:
            self.settings_file.unlink(missing_ok=True)
        elif self._saved and self._previous_settings is not None:
            with atomic_write(self.settings_file) as staged:
                staged.write_bytes(self._previous_settings)

    def close(self) -> None:
        """Unlock the artifacts folder."""
        self._held.close()


def _quiet_libraries(level: int) -> None:
    """Suppress the progress bars and warnings of libraries, unless the log level asks for them."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error" if level > logging.INFO else "info")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if level > logging.DEBUG:
        warnings.filterwarnings("ignore", module="torch|transformers|datasets")


class IntegerOrWord(click.ParamType):  # type: ignore[type-arg]
    """An integer, or a keyword that a setting accepts instead."""

    def __init__(self, words: Mapping[str, int]) -> None:
        self.words, self.name = words, "|".join(["integer", *words])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """The integer or the word."""
        if str(value) in self.words:
            return str(value)
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither an integer nor {' nor '.join(self.words)}", param, ctx)


class SettingsCommand(click.Command):
    """A command whose help lists its own options first, and then those of each group of settings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section of options per group."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                group = GROUP_OF.get(str(parameter.name))
                title = f"{group.capitalize()} settings" if group else "Options"
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def settings_options(*names: str, command: str = "") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add an option for each setting; the command receives the given ones as the dict `settings`.

    Args:
        names: flat names of settings.
        command: the name of the command, which may rename options.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def with_settings(*args: Any, **options: Any) -> None:
            values = {name: options.pop(name) for name in names}
            function(*args, settings={name: value for name, value in values.items() if value is not None}, **options)

        decorated: Callable[..., None] = with_settings
        for name in reversed(names):
            decorated = _settings_option(name, command)(decorated)
        return decorated

    return decorate


def _settings_option(name: str, command: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    field, info = FIELDS[name], INFO[name]
    help_text = f"{field.description}  [default: {'empty' if field.default == '' else field.default}]"
    flags = list(dict.fromkeys((option_name(name), option_name(name, command))))
    kind: Any = field.annotation
    if kind is bool:
        return click.option(f"{flags[0]}/--no-{flags[0][2:]}", name, default=None, help=help_text)
    if get_origin(kind) is Literal:
        kind = click.Choice(get_args(kind))
    elif info.words:
        kind = IntegerOrWord(info.words)
    return click.option(*flags, name, type=kind, default=None, help=help_text)


def experiment_folder(artifacts_dir: Path, name: str, config: Path | None) -> Path:
    """The artifacts folder of an existing experiment, for `--experiment`.

    Raises:
        InputError: the experiment does not exist, or other settings could make it write outside its folder.
    """
    from ivr_dagster.settings.loading import ENVIRONMENT_PREFIX, OUTPUT_PATHS

    folder = ArtifactPaths(artifacts_dir.expanduser().resolve()).experiment(name)
    if not folder.is_dir():
        raise InputError(
            f"no experiment {name!r}",
            where=folder,
            remedy=f"Create it with `ivr experiment {name}`; `ivr experiments` lists the existing ones.",
        )
    if config is not None:
        raise InputError(
            "both --experiment and a settings file were given, but the experiment has its own: "
            f"{ArtifactPaths(folder).settings_file}",
            where="--config or IVR_CONFIG",
            remedy="Give only one of them.",
        )
    variables = (f"{ENVIRONMENT_PREFIX}{setting.upper()}" for setting in OUTPUT_PATHS)
    if set_variables := [variable for variable in variables if variable in os.environ]:
        raise InputError(
            f"{', '.join(set_variables)} would make the experiment write outside its folder",
            where="environment",
            remedy="Unset it.",
        )
    return folder
