"""Launch settings: `accelerate_config.yaml` in, `torchrun` arguments out.

The file has the format that `accelerate config` writes. `accelerate launch --cpu --num_processes 2` starts one process
only, so torchrun starts the processes.
"""

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ivr_dagster.errors import InputError, combine_errors, short_repr
from ivr_dagster.storage.yaml_files import read_settings_yaml

# the default of accelerate and of torch
PORT = 29_500

# accelerate's names → ours
_DTYPES = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}
_NO_SHARDING = "every process holds the whole model, sharding is not supported"
_NO_TPU = "TPUs are not supported"
# further keys that accelerate writes: supported values, and why there are no others
_FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "compute_environment": (("LOCAL_MACHINE",), "start the other nodes yourself"),
    "distributed_type": (("NO", "MULTI_GPU", "MULTI_CPU"), _NO_SHARDING),
    "deepspeed_config": ((None, {}), _NO_SHARDING),
    "fsdp_config": ((None, {}), _NO_SHARDING),
    "megatron_lm_config": ((None, {}), _NO_SHARDING),
    "parallelism_config": ((None, {}), _NO_SHARDING),
    "fp8_config": ((None, {}), "training supports float32, bfloat16 and float16"),
    "mpirun_config": ((None, {}), "torchrun starts the processes"),
    "dynamo_config": ((None, {}), "set torch_compile in sft_config.yaml"),
    "rdzv_backend": ((None, "static"), "node 0 is the machine that runs Dagster"),
    "gpu_ids": ((None, "all"), "choose GPUs with CUDA_VISIBLE_DEVICES"),
    "downcast_bf16": ((False, "no"), _NO_TPU),
    "enable_cpu_affinity": ((False,), "the operating system places processes"),
    "tpu_use_cluster": ((False,), _NO_TPU),
    "tpu_use_sudo": ((False,), _NO_TPU),
    "tpu_env": ((None, []), _NO_TPU),
    "main_training_function": ((None, "main"), "the pipeline has its own training function"),
}
# the least and greatest value of integers; Linux has no more process ids
_INTEGERS = {
    "num_processes": (1, 1 << 22),
    "num_machines": (1, 1 << 22),
    "machine_rank": (0, 1 << 22),
    "main_process_port": (1, 65_535),
}
_ADDRESS = re.compile(r"[\w.:%\[\]-]{1,255}")  # host name, IPv4 or IPv6
_IGNORED = ("debug", "same_network")


@dataclass(frozen=True)
class Launch:
    """How many processes train, and where.

    Attributes:
        processes: number of processes on all nodes together.
        machines: number of nodes; each runs the same number of processes.
        machine_rank: rank of this node.
        address: address of node 0, which runs Dagster.
        port: port of node 0 that the other nodes connect to.
        device: cpu if the file says so; empty if the setting `device` decides.
        dtype: float32, bfloat16 or float16; empty if the setting `dtype` decides.
        source: the file; None for the defaults.
    """

    processes: int = 1
    machines: int = 1
    machine_rank: int = 0
    address: str = "127.0.0.1"
    port: int = PORT
    device: str = ""
    dtype: str = ""
    source: Path | None = None

    @property
    def processes_per_node(self) -> int:
        """Number of processes on each node."""
        return self.processes // self.machines

    def torchrun(self, node_rank: int, module: str, *arguments: str) -> list[str]:
        """Arguments of `torchrun` that run `python -m module *arguments` in every process of one node."""
        options = [f"--nproc-per-node={self.processes_per_node}"]
        if self.machines == 1:
            options += ["--standalone"]
        else:
            options += [f"--nnodes={self.machines}", f"--node-rank={node_rank}", "--rdzv-backend=static"]
            options += [f"--master-addr={self.address}", f"--master-port={self.port}"]
        return [*options, "-m", module, *arguments]

    def environment(self, known: Mapping[str, str]) -> dict[str, str]:
        """Environment variables to add to the `known` ones: the processes share the cores of the machine."""
        cores = max(1, (os.cpu_count() or 1) // self.processes_per_node)
        return {} if "OMP_NUM_THREADS" in known else {"OMP_NUM_THREADS": str(cores)}


def read_accelerate_config(path: Path) -> Launch:
    """Read the launch settings.

    Args:
        path: a YAML file with accelerate's keys: `num_processes`, `num_machines`, `machine_rank`, `main_process_ip`,
            `main_process_port`, `mixed_precision`, `use_cpu`.

    Raises:
        InputError: the file is unreadable, or values are unknown, contradictory or unsupported. It names all of them.
    """
    remedy = "Write it with `accelerate config --config_file FILE`, or one `name: value` a line"
    values, lines = read_settings_yaml(path, "the launch settings", remedy)
    faults = [(key, fault) for key, value in values.items() if (fault := _find_fault(key, value))]
    faults = faults or _find_contradictions(values)
    if faults:
        remedy = (
            "The keys are those of accelerate: num_processes (on all machines together), num_machines, main_process_ip"
        )
        wheres = [f"{path}:{lines[key]}" if key in lines else path for key, _ in faults]
        raise combine_errors(
            [InputError(fault, where=where, remedy=remedy) for (_, fault), where in zip(faults, wheres, strict=True)]
        )
    on_cpu = bool(values.get("use_cpu")) or values.get("distributed_type") == "MULTI_CPU"
    return Launch(
        processes=values.get("num_processes") or 1,
        machines=values.get("num_machines") or 1,
        machine_rank=values.get("machine_rank") or 0,
        address=values.get("main_process_ip") or Launch.address,
        port=values.get("main_process_port") or PORT,
        device="cpu" if on_cpu else "",
        dtype=_DTYPES.get(values.get("mixed_precision") or "", ""),
        source=path,
    )


def _find_contradictions(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Keys with values that do not go together, each with a sentence."""
    processes, machines = values.get("num_processes") or 1, values.get("num_machines") or 1
    rank, kind = values.get("machine_rank") or 0, values.get("distributed_type")
    found = {
        "num_processes": processes % machines
        and f"num_processes {processes} is not divisible by num_machines {machines}",
        "machine_rank": rank >= machines and f"machine_rank is {rank}, expected 0 to {machines - 1}",
        "num_machines": machines > 1
        and not values.get("main_process_ip")
        and f"num_machines is {machines}, but main_process_ip, the address of node 0, is missing",
        "distributed_type": kind == "NO"
        and processes > 1
        and f"distributed_type NO means one process, but num_processes is {processes}",
        "use_cpu": values.get("use_cpu")
        and kind == "MULTI_GPU"
        and "use_cpu is true, but distributed_type is MULTI_GPU",
    }
    return [(key, str(fault)) for key, fault in found.items() if fault]


def _find_fault(key: str, value: Any) -> str:
    """Why an entry is invalid; empty if it is valid."""
    wrong = f"{key} is {short_repr(value)}, "
    if key in _INTEGERS:
        least, most = _INTEGERS[key]
        valid = value is None or (isinstance(value, int) and not isinstance(value, bool) and least <= value <= most)
        return "" if valid else f"{wrong}expected an integer from {least} to {most:,}"
    if key == "main_process_ip":
        valid = value is None or (isinstance(value, str) and bool(_ADDRESS.fullmatch(value)))
        return "" if valid else f"{wrong}expected a host name or IP address"
    if key == "use_cpu":
        return "" if isinstance(value, bool | None) else f"{wrong}expected true or false"
    if key == "mixed_precision":
        return "" if value in (None, *_DTYPES) else f"{wrong}expected one of {', '.join(_DTYPES)}"
    if key in _FIXED:
        supported, why = _FIXED[key]
        return "" if value in supported else f"{key} {short_repr(value)} is not supported: {why}"
    if key in _IGNORED:
        return ""
    near = difflib.get_close_matches(key, [*_INTEGERS, "main_process_ip", "use_cpu", "mixed_precision", *_FIXED], 1)
    return f"unknown key {short_repr(key)}" + (f" (did you mean {near[0]!r}?)" if near else "")
