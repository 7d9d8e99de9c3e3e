"""What we import from Dagster's private modules still means what we rely on."""

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import pytest

from ivr_dagster.orchestration import dagster_internals as internals


def test_materialization_records_versions_under_our_tags() -> None:
    @dg.asset(code_version="7")
    def parent() -> dg.MaterializeResult:
        return dg.MaterializeResult(data_version=dg.DataVersion("one"))

    @dg.asset(deps=[parent])
    def child() -> None:
        pass

    @dg.asset_check(asset=child, blocking=True)
    def fails() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=False)

    instance = dg.DagsterInstance.ephemeral()
    with pytest.raises(internals.FailedBlockingCheckError):
        dg.materialize([parent, child, fails], instance=instance)
    records = {
        key: instance.fetch_materializations(dg.AssetKey(key), limit=1).records[0] for key in ("parent", "child")
    }
    tags = {key: record.asset_materialization.tags for key, record in records.items() if record.asset_materialization}
    assert tags["parent"][internals.CODE_VERSION_TAG] == "7"
    assert tags["parent"][internals.DATA_VERSION_TAG] == "one"
    assert tags["child"][internals.input_version_tag("parent")] == "one"
    pointer = tags["child"][internals.get_input_event_pointer_tag(dg.AssetKey("parent"))]
    assert pointer == str(records["parent"].storage_id) != internals.NULL_EVENT_POINTER
    evaluation = instance.get_latest_asset_check_evaluation_record(dg.AssetCheckKey(dg.AssetKey("child"), "fails"))
    assert evaluation is not None and evaluation.event is not None and evaluation.event.dagster_event is not None
    target = evaluation.event.dagster_event.asset_check_evaluation_data.target_materialization_data
    assert target == internals.check_target(records["child"])


def test_stored_tags_keep_their_names() -> None:
    """Instances of users contain them."""
    assert internals.CODE_VERSION_TAG == "dagster/code_version"
    assert internals.DATA_VERSION_TAG == "dagster/data_version"
    assert internals.input_version_tag("a") == "dagster/input_data_version/a"
    assert internals.CODE_SERVER_TAG == ".dagster/grpc_info"


def test_runs_are_stored_in_the_home_folder_only_with_a_local_instance(tmp_path: Path) -> None:
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        assert internals.stores_runs_in_home(instance)
    assert not internals.stores_runs_in_home(dg.DagsterInstance.ephemeral())


def test_code_server_client_connects_to_the_socket_and_can_reload(tmp_path: Path) -> None:
    path = tmp_path / "code.sock"
    with socket.socket(socket.AF_UNIX) as server, ThreadPoolExecutor() as threads:
        server.bind(str(path))
        server.listen()
        server.settimeout(20)
        client = internals.code_server_client(path)
        answer = threads.submit(client.ping, "")
        server.accept()[0].close()
    assert answer.exception() is not None  # gRPC's error: we are no code server
    assert callable(client.reload_code)


def test_runs_of_this_process_belong_to_the_code_location() -> None:
    @dg.asset
    def one() -> None: ...

    job = dg.Definitions(assets=[one]).resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral() as instance:
        with internals.runs_of_location(instance, "place", "some.module"):
            with_origin = job.execute_in_process(instance=instance).dagster_run
        without = job.execute_in_process(instance=instance).dagster_run
    assert without.remote_job_origin is None
    assert with_origin.remote_job_origin is not None
    assert with_origin.remote_job_origin.location_name == "place"
    assert with_origin.remote_job_origin.job_name == job.name
    repository = dg.Definitions(assets=[one]).get_repository_def()
    assert with_origin.remote_job_origin.repository_origin.repository_name == repository.name
