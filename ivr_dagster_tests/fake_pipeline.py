"""The real asset graph with invented materializations: what is stale and what automation requests, without any work."""

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from ivr_dagster.core.vocabulary.rules import RemapRules, rules_as_yaml
from ivr_dagster.definitions import build_definitions
from ivr_dagster.io_managers.provenance import provenance
from ivr_dagster.orchestration.dagster_internals import (
    CODE_VERSION_TAG,
    DATA_VERSION_TAG,
    check_target,
    input_version_tag,
)
from ivr_dagster.orchestration.ownership import claim
from ivr_dagster.orchestration.sources import source_names
from ivr_dagster.orchestration.staleness import Staleness
from ivr_dagster.pipeline import ASSETS, STAGES, stage_assets
from ivr_dagster.resources.settings import ProjectSettings
from ivr_dagster.settings import Settings
from ivr_dagster.storage.content_hash import content_hash


class FakePipeline:
    """The assets of an artifacts folder. `build` records materializations; a data version hashes inputs and settings.

    Args:
        root: the artifacts folder.
        settings: settings by flat name.
    """

    def __init__(self, root: Path, **settings: Any) -> None:
        self.root, self.instance, self.cursor = root, dg.DagsterInstance.ephemeral(), None
        self.versions: dict[str, str] = {}
        self.reload(**settings)
        claim(self.instance, self.settings.paths)

    def reload(self, **settings: Any) -> None:
        """Load the definitions under other settings. Instance and cursor stay."""
        self.settings = ProjectSettings.in_folder(Settings.of(model_name="sample", **settings), self.root)
        self.definitions = build_definitions(self.settings, artifacts_dir=self.root)
        self.graph: Any = self.definitions.resolve_asset_graph()
        built = set(stage_assets(STAGES, self.settings)) - self.settings.paths.replaced.keys()
        ordered = [key.to_user_string() for key in self.graph.toposorted_asset_keys]
        self.assets = [name for name in ordered if name in built]

    def observe(self, **versions: str) -> None:
        """Record observations of sources: `versions`, by default one for every source."""
        for name, version in (versions or dict.fromkeys(source_names(self.settings), "1")).items():
            self.versions[name] = version
            self.instance.report_runless_asset_event(dg.AssetObservation(name, tags={DATA_VERSION_TAG: version}))

    def build(
        self,
        assets: Iterable[str],
        *,
        versions: Mapping[str, str] | None = None,
        passed: bool | None = True,
        code_version: str = "",
        settings: Mapping[str, Any] | None = None,
        **metadata: Any,
    ) -> None:
        """Record materializations and the results of their blocking checks.

        Args:
            assets: the assets, in order.
            versions: data versions by asset; by default a hash of the inputs' data versions and the settings.
            passed: the result of the blocking checks; None if they did not run.
            code_version: the recorded code version, by default the current one.
            settings: the recorded settings, by default the current ones.
            metadata: further metadata.
        """
        for name in assets:
            key = dg.AssetKey(name)
            parents = sorted(each.to_user_string() for each in self.graph.get(key).parent_keys)
            inputs = {each: self.versions[each] for each in parents if each in self.versions}
            values = self.settings.values_for(name) if settings is None else settings
            version = (versions or {}).get(name) or content_hash(json.dumps([name, inputs, dict(values)]))
            path = self.settings.paths[name]
            if name == "remap_rules":
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(rules_as_yaml(RemapRules(())))
            else:
                path.mkdir(parents=True, exist_ok=True)
            tags = {CODE_VERSION_TAG: code_version or str(self.graph.get(key).code_version), DATA_VERSION_TAG: version}
            tags |= {input_version_tag(parent): each for parent, each in inputs.items()}
            self.versions[name] = version
            self.instance.report_runless_asset_event(
                dg.AssetMaterialization(key, tags=tags, metadata={**provenance(path, values), **metadata})
            )
            if passed is not None:
                self.check(name, passed=passed)

    def check(self, name: str, *, passed: bool) -> None:
        """Record the results of the blocking checks of an asset."""
        key = dg.AssetKey(name)
        target = check_target(self.instance.fetch_materializations(key, limit=1).records[0])
        for check in self.graph.asset_check_keys:
            if check.asset_key == key and self.graph.get_check_spec(check).blocking:
                self.instance.report_runless_asset_event(
                    dg.AssetCheckEvaluation(
                        asset_key=key, check_name=check.name, passed=passed, target_materialization_data=target
                    )
                )

    def staleness(self, **options: bool) -> Staleness:
        """A new `Staleness`."""
        return Staleness(self.instance, self.graph, self.settings, **options)

    def stale(self, **options: bool) -> dict[str, str]:
        """The reasons of all stale assets."""
        staleness = self.staleness(**options)
        reasons = {name: staleness.reason(dg.AssetKey(name)) for name in self.assets}
        return {name: reason for name, reason in reasons.items() if reason}

    def downstream(self, name: str) -> set[str]:
        """All assets of the stages below an asset or a source."""
        selection = dg.AssetSelection.assets(name).downstream(include_self=False).resolve(self.graph)
        return {key.to_user_string() for key in selection} & set(self.assets)

    def tick(self) -> list[str]:
        """The assets that one tick of automation requests."""
        result = dg.evaluate_automation_conditions(
            self.definitions, self.instance, cursor=self.cursor, asset_selection=dg.AssetSelection.all()
        )
        self.cursor = result.cursor
        return [name for name in ASSETS if result.get_num_requested(dg.AssetKey(name))]

    def settle(self, *, keep: Collection[str] = (), failing: str = "") -> list[str]:
        """Build what each tick requests until nothing is; the assets in the order in which they were built.

        Args:
            keep: assets whose data versions do not change.
            failing: an asset whose blocking checks fail.
        """
        built: list[str] = []
        while requested := self.tick():
            assert len(built) < 2 * len(ASSETS), built
            for name in requested:
                versions = {name: self.versions[name]} if name in keep else None
                self.build([name], versions=versions, passed=name != failing)
            built += requested
        return built
