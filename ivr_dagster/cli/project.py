"""A project: the assets of one artifacts folder under given settings, without the UI.

It uses the same Dagster instance as the UI, so both show the same lineage. Nothing is printed here.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.assets.vocabulary import plan_from_settings
from ivr_dagster.cli.instance import open_instance
from ivr_dagster.cli.terminal_log import terminal_logger
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.training.folders import TrainedModel
from ivr_dagster.core.vocabulary.rules import check_rules, edited_rules, read_rules
from ivr_dagster.core.vocabulary.selection import Plan
from ivr_dagster.definitions import build_definitions
from ivr_dagster.errors import InputError
from ivr_dagster.orchestration.automation import automatic_staleness, why_not_rebuilt
from ivr_dagster.orchestration.dagster_internals import (
    DATA_VERSION_TAG,
    MAX_RETRIES_TAG,
    FailedBlockingCheckError,
    runs_of_location,
)
from ivr_dagster.orchestration.dead_runs import (
    PROCESS_TAG,
    fail_dead_runs,
    free_slots_of_ended_runs,
    process_identity,
)
from ivr_dagster.orchestration.executor import hold_artifacts
from ivr_dagster.orchestration.sources import observe_source, source_names
from ivr_dagster.orchestration.staleness import Staleness, latest_evaluation, observed_version
from ivr_dagster.pipeline import ASSETS, LOCATION, MODULE, STAGES, stage_assets, stage_of
from ivr_dagster.resources.base_model import BaseModel
from ivr_dagster.resources.settings import ProjectSettings
from ivr_dagster.settings import Settings
from ivr_dagster.storage.lock import LockedError
from ivr_dagster.storage.manifest import find_damage, read_manifest


class StageFailedError(Exception):
    """A blocking check failed; the message is for the terminal."""


class InterruptedRunError(Exception):
    """A user interrupted the run."""


@dataclass(frozen=True)
class AssetState:
    """The state of an asset according to the instance and the disk.

    Attributes:
        name: its asset key.
        stage: the stage that builds it.
        stale: why it is stale; empty if it is fresh.
        waiting: why automation does not rebuild it although it is stale; empty if it does, or if it was never built.
        materialized: the time of its last materialization, if any.
        figures: scalar metadata of its last materialization.
    """

    name: str
    stage: str
    stale: str
    waiting: str
    materialized: datetime | None
    figures: dict[str, Any]


@dataclass(frozen=True)
class StageResult:
    """The result of building assets: their figures by asset, and their checks."""

    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)
    run_id: str = ""

    def of_assets(self, assets: Iterable[str]) -> "StageResult":
        """The part of the result that concerns these assets."""
        wanted = set(assets)
        figures = {name: found for name, found in self.figures.items() if name in wanted}
        return StageResult(figures, [check for check in self.checks if check["asset"] in wanted], self.run_id)


def merge_results(results: Iterable[StageResult]) -> StageResult:
    """The results of several runs as one, with the id of the last run."""
    figures: dict[str, dict[str, Any]] = {}
    checks: list[dict[str, Any]] = []
    run_id = ""
    for result in results:
        figures |= result.figures
        checks += result.checks
        run_id = result.run_id
    return StageResult(figures, checks, run_id)


class Project:
    """The assets of one artifacts folder under given settings, and the instance that records them.

    Attributes:
        settings: the settings in this artifacts folder.
        paths: where artifacts lie.
        base: the base model.
        instance: the Dagster instance.
        definitions: the Dagster definitions.
        graph: Dagster's asset graph.
        job: Dagster's job of all assets.
    """

    def __init__(self, settings: Settings, artifacts_dir: Path, *, instance: dg.DagsterInstance | None = None) -> None:
        self.settings = ProjectSettings.in_folder(settings, artifacts_dir)
        self.paths = self.settings.paths
        self.base = BaseModel(settings.tokenizer.model_name, settings.tokenizer.revision)
        self.definitions = build_definitions(
            settings, artifacts_dir=artifacts_dir, loggers={"console": terminal_logger}
        )
        self.instance = instance or open_instance(self.paths)
        self.job = self.definitions.resolve_implicit_global_asset_job_def()
        self.graph = self.definitions.resolve_asset_graph()

    def stage_assets(self, stage: str) -> list[str]:
        """The assets that a stage builds under these settings, in order; external artifacts are not built."""
        return [name for name in stage_assets([stage], self.settings) if name not in self.paths.replaced]

    def builds(self, name: str) -> bool:
        """Whether the asset exists under these settings and is not replaced by an external artifact."""
        key = dg.AssetKey(name)
        return self.graph.has(key) and self.graph.get(key).is_materializable

    def last_materialization(self, name: str) -> dg.EventLogEntry | None:
        """The event of an asset's last materialization."""
        return self._staleness().last_materialization(dg.AssetKey(name))

    def data_version(self, name: str) -> str | None:
        """The current data version of an asset or a source."""
        return self._staleness().data_version(dg.AssetKey(name))

    def check_evaluations(self, name: str) -> list[dg.AssetCheckEvaluation]:
        """The latest evaluation of each check of an asset, without checks that never ran."""
        checks = sorted(key for key in self.graph.asset_check_keys if key.asset_key == dg.AssetKey(name))
        found = (latest_evaluation(self.instance, check) for check in checks)
        return [evaluation for evaluation in found if evaluation is not None]

    def observe_sources(self) -> None:
        """Observe all sources and record those whose data version changed.

        Raises:
            InputError: a source is missing or invalid.
        """
        versions = {name: observe_source(name, self.settings, self.base) for name in source_names(self.settings)}
        for name, version in versions.items():
            if observed_version(self.instance, dg.AssetKey(name)) != version:
                self.instance.report_runless_asset_event(dg.AssetObservation(name, tags={DATA_VERSION_TAG: version}))

    def states(self, stages: Iterable[str] = ()) -> list[AssetState]:
        """The state of every asset, in pipeline order.

        Args:
            stages: stages whose assets are included whether or not they exist. Assets of other stages that are built on
                request only are included once they were built.
        """
        staleness = self._staleness(check_damage=True)
        automatic = automatic_staleness(self.instance, self.graph, self.settings)
        wanted = {name for name, stage in STAGES.items() if not stage.on_request} | set(stages)
        states = []
        for stage in STAGES:
            for name in self.stage_assets(stage):
                key = dg.AssetKey(name)
                event = staleness.last_materialization(key)
                if event is None and stage not in wanted:
                    continue
                built = event.asset_materialization if event else None
                time = datetime.fromtimestamp(event.timestamp, UTC).astimezone() if event else None
                figures = scalars(built.metadata) if built else {}
                stale = staleness.reason(key)
                waiting = why_not_rebuilt(automatic, self.settings, key) if stale and event else ""
                states.append(AssetState(name, stage, stale, waiting, time, figures))
        return states

    def directly_stale(self, stages: Iterable[str]) -> list[str]:
        """The assets of stages to build next: directly stale, with inputs that are fresh or among these assets.

        Other stale assets may turn out to be fresh once their inputs are built.
        """
        staleness = self._staleness(check_damage=True)
        wave: list[str] = []
        included = {name for stage in stages for name in self.stage_assets(stage)}
        for key in self.graph.toposorted_asset_keys:
            name = key.to_user_string()
            if name not in included or not staleness.directly_stale(key):
                continue
            stale_inputs = {each.to_user_string() for each in self.graph.get(key).parent_keys if staleness.reason(each)}
            if stale_inputs <= set(wave):
                wave.append(name)
        return wave

    def check_training_settings(self) -> None:
        """Check the training and launch settings before anything is built.

        Raises:
            InputError: they are invalid.
        """
        from ivr_dagster.core.training.sft_config import read_sft_config

        read_sft_config(self.settings.sft_config_file())
        self.settings.launch()

    def check_export(self) -> None:
        """Check that the fine-tuned model can be exported, before anything is written; there may be none yet.

        Raises:
            InputError: a format cannot express it.
        """
        from ivr_dagster.core.export.converter import check_converter
        from ivr_dagster.core.export.gguf import read_gguf_source

        model = TrainedModel(self.paths["sft_checkpoint"]).final_model
        if not model.path.is_dir() or "exported_gguf" not in self.stage_assets("export"):
            return
        if converter := self.settings.export.gguf_converter:
            check_converter(Path(converter).expanduser(), model)
        else:
            read_gguf_source(model)

    def check_remap_rules(self) -> None:
        """Check external or edited remap rules against the base vocabulary before anything is built.

        Raises:
            InputError: they do not fit; the message lists all errors.
        """
        path, base = self.paths["remap_rules"], "original_tokenizer"
        rules = read_rules(path) if "remap_rules" in self.paths.replaced else edited_rules(path)
        if rules is None:
            return
        folder = self.paths[base] if base in self.paths.replaced else self.base.tokenizer().path
        if (folder / "tokenizer.json").is_file():  # else it is built from other files first
            check_rules(rules, TokenizerFolder(folder).bpe(), path)

    def load(self, name: str) -> Any:
        """The value of an asset, as a downstream step gets it.

        Raises:
            InputError: the asset was never materialized.
        """
        if not self.paths[name].exists():
            raise InputError(
                f"{name} does not exist yet", where=self.paths[name], remedy=f"Run `ivr {stage_of(name)}` first."
            )
        disabled = logging.root.manager.disable
        logging.disable(logging.INFO)  # Dagster logs every file that it opens to its own console
        try:
            key = dg.AssetKey(self.paths.replaced.get(name, name))
            return self.definitions.load_asset_value(key, instance=self.instance)
        finally:
            logging.disable(disabled)

    def plan_selection(self, progress: Callable[[int, int], None] | None = None) -> Plan:
        """What the stage `select` would select; nothing is written."""
        names = ("cleaned_corpus", "original_tokenizer", "pretoken_counts", "token_stats")
        code_version = self.graph.get(dg.AssetKey("replacement_candidates")).code_version
        return plan_from_settings(self.settings, code_version, *map(self.load, names), progress=progress)

    def find_damage(self) -> dict[str, list[str]]:
        """The damage of each existing artifact, by asset, after reading all bytes."""
        damage: dict[str, list[str]] = {}
        for name in ASSETS:
            path = self.paths[name]
            if self.builds(name) and path.exists():
                manifest = read_manifest(path)
                has_files = manifest is not None and manifest.files
                damage[name] = (
                    find_damage(path, read_all=True) if has_files else [f"{path} has no manifest of its files"]
                )
        return damage

    def run(
        self, assets: Iterable[str], *, log_level: str = "WARNING", tags: Mapping[str, str] | None = None
    ) -> StageResult:
        """Materialize assets in this process, with their checks.

        Raises:
            InputError: a step raised it, or another process uses the artifacts folder.
            StageFailedError: a blocking check failed.
            InterruptedRunError: SIGINT.
        """
        keys = [dg.AssetKey(name) for name in assets]
        if not keys:
            return StageResult()
        with exclusive_use(self.paths, ", ".join(key.to_user_string() for key in keys)):
            fail_dead_runs(self.instance)
            free_slots_of_ended_runs(self.instance)
            try:
                with runs_of_location(self.instance, LOCATION, MODULE):
                    result = self.job.execute_in_process(
                        instance=self.instance,
                        asset_selection=keys,
                        run_config={"loggers": {"console": {"config": {"log_level": log_level}}}},
                        # whoever started the command decides whether to run it again
                        tags={**(tags or {}), PROCESS_TAG: process_identity(os.getpid()), MAX_RETRIES_TAG: "0"},
                    )
            except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError) as error:
                raise InterruptedRunError from error
            except FailedBlockingCheckError as error:
                failed = self._describe_blocking(self._failed(key.to_user_string() for key in keys))
                raise StageFailedError(f"a blocking check failed: {failed}") from error
        figures = {
            event.asset_key.to_user_string(): scalars(event.materialization.metadata)
            for event in result.get_asset_materialization_events()
            if event.asset_key is not None
        }
        checks = [_check_result(check) for check in result.get_asset_check_evaluations()]
        return StageResult(figures, checks, result.run_id)

    def failed_checks(self) -> list[str]:
        """Checks whose latest evaluation did not pass, as `asset.check`."""
        names = (name for stage in STAGES for name in self.stage_assets(stage))
        return [f"{each.asset_key.to_user_string()}.{each.check_name}" for each in self._failed(names)]

    def failed_blocking_checks(self, before_stage: str | None = None) -> str:
        """Failed blocking checks of all stages, or of those before a stage, with figures and remedy; empty if none."""
        stages = list(STAGES)
        before = stages[: stages.index(before_stage)] if before_stage else stages
        return self._describe_blocking(self._failed(name for stage in before for name in self.stage_assets(stage)))

    def _staleness(self, *, check_damage: bool = False) -> Staleness:
        return Staleness(self.instance, self.graph, self.settings, check_damage=check_damage)

    def _failed(self, assets: Iterable[str]) -> list[dg.AssetCheckEvaluation]:
        return [each for name in assets for each in self.check_evaluations(name) if not each.passed]

    def _describe_blocking(self, failed: Iterable[dg.AssetCheckEvaluation]) -> str:
        """Those of the failed checks that block, with figures and remedy."""
        descriptions = []
        for each in sorted(failed, key=lambda each: each.asset_check_key):
            if self.graph.get_check_spec(each.asset_check_key).blocking:
                figures = ", ".join(f"{name} {value}" for name, value in scalars(each.metadata).items())
                check = f"{each.asset_key.to_user_string()}.{each.check_name}"
                descriptions.append(f"{check} ({figures}): {each.description or ''}")
        return "; ".join(descriptions)


@contextmanager
def exclusive_use(paths: ArtifactPaths, task: str) -> Iterator[None]:
    """Hold the lock of an artifacts folder while the block runs, for a task that does not wait for others.

    Raises:
        InputError: another process holds it.
    """
    with ExitStack() as held:
        try:
            held.enter_context(hold_artifacts(paths, task))
        except LockedError as error:
            raise InputError(
                f"{task} was requested, but the artifacts folder is {error}",
                where=paths.root,
                remedy="Wait until it finishes, or stop it.",
            ) from None
        yield


def _check_result(check: dg.AssetCheckEvaluation) -> dict[str, Any]:
    return {
        "asset": check.asset_key.to_user_string(),
        "check": check.check_name,
        "passed": check.passed,
        "severity": check.severity.value,
        "remedy": check.description or "",
        **scalars(check.metadata),
    }


def scalars(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, truth values and short one-line texts of metadata, as plain values."""
    values = {name: getattr(value, "value", None) for name, value in metadata.items()}
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) <= 200 and "\n" not in value)
    }
