"""The device that trains and evaluates."""

import dagster as dg
from pydantic import Field

from ivr_dagster.core.errors import InputError

# one training or evaluation at a time on a device; the limit stands in dagster.yaml
POOL = "accelerator"


class AcceleratorResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Device and arithmetic; torch is imported when an asset first asks."""

    device: str = Field("auto", description="auto (cuda, else mps, else cpu), cpu, cuda or mps.")
    dtype: str = Field(
        "auto", description="auto (bfloat16 on cuda where it has it, else float32), float32, bfloat16 or float16."
    )

    def resolved_device(self) -> str:
        """cpu, cuda or mps.

        Raises:
            InputError: the device asked for is not there.
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
        """float32, bfloat16 or float16: the arithmetic of training, its weights stay in float32."""
        if self.dtype != "auto":
            return self.dtype
        import torch

        return "bfloat16" if self.resolved_device() == "cuda" and torch.cuda.is_bf16_supported() else "float32"
