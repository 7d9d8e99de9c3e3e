"""Assets materialized by Dagster with our IO managers, below a temporary artifacts folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.io_managers import io_managers
from ivr_dagster.resources.settings import ProjectSettings
from ivr_dagster.settings import Settings


@pytest.fixture
def paths(tmp_path: Path) -> ArtifactPaths:
    """Where artifacts lie."""
    return ArtifactPaths(tmp_path / "artifacts")


def settings_below(places: ArtifactPaths) -> ProjectSettings:
    """Default settings."""
    return ProjectSettings.in_folder(Settings(), places.root)


@pytest.fixture
def materialize(paths: ArtifactPaths) -> Callable[..., Any]:
    """`materialize(asset, io_manager, make)`: the value of `make()` through Dagster to its place."""

    def run(asset: str, io_manager: str, make: Callable[[], Any], places: ArtifactPaths = paths) -> None:
        @dg.asset(name=asset, io_manager_key=io_manager)
        def made() -> Any:
            return make()

        dg.materialize([made], resources={**io_managers(places), "settings": settings_below(places)})

    return run


@pytest.fixture
def load(paths: ArtifactPaths) -> Callable[..., Any]:
    """`load(asset, io_manager)`: what an asset downstream gets, in a run of its own."""

    def run(asset: str, io_manager: str, places: ArtifactPaths = paths) -> Any:
        got: list[Any] = []
        source = dg.AssetSpec(asset, metadata={"dagster/io_manager_key": io_manager})

        @dg.asset(ins={"value": dg.AssetIn(key=asset)})
        def downstream(value: Any) -> None:
            got.append(value)

        resources = {**io_managers(places), "settings": settings_below(places), "io_manager": dg.mem_io_manager}
        dg.materialize([source, downstream], selection=[downstream], resources=resources)
        return got[0]

    return run
