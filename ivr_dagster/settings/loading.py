"""Merging settings: option > environment > settings file > preset > default.

All sources use the flat names of the settings (`--max-candidates`, `IVR_MAX_CANDIDATES`, `max_candidates: 4000`).
"""

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from ivr_dagster.errors import InputError, short_repr
from ivr_dagster.settings.groups import (
    AutomationSettings,
    ComputeSettings,
    CorpusSettings,
    EmbeddingSettings,
    EvaluationSettings,
    ExportSettings,
    SelectionSettings,
    SettingInfo,
    SettingsGroup,
    TokenizerSettings,
    TrainingSettings,
    TuningSettings,
    setting,
    setting_info,
)
from ivr_dagster.settings.presets import PRESETS
from ivr_dagster.storage.yaml_files import read_settings_yaml

SETTINGS_FILE = "ivr.yaml"
ENVIRONMENT_PREFIX = "IVR_"
# environment variables with the prefix that are not settings
OTHER_VARIABLES = frozenset(
    {"IVR_ARTIFACTS_DIR", "IVR_CONFIG", "IVR_EXPERIMENT", "IVR_LOG_LEVEL", "IVR_ALERT_URL", "IVR_POSTGRES_URL"}
)
_LIST_OF_SETTINGS = "`ivr STAGE --help` and the launchpad list the settings."


class Settings(BaseSettings):
    """All settings, by group. Create them with :func:`load_settings`."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    preset: Literal["none", "sample", "laptop", "gpu"] = setting(
        "none",
        "Bundle of defaults. sample: the packaged model on the standard library's docstrings; laptop: for a machine "
        "without an accelerator; gpu: for one with CUDA.",
        affects="cleaned_corpus",
    )
    corpus: CorpusSettings = Field(default_factory=CorpusSettings)
    tokenizer: TokenizerSettings = Field(default_factory=TokenizerSettings)
    selection: SelectionSettings = Field(default_factory=SelectionSettings)
    embedding: EmbeddingSettings = Field(default_factory=EmbeddingSettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    tuning: TuningSettings = Field(default_factory=TuningSettings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    export: ExportSettings = Field(default_factory=ExportSettings)
    compute: ComputeSettings = Field(default_factory=ComputeSettings)
    automation: AutomationSettings = Field(default_factory=AutomationSettings)

    _given: frozenset[str] = PrivateAttr(frozenset())

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The constructor reads nothing but its arguments; :func:`load_settings` passes the sources."""
        return (init_settings,)

    @classmethod
    def of(cls, **values: Any) -> "Settings":
        """Settings with values by flat name, the preset's and the defaults for the rest; no other source is read.

        Raises:
            InputError: as for :func:`load_settings`.
        """
        return _build(values, origins={})

    @property
    def given(self) -> frozenset[str]:
        """Names of the settings that a user gave; the others have the value of the preset or the default."""
        return self._given

    def get(self, name: str) -> Any:
        """The value of a setting by its flat name."""
        group = GROUP_OF[name]
        return getattr(getattr(self, group) if group else self, name)

    def flat(self) -> dict[str, Any]:
        """All values by flat name."""
        return {name: self.get(name) for name in FIELDS}

    def public(self) -> dict[str, Any]:
        """All values by flat name, for reports, without paths and addresses of this machine."""
        private = ("path", "output path", "address")
        return {name: self.get(name) for name in FIELDS if INFO[name].kind not in private}


def _fields() -> Iterator[tuple[str, str, FieldInfo]]:
    """The flat name, group and field of every setting; the group of `preset` is empty."""
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, SettingsGroup):
            yield from ((each, name, found) for each, found in field.annotation.model_fields.items())
        else:
            yield name, "", field


# by flat name, in order of declaration
FIELDS: dict[str, FieldInfo] = {name: field for name, _, field in _fields()}
GROUP_OF: dict[str, str] = {name: group for name, group, _ in _fields()}
INFO: dict[str, SettingInfo] = {name: setting_info(field) for name, field in FIELDS.items()}
# an experiment writes below its own folder only
OUTPUT_PATHS = tuple(name for name, info in INFO.items() if info.kind == "output path")


def option_name(name: str, command: str = "") -> str:
    """The command-line option of a setting, for messages about `command`: `--max-candidates`."""
    alias = (INFO[name].options or {}).get(command) if name in INFO else None
    return f"--{alias or name.replace('_', '-')}"


def load_settings(
    artifacts_dir: Path,
    *,
    config: Path | None = None,
    options: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Settings from all sources.

    Args:
        artifacts_dir: the artifacts folder; its `ivr.yaml` is read unless `config` names another file.
        config: a settings file that must exist.
        options: values from the command line by flat name.
        environ: environment variables, by default `os.environ`.

    Raises:
        InputError: unknown settings (with a suggestion), wrong types or values. All errors are reported together, each
            with the place that the value came from.
    """
    environ = os.environ if environ is None else environ
    file = config or artifacts_dir / SETTINGS_FILE
    if config is not None and not config.is_file():
        raise InputError("settings file not found", where=config, remedy="Check --config or IVR_CONFIG.")
    from_file, lines = read_settings_file(file) if file.is_file() else ({}, {})
    from_environment = {
        name.removeprefix(ENVIRONMENT_PREFIX).lower(): value
        for name, value in environ.items()
        if name.startswith(ENVIRONMENT_PREFIX) and name not in OTHER_VARIABLES
    }
    origins = {name: f"{file}:{line}" for name, line in lines.items()}
    origins |= {name: f"{ENVIRONMENT_PREFIX}{name.upper()}" for name in from_environment}
    origins |= {name: option_name(name) for name in options or ()}
    return _build(dict(options or {}), from_environment, from_file, origins=origins)


def settings_for_one_run(current: Settings, values: Mapping[str, Any]) -> Settings:
    """`current` with the values that a user typed into the launchpad for one run.

    Another preset replaces all values that nobody gave.

    Args:
        current: the settings of the artifacts folder.
        values: by flat name, unchanged ones included.

    Raises:
        InputError: invalid values, or settings that cannot change for a single run.
    """
    changed = {name: value for name, value in values.items() if value != current.get(name)}
    fixed = [name for name in changed if not INFO[name].one_run]
    if fixed:
        raise InputError(
            f"{', '.join(fixed)}: cannot change for a single run",
            where="launchpad",
            remedy="Change it in the settings file, ivr.yaml; the UI reads it again by itself.",
        )
    kept = current.given | {name for name in FIELDS if not INFO[name].one_run} if "preset" in changed else set(FIELDS)
    return _build(changed, {name: current.get(name) for name in kept}, origins=dict.fromkeys(changed, "launchpad"))


class _PresetSource(PydanticBaseSettingsSource):
    """The values of the preset that a source of higher priority names."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Not used: all values are returned at once."""
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        return _nested(PRESETS.get(str(self.current_state.get("preset", "none")), {}))


def _build(*sources: Mapping[str, Any], origins: Mapping[str, str]) -> Settings:
    """Settings from flat values, the first source having the highest priority; the preset comes after all of them."""
    layers = [InitSettingsSource(Settings, init_kwargs=_nested(values)) for values in sources]
    try:
        settings = Settings(_build_sources=((*layers, _PresetSource(Settings)), {}))
    except ValidationError as error:
        raise InputError(
            "; ".join(_describe(each, origins) for each in error.errors()), remedy=_LIST_OF_SETTINGS
        ) from error
    settings._given = frozenset(name for values in sources for name in values)
    selection = settings.selection
    if 0 < selection.max_token_len < selection.min_token_len:
        origin = next((origins[name] for name in ("max_token_len", "min_token_len") if name in origins), "settings")
        raise InputError(
            f"{origin}: max_token_len is {selection.max_token_len}, less than min_token_len, {selection.min_token_len}",
            remedy=_LIST_OF_SETTINGS,
        )
    return settings


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flat values by group; unknown names stay at the top, where validation refuses them."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        group = GROUP_OF.get(name)
        (nested.setdefault(group, {}) if group else nested)[name] = value
    return nested


def _describe(error: Any, origins: Mapping[str, str]) -> str:
    """One validation error with the place that the value came from."""
    name = str(error["loc"][-1] if str(error["loc"][0]) in Settings.model_fields else error["loc"][0])
    origin = origins.get(name, name)
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, FIELDS, n=1)
        return f"{origin}: unknown setting {short_repr(name)}" + (f". Did you mean {near[0]!r}?" if near else "")
    message = error["msg"].removeprefix("Value error, ")
    words = INFO[name].words if name in INFO else None
    if words:
        message += f" (or {', '.join(words)})"
    return f"{origin}: {name} is {short_repr(error['input'])}: {message[:1].lower()}{message[1:]}"


def read_settings_file(file: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The values of a settings file by flat name, and the line of each.

    Raises:
        InputError: as for :func:`~ivr_dagster.storage.yaml_files.read_settings_yaml`.
    """
    return read_settings_yaml(file, "the settings file", "Write `key: value` lines, each key once")


def save_settings(file: Path, values: Mapping[str, Any]) -> None:
    """Write values to the settings file; its other lines and comments stay.

    Relative paths become absolute.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    from ivr_dagster.storage.atomic import atomic_write

    values = {
        name: str(Path(value).expanduser().resolve()) if _is_local_path(name, value) else value
        for name, value in values.items()
    }
    if not values:
        return
    editor = YAML()
    try:
        content = editor.load(file.read_text(encoding="utf-8-sig")) if file.is_file() else None
    except YAMLError as error:
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise InputError(f"the settings file is not valid YAML ({problem})", where=file) from error
    if content is None:
        content = editor.map()
        content.yaml_set_start_comment(
            "Settings of ivr_dagster. `ivr run --help` and `ivr ui --help` list the keys (with - for _) and defaults.\n"
        )
    if all(name in content and content[name] == value for name, value in values.items()):
        return
    content.update(values)
    with atomic_write(file) as staged, staged.open("w", encoding="utf-8") as stream:
        editor.dump(content, stream)


def _is_local_path(name: str, value: Any) -> bool:
    kind = INFO[name].kind
    return bool(value) and (kind.endswith("path") or (kind == "model" and Path(value).expanduser().is_dir()))
