"""The constraints file pins every dependency, by name and version only."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


def normalized(name: str) -> str:
    return re.split(r"[<>=\[ ]", name)[0].lower().replace("_", "-")


def test_constraints_are_names_with_exact_versions() -> None:
    assert [line for line in LINES if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", line)] == []


def test_constraints_pin_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = {normalized(line) for lines in (project["dependencies"], *extras) for line in lines}
    assert wanted - {normalized(line) for line in LINES} == {"ivr-dagster"}  # one extra includes others
