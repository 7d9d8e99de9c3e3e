"""`watch_sources`, look by look: when it requests observations."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from ivr_dagster.orchestration.sources import request_observation, source_names
from ivr_dagster.resources.base_model import BaseModel
from ivr_dagster.resources.settings import ProjectSettings
from ivr_dagster.settings import Settings

Look = Callable[[float], list[str] | str]
UNCHANGED = "no source has changed"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw corpus of one file."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.txt").write_text("one\n")
    return tmp_path / "raw"


@pytest.fixture
def look(raw: Path) -> Look:
    """`look(now)`: the sources to observe, or why there are none. The first look has observed all sources."""
    settings = Settings.of(model_name="sample", raw_corpora_dir=str(raw))
    project = ProjectSettings.in_folder(settings, raw.parent / "artifacts")
    instance = dg.DagsterInstance.ephemeral()
    context = dg.build_sensor_context(instance=instance)

    def look(now: float) -> list[str] | str:
        answer = request_observation(context, project, BaseModel("sample"), now)
        if isinstance(answer, dg.SkipReason):
            return str(answer.skip_message)
        for key in answer.asset_selection or ():
            instance.report_runless_asset_event(dg.AssetObservation(key))  # at the real time, after any `now` below
        return [key.to_user_string() for key in answer.asset_selection or ()]

    assert look(0) == source_names(project)
    return look


def test_changed_added_and_removed_files_are_observed_once_they_stop_changing(raw: Path, look: Look) -> None:
    assert look(10) == UNCHANGED
    file = raw / "b.txt"
    changes: list[Callable[[], object]] = [
        lambda: file.write_text("two\n"),
        lambda: os.utime(file, (1, 1)),
        file.unlink,
    ]
    for number, change in enumerate(changes, start=1):
        change()
        now = 100 * number
        assert "raw_corpus changed; waiting for" in look(now)
        assert look(now + 10) == ["raw_corpus"]
        assert look(now + 20) == UNCHANGED


def test_burst_of_changes_leads_to_one_observation(raw: Path, look: Look) -> None:
    answers = []
    for second in range(10, 50):
        (raw / f"{second}.txt").write_text("burst\n")
        answers.append(look(second))
    assert all(isinstance(answer, str) for answer in answers)
    answers = [look(second) for second in range(50, 80)]
    assert [answer for answer in answers if isinstance(answer, list)] == [["raw_corpus"]]


def test_source_that_never_stops_changing_is_observed_anyway(raw: Path, look: Look) -> None:
    answers = []
    for second in range(10, 110, 5):
        (raw / f"{second}.txt").write_text("burst\n")
        answers.append(look(second))
    assert [answer for answer in answers if isinstance(answer, list)] == [["raw_corpus"]] * 2


def test_failed_observation_is_requested_again(raw: Path, look: Look) -> None:
    (raw / "b.txt").write_text("two\n")
    look(10)
    now = time.time() + 1_000  # after all recorded observations
    assert look(now) == ["raw_corpus"]
    assert look(now + 100) == UNCHANGED
    assert "raw_corpus" in look(now + 400)


def test_missing_corpus_is_reported_and_observed_once_it_is_back(raw: Path, look: Look) -> None:
    shutil.rmtree(raw)
    assert str(raw) in look(10)
    raw.mkdir()
    (raw / "a.txt").write_text("one\n")
    assert "waiting" in look(11)
    assert look(30) == ["raw_corpus"]
