"""All imports from Dagster's private modules. `test_dagster_internals.py` fails if Dagster changes what they mean.

Dagster exposes no public name for:

- the tags of an event that record code version, data version and input data versions. Staleness compares them, and an
  experiment copies them into a new instance;
- the target of a check evaluation reported without a run (experiments), and the error of a failed blocking check (CLI);
- the tag that names the code server of a run: if its socket is gone, so is the run;
- whether an instance keeps its runs in SQLite files below its home folder;
- the client that waits for a code server and reloads its code (`ivr ui`).
"""

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
from dagster._core.errors import DagsterAssetCheckFailedError as FailedBlockingCheckError
from dagster._core.storage.runs.sqlite import SqliteRunStorage
from dagster._core.storage.tags import GRPC_INFO_TAG as CODE_SERVER_TAG

__all__ = [
    "CODE_SERVER_TAG",
    "CODE_VERSION_TAG",
    "DATA_VERSION_TAG",
    "INPUT_DATA_VERSION_TAG_PREFIX",
    "NULL_EVENT_POINTER",
    "FailedBlockingCheckError",
    "check_target",
    "code_server_client",
    "get_input_event_pointer_tag",
    "input_version_tag",
    "stores_runs_in_home",
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


def code_server_client(socket: Path) -> Any:
    """A gRPC client of the code server that listens on a socket."""
    from dagster._grpc.client import DagsterGrpcClient

    return DagsterGrpcClient(socket=str(socket))
