"""Text files: remap rules as YAML, the selection log as Markdown."""

from pathlib import Path

import dagster as dg
from upath import UPath

from ivr_dagster.core.vocabulary.rules import RemapRules, read_rules, rules_as_yaml
from ivr_dagster.io_managers.artifacts import ArtifactIOManager


class RulesIOManager(ArtifactIOManager[RemapRules]):
    """`remap_rules`, which users may edit."""

    editable = True

    def write(self, value: RemapRules, path: Path) -> None:
        """YAML with a header that says how to edit it."""
        path.write_text(rules_as_yaml(value), encoding="utf-8")

    def dump_to_path(self, context: dg.OutputContext, obj: RemapRules, path: UPath) -> None:
        """Write computed rules; an edited file is kept."""
        if not obj.edited:
            super().dump_to_path(context, obj, path)

    def read(self, path: Path) -> RemapRules:
        """The rules in the file.

        Raises:
            InputError: the file is malformed.
        """
        return read_rules(path)


class MarkdownIOManager(ArtifactIOManager[str]):
    """`selection_log`."""

    def write(self, value: str, path: Path) -> None:
        """UTF-8 text."""
        path.write_text(value, encoding="utf-8")

    def read(self, path: Path) -> str:
        """The text."""
        return path.read_text(encoding="utf-8")
