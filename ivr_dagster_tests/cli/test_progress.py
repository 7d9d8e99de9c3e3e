"""Progress in the terminal and in Dagster's log."""

import logging
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.cli import rendering
from ivr_dagster.cli.rendering import ProgressBars
from ivr_dagster.cli.terminal_log import terminal_logger
from ivr_dagster.resources import progress


class Recorder:
    """A listener that records its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def advance(self, label: str, done: float, total: float, unit: str) -> None:
        self.calls.append(f"{label} {done:g}/{total:g} {unit}")

    def finish_asset(self) -> None:
        self.calls.append("finished")


@dg.asset
def first(context: dg.AssetExecutionContext) -> int:
    context.log.info("not shown")
    progress.track(context.log, "reading", "bytes")(3, 4)
    return 1


@dg.asset
def second(context: dg.AssetExecutionContext, first: int) -> int:
    context.log.warning("shown")
    return first


def test_listeners_are_told_of_steps_and_materialized_assets(capsys: pytest.CaptureFixture[str]) -> None:
    definitions = dg.Definitions(assets=[first, second], loggers={"console": terminal_logger})
    config = {"loggers": {"console": {"config": {"log_level": "WARNING"}}}}
    recorder = Recorder()
    with progress.progress_listener(recorder):
        definitions.resolve_implicit_global_asset_job_def().execute_in_process(run_config=config)
    assert recorder.calls == ["reading 3/4 bytes", "finished", "finished"]
    assert capsys.readouterr().err == "warning: second: shown\n"


def test_lines_without_a_terminal_count_finished_assets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "SECONDS_BETWEEN_LINES", 0)
    monkeypatch.setattr(rendering, "ERR", rendering.Console(stderr=True, width=200))
    with ProgressBars("train", 3, quiet=False) as bars:
        bars.finish_asset()
        bars.advance("training", 1_500, 2_000, "steps")
    assert capsys.readouterr().err == "train: 1 of 3 assets: training: 1,500 of 2,000 steps\n"


def test_bar_of_the_command_advances_with_its_assets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering.sys, "stderr", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(rendering, "ERR", rendering.Console(quiet=True))
    with ProgressBars("train", 2, quiet=False) as bars:
        bars.advance("training", 5, 10, "steps")
        assert [(task.description, task.percentage) for task in bars.tasks] == [
            ("train: 0 of 2 assets", 0),
            ("training, steps", 50),
        ]
        bars.finish_asset()
        assert [(task.description, task.percentage) for task in bars.tasks] == [("train: 1 of 2 assets", 50)]


@pytest.mark.parametrize(
    ("seconds", "line"),
    [
        (20, "training: 10 of 35 steps, 0.50 steps/s, 50 s left"),
        (0.5, "training: 10 of 35 steps, 20 steps/s, 1 s left"),
    ],
)
def test_slow_steps_have_a_rate(
    seconds: float, line: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    clock = iter([0.0, seconds])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with caplog.at_level(logging.INFO):
        progress.track(logging.getLogger("ivr"), "training", "steps")(10, 35)
    assert caplog.messages == [line]


def test_summary_names_the_address_of_a_running_ui(tmp_path: Any) -> None:
    paths = ArtifactPaths(tmp_path)

    def shown() -> str:
        with rendering.OUT.capture() as captured:
            rendering.print_run_table({}, paths, [], materialized=0)
        return captured.get()

    assert f"ivr --artifacts-dir {tmp_path} ui" in shown()
    with paths.ui_lock.hold("http://127.0.0.1:3111"):
        assert "http://127.0.0.1:3111" in shown()
