"""Which assets are stale, and why: one answer for the command line and for automation.

An asset is stale by itself where it was not made of what it would be made of now: its code version (which holds its
settings) or the data version of an asset it reads is another, or it is not there. It is stale, too, while anything it
follows from is.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import CODE_VERSION_TAG, DATA_VERSION_TAG, INPUT_DATA_VERSION_TAG_PREFIX

from ivr_dagster.core.vocabulary.rules import is_edited, read_rules
from ivr_dagster.errors import InputError
from ivr_dagster.io_managers.provenance import config_hash_of
from ivr_dagster.pipeline import ASSETS, ArtifactPaths, split_code_version
from ivr_dagster.storage.content_hash import content_hash
from ivr_dagster.storage.file_identity import FileIdentity
from ivr_dagster.storage.manifest import find_damage

# what is computed of text at a cost, and what it reads the text from
TEXT_OF = {"fitted_embeddings": "cleaned_corpus", "sft_checkpoint": "training_blocks"}
# baselines are to have read the text that this has read
ADAPTED = "sft_checkpoint"
AT_WORK = (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING)
UNFINISHED = (dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED, *AT_WORK)
# the job that makes nothing
OBSERVATION_JOB = "observe_sources"
# metadata of what an experiment began with: the run that made it there
TAKEN_OVER = "made_in_run"
# how many executions of a check are looked through for an evaluation
EXECUTIONS = 50


class Staleness:
    """What is stale as the instance and the disk know it; each asset is looked up once."""

    def __init__(
        self,
        instance: dg.DagsterInstance,
        graph: Any,
        places: ArtifactPaths,
        *,
        text_alone: bool = True,
        tried: bool = False,
        damaged: bool = False,
    ) -> None:
        """
        Args:
            instance: which remembers what was made.
            graph: Dagster's asset graph, with the code versions of now.
            places: where artifacts lie.
            text_alone: whether new text makes what is trained stale by itself. If not, only another vocabulary, base
                model or setting does, and then all is trained on the new text.
            tried: whether what a run with settings of its own made, typed into the launchpad, may stay.
            damaged: whether artifacts are looked at, which takes longer, and are stale where they are not as they were
                written.
        """
        self._instance, self._graph, self._places, self._text_alone = instance, graph, places, text_alone
        self._tried, self._damaged = tried, damaged
        self._records: dict[dg.AssetKey, dg.EventLogRecord | None] = {}
        self._reasons: dict[dg.AssetKey, str] = {}
        self._trials: dict[dg.AssetKey, bool] = {}
        self._unfinished: Sequence[dg.DagsterRun] | None = None
        self._evaluations: dict[dg.AssetKey, list[dg.AssetCheckEvaluation | None]] = {}

    def why(self, key: dg.AssetKey) -> str:
        """Why an asset is stale, empty where it is fresh. Sources are never stale."""
        if key not in self._reasons:
            self._reasons[key] = self.by_itself(key) or next(
                (f"{parent.to_user_string()} is stale" for parent in self._parents(key) if self.why(parent)), ""
            )
        return self._reasons[key]

    def by_itself(self, key: dg.AssetKey) -> str:
        """Why an asset is stale whatever its parents are, empty where it is not."""
        if not self._graph.get(key).is_materializable:
            return ""
        event = self.last_made(key)
        if event is None:
            return "never materialized"
        name = key.to_user_string()
        if not self._places[name].exists():
            return "artifact missing"
        if self._damaged and find_damage(self._places[name]):
            return "artifact damaged"
        if _tags(event).get(CODE_VERSION_TAG) != self._graph.get(key).code_version:
            return "settings or code changed"
        if not self._tried and self._of_one_run(key, event):
            return "made with settings for one run alone"
        for parent in self._parents(key):
            if self._read_by(key, parent) != self._to_be_read_by(key, parent):
                return f"{parent.to_user_string()} changed"
        if name == "remap_rules":
            edited = _edited_digest(self._places[name])
            if edited and edited != _tags(event).get(DATA_VERSION_TAG):
                return "edited by hand"
        return "its checks were not made" if self._unchecked(key) else ""

    def _of_one_run(self, key: dg.AssetKey, event: dg.EventLogEntry) -> bool:
        """Whether the settings that it was made with are not those that its code version holds."""
        told = config_hash_of(event.asset_materialization) if event.asset_materialization else None
        return told is not None and told != split_code_version(self._graph.get(key).code_version)[1]

    def follows_a_trial(self, key: dg.AssetKey) -> bool:
        """Whether something that an asset follows from was made with settings for one run alone."""
        if key not in self._trials:
            self._trials[key] = any(self._is_trial(each) or self.follows_a_trial(each) for each in self._parents(key))
        return self._trials[key]

    def _is_trial(self, key: dg.AssetKey) -> bool:
        event = self.last_made(key) if self._graph.get(key).is_materializable else None
        return event is not None and self._of_one_run(key, event)

    def taken_over(self, key: dg.AssetKey) -> bool:
        """Whether an asset was not made here, but where an experiment was begun."""
        event = self.last_made(key)
        made = event.asset_materialization if event else None
        return made is not None and TAKEN_OVER in made.metadata

    def unobserved(self, key: dg.AssetKey) -> bool:
        """Whether a source that the asset reads has never been looked at."""
        sources = (parent for parent in self._parents(key) if not self._graph.get(parent).is_materializable)
        return any(self.version(source) is None for source in sources)

    def being_made(self, key: dg.AssetKey) -> bool:
        """Whether a run that has not ended makes an asset or its checks, or did and goes on."""
        if self._unfinished is None:
            self._unfinished = self._instance.get_runs(dg.RunsFilter(statuses=[*UNFINISHED]))
        return any(
            key in run.asset_selection if run.asset_selection else run.job_name != OBSERVATION_JOB
            for run in self._unfinished
        )

    def unmet(self, key: dg.AssetKey) -> bool:
        """Whether a blocking check did not pass, or was not made, on what an asset holds now."""
        return any(evaluation is None or not evaluation.passed for evaluation in self._of_blocking_checks(key))

    def _unchecked(self, key: dg.AssetKey) -> bool:
        """Whether a blocking check was not made of the last materialization: the run was stopped before it."""
        return any(evaluation is None for evaluation in self._of_blocking_checks(key))

    def _of_blocking_checks(self, key: dg.AssetKey) -> list[dg.AssetCheckEvaluation | None]:
        """The latest evaluation of each blocking check, None where there is none of the last materialization."""
        if key not in self._evaluations:
            record = self._record(key)
            checks = [each for each in self._graph.asset_check_keys if each.asset_key == key]
            found = [
                latest_evaluation(self._instance, each) for each in checks if self._graph.get_check_spec(each).blocking
            ]
            targets = [each.target_materialization_data if each else None for each in found]
            self._evaluations[key] = [
                each if record is not None and target is not None and target.storage_id >= record.storage_id else None
                for each, target in zip(found, targets, strict=True)
            ]
        return self._evaluations[key]

    def _to_be_read_by(self, key: dg.AssetKey, parent: dg.AssetKey) -> str | None:
        """The version of `parent` that `key` is to be made of."""
        name = key.to_user_string()
        if not self._text_alone and TEXT_OF.get(name) == parent.to_user_string():
            return self._read_by(key, parent)
        if not self._text_alone and ASSETS[name].variant and TEXT_OF[ADAPTED] == parent.to_user_string():
            return self._read_by(dg.AssetKey(ADAPTED), parent)
        return self.version(parent)

    def _read_by(self, key: dg.AssetKey, parent: dg.AssetKey) -> str | None:
        """The version of `parent` that `key` was made of."""
        event = self.last_made(key)
        return None if event is None else _tags(event).get(f"{INPUT_DATA_VERSION_TAG_PREFIX}/{parent.to_user_string()}")

    def made_of(self, key: dg.AssetKey) -> str:
        """What an asset would be made of now, as a hash: its code version, what it reads, rules edited by hand."""
        name = key.to_user_string()
        edited = _edited_digest(self._places[name]) if name == "remap_rules" and self._places[name].is_file() else ""
        read = {parent.to_user_string(): self.version(parent) for parent in self._parents(key)}
        return content_hash(json.dumps([self._graph.get(key).code_version, read, edited]))

    def version(self, key: dg.AssetKey) -> str | None:
        """The data version of an asset or a source, None where none is known."""
        if self._graph.get(key).is_materializable:
            event = self.last_made(key)
            return None if event is None else _tags(event).get(DATA_VERSION_TAG)
        return observed_version(self._instance, key)

    def last_made(self, key: dg.AssetKey) -> dg.EventLogEntry | None:
        """The event of the last materialization."""
        record = self._record(key)
        return record.event_log_entry if record else None

    def _record(self, key: dg.AssetKey) -> dg.EventLogRecord | None:
        if key not in self._records:
            self._records[key] = next(iter(self._instance.fetch_materializations(key, limit=1).records), None)
        return self._records[key]

    def _parents(self, key: dg.AssetKey) -> list[dg.AssetKey]:
        return sorted(self._graph.get(key).parent_keys)


def latest_evaluation(instance: dg.DagsterInstance, check: dg.AssetCheckKey) -> dg.AssetCheckEvaluation | None:
    """The latest evaluation of a check; executions that were planned and never came, in runs that failed, are none."""
    for record in instance.event_log_storage.get_asset_check_execution_history(check, limit=EXECUTIONS):
        event = record.event.dagster_event if record.event else None
        if event is not None and event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            return event.asset_check_evaluation_data
    return None


def observed_version(instance: dg.DagsterInstance, key: dg.AssetKey) -> str | None:
    """The data version that a source had when it was last looked at."""
    records = instance.fetch_observations(key, limit=1).records
    observation = records[0].asset_observation if records else None
    return observation.tags.get(DATA_VERSION_TAG) if observation else None


def _tags(event: dg.EventLogEntry) -> dict[str, str]:
    made = event.asset_materialization
    return dict(made.tags or {}) if made else {}


def _edited_digest(rules: Path) -> str:
    """The digest of a rules file that a person has changed, empty where it is as it was computed."""
    return _digest_of(rules, FileIdentity.of(rules))


@lru_cache(maxsize=8)
def _digest_of(rules: Path, identity: FileIdentity) -> str:
    try:
        return read_rules(rules).digest() if is_edited(rules) else ""
    except InputError:  # half saved, or wrong: told where the rules are made
        return "unreadable"
