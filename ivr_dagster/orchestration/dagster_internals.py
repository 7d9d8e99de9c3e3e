"""All imports from Dagster's private modules. `test_dagster_internals.py` fails if Dagster changes what they mean.

Dagster exposes no public name for:

- the tags of an event that record code version, data version and input data versions. Staleness compares them, and an
  experiment copies them into a new instance;
- the target of a check evaluation reported without a run (experiments), and the error of a failed blocking check (CLI);
- the tag that names the code server of a run: if its socket is gone, so is the run;
- adding a dependency to an asset with argument inputs: `map_asset_specs` of 1.13 then drops the inputs' values;
- whether an instance keeps its runs in SQLite files below its home folder;
- the code location of a run that was executed in this process, without which the UI can neither show it in its
  timeline nor execute it again;
- the client that waits for a code server and reloads its code (`ivr ui`).
"""

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    DATA_VERSION_TAG,
    INPUT_DATA_VERSION_TAG_PREFIX,
    NULL_EVENT_POINTER,
    get_input_event_pointer_tag,
)
from dagster._core.definitions.repository_definition import SINGLETON_REPOSITORY_NAME
from dagster._core.errors import DagsterAssetCheckFailedError as FailedBlockingCheckError
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.storage.runs.sqlite import SqliteRunStorage
from dagster._core.storage.tags import GRPC_INFO_TAG as CODE_SERVER_TAG
from dagster._core.storage.tags import MAX_RETRIES_TAG
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

__all__ = [
    "CODE_SERVER_TAG",
    "CODE_VERSION_TAG",
    "DATA_VERSION_TAG",
    "INPUT_DATA_VERSION_TAG_PREFIX",
    "MAX_RETRIES_TAG",
    "NULL_EVENT_POINTER",
    "FailedBlockingCheckError",
    "check_target",
    "code_server_client",
    "get_input_event_pointer_tag",
    "input_version_tag",
    "runs_of_location",
    "stores_runs_in_home",
    "with_added_deps",
]


def input_version_tag(parent: str) -> str:
    """The tag of a materialization that records the data version of an input."""
    return f"{INPUT_DATA_VERSION_TAG_PREFIX}/{parent}"


def check_target(record: dg.EventLogRecord) -> Any:
    """The materialization that a check evaluation is about."""
    return AssetCheckEvaluationTargetMaterializationData(
        storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp
    )


def stores_runs_in_home(instance: dg.DagsterInstance) -> bool:
    """Whether an instance keeps its runs in its home folder, so that they move with it."""
    return isinstance(instance.run_storage, SqliteRunStorage)


@contextmanager
def runs_of_location(instance: dg.DagsterInstance, name: str, module: str) -> Iterator[None]:
    """Assign the runs that `execute_in_process` creates in this block to a code location, as the UI does.

    Args:
        instance: the instance of the runs.
        name: the location's name.
        module: the module with its definitions.
    """
    target = LoadableTargetOrigin(executable_path=sys.executable, module_name=module)
    location = ManagedGrpcPythonEnvCodeLocationOrigin(target, name)
    repository = RemoteRepositoryOrigin(location, SINGLETON_REPOSITORY_NAME)
    create: Any = instance.create_run_for_job

    def create_with_origin(job_def: dg.JobDefinition, **options: Any) -> dg.DagsterRun:
        run: dg.DagsterRun = create(job_def, **options, remote_job_origin=RemoteJobOrigin(repository, job_def.name))
        return run

    vars(instance)["create_run_for_job"] = create_with_origin
    try:
        yield
    finally:
        del vars(instance)["create_run_for_job"]


def with_added_deps(asset: dg.AssetsDefinition, names: Collection[str]) -> dg.AssetsDefinition:
    """An asset that also depends on the assets `names`, without reading them."""
    inputs = dict(asset.op.ins) | {name: dg.In(dg.Nothing) for name in names}
    changes = {
        "node_def": asset.op.with_replaced_properties(name=asset.op.name, ins=inputs),
        "specs": [spec.replace_attributes(deps=[*spec.deps, *sorted(names)]) for spec in asset.specs],
    }
    return dg.AssetsDefinition.dagster_internal_init(**asset.get_attributes_dict() | changes)


def code_server_client(socket: Path) -> Any:
    """A gRPC client of the code server that listens on a socket."""
    from dagster._grpc.client import DagsterGrpcClient

    return DagsterGrpcClient(socket=str(socket))
