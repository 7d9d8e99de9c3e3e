"""Reading `accelerate_config.yaml`."""

from pathlib import Path
from typing import Any

import pytest
from torch.distributed.run import parse_args

from ivr_dagster.core.training.launch_settings import Launch, read_accelerate_config
from ivr_dagster.errors import InputError

# output of `accelerate config` for two processes on CPU
WRITTEN = """
compute_environment: LOCAL_MACHINE
debug: false
distributed_type: MULTI_CPU
downcast_bf16: 'no'
enable_cpu_affinity: false
machine_rank: 0
main_training_function: main
mixed_precision: 'no'
mpirun_config: null
num_machines: 1
num_processes: 2
rdzv_backend: static
same_network: true
tpu_env: []
tpu_use_cluster: false
tpu_use_sudo: false
use_cpu: true
"""


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def read(text: str) -> Launch:
        (tmp_path / "accelerate_config.yaml").write_text(text)
        return read_accelerate_config(tmp_path / "accelerate_config.yaml")

    return read


def test_accelerate_config_output_is_read(read: Any, tmp_path: Path) -> None:
    launch = read(WRITTEN)
    assert (launch.processes, launch.machines, launch.device, launch.dtype) == (2, 1, "cpu", "float32")
    assert launch.source == tmp_path / "accelerate_config.yaml"


def test_empty_file_means_one_process_and_leaves_device_and_dtype_to_the_settings(read: Any) -> None:
    launch = read("# nothing yet\n")
    assert (launch.processes, launch.processes_per_node, launch.device, launch.dtype) == (1, 1, "", "")


def test_torchrun_arguments_divide_the_processes_among_nodes(read: Any) -> None:
    launch = read("num_processes: 8\nnum_machines: 2\nmain_process_ip: 10.0.0.7\nmixed_precision: bf16\n")
    assert (launch.processes_per_node, launch.dtype) == (4, "bfloat16")
    expected = {"--nnodes=2", "--nproc-per-node=4", "--node-rank=1", "--master-addr=10.0.0.7", "--master-port=29500"}
    arguments = launch.torchrun(1, "module", "folder")
    assert expected <= set(arguments)
    assert arguments[-3:] == ["-m", "module", "folder"]
    assert parse_args(arguments).training_script == "module"


def test_processes_share_the_cores_unless_the_environment_decides(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert read(WRITTEN).environment({}) == {"OMP_NUM_THREADS": "4"}
    assert read(WRITTEN).environment({"OMP_NUM_THREADS": "1"}) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_proceses: 2", ":1: unknown key 'num_proceses' (did you mean 'num_processes'?)"),
        ("num_processes: two", "num_processes is 'two', expected an integer from 1"),
        ("num_processes: 0", "num_processes is 0"),
        ("num_machines: true", "num_machines is True"),
        ("num_processes: 3\nnum_machines: 2\nmain_process_ip: a", "3 is not divisible by num_machines 2"),
        ("num_processes: 2\nnum_machines: 2", "main_process_ip, the address of node 0, is missing"),
        ("main_process_ip: 7", "main_process_ip is 7, expected a host name or IP address"),
        ("machine_rank: 1", "machine_rank is 1, expected 0 to 0"),
        ("num_processes: 2\ndistributed_type: NO", ":2: distributed_type NO means one process"),
        ("distributed_type: MULTI_GPU\nuse_cpu: true", "use_cpu is true, but distributed_type is MULTI_GPU"),
        ("use_cpu: 1", "use_cpu is 1, expected true or false"),
        ("mixed_precision: fp8", "mixed_precision is 'fp8', expected one of no, fp16, bf16"),
        ("distributed_type: FSDP", "distributed_type 'FSDP' is not supported: every process holds the whole model"),
        ("deepspeed_config: {zero_stage: 3}", "deepspeed_config {'zero_stage': 3} is not supported"),
        ("gpu_ids: 0,1", "choose GPUs with CUDA_VISIBLE_DEVICES"),
        ("debug: true\nnum_processes: 0x" + "f" * 9000, ":2: num_processes is an integer of 36,000 bits"),
        ("num_machines: .inf", "num_machines is inf, expected an integer from 1"),
        ("main_process_port: 65536", "main_process_port is 65536, expected an integer from 1 to 65,535"),
        ("main_process_ip: a b", "main_process_ip is 'a b'"),
    ],
)
def test_invalid_value_is_rejected_with_its_file(text: str, message: str, read: Any) -> None:
    with pytest.raises(InputError, match=r"accelerate_config\.yaml") as raised:
        read(text)
    assert message in str(raised.value)
    assert raised.value.remedy


def test_error_names_all_invalid_values(read: Any) -> None:
    with pytest.raises(InputError, match=r"yaml:1: num_processes is 0.*yaml:2: unknown key 'gpus'"):
        read("num_processes: 0\ngpus: 2")
