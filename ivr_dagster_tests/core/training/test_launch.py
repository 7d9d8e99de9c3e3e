"""What `accelerate_config.yaml` asks for, and what it may not ask for."""

from pathlib import Path
from typing import Any

import pytest

from ivr_dagster.core.training.launch import Launch, read_accelerate_config
from ivr_dagster.errors import InputError

# as `accelerate config` writes it for two processes on processors
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


def test_what_accelerate_writes_is_read(read: Any, tmp_path: Path) -> None:
    launch = read(WRITTEN)
    assert (launch.processes, launch.machines, launch.device, launch.dtype) == (2, 1, "cpu", "float32")
    assert launch.source == tmp_path / "accelerate_config.yaml"


def test_an_empty_file_is_one_process_and_leaves_device_and_arithmetic_to_the_settings(read: Any) -> None:
    launch = read("# nothing yet\n")
    assert (launch.processes, launch.processes_here, launch.device, launch.dtype) == (1, 1, "", "")


def test_processes_are_those_of_all_machines_together_and_the_first_machine_is_the_address(read: Any) -> None:
    launch = read("num_processes: 8\nnum_machines: 2\nmain_process_ip: 10.0.0.7\nmixed_precision: bf16\n")
    assert (launch.processes_here, launch.dtype) == (4, "bfloat16")
    arguments = launch.on_machine(1).torchrun("name", "module", "folder")
    wanted = {"--nnodes=2", "--nproc-per-node=4", "--node-rank=1", "--master-addr=10.0.0.7", "--master-port=29500"}
    assert wanted <= set(arguments)
    assert arguments[-3:] == ["-m", "module", "folder"]
    with pytest.raises(InputError, match="machine_rank is 2, there are 2 machines"):
        launch.on_machine(2)


def test_cores_are_shared_and_what_is_set_stays(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert read(WRITTEN).environment({})["OMP_NUM_THREADS"] == "4"
    assert "OMP_NUM_THREADS" not in read(WRITTEN).environment({"OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("num_proceses: 2", "num_proceses is no key of it, did you mean num_processes?"),
        ("num_processes: two", "num_processes is 'two', a whole number from 1 is wanted"),
        ("num_processes: 0", "num_processes is 0"),
        ("num_machines: true", "num_machines is True"),
        ("num_processes: 3\nnum_machines: 2\nmain_process_ip: a", "3 cannot be divided among num_machines 2"),
        ("num_processes: 2\nnum_machines: 2", "main_process_ip, the address of the first, is missing"),
        ("main_process_ip: 7", "main_process_ip is 7, an address is wanted"),
        ("machine_rank: 1", "machine_rank is 1, machines are numbered from 0 to 0"),
        ("num_processes: 2\ndistributed_type: NO", "distributed_type is NO, which is one process"),
        ("distributed_type: MULTI_GPU\nuse_cpu: true", "use_cpu is true and distributed_type MULTI_GPU"),
        ("use_cpu: 1", "use_cpu is 1, true or false is wanted"),
        ("mixed_precision: fp8", "mixed_precision is 'fp8', one of no, fp16, bf16 is wanted"),
        ("distributed_type: FSDP", "distributed_type cannot be 'FSDP': every process holds the whole model"),
        ("deepspeed_config: {zero_stage: 3}", "deepspeed_config cannot be"),
        ("gpu_ids: 0,1", "choose GPUs with CUDA_VISIBLE_DEVICES"),
        ("- 2", "a mapping of settings was expected, found a list"),
        ("num_processes: [", "accelerate_config.yaml:1: the launch settings cannot be read as YAML"),
        ("debug: true\nnum_processes: 0x" + "f" * 9000, ":2: num_processes is a whole number of 36,000 bits"),
        ("num_machines: .inf", "num_machines is inf, a whole number from 1 is wanted"),
        ("main_process_port: 65536", "main_process_port is 65536, a whole number from 1 is wanted, 65,535 at most"),
        ("main_process_ip: a b", "main_process_ip is 'a b', an address is wanted"),
        ("num_processes: 1\nnum_processes: 2", ":2: the key 'num_processes' is given twice"),
        ("deepspeed_config: &a {a: 1}\nfsdp_config: *a", "is used again by an alias"),
        ("num_processes: !!python/object/apply:os.abort []", ":1: 'num_processes' has a value that cannot be read"),
    ],
)
def test_what_cannot_be_is_refused_with_the_file(text: str, said: str, read: Any) -> None:
    with pytest.raises(InputError, match=r"accelerate_config\.yaml") as raised:
        read(text)
    assert said in str(raised.value)
    assert raised.value.remedy


def test_all_faults_are_told_together(read: Any) -> None:
    with pytest.raises(InputError, match=r"yaml:1: num_processes is 0.*yaml:2: gpus is no key of it"):
        read("num_processes: 0\ngpus: 2")
