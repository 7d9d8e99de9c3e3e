"""Write the reference pages that follow from the code: settings, commands, assets and checks.

    python docs/generate_reference.py

The pages go to docs/reference/generated, which git ignores; `make docs` calls this before it builds the site. A new
setting, command, asset or check appears without any edit here.
"""

import inspect
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click

from ivr_dagster.cli.app import cli
from ivr_dagster.definitions import build_definitions
from ivr_dagster.pipeline import ASSETS, STAGES, settings_of
from ivr_dagster.settings.groups import SettingsGroup
from ivr_dagster.settings.loading import ENVIRONMENT_PREFIX, FIELDS, GROUP_OF, INFO, Settings
from ivr_dagster.settings.presets import PRESETS

TARGET = Path(__file__).parent / "reference" / "generated"
LIMITS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
TYPES = {int: "integer", float: "number", bool: "true or false", str: "text"}


def settings_page() -> Iterator[str]:
    """Every setting by group."""
    yield "# Settings\n"
    yield (
        "Precedence: option > environment variable > settings file (`ivr.yaml` in the artifacts folder, or `--config`) "
        "> preset > default. Options given to a stage or to `ivr run` are saved in the settings file; delete a line "
        "there to return to the default. Write paths in the file as absolute paths: relative ones are resolved from "
        "the folder in which `ivr` starts. The Dagster UI reads the same file.\n"
    )
    options = _options_by_setting()
    for group in dict.fromkeys(GROUP_OF.values()):
        kind = Settings.model_fields[group].annotation if group else None
        yield f"## {group.capitalize() or 'Preset'}\n"
        if isinstance(kind, type) and issubclass(kind, SettingsGroup):
            yield f"{kind.__doc__}\n"
        for name in (each for each, its_group in GROUP_OF.items() if its_group == group):
            yield from _setting(name, options[name])


def _setting(name: str, options: dict[str, list[str]]) -> Iterator[str]:
    field, info = FIELDS[name], INFO[name]
    presets = [f"`{preset}`: {_value(values[name])}" for preset, values in PRESETS.items() if name in values]
    commands = "; ".join(f"`{option}` of {_code(commands)}" for option, commands in options.items())
    yield f"### {name}\n\n{field.description}\n"
    yield f"- Type: {_type(field.annotation, field.metadata, info.words or {})}"
    yield f"- Default: {_value(field.default)}" + (f" (preset {', '.join(presets)})" if presets else "")
    yield f"- Option: {commands}"
    yield f"- Environment: `{ENVIRONMENT_PREFIX}{name.upper()}`"
    if info.affects:
        yield f"- Affects: {_code(info.affects)}"
    yield "" if info.one_run else "- Cannot change for a single run\n"


def _options_by_setting() -> dict[str, dict[str, list[str]]]:
    """Setting → option → commands that offer it.

    Raises:
        SystemExit: a setting that no command offers.
    """
    found: dict[str, dict[str, list[str]]] = {name: {} for name in FIELDS}
    for command in cli.commands.values():
        for option in command.params:
            if isinstance(option, click.Option) and option.name in found:
                found[option.name].setdefault(option.opts[0], []).append(str(command.name))
    if missing := [name for name, options in found.items() if not options]:
        raise SystemExit(f"no command offers these settings: {', '.join(missing)}")
    return found


def _type(annotation: Any, metadata: Iterable[Any], words: Iterable[str]) -> str:
    if get_origin(annotation) is Literal:
        return _code(get_args(annotation))
    bounds = [
        f"{sign} {getattr(limit, name):,}"
        for limit in metadata
        for name, sign in LIMITS.items()
        if getattr(limit, name, None) is not None
    ]
    text = f"{TYPES[annotation]} {' and '.join(bounds)}".strip()
    return f"{text}, or {_code(words)}" if words else text


def commands_page() -> Iterator[str]:
    """`ivr` and every command with its options."""
    yield "# Command line\n"
    yield from _command(cli, click.Context(cli, info_name="ivr"))
    for name, command in cli.commands.items():
        if command.hidden:
            continue
        yield f"## ivr {name}\n"
        yield from _command(command, click.Context(command, info_name=f"ivr {name}"))


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f"```\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n\n{inspect.cleandoc(command.help or '')}\n"
    records = [record for option in command.params if (record := option.get_help_record(context))]
    if records:
        yield from _table(("Option", "Meaning"), ((f"`{option}`", text) for option, text in records))


def assets_page(graph: Any) -> Iterator[str]:
    """Every asset by stage, and the sources."""
    yield "# Assets\n\nPaths are below the artifacts folder.\n"
    nodes = {node.key.to_user_string(): node for node in graph.asset_nodes}
    for stage in dict.fromkeys(asset.stage for asset in ASSETS.values()):
        yield f"## {stage}\n\n{STAGES[stage].help if stage in STAGES else 'Runs only when requested by name.'}\n"
        for name in (each.name for each in ASSETS.values() if each.stage == stage):
            yield from _asset(name, nodes.pop(name))
    yield "## Sources\n"
    yield from _table(("Source", "Description"), ((f"`{name}`", node.description) for name, node in nodes.items()))


def _asset(name: str, node: Any) -> Iterator[str]:
    yield f"### {name}\n\n{node.description}\n"
    yield f"- Path: `{ASSETS[name].path}`"
    yield f"- Built from: {_code(sorted(key.to_user_string() for key in node.parent_keys))}"
    yield f"- Settings: {_code(settings_of(name)) or 'none'}"
    yield f"- Key figures: {_code(ASSETS[name].figures) or 'none'}\n"


def checks_page(graph: Any) -> Iterator[str]:
    """Every asset check."""
    yield "# Checks\n\nA failed blocking check stops everything downstream; the others warn.\n"
    checks = sorted((graph.get(key) for key in graph.asset_check_keys), key=lambda check: str(check.key))
    yield from _table(
        ("Asset", "Check", "Blocking", "Holds if"),
        (
            (
                f"`{check.key.asset_key.to_user_string()}`",
                f"`{check.key.name}`",
                "yes" * check.blocking,
                check.description,
            )
            for check in checks
        ),
    )


def _value(value: Any) -> str:
    return "empty" if value == "" else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _code(names: Iterable[object]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |\n|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(' '.join(str(cell or '').replace('|', chr(92) + '|').split()) for cell in row)} |"
    yield ""


def main() -> None:
    """Write all pages."""
    TARGET.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        definitions = build_definitions(Settings(), artifacts_dir=Path(folder))
        graph = definitions.get_repository_def().asset_graph
    pages = {
        "settings": settings_page(),
        "cli": commands_page(),
        "assets": assets_page(graph),
        "checks": checks_page(graph),
    }
    for name, lines in pages.items():
        (TARGET / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
