"""The device and dtype that train and evaluate."""

from dataclasses import dataclass

import dagster as dg

from ivr_dagster.errors import InputError
from ivr_dagster.storage.allocator import keep_freed_memory

# one training or evaluation at a time per device; dagster.yaml has the limit
POOL = "accelerator"


@dataclass(frozen=True)
class Accelerator:
    """Device and dtype, resolved on first use, which imports torch.

    Attributes:
        device: auto (cuda, else mps, else cpu), cpu, cuda or mps.
        dtype: auto (bfloat16 if the device computes in it, else float32), float32, bfloat16 or float16.
    """

    device: str = "auto"
    dtype: str = "auto"

    def resolved_device(self) -> str:
        """cpu, cuda or mps. For cpu, configures this process's memory allocator.

        Raises:
            InputError: the requested device does not exist.
        """
        device = self.find_device()
        if device == "cpu":
            keep_freed_memory()
        return device

    def find_device(self) -> str:
        """cpu, cuda or mps.

        Raises:
            InputError: the requested device does not exist.
        """
        import torch

        is_available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        available = [device for device, found in is_available.items() if found]
        if self.device != "auto" and self.device not in available:
            raise InputError(
                f"requested a {self.device} device, found {', '.join(available)}",
                where="device",
                remedy="Set --device auto.",
            )
        return available[0] if self.device == "auto" else self.device

    def resolved_dtype(self) -> str:
        """float32, bfloat16 or float16: the dtype of matrix products in training; weights are float32.

        Raises:
            InputError: the device does not train in the requested dtype.
        """
        import torch

        device = self.find_device()
        if self.dtype == "float16" and device == "cpu":
            raise InputError(
                "requested float16, which CPUs do not train in",
                where="dtype",
                remedy="Set --dtype auto, bfloat16 or float32.",
            )
        if self.dtype != "auto":
            return self.dtype
        if device == "cuda":
            has_bfloat16 = torch.cuda.is_bf16_supported()
        else:
            capabilities = torch.cpu.get_capabilities() if device == "cpu" else {}
            has_bfloat16 = any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16"))
        return "bfloat16" if has_bfloat16 else "float32"


AcceleratorResource = dg.ResourceParam[Accelerator]


@dg.resource(required_resource_keys={"settings"}, description="Device and dtype from the settings.")
def accelerator_resource(context: dg.InitResourceContext) -> Accelerator:
    """The accelerator of this run's settings."""
    compute = context.resources.settings.compute
    return Accelerator(compute.device, compute.dtype)
