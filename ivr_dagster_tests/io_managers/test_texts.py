"""Rules and logs, and what a person has done to the rules."""

from collections.abc import Callable
from typing import Any

import pytest

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.core.vocabulary.rules import RemapRule, RemapRules
from ivr_dagster.errors import InputError

RULES = RemapRules(
    (
        RemapRule(700, "Ġzoo", "Ġofthe", ("Ġof", "the"), {"sacrificed": 0, "new": 9, "saving": 9}),
        RemapRule(701, "null", "íķľ", ("íķ", "ľ"), {"sacrificed": 1, "new": 2, "saving": 3}, ("íķ", "ľ")),
    )
)
Materialize = Callable[..., None]
Load = Callable[..., Any]


def test_computed_rules_are_read_back(materialize: Materialize, load: Load) -> None:
    materialize("remap_rules", "rules_io", lambda: RULES)
    assert load("remap_rules", "rules_io") == RULES


def test_edited_rules_are_read_and_kept(paths: ArtifactPaths, materialize: Materialize, load: Load) -> None:
    materialize("remap_rules", "rules_io", lambda: RULES)
    place = paths["remap_rules"]
    edited = place.read_text(encoding="utf-8").replace("id: 700", "id: 702 # better")
    place.write_text(edited, encoding="utf-8")
    found = load("remap_rules", "rules_io")
    assert found.edited
    assert [rule.id for rule in found] == [702, 701]
    materialize("remap_rules", "rules_io", lambda: found)
    assert place.read_text(encoding="utf-8") == edited


def test_malformed_rules_are_refused_with_file_and_line(
    paths: ArtifactPaths, materialize: Materialize, load: Load
) -> None:
    materialize("remap_rules", "rules_io", lambda: RULES)
    place = paths["remap_rules"]
    text = place.read_text(encoding="utf-8").replace("id: 701", "id: seven")
    place.write_text(text, encoding="utf-8")
    line = text.splitlines().index("- id: seven") + 1
    with pytest.raises(InputError, match=f"remap_rules.yaml:{line}: .*'seven'"):
        load("remap_rules", "rules_io")


@pytest.mark.parametrize("text", ["", "# Selection\n\n| `'|'` |\n", "한국어\n\n\x00"])
def test_log_is_read_back(text: str, materialize: Materialize, load: Load) -> None:
    materialize("selection_log", "markdown_io", lambda: text)
    assert load("selection_log", "markdown_io") == text
