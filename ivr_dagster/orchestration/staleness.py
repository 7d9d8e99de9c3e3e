"""Which assets are stale, and why: one answer for the command line and for automation.

An asset is directly stale if its artifact is missing or damaged, or if it was built with another code version, other
settings or other input data versions than it would be built with now. It is also stale while anything upstream is.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import dagster as dg

from ivr_dagster.core.vocabulary.rules import edited_rules
from ivr_dagster.errors import InputError
from ivr_dagster.io_managers.provenance import config_hash_of
from ivr_dagster.orchestration.dagster_internals import CODE_VERSION_TAG, DATA_VERSION_TAG, input_version_tag
from ivr_dagster.orchestration.ownership import belongs_to
from ivr_dagster.pipeline import ASSETS, changed_values, split_code_version
from ivr_dagster.resources.settings import ProjectSettings
from ivr_dagster.storage.content_hash import content_hash
from ivr_dagster.storage.file_identity import FileIdentity
from ivr_dagster.storage.manifest import find_damage, read_manifest

# assets that are costly to compute from text, and where they read it
TEXT_INPUTS = {"fitted_embeddings": "cleaned_corpus", "sft_checkpoint": "training_blocks"}
# baselines train on the text that this asset was trained on
ADAPTED = "sft_checkpoint"
UNFINISHED = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)
OBSERVATION_JOB = "observe_sources"  # it materializes nothing
# metadata of assets copied into an experiment: the run that built them
COPIED_FROM_RUN = "made_in_run"
CHECK_EXECUTIONS = 50  # how many executions of a check are searched for an evaluation
MAX_REASONS = 3


class Staleness:
    """The stale assets according to the instance and the disk; each asset is looked up once.

    Args:
        instance: the instance that recorded the materializations.
        graph: Dagster's asset graph, with current code versions.
        settings: the current settings.
        retrain_on_new_text: whether new text alone makes trained assets stale. If not, only a change of vocabulary,
            base model or settings does.
        accept_trials: whether artifacts built with one-off settings, typed into the launchpad, count as fresh.
        check_damage: whether to compare artifacts with their manifests, which takes longer.
    """

    def __init__(
        self,
        instance: dg.DagsterInstance,
        graph: Any,
        settings: ProjectSettings,
        *,
        retrain_on_new_text: bool = True,
        accept_trials: bool = False,
        check_damage: bool = False,
    ) -> None:
        self._instance, self._graph, self._settings, self._paths = instance, graph, settings, settings.paths
        self._retrain_on_new_text = retrain_on_new_text
        self._accept_trials, self._check_damage = accept_trials, check_damage
        self._records: dict[dg.AssetKey, dg.EventLogRecord | None] = {}
        self._observed: dict[dg.AssetKey, str | None] = {}
        self._reasons: dict[dg.AssetKey, str] = {}
        self._trials: dict[dg.AssetKey, bool] = {}
        self._is_own: bool | None = None
        self._unfinished: Sequence[dg.DagsterRun] | None = None
        self._evaluations: dict[dg.AssetKey, list[dg.AssetCheckEvaluation | None]] = {}

    def is_on_own_instance(self, _: dg.AssetKey) -> bool:
        """Whether the instance belongs to the artifacts folder; the same for all assets."""
        if self._is_own is None:
            self._is_own = belongs_to(self._instance, self._paths)
        return self._is_own

    def reason(self, key: dg.AssetKey) -> str:
        """Why an asset is stale; empty if it is fresh. Sources are never stale."""
        if key not in self._reasons:
            self._reasons[key] = self.directly_stale(key) or next(
                (f"{parent.to_user_string()} is stale" for parent in self._parents(key) if self.reason(parent)), ""
            )
        return self._reasons[key]

    def directly_stale(self, key: dg.AssetKey) -> str:
        """Why an asset is stale regardless of its upstream assets; empty if it is not."""
        if not self._graph.get(key).is_materializable:
            return ""
        built = self._materialization(key)
        if built is None:
            return "never materialized"
        path = self._paths[key.to_user_string()]
        if not path.exists():
            return "artifact missing"
        if self._check_damage and find_damage(path):
            return "artifact damaged"
        reasons = self._changed_code_and_settings(key, built) + self._changed_inputs(key)
        if reasons:
            more = [f"and {len(reasons) - MAX_REASONS} more changes"] if len(reasons) > MAX_REASONS else []
            return "; ".join(reasons[:MAX_REASONS] + more)
        if (edited := self._edited_rules(key)) and edited != self.data_version(key):
            return f"{path.name} edited by hand"
        return "blocking checks did not run" if None in self._blocking_evaluations(key) else ""

    def _changed_code_and_settings(self, key: dg.AssetKey, built: dg.AssetMaterialization) -> list[str]:
        name = key.to_user_string()
        code_before, recorded = split_code_version((built.tags or {}).get(CODE_VERSION_TAG))
        code, now = split_code_version(self._graph.get(key).code_version)
        reasons = [f"code version {code_before} -> {code}"] if code != code_before else []
        actual = config_hash_of(built) or recorded
        is_trial = actual != recorded
        if actual == now or (is_trial and recorded == now and self._accept_trials):
            return reasons
        before = built.metadata["settings"].value if "settings" in built.metadata else None
        if before is None:
            manifest = read_manifest(self._paths[name])
            before = manifest.made_of.get("settings") if manifest else None
        if not isinstance(before, Mapping):
            return [*reasons, "built by an earlier version, which did not record its settings"]
        changes = changed_values(before, self._settings.values_for(name))
        return [*reasons, f"built with one-off settings ({', '.join(changes)})"] if is_trial else reasons + changes

    def _changed_inputs(self, key: dg.AssetKey) -> list[str]:
        reasons = []
        for parent in self._parents(key):
            before, now = self._input_version(key, parent), self._expected_input_version(key, parent)
            if before != now:
                change = "not an input before" if before is None else f"data version {_short(before)} -> {_short(now)}"
                reasons.append(f"{parent.to_user_string()}: {change}")
        return reasons

    def _expected_input_version(self, key: dg.AssetKey, parent: dg.AssetKey) -> str | None:
        """The version of `parent` that `key` would be built from now."""
        name, source = key.to_user_string(), parent.to_user_string()
        if not self._retrain_on_new_text:
            if TEXT_INPUTS.get(name) == source:
                return self._input_version(key, parent)
            if ASSETS[name].variant and TEXT_INPUTS[ADAPTED] == source:
                return self._input_version(dg.AssetKey(ADAPTED), parent)
        return self.data_version(parent)

    def _input_version(self, key: dg.AssetKey, parent: dg.AssetKey) -> str | None:
        """The version of `parent` that `key` was built from."""
        built = self._materialization(key)
        return (built.tags or {}).get(input_version_tag(parent.to_user_string())) if built else None

    def depends_on_trial(self, key: dg.AssetKey) -> bool:
        """Whether any upstream asset was built with one-off settings."""
        if key not in self._trials:
            self._trials[key] = any(self.is_trial(each) or self.depends_on_trial(each) for each in self._parents(key))
        return self._trials[key]

    def is_trial(self, key: dg.AssetKey) -> bool:
        """Whether an asset was built with one-off settings."""
        built = self._materialization(key) if self._graph.get(key).is_materializable else None
        actual = config_hash_of(built) if built else None
        return actual is not None and actual != split_code_version(self._graph.get(key).code_version)[1]

    def copied_into_experiment(self, key: dg.AssetKey) -> bool:
        """Whether an asset was copied when the experiment was created, not built in it."""
        built = self._materialization(key)
        return built is not None and COPIED_FROM_RUN in built.metadata

    def has_unobserved_source(self, key: dg.AssetKey) -> bool:
        """Whether the asset reads a source that was never observed."""
        sources = (parent for parent in self._parents(key) if not self._graph.get(parent).is_materializable)
        return any(self.data_version(source) is None for source in sources)

    def in_progress(self, key: dg.AssetKey) -> bool:
        """Whether an unfinished run includes the asset; it may have built it and still run its checks."""
        if self._unfinished is None:
            self._unfinished = self._instance.get_runs(dg.RunsFilter(statuses=[*UNFINISHED]))
        return any(
            key in run.asset_selection if run.asset_selection else run.job_name != OBSERVATION_JOB
            for run in self._unfinished
        )

    def blocked_by_checks(self, key: dg.AssetKey) -> bool:
        """Whether a blocking check of the current artifact failed or did not run."""
        return any(each is None or not each.passed for each in self._blocking_evaluations(key))

    def _blocking_evaluations(self, key: dg.AssetKey) -> list[dg.AssetCheckEvaluation | None]:
        """The evaluation of each blocking check on the last materialization; None if the check did not run on it."""
        if key not in self._evaluations:
            record = self._record(key)
            found = []
            for check in self._graph.asset_check_keys:
                if check.asset_key == key and self._graph.get_check_spec(check).blocking:
                    evaluation = latest_evaluation(self._instance, check)
                    target = evaluation.target_materialization_data if evaluation else None
                    current = record is not None and target is not None and target.storage_id >= record.storage_id
                    found.append(evaluation if current else None)
            self._evaluations[key] = found
        return self._evaluations[key]

    def state_digest(self, key: dg.AssetKey) -> str:
        """A hash of what an asset would be built from now: code version, inputs, rules edited by hand."""
        inputs = {parent.to_user_string(): self.data_version(parent) for parent in self._parents(key)}
        return content_hash(json.dumps([self._graph.get(key).code_version, inputs, self._edited_rules(key)]))

    def data_version(self, key: dg.AssetKey) -> str | None:
        """The data version of an asset or a source; None if it is unknown."""
        if self._graph.get(key).is_materializable:
            built = self._materialization(key)
            return (built.tags or {}).get(DATA_VERSION_TAG) if built else None
        if key not in self._observed:
            self._observed[key] = observed_version(self._instance, key)
        return self._observed[key]

    def last_materialization(self, key: dg.AssetKey) -> dg.EventLogEntry | None:
        """The event of the last materialization."""
        record = self._record(key)
        return record.event_log_entry if record else None

    def _materialization(self, key: dg.AssetKey) -> dg.AssetMaterialization | None:
        event = self.last_materialization(key)
        return event.asset_materialization if event else None

    def _record(self, key: dg.AssetKey) -> dg.EventLogRecord | None:
        if key not in self._records:
            self._records[key] = next(iter(self._instance.fetch_materializations(key, limit=1).records), None)
        return self._records[key]

    def _parents(self, key: dg.AssetKey) -> list[dg.AssetKey]:
        return sorted(self._graph.get(key).parent_keys)

    def _edited_rules(self, key: dg.AssetKey) -> str:
        """The digest of the remap rules if they were edited by hand; empty for other assets."""
        path = self._paths["remap_rules"]
        if key.to_user_string() != "remap_rules" or not path.is_file():
            return ""
        return _digest_if_edited(path, FileIdentity.of(path))


def latest_evaluation(instance: dg.DagsterInstance, check: dg.AssetCheckKey) -> dg.AssetCheckEvaluation | None:
    """The latest evaluation of a check; planned executions that never ran, in failed runs, do not count."""
    for record in instance.event_log_storage.get_asset_check_execution_history(check, limit=CHECK_EXECUTIONS):
        event = record.event.dagster_event if record.event else None
        if event is not None and event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            return event.asset_check_evaluation_data
    return None


def observed_version(instance: dg.DagsterInstance, key: dg.AssetKey) -> str | None:
    """The data version of a source when it was last observed."""
    records = instance.fetch_observations(key, limit=1).records
    observation = records[0].asset_observation if records else None
    return observation.data_version if observation else None


def _short(version: str | None) -> str:
    """A data version, shortened for display."""
    if version is None:
        return "unknown"
    return version if len(version) <= 8 else f"{version[:4]}…"


@lru_cache(maxsize=8)
def _digest_if_edited(rules: Path, _: FileIdentity) -> str:
    try:
        edited = edited_rules(rules)
        return edited.digest() if edited else ""
    except InputError:  # incomplete or invalid; `remap_rules` reports it
        return "unreadable"
