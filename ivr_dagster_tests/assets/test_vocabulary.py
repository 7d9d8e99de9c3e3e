"""Which table `replacement_candidates` takes for its previous selection."""

from pathlib import Path

import polars as pl
import pytest

from ivr_dagster.assets.vocabulary import _previous_table, _set_aside
from ivr_dagster.pipeline import code_version, settings_hash
from ivr_dagster.resources.settings import ProjectSettings
from ivr_dagster.settings import load_settings
from ivr_dagster.storage.manifest import Manifest, describe_files, write_manifest

ASSET = "replacement_candidates"
OTHER = {"max_candidates": 5}


@pytest.fixture
def settings(tmp_path: Path) -> ProjectSettings:
    return ProjectSettings.in_folder(load_settings(tmp_path, environ={}), tmp_path)


def write_table(settings: ProjectSettings, name: str, code: str = "3", *, file: bool = True, run: bool = True) -> None:
    """A table of one row, made with the settings of now (True) or others, in the settings file and in the run."""
    values = settings.values_for(ASSET)
    place = settings.paths[ASSET]
    place.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame({"rank": [1], "new_token": [name]}).write_csv(place)
    made_of = {
        "code_version": code_version(code, values if file else OTHER),
        "config_hash": settings_hash(values if run else OTHER),
    }
    files = describe_files(place.parent, [place])
    write_manifest(Manifest(ASSET, "run", made_of, files=files), place, folder=False)


def previous(settings: ProjectSettings) -> tuple[str | None, bool]:
    table, same_settings = _previous_table(settings, code_version("3", settings.values_for(ASSET)))
    return (None if table is None else table["new_token"][0]), same_settings


def test_previous_table_knows_its_settings_and_code(settings: ProjectSettings) -> None:
    assert previous(settings) == (None, False)
    write_table(settings, "regular")
    assert previous(settings) == ("regular", True)
    write_table(settings, "other code", code="2")
    assert previous(settings) == ("other code", False)
    write_table(settings, "other settings", file=False, run=False)
    assert previous(settings) == ("other settings", False)
    with settings.paths[ASSET].open("a") as file:
        file.write("2,changed\n")
    assert previous(settings) == (None, False)


def test_table_of_a_one_off_run_is_replaced_by_the_last_regular_one(settings: ProjectSettings) -> None:
    write_table(settings, "one-off", run=False)
    assert previous(settings) == (None, False)
    write_table(settings, "regular")
    _set_aside(settings.paths[ASSET])
    for n in range(2):
        write_table(settings, f"one-off {n}", run=False)
        assert previous(settings) == ("regular", True)
        _set_aside(settings.paths[ASSET])
