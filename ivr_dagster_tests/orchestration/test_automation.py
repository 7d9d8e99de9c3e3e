"""What is rebuilt by itself, tick by tick: conditions are evaluated as the daemon does, what they ask for is run."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ivr_dagster.cli.experiments import begin
from ivr_dagster.cli.workbench import Interrupted, StageFailed, Workbench
from ivr_dagster.core.corpus.cleaning import clean
from ivr_dagster.core.corpus.splits import document_id, is_heldout
from ivr_dagster.errors import InputError
from ivr_dagster.orchestration.dead_runs import PROCESS_TAG, process_mark
from ivr_dagster.orchestration.sources import noticed
from ivr_dagster.pipeline import STAGES, stage_assets
from ivr_dagster.settings import Settings, load_settings
from ivr_dagster_tests.small_pipeline import STAGE_ASSETS, TINY, stale, stale_in, workbench, write_tiny_model

EVERYTHING = stage_assets(STAGES, Settings.of(vanilla_compute=False))
TRAINED = {"sft_checkpoint", "vanilla_sft_checkpoint"}


class Daemon:
    """Ticks of automation on one folder; what a tick asks for is run before the next."""

    def __init__(self, root: Path, model: Path, **changed: Any) -> None:
        self.root, self.settings, self.cursor = root, {"model_name": str(model), **TINY}, None
        self.restart(**changed)

    def restart(self, *, observe: bool = True, **changed: Any) -> None:
        """Definitions loaded anew, under changed settings; the cursor stays, as it does in Dagster's storage."""
        self.bench = workbench(self.root, observe=observe, **self.settings | changed)

    def tick(self) -> list[str]:
        """Assets that one tick asks for."""
        result = dg.evaluate_automation_conditions(
            self.bench._definitions, self.bench.instance, cursor=self.cursor, asset_selection=dg.AssetSelection.all()
        )
        self.cursor = result.cursor
        return [name for name in EVERYTHING if result.get_num_requested(dg.AssetKey(name))]

    def settle(self) -> list[list[str]]:
        """Tick and run until nothing is asked for: what was run, tick by tick."""
        ran = []
        while asked := self.tick():
            assert len(ran) < len(EVERYTHING), ran
            self.bench.run(asked)
            ran.append(asked)
        return ran

    def settle_until(self, asset: str) -> None:
        """Tick and run until `asset` is asked for, which is not run."""
        while asked := self.tick():
            if asset in asked:
                return
            self.bench.run(asked)
        raise AssertionError(f"{asset} was never asked for")

    def settle_with_failures(self, failing: str) -> list[list[str]]:
        """As :meth:`settle`, where a check on `failing` does not pass."""
        ran = []
        while asked := self.tick():
            assert len(ran) < len(EVERYTHING), ran
            for asset in asked:
                try:
                    self.bench.run([asset])
                except StageFailed:
                    assert asset == failing
            ran.append(asked)
        return ran

    def add(self, *texts: str) -> None:
        """Documents more in the raw corpus, observed."""
        with (self.root / "raw" / "more.jsonl").open("a") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        self.bench.observe_sources()


def copied(tiny: Path, to: Path, **changed: Any) -> Daemon:
    """A daemon on a copy; the model stays where it was, since its name is a setting."""
    return Daemon(Path(shutil.copytree(tiny, to / "copy")), tiny.parent / "model", **changed)


@pytest.fixture
def daemon(tiny: Path, tmp_path: Path) -> Daemon:
    """A built folder, and a daemon that has ticked once."""
    daemon = copied(tiny, tmp_path)
    assert daemon.tick() == []
    return daemon


def texts(split: str, count: int = 1) -> list[str]:
    """Different texts that fall into one split; those whose hashes are the least, which are trained on first."""
    found = {}
    for number in range(400):
        text, _ = clean(f"A quizzical text, number {number}, which speaks of quizzical things. " * 4)
        if is_heldout(document_id(text), TINY["heldout_fraction"]) == (split == "heldout"):
            found[document_id(text)] = text
    return [found[number] for number in sorted(found)[:count]]


def flat(ran: list[list[str]]) -> list[str]:
    return [asset for asked in ran for asset in asked]


def test_what_a_run_in_progress_makes_is_left_to_it_until_its_end(daemon: Daemon) -> None:
    """It may have made an asset already and have the checks before it."""
    daemon.add(*texts("train"))
    assert daemon.tick() == ["cleaned_corpus"]
    instance = daemon.bench.instance
    run = instance.create_run_for_job(
        daemon.bench._job,
        asset_selection=frozenset({dg.AssetKey("cleaned_corpus"), dg.AssetKey("pretoken_counts")}),
        status=dg.DagsterRunStatus.STARTED,
        tags={PROCESS_TAG: process_mark(os.getpid())},
    )
    daemon.cursor = None
    assert daemon.tick() == []
    instance.report_run_failed(run, "stopped")
    assert "cleaned_corpus" in daemon.tick()


def test_a_run_that_failed_leaves_the_checks_of_what_is_there_as_they_were(daemon: Daemon) -> None:
    """Checks were planned for what it did not come to make; Dagster then calls them not passed."""
    (daemon.root / "raw" / "documents.jsonl").rename(daemon.root / "kept.jsonl")
    (daemon.root / "raw" / "few.jsonl").rename(daemon.root / "few.jsonl")
    daemon.bench.instance.report_runless_asset_event(dg.AssetObservation("raw_corpus"))
    with pytest.raises(InputError):
        daemon.bench.run(["cleaned_corpus", "distilled_tokenizer", "remapped_tokenizer"])
    (daemon.root / "kept.jsonl").rename(daemon.root / "raw" / "documents.jsonl")
    (daemon.root / "few.jsonl").rename(daemon.root / "raw" / "few.jsonl")
    daemon.restart()
    assert stale(daemon.bench) == {}
    daemon.restart(init_strategy="zeros")  # reads what the checks guard
    assert "fitted_embeddings" in flat(daemon.settle())


def try_out(daemon: Daemon, settings: dict[str, Any], *assets: str) -> None:
    """A run with settings of its own, as the launchpad launches it."""
    daemon.bench._job.execute_in_process(
        instance=daemon.bench.instance,
        asset_selection=[dg.AssetKey(asset) for asset in assets],
        run_config={"resources": {"settings": {"config": settings}}},
    )


def test_what_a_run_with_settings_of_its_own_made_is_left_alone_and_told(daemon: Daemon) -> None:
    before = daemon.bench.data_version("fitted_embeddings")
    try_out(daemon, {"init_strategy": "zeros", "calibration_bytes": 0}, "fitted_embeddings")
    assert daemon.bench.data_version("fitted_embeddings") != before
    assert stale(daemon.bench)["fitted_embeddings"] == "made with settings for one run alone"
    assert daemon.settle() == []  # what follows from it is no less on trial
    daemon.bench.run(stale_in(daemon.bench, "align"))  # `ivr run` goes by the settings file
    assert daemon.bench.data_version("fitted_embeddings") == before
    assert daemon.settle() == []


def test_one_off_selection_is_not_the_baseline_of_the_next(daemon: Daemon) -> None:
    before = daemon.bench.data_version("remap_rules")
    tried = {"max_candidates": 15, "sticky": True}
    try_out(daemon, tried, "replacement_candidates", "selection_log", "remap_rules", "remapped_tokenizer")
    assert len(daemon.bench.load("remap_rules")) == 15
    assert daemon.settle() == []
    for stage in ("select", "remap"):
        daemon.bench.run(stale_in(daemon.bench, stage))
    assert daemon.bench.data_version("remap_rules") == before


def test_the_first_training_of_an_experiment_is_a_persons_too(daemon: Daemon) -> None:
    paths = begin(daemon.bench, "few", {"max_candidates": 20})
    os.environ.pop("DAGSTER_HOME", None)
    daemon.bench, daemon.cursor = Workbench(load_settings(paths.root, environ={}), paths.root), None
    daemon.bench.observe_sources()
    made = set(flat(daemon.settle()))
    assert "remapped_tokenizer" in made
    assert not made & {"fitted_embeddings", "sft_checkpoint", "evaluation_report"}


def test_text_beside_the_corpus_is_followed_by_what_reads_it_alone(daemon: Daemon, tmp_path: Path) -> None:
    folder = tmp_path / "general"
    folder.mkdir()
    (folder / "a.txt").write_text("General text, which is of no domain. " * 40)
    daemon.restart(general_corpora_dir=str(folder))
    asked = flat(daemon.settle())
    assert asked[0] == "training_blocks"
    # other text to train on, but the vocabulary is what it was
    assert set(asked) == {"training_blocks", "evaluation_report"}
    (folder / "a.txt").write_text("Other general text, of no domain either. " * 40)
    daemon.restart(general_corpora_dir=str(folder))
    assert "training_blocks" in flat(daemon.settle())
    daemon.restart(general_corpora_dir=str(folder))
    assert daemon.settle() == []


def test_nothing_is_asked_for_while_nothing_changes(daemon: Daemon) -> None:
    assert [daemon.tick() for _ in range(3)] == [[], [], []]


def test_a_new_file_rebuilds_what_it_makes_stale_in_order_and_once(daemon: Daemon) -> None:
    daemon.add(*texts("train", 6), *texts("heldout", 2))
    ran = daemon.settle()
    made = flat(ran)
    assert len(made) == len(set(made)), ran
    graph = daemon.bench._graph
    for place, asset in enumerate(made):
        above = {key.to_user_string() for key in graph.get(dg.AssetKey(asset)).parent_keys}
        assert not above & set(made[place:]), f"{asset} before {above & set(made[place:])}"
    # new strings got ids, so all that follows from the vocabulary was made; nothing of the base model's was
    assert set(EVERYTHING) - set(made) == {"original_tokenizer", "original_embeddings"}
    assert stale(daemon.bench) == {}
    assert daemon.tick() == []


def test_a_removed_file_is_a_change_like_any_other(daemon: Daemon) -> None:
    (daemon.root / "raw" / "few.jsonl").unlink()
    daemon.bench.observe_sources()
    assert daemon.tick() == ["cleaned_corpus"]


def test_an_edit_that_leaves_the_vocabulary_as_it_was_trains_nothing(daemon: Daemon) -> None:
    before = {name: daemon.bench.data_version(name) for name in ("remap_rules", "remapped_tokenizer")}
    daemon.add(*texts("train"))
    made = flat(daemon.settle())
    assert {name: daemon.bench.data_version(name) for name in before} == before
    assert {"cleaned_corpus", "token_stats", "remapped_tokenizer", "training_blocks"} <= set(made)
    assert not {"fitted_embeddings", "initialized_model", *TRAINED} & set(made)
    # and a person who asks for everything gets the training
    assert stale(daemon.bench)["sft_checkpoint"]

    daemon.restart(retrain="new_text")
    made = flat(daemon.settle())
    assert set(made) == {"fitted_embeddings", "initialized_model", "training_blocks", *TRAINED, "evaluation_report"}
    assert stale(daemon.bench) == {}


def test_a_held_out_document_more_has_only_the_evaluation_repeated(daemon: Daemon) -> None:
    daemon.add(*texts("heldout"))
    made = set(flat(daemon.settle()))
    assert {"cleaned_corpus", "evaluation_report"} <= made
    assert not {"fitted_embeddings", "initialized_model", *TRAINED} & made


def test_a_failed_blocking_check_stops_what_follows_until_it_is_mended(daemon: Daemon) -> None:
    daemon.restart(agreement_floor=1.0, exceptions=0)
    assert daemon.tick() == ["distilled_tokenizer"]
    with pytest.raises(StageFailed, match="agreement_floor"):
        daemon.bench.run(["distilled_tokenizer"])
    assert daemon.settle() == []
    daemon.restart(agreement_floor=1.0, exceptions=0)  # in a run of its own too
    daemon.add(*texts("train", 6), *texts("heldout", 2))
    made = flat(daemon.settle_with_failures("distilled_tokenizer"))
    assert "replacement_candidates" in made
    assert not {"remapped_tokenizer", *TRAINED} & set(made)

    daemon.restart()
    made = flat(daemon.settle())
    assert {"distilled_tokenizer", "remapped_tokenizer", "evaluation_report"} <= set(made)
    assert "sft_checkpoint" in made


@pytest.mark.slow
def test_a_changed_code_version_remakes_that_asset_and_what_follows(daemon: Daemon) -> None:
    daemon.restart(max_candidates=30)
    made = flat(daemon.settle())
    assert made[0] == "replacement_candidates"
    assert {"remap_rules", "remapped_tokenizer", "sft_checkpoint", "evaluation_report"} <= set(made)
    above = {"cleaned_corpus", "original_tokenizer", "pretoken_counts", "token_stats", "distilled_tokenizer"}
    assert not above & set(made)
    assert stale(daemon.bench) == {}


def test_a_change_during_a_run_is_taken_up_after_it(daemon: Daemon) -> None:
    first, second = texts("train", 2)
    daemon.add(first)
    assert daemon.tick() == ["cleaned_corpus"]
    daemon.bench.run(["cleaned_corpus"])
    daemon.add(second)  # observed before any tick has seen that the run came to an end
    assert daemon.tick() == ["cleaned_corpus"]


def test_a_change_taken_back_before_a_tick_asks_for_nothing(daemon: Daemon) -> None:
    daemon.add(*texts("train"))
    (daemon.root / "raw" / "more.jsonl").unlink()
    daemon.bench.observe_sources()
    assert daemon.settle() == []


def test_what_became_stale_while_no_daemon_ran_is_rebuilt_at_its_first_tick(tiny: Path, tmp_path: Path) -> None:
    daemon = copied(tiny, tmp_path, max_candidates=30)
    assert daemon.tick() == ["replacement_candidates"]


def test_nothing_is_requested_while_the_artifacts_folder_is_in_use(daemon: Daemon) -> None:
    daemon.add(*texts("train"))
    with daemon.bench.paths.lock.hold("ivr run"):
        assert daemon.tick() == []
    assert daemon.tick() == ["cleaned_corpus"]


def test_a_state_that_was_asked_for_long_ago_is_asked_for_again(daemon: Daemon) -> None:
    daemon.add(*texts("train"))
    assert daemon.tick() == ["cleaned_corpus"]
    daemon.bench.run(["cleaned_corpus"])
    daemon.tick()
    more = daemon.root / "raw" / "more.jsonl"
    with_more = more.read_text()
    more.unlink()
    daemon.bench.observe_sources()
    daemon.bench.run(["cleaned_corpus"])  # by a person, before a tick
    daemon.tick()
    more.write_text(with_more)
    daemon.bench.observe_sources()
    assert daemon.tick() == ["cleaned_corpus"]


def test_a_failed_run_is_not_repeated_until_something_changes(daemon: Daemon) -> None:
    daemon.add(*texts("train"))
    assert daemon.tick() == ["cleaned_corpus"]  # and let it fail before it made anything
    assert [daemon.tick() for _ in range(3)] == [[], [], []]
    daemon.add(*texts("heldout"))
    assert daemon.tick() == ["cleaned_corpus"]


def test_a_deleted_artifact_is_made_again_and_again(daemon: Daemon) -> None:
    for _ in range(2):
        (daemon.root / "artifacts/analysis/reports/selection_log.md").unlink()
        assert daemon.tick() == ["selection_log"]
        daemon.bench.run(["selection_log"])
        assert daemon.tick() == []


@pytest.mark.slow
def test_new_text_is_a_change_for_a_training_that_failed(daemon: Daemon) -> None:
    daemon.restart(init_strategy="zeros")
    daemon.settle_until("sft_checkpoint")
    assert daemon.tick() == []  # it was asked for, and failed
    daemon.add(*texts("train"))
    assert "sft_checkpoint" in flat(daemon.settle())


def test_an_asset_whose_blocking_checks_were_cut_short_is_made_again(daemon: Daemon) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ivr_dagster.asset_checks.tokenizer.measure_round_trip", _interrupted)
        with pytest.raises(Interrupted):
            daemon.bench.run(["remapped_tokenizer"])
    assert stale(daemon.bench)["remapped_tokenizer"] == "its checks were not made"
    assert daemon.tick() == ["remapped_tokenizer"]


def _interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def test_nothing_is_made_of_sources_that_nobody_looked_at(tmp_path: Path, tiny: Path) -> None:
    root = tmp_path / "new"
    shutil.copytree(tiny / "raw", root / "raw")
    shutil.copy(tiny / "sft_config.yaml", root)
    daemon = Daemon(root, tiny.parent / "model", observe=False)
    assert daemon.tick() == []
    daemon.bench.observe_sources()
    assert daemon.tick() == ["cleaned_corpus", "original_tokenizer"]


@pytest.mark.slow
def test_another_base_tokenizer_selects_anew(daemon: Daemon, tmp_path: Path) -> None:
    other = Path(shutil.copytree(daemon.settings["model_name"], tmp_path / "other"))
    write_tiny_model(other, size=900)
    daemon.restart(model_name=str(other), observe=False)
    before = flat(daemon.settle())  # until it has been looked at, nothing is known of it
    daemon.bench.observe_sources()
    made = before + flat(daemon.settle())
    assert len(made) == len(set(made))
    assert {"replacement_candidates", "remap_rules", "sft_checkpoint"} <= set(made)
    assert stale(daemon.bench) == {}


def test_the_same_model_in_another_place_makes_nothing_stale(daemon: Daemon, tmp_path: Path) -> None:
    daemon.restart(model_name=str(shutil.copytree(daemon.settings["model_name"], tmp_path / "moved")))
    assert daemon.settle() == []
    assert stale(daemon.bench) == {}


def test_dead_run_of_the_same_asset_is_marked_as_failed(daemon: Daemon) -> None:
    run = daemon.bench.instance.create_run_for_job(
        daemon.bench._job,
        asset_selection=frozenset({dg.AssetKey("selection_log")}),
        status=dg.DagsterRunStatus.STARTED,
        tags={PROCESS_TAG: process_mark(os.getpid()) + "9"},  # the process number was reused
    )
    daemon.bench.run(["selection_log"])
    ended = daemon.bench.instance.get_run_by_id(run.run_id)
    assert ended is not None and ended.status == dg.DagsterRunStatus.FAILURE


def test_rules_edited_by_hand_are_taken_up(daemon: Daemon) -> None:
    file = daemon.root / "artifacts/tokenizers/remap_rules.yaml"
    lines = file.read_text().splitlines()
    last = max(n for n, line in enumerate(lines) if line.startswith("- id:"))
    file.write_text("\n".join(lines[:last]) + "\n")
    assert daemon.tick() == ["remap_rules"]


@pytest.mark.parametrize("rebuild", ["tokenizer_side", "nothing"])
def test_the_costly_half_can_be_left_out(daemon: Daemon, rebuild: str) -> None:
    daemon.restart(rebuild=rebuild)
    daemon.add(*texts("train"))
    made = set(flat(daemon.settle()))
    cheap = {asset for stage in list(STAGES)[:5] for asset in STAGE_ASSETS[stage]}
    assert made <= cheap
    assert bool(made) == (rebuild == "tokenizer_side")


def test_the_first_training_is_left_to_a_person(tmp_path: Path, tiny: Path) -> None:
    root = tmp_path / "new"
    shutil.copytree(tiny / "raw", root / "raw")
    shutil.copy(tiny / "sft_config.yaml", root)
    daemon = Daemon(root, tiny.parent / "model")
    made = flat(daemon.settle())
    assert made[:2] == ["cleaned_corpus", "original_tokenizer"]
    assert set(made) == {asset for stage in list(STAGES)[:5] for asset in STAGE_ASSETS[stage]}


class TestWatchingSources:
    """`noticed`, look by look."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        (tmp_path / "raw").mkdir()
        (tmp_path / "raw" / "a.txt").write_text("one\n")
        (tmp_path / "sft_config.yaml").write_text("seed: 1\n")
        return tmp_path

    @pytest.fixture
    def look(self, root: Path) -> Any:
        """`look(seconds)`: names of the sources to observe, or why there are none."""
        bench = workbench(root, model_name="sample")
        context = dg.build_sensor_context(instance=bench.instance)

        def look(now: float) -> list[str] | str:
            answer = noticed(context, bench.shared, bench.base, now)
            if isinstance(answer, dg.SkipReason):
                return str(answer.skip_message)
            return [key.to_user_string() for key in answer.asset_selection or ()]

        assert look(0) == ["raw_corpus", "base_model", "general_corpus", "retention_corpus"]
        return look

    def test_a_changed_corpus_is_observed_once_it_keeps_still(self, root: Path, look: Any) -> None:
        assert look(10) == "no source has changed"
        (root / "raw" / "b.txt").write_text("two\n")
        assert "raw_corpus changed; waiting" in look(20)
        assert look(30) == ["raw_corpus"]
        assert look(40) == "no source has changed"

    def test_a_storm_of_events_makes_one_observation(self, root: Path, look: Any) -> None:
        asked = []
        for second in range(10, 50):
            (root / "raw" / f"{second}.txt").write_text("storm\n")
            asked.append(look(second))
        assert all(isinstance(answer, str) for answer in asked)
        asked = [look(second) for second in range(50, 80)]
        assert [answer for answer in asked if isinstance(answer, list)] == [["raw_corpus"]]

    def test_a_change_within_a_file_and_a_removed_file_count(self, root: Path, look: Any) -> None:
        (root / "raw" / "b.txt").write_text("two\n")
        look(10)
        assert look(30) == ["raw_corpus"]
        os.utime(root / "raw" / "b.txt", (1, 1))
        look(40)
        assert look(60) == ["raw_corpus"]
        (root / "raw" / "b.txt").unlink()
        look(70)
        assert look(90) == ["raw_corpus"]

    def test_files_that_never_stop_coming_are_observed_all_the_same(self, root: Path, look: Any) -> None:
        asked = []
        for second in range(10, 110, 5):
            (root / "raw" / f"{second}.txt").write_text("storm\n")
            asked.append(look(second))
        assert [answer for answer in asked if isinstance(answer, list)] == [["raw_corpus"], ["raw_corpus"]]

    def test_an_observation_that_did_not_come_is_asked_for_again(self, root: Path, look: Any) -> None:
        (root / "raw" / "b.txt").write_text("two\n")
        look(10)
        now = time.time() + 1_000  # after the workbench's own observations
        assert look(now) == ["raw_corpus"]
        assert look(now + 100) == "no source has changed"
        assert "raw_corpus" in look(now + 400)

    def test_a_corpus_that_comes_back_is_observed_once_it_keeps_still(self, root: Path, look: Any) -> None:
        text = (root / "raw" / "a.txt").read_text()
        (root / "raw" / "a.txt").unlink()
        assert str(root / "raw") in look(10)
        (root / "raw" / "a.txt").write_text(text)
        assert "waiting" in look(11)
        assert look(30) == ["raw_corpus"]

    def test_a_missing_corpus_is_told_and_asks_for_nothing(self, root: Path, look: Any) -> None:
        shutil.rmtree(root / "raw")
        assert str(root / "raw") in look(10)
