"""Driving the assets without the UI: on the same Dagster instance, so that lineage is one whatever started the work.

What belongs here: the instance, what is stale and why, and running assets in this process. Nothing is printed.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg

from ivr_dagster.assets.vocabulary import plan_from_settings
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.vocabulary.rules import check_rules, edited_rules, read_rules
from ivr_dagster.core.vocabulary.selection import Plan
from ivr_dagster.definitions import build_definitions
from ivr_dagster.errors import InputError
from ivr_dagster.orchestration.dagster_internals import (
    DATA_VERSION_TAG,
    FailedBlockingCheckError,
    stores_runs_in_home,
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
from ivr_dagster.pipeline import ASSETS, STAGES, ArtifactPaths, stage_assets, stage_of
from ivr_dagster.resources.base_model import BaseModel
from ivr_dagster.resources.settings import ProjectSettings
from ivr_dagster.settings import Settings
from ivr_dagster.storage.lock import LockedError
from ivr_dagster.storage.manifest import find_damage, read_manifest

# under which an instance remembers the artifacts folder that it belongs to
OWNER_KEY = "ivr/artifacts"
INSTANCE_FILE = Path(__file__).with_name("instance.yaml")


class StageFailed(Exception):
    """A step failed or a blocking check did not pass; the message is for the terminal."""


class Interrupted(Exception):
    """The person at the terminal stopped the run."""


@dataclass(frozen=True)
class AssetState:
    """An asset as the instance and the disk know it.

    Attributes:
        name: asset key.
        stage: the stage that makes it.
        stale: why it is stale, empty where it is fresh.
        materialized: when it was last made, None where it never was.
        figures: scalars of its last materialization.
    """

    name: str
    stage: str
    stale: str
    materialized: datetime | None
    figures: dict[str, Any]


@dataclass(frozen=True)
class StageResult:
    """What running assets came to: figures by asset, and the checks."""

    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)
    run_id: str = ""

    def of(self, assets: Iterable[str]) -> "StageResult":
        """The part of it that is about these assets."""
        wanted = set(assets)
        figures = {name: found for name, found in self.figures.items() if name in wanted}
        return StageResult(figures, [check for check in self.checks if check["asset"] in wanted], self.run_id)


def together(results: Iterable[StageResult]) -> StageResult:
    """Several runs' results as one, with the id of the last."""
    figures: dict[str, dict[str, Any]] = {}
    checks: list[dict[str, Any]] = []
    run_id = ""
    for result in results:
        figures |= result.figures
        checks += result.checks
        run_id = result.run_id
    return StageResult(figures, checks, run_id)


@dg.logger(config_schema={"log_level": str}, description="What assets say, for a terminal.")
def terminal_logger(context: dg.InitLoggerContext) -> logging.Logger:
    """Lines of assets on standard error; Dagster's own events, tracebacks among them, only at INFO and below.

    What went wrong is told once, by whoever asked for the run.
    """
    level = logging.getLevelName(context.logger_config["log_level"])
    logger = logging.Logger("ivr", level)
    handler = logging.StreamHandler()
    handler.setFormatter(_TerminalFormatter())
    if level > logging.INFO:
        handler.addFilter(lambda record: getattr(record, "dagster_meta", {}).get("dagster_event") is None)
    logger.addHandler(handler)
    return logger


class _TerminalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        said = getattr(record, "dagster_meta", {})
        step = said.get("step_key")
        message = said.get("orig_message") or record.getMessage()
        return f"{record.levelname.lower()}: {step}: {message}" if step else f"{record.levelname.lower()}: {message}"


class Workbench:
    """The assets of one artifacts folder under given settings, and the instance that remembers them."""

    def __init__(self, settings: Settings, artifacts_dir: Path, *, instance: dg.DagsterInstance | None = None) -> None:
        self.settings, self.paths = settings, ArtifactPaths.of(settings, artifacts_dir)
        # what assets get as the resources `settings` and `base`
        self.shared = ProjectSettings.in_folder(settings, artifacts_dir)
        self.base = BaseModel(settings.tokenizer.model_name, settings.tokenizer.revision)
        loggers = {"console": terminal_logger}
        self._definitions = build_definitions(settings, artifacts_dir=artifacts_dir, loggers=loggers)
        self.instance = instance or open_instance(self.paths)
        self._job = self._definitions.resolve_implicit_global_asset_job_def()
        self._graph = self._definitions.resolve_asset_graph()

    def stage_assets(self, stage: str) -> list[str]:
        """Assets that a stage makes under these settings, in order; what a person brings is not among them."""
        names = stage_assets([stage], self.settings)
        return [name for name in names if name not in self.paths.replaced]

    def makes(self, name: str) -> bool:
        """Whether there is an asset of that name which is made under these settings, not brought."""
        key = dg.AssetKey(name)
        return self._graph.has(key) and self._graph.get(key).is_materializable

    def last_made(self, name: str) -> dg.EventLogEntry | None:
        """The event of an asset's last materialization."""
        return Staleness(self.instance, self._graph, self.shared).last_materialization(dg.AssetKey(name))

    def evaluations(self, name: str) -> list[dg.AssetCheckEvaluation]:
        """The latest evaluation of each check on an asset, of those that were made."""
        checks = sorted(key for key in self._graph.asset_check_keys if key.asset_key == dg.AssetKey(name))
        found = (latest_evaluation(self.instance, check) for check in checks)
        return [evaluation for evaluation in found if evaluation is not None]

    def observe_sources(self) -> None:
        """Look at raw corpus, base model and what else a person brings; tell the instance what is not as it was.

        Raises:
            InputError: something is not there, or is not what it should be.
        """
        versions = {name: observe_source(name, self.shared, self.base) for name in source_names(self.shared)}
        for name, version in versions.items():
            if observed_version(self.instance, dg.AssetKey(name)) != version:
                self.instance.report_runless_asset_event(dg.AssetObservation(name, tags={DATA_VERSION_TAG: version}))

    def states(self) -> list[AssetState]:
        """Every asset, fresh or stale, in pipeline order."""
        staleness = Staleness(self.instance, self._graph, self.shared, check_damage=True)
        found = []
        for stage in STAGES:
            for name in self.stage_assets(stage):
                event = staleness.last_materialization(dg.AssetKey(name))
                made = event.asset_materialization if event else None
                found.append(
                    AssetState(
                        name,
                        stage,
                        staleness.reason(dg.AssetKey(name)),
                        datetime.fromtimestamp(event.timestamp, UTC).astimezone() if event else None,
                        scalars(made.metadata) if made else {},
                    )
                )
        return found

    def stale_by_themselves(self, stages: Iterable[str]) -> list[str]:
        """Assets of stages to make next: stale whatever becomes of others, and so is what they follow from, or fresh.

        What is stale only because something above it is may turn out not to be once that is made.
        """
        staleness = Staleness(self.instance, self._graph, self.shared, check_damage=True)
        wave: list[str] = []
        included = {name for stage in stages for name in self.stage_assets(stage)}
        for key in self._graph.toposorted_asset_keys:
            name = key.to_user_string()
            if name not in included:
                continue
            waiting = [
                parent.to_user_string()
                for parent in self._graph.get(key).parent_keys
                if staleness.reason(parent) and parent.to_user_string() not in wave
            ]
            if staleness.directly_stale(key) and not waiting:
                wave.append(name)
        return wave

    def check_training_settings(self) -> None:
        """See that training could begin as far as its settings go, before anything else is made.

        Raises:
            InputError: training or launch settings are at fault.
        """
        from ivr_dagster.core.training.sft_config import read_sft_config

        read_sft_config(self.shared.sft_config_file())
        self.shared.launch()

    def check_remap_rules(self) -> None:
        """See that rules which a person brought or edited fit the base vocabulary, before anything else is made.

        Raises:
            InputError: they do not; all faults are named together.
        """
        place, brought = self.paths["remap_rules"], "remap_rules" in self.paths.replaced
        rules = read_rules(place) if brought else edited_rules(place)
        if rules is None:
            return
        base = "original_tokenizer"
        folder = self.paths[base] if base in self.paths.replaced else self.base.tokenizer().path
        if (folder / "tokenizer.json").is_file():  # else it is made of other files first
            check_rules(rules, TokenizerFolder(folder).bpe(), place)

    def data_version(self, name: str) -> str | None:
        """The data version that an asset, or a source, has now."""
        return Staleness(self.instance, self._graph, self.shared).data_version(dg.AssetKey(name))

    def load(self, name: str) -> Any:
        """An asset's value, as the next step would get it.

        Raises:
            InputError: it was never materialized.
        """
        stage = stage_of(name)
        if not self.paths[name].exists():
            raise InputError(f"{name} is not there yet", where=self.paths[name], remedy=f"Run `ivr {stage}` first.")
        before = logging.root.manager.disable
        logging.disable(logging.INFO)  # Dagster tells of every file it opens, at DEBUG, to a console of its own
        try:
            read = self.paths.replaced.get(name, name)
            return self._definitions.load_asset_value(dg.AssetKey(read), instance=self.instance)
        finally:
            logging.disable(before)

    def plan_selection(self, progress: Callable[[int, int], None] | None = None) -> Plan:
        """What the stage `select` would choose; nothing is written."""
        names = ("cleaned_corpus", "original_tokenizer", "pretoken_counts", "token_stats")
        code_version = self._graph.get(dg.AssetKey("replacement_candidates")).code_version
        return plan_from_settings(self.shared, code_version, *map(self.load, names), progress=progress)

    def damaged(self) -> dict[str, list[str]]:
        """What of each artifact that is there is not as it was written, all bytes read; by asset.

        One without a manifest, made by an earlier version, is told so.
        """
        found: dict[str, list[str]] = {}
        for name in ASSETS:
            if self.makes(name) and self.paths[name].exists():
                place = self.paths[name]
                manifest = read_manifest(place)
                unknown = [] if manifest and manifest.files else [f"{place} has no manifest that tells what it holds"]
                found[name] = unknown or find_damage(place, read_all=True)
        return found

    def run(
        self, assets: Iterable[str], *, log_level: str = "WARNING", tags: Mapping[str, str] | None = None
    ) -> StageResult:
        """Materialize assets in this process, with their checks, once they are held.

        Raises:
            InputError: of a step, as it was raised; or another process uses the artifacts folder.
            StageFailed: a step failed, or a blocking check did not pass.
            Interrupted: SIGINT.
        """
        keys = [dg.AssetKey(name) for name in assets]
        if not keys:
            return StageResult()
        with exclusive_use(self.paths, ", ".join(key.to_user_string() for key in keys)):
            return self._run(keys, log_level, tags)

    def _run(self, keys: list[dg.AssetKey], log_level: str, tags: Mapping[str, str] | None) -> StageResult:
        fail_dead_runs(self.instance)
        free_slots_of_ended_runs(self.instance)
        tags = dict(tags or {}) | {PROCESS_TAG: process_identity(os.getpid())}
        config = {"loggers": {"console": {"config": {"log_level": log_level}}}}
        try:
            result = self._job.execute_in_process(
                instance=self.instance,
                asset_selection=keys,
                run_config=config,
                tags=tags,
                raise_on_error=True,
            )
        except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError) as error:
            raise Interrupted from error
        except FailedBlockingCheckError as error:
            raise StageFailed(
                f"a blocking check failed: {self._blocking(self._failed(key.to_user_string() for key in keys))}"
            ) from error
        found = {
            event.asset_key.to_user_string(): scalars(event.materialization.metadata)
            for event in result.get_asset_materialization_events()
            if event.asset_key is not None
        }
        checks = [
            {
                "asset": check.asset_key.to_user_string(),
                "check": check.check_name,
                "passed": check.passed,
                "severity": check.severity.value,
                "remedy": check.description or "",
                **scalars(check.metadata),
            }
            for check in result.get_asset_check_evaluations()
        ]
        return StageResult(found, checks, result.run_id)

    def failed_checks(self) -> list[str]:
        """Checks whose latest evaluation did not pass, as `asset.check`."""
        names = (name for stage in STAGES for name in self.stage_assets(stage))
        return [f"{each.asset_key.to_user_string()}.{each.check_name}" for each in self._failed(names)]

    def failed_blocking_checks(self, before_stage: str | None = None) -> str:
        """Blocking checks that did not pass on what the stages before, or all, made; empty where all passed."""
        stages = list(STAGES)
        before = stages[: stages.index(before_stage)] if before_stage else stages
        return self._blocking(self._failed(name for stage in before for name in self.stage_assets(stage)))

    def _failed(self, assets: Iterable[str]) -> list[dg.AssetCheckEvaluation]:
        return [each for name in assets for each in self.evaluations(name) if not each.passed]

    def _blocking(self, failed: Iterable[dg.AssetCheckEvaluation]) -> str:
        """Those that block, with figures and remedy."""
        told = []
        for each in sorted(failed, key=lambda each: each.asset_check_key):
            if self._graph.get_check_spec(each.asset_check_key).blocking:
                figures = ", ".join(f"{name} {value}" for name, value in scalars(each.metadata).items())
                told.append(
                    f"{each.asset_key.to_user_string()}.{each.check_name} ({figures}): {each.description or ''}"
                )
        return "; ".join(told)


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


def open_instance(paths: ArtifactPaths) -> dg.DagsterInstance:
    """The instance of DAGSTER_HOME, by default below the artifacts; its settings are written where there are none.

    Raises:
        InputError: it is the instance of another artifacts folder.
    """
    home = Path(os.environ.get("DAGSTER_HOME") or paths.dagster_home).expanduser().resolve()
    os.environ["DAGSTER_HOME"] = str(home)
    instance = _instance(home)
    # records inside a folder are that folder's, also where it was copied or moved
    inside = home == paths.dagster_home.resolve() and stores_runs_in_home(instance)
    _claim(instance, paths.root, whoever=inside)
    return instance


@contextmanager
def instance_at(home: Path) -> Iterator[dg.DagsterInstance]:
    """The instance of a folder, whatever DAGSTER_HOME says; closed in the end."""
    instance = _instance(home)
    try:
        yield instance
    finally:
        instance.dispose()


def _instance(home: Path) -> dg.DagsterInstance:
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        shutil.copyfile(INSTANCE_FILE, home / "dagster.yaml")
    return dg.DagsterInstance.from_config(str(home))


def _claim(instance: dg.DagsterInstance, root: Path, *, whoever: bool) -> None:
    """Have an instance belong to an artifacts folder, `whoever` had it: it knows assets by name, not by place."""
    storage = instance.run_storage
    owner = storage.get_cursor_values({OWNER_KEY}).get(OWNER_KEY)
    if owner == str(root):
        return
    if whoever or owner is None or not Path(owner).is_dir():
        storage.set_cursor_values({OWNER_KEY: str(root)})
    else:
        raise InputError(
            f"this Dagster instance holds the assets of {owner}, {root} was asked for",
            where=os.environ["DAGSTER_HOME"],
            remedy="Give each artifacts folder a DAGSTER_HOME, and a database, of its own, or unset it: by default the "
            "instance lies in the artifacts folder.",
        )


def scalars(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, truth values and short texts of metadata, as plain values."""
    values = {name: getattr(value, "value", None) for name, value in metadata.items()}
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) <= 200 and "\n" not in value)
    }
