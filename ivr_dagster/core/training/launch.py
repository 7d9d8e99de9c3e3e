"""On how many processes and machines to train: `accelerate_config.yaml` in, arguments of torch's launcher out.

The file is accelerate's own, as `accelerate config` writes it. It is read here and not by `accelerate launch`, which on
processors starts one process whatever is asked for, and leaves it to chance which machine has the first one.
"""

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ivr_dagster.errors import InputError, combine_errors, short_repr
from ivr_dagster.storage.yaml_files import read_settings_yaml

# accelerate's default, and torch's
PORT = 29_500

# accelerate's names of arithmetic → ours
_PRECISIONS = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}
_NO_SHARDING = "every process holds the whole model; sharding it is not supported"
# what accelerate writes beside the keys that we read: values that change nothing, and why others cannot be had
_FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "compute_environment": (("LOCAL_MACHINE",), "machines are started by whoever has them"),
    "distributed_type": (("NO", "MULTI_GPU", "MULTI_CPU"), _NO_SHARDING),
    "deepspeed_config": ((None, {}), _NO_SHARDING),
    "fsdp_config": ((None, {}), _NO_SHARDING),
    "megatron_lm_config": ((None, {}), _NO_SHARDING),
    "parallelism_config": ((None, {}), _NO_SHARDING),
    "fp8_config": ((None, {}), "training is in float32, bfloat16 or float16"),
    "mpirun_config": ((None, {}), "processes are started by torch's launcher"),
    "dynamo_config": ((None, {}), "set torch_compile in sft_config.yaml"),
    "rdzv_backend": ((None, "static"), "the first machine has to be the one that Dagster runs on"),
    "gpu_ids": ((None, "all"), "choose GPUs with CUDA_VISIBLE_DEVICES"),
    "downcast_bf16": ((False, "no"), "it is for TPUs"),
    "enable_cpu_affinity": ((False,), "the system places processes"),
    "tpu_use_cluster": ((False,), "TPUs are not supported"),
    "tpu_use_sudo": ((False,), "TPUs are not supported"),
    "tpu_env": ((None, []), "TPUs are not supported"),
    "main_training_function": ((None, "main"), "the training is ours"),
}
# of whole numbers the least and the greatest; nobody has more processes than Linux has process ids
_WHOLE = {
    "num_processes": (1, 1 << 22),
    "num_machines": (1, 1 << 22),
    "machine_rank": (0, 1 << 22),
    "main_process_port": (1, 65_535),
}
_ADDRESS = re.compile(r"[\w.:%\[\]-]{1,255}")  # a name, IPv4 or IPv6
_IGNORED = ("debug", "same_network")


@dataclass(frozen=True)
class Launch:
    """How a training is started.

    Attributes:
        processes: on all machines together.
        machines: how many machines; each has as many processes.
        machine_rank: which of them this one is, from 0.
        address: of the first machine, where the others find it.
        port: there; 0 for a free one, which only a single machine can do with.
        device: cpu where the file says so, empty where it leaves it to the setting `device`.
        dtype: float32, bfloat16 or float16; empty where the file leaves it to the setting `dtype`.
        source: the file that was read, None without one.
    """

    processes: int = 1
    machines: int = 1
    machine_rank: int = 0
    address: str = "127.0.0.1"
    port: int = 0
    device: str = ""
    dtype: str = ""
    source: Path | None = None

    @property
    def processes_here(self) -> int:
        """Processes of one machine."""
        return self.processes // self.machines

    def on_machine(self, rank: int) -> "Launch":
        """The same, seen from another machine.

        Raises:
            InputError: there is no such machine.
        """
        if not 0 <= rank < self.machines:
            raise InputError(
                f"machine_rank is {rank}, there are {self.machines} machines",
                where=self.source,
                remedy=f"Number the machines from 0, where Dagster runs, to {self.machines - 1}",
            )
        return replace(self, machine_rank=rank)

    def torchrun(self, name: str, module: str, *arguments: str) -> list[str]:
        """Arguments of `python -m torch.distributed.run` that start a module in every process of this machine.

        Nothing is restarted: what is gone on from is a checkpoint, in the next run.

        Args:
            name: what machines know each other by; those of another launch are not let in.
            module: what each process runs.
            arguments: and with which arguments.
        """
        options = {
            "nnodes": self.machines,
            "nproc-per-node": self.processes_here,
            "node-rank": self.machine_rank,
            "rdzv-backend": "static",
            "rdzv-id": name,
            "master-addr": self.address,
            "master-port": self.port,
            "max-restarts": 0,
        }
        return [*(f"--{option}={value}" for option, value in options.items()), "-m", module, *arguments]

    def environment(self, known: Mapping[str, str]) -> dict[str, str]:
        """Environment variables for this machine's processes beside the `known`.

        Each has its share of the cores, and torch's hints at what might be quicker are not for whoever trains.
        """
        ours = {
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.processes_here)),
            "TORCH_CPP_LOG_LEVEL": "ERROR",
        }
        return {name: value for name, value in ours.items() if name not in known}


def read_accelerate_config(path: Path) -> Launch:
    """Read the launch settings.

    Args:
        path: a YAML file by accelerate's names: `num_processes`, `num_machines`, `machine_rank`, `main_process_ip`,
            `main_process_port`, `mixed_precision`, `use_cpu`.

    Raises:
        InputError: the file cannot be read, or asks for what is unknown, contradictory or cannot be had. All faults
            are named together.
    """
    remedy = "Write it with `accelerate config --config_file FILE`, or one `name: value` a line"
    values, lines = read_settings_yaml(path, "the launch settings", remedy)
    faults = [(lines.get(key), fault) for key, value in values.items() if (fault := _fault(key, value))]
    if faults:
        _refuse(path, faults)
    number = {key: values.get(key) or usual for key, usual in (("num_processes", 1), ("num_machines", 1))}
    processes, machines = number["num_processes"], number["num_machines"]
    rank, address = values.get("machine_rank") or 0, values.get("main_process_ip")
    kind = values.get("distributed_type")
    on_processors = bool(values.get("use_cpu")) or kind == "MULTI_CPU"
    if processes % machines:
        faults.append(
            (lines.get("num_processes"), f"num_processes {processes} cannot be divided among num_machines {machines}")
        )
    if not 0 <= rank < machines:
        fault = f"machine_rank is {rank}, machines are numbered from 0 to {machines - 1}"
        faults.append((lines.get("machine_rank"), fault))
    if machines > 1 and not address:
        fault = f"num_machines is {machines}, and main_process_ip, the address of the first, is missing"
        faults.append((lines.get("num_machines"), fault))
    if kind == "NO" and processes > 1:
        fault = f"distributed_type is NO, which is one process, and num_processes {processes}"
        faults.append((lines.get("distributed_type"), fault))
    if values.get("use_cpu") and kind == "MULTI_GPU":
        faults.append((lines.get("use_cpu"), "use_cpu is true and distributed_type MULTI_GPU"))
    if faults:
        _refuse(path, faults)
    return Launch(
        processes,
        machines,
        rank,
        (address or Launch.address) if machines > 1 else Launch.address,
        (values.get("main_process_port") or (PORT if machines > 1 else 0)),
        "cpu" if on_processors else "",
        _PRECISIONS[values["mixed_precision"]] if values.get("mixed_precision") else "",
        path,
    )


def _fault(key: str, value: Any) -> str:
    """What is wrong with one entry of the file, empty where nothing is."""
    if key in _WHOLE:
        least, most = _WHOLE[key]
        whole = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        return (
            ""
            if whole or value is None
            else f"{key} is {short_repr(value)}, a whole number from {least} is wanted"
            + (f", {most:,} at most" if isinstance(value, int) and value > most else "")
        )
    if key == "main_process_ip":
        address = isinstance(value, str) and _ADDRESS.fullmatch(value)
        return "" if value is None or address else f"{key} is {short_repr(value)}, an address is wanted"
    if key == "use_cpu":
        return "" if isinstance(value, bool | None) else f"{key} is {short_repr(value)}, true or false is wanted"
    if key == "mixed_precision":
        # YAML 1.1, which accelerate writes, has `no` in quotes; without them it is false to some readers
        known = value in (None, *_PRECISIONS)
        return "" if known else f"{key} is {short_repr(value)}, one of {', '.join(_PRECISIONS)} is wanted"
    if key in _FIXED:
        usual, why = _FIXED[key]
        return "" if value in usual else f"{key} cannot be {short_repr(value)}: {why}"
    if key in _IGNORED:
        return ""
    near = difflib.get_close_matches(key, [*_WHOLE, "main_process_ip", "use_cpu", "mixed_precision", *_FIXED], 1)
    name = key if key.isidentifier() and len(key) < 80 else short_repr(key)
    return f"{name} is no key of it" + (f", did you mean {near[0]}?" if near else "")


def _refuse(path: Path, faults: list[tuple[int | None, str]]) -> None:
    """Raise one error that names all the faults, each with its line."""
    remedy = (
        "The keys are accelerate's: num_processes (of all machines together), num_machines, main_process_ip and so on"
    )
    raise combine_errors(
        [InputError(fault, where=f"{path}:{line}" if line else path, remedy=remedy) for line, fault in faults]
    )
