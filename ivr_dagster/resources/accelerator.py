"""The device that trains and evaluates."""

from dataclasses import dataclass

import dagster as dg

from ivr_dagster.errors import InputError
from ivr_dagster.storage.allocator import keep_freed_memory

# one training or evaluation at a time on a device; the limit stands in dagster.yaml
POOL = "accelerator"


@dataclass(frozen=True)
class Accelerator:
    """Device and arithmetic; torch is imported when an asset first asks.

    Attributes:
        device: auto (cuda, else mps, else cpu), cpu, cuda or mps.
        dtype: auto (bfloat16 where the device computes with it, else float32), float32, bfloat16 or float16.
    """

    device: str = "auto"
    dtype: str = "auto"

    def resolved_device(self) -> str:
        """cpu, cuda or mps; where it is cpu, this process is made ready to compute on it.

        Raises:
            InputError: the device asked for is not there.
        """
        device = self.found_device()
        if device == "cpu":
            keep_freed_memory()
        return device

    def found_device(self) -> str:
        """cpu, cuda or mps, nothing made ready.

        Raises:
            InputError: as :meth:`resolved_device`.
        """
        import torch

        there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        if self.device == "auto":
            return next(device for device, found in there.items() if found)
        if not there.get(self.device, False):
            found = ", ".join(device for device, is_there in there.items() if is_there)
            raise InputError(
                f"no {self.device} device here, found {found}", where="device", remedy="Set --device auto."
            )
        return self.device

    def resolved_dtype(self) -> str:
        """float32, bfloat16 or float16: the arithmetic of training, its weights stay in float32.

        Raises:
            InputError: the device does not train in the arithmetic asked for.
        """
        if self.dtype == "float16" and self.found_device() == "cpu":
            raise InputError(
                "float16 was asked for, and the CPU does not train in it",
                where="dtype",
                remedy="Set --dtype auto, bfloat16 or float32.",
            )
        if self.dtype != "auto":
            return self.dtype
        import torch

        device = self.found_device()
        if device == "cuda":
            fast = torch.cuda.is_bf16_supported()
        else:
            capabilities = torch.cpu.get_capabilities() if device == "cpu" else {}
            fast = any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16"))
        return "bfloat16" if fast else "float32"


AcceleratorResource = dg.ResourceParam[Accelerator]


@dg.resource(required_resource_keys={"settings"}, description="The device and the arithmetic that the settings name.")
def accelerator_resource(context: dg.InitResourceContext) -> Accelerator:
    """The accelerator of the settings, those typed into the launchpad included."""
    settings = context.resources.settings
    return Accelerator(settings.compute.device, settings.compute.dtype)
