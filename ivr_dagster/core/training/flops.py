"""FLOPs of training per token, and their share of the peak of the devices (model FLOPs utilization, MFU)."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainingArguments

# by torch's device name: dense FLOPs per second in bfloat16 and float16 (accumulated in float32), and in float32
# without TF32, which reaches half of the former on all of these; from NVIDIA's datasheets. Partial devices (MIG) and
# variants with other clocks or fewer cores (PCIe, laptops) have other names.
_PEAKS = {
    r"NVIDIA H100 80GB HBM3": (989e12, 67e12),
    r"NVIDIA H200": (989e12, 67e12),
    r"NVIDIA A100(-SXM4-[48]0GB|-PCIE-40GB| 80GB PCIe)": (312e12, 19.5e12),
    r"NVIDIA L4": (121e12, 30.3e12),
    r"NVIDIA GeForce RTX 4090": (165e12, 82.6e12),
}


@dataclass(frozen=True)
class Compute:
    """FLOPs of a run.

    Attributes:
        per_token: FLOPs per token.
        peak: FLOPs per second of all its devices together; None if unknown.
    """

    per_token: float
    peak: float | None

    def figures(self, tokens_per_second: float) -> dict[str, float]:
        """`flops_per_second` and, if the peak is known, the share `mfu`."""
        achieved = self.per_token * tokens_per_second
        return {"flops_per_second": achieved, **({"mfu": achieved / self.peak} if self.peak else {})}


def flops_per_token(parameters: int, trained: int, layers: int, width: int, block_size: int) -> int:
    """FLOPs of training per token, forward and backward: 4N + 2M + 12LCT, which is 6N + 12LCT if all are trained.

    Recomputation to save memory does not count, parameters that are frozen for a while count as trained. Source: PaLM
    (arXiv:2204.02311), appendix B; a frozen parameter needs no gradient of itself.

    Args:
        parameters: number N of parameters, tied ones counted once.
        trained: number M of those that are trained.
        layers: number of attention layers.
        width: width of the residual stream, and of all heads together.
        block_size: tokens per sequence.
    """
    return 4 * parameters + 2 * trained + 12 * layers * width * block_size


def peak_flops(device: str, arithmetic: str) -> float | None:
    """Dense peak of a device in FLOPs per second; None if unknown.

    Args:
        device: torch's device name.
        arithmetic: bfloat16, float16, tf32 or float32.
    """
    for pattern, (half, single) in _PEAKS.items():
        if re.fullmatch(pattern, device):
            return {"bfloat16": half, "float16": half, "tf32": half / 2, "float32": single}[arithmetic]
    return None


def compute_of(model: "PreTrainedModel", block_size: int, arguments: "TrainingArguments") -> Compute:
    """FLOPs of training a model with these arguments on the devices of all processes, which are equal."""
    import torch

    config = model.config.get_text_config()
    sizes = [(each.numel(), each.requires_grad) for each in model.parameters()]
    parameters, trained = sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)
    per_token = flops_per_token(parameters, trained, config.num_hidden_layers, config.hidden_size, block_size)
    if arguments.device.type != "cuda":
        return Compute(per_token, None)
    half = "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else ""
    one = peak_flops(torch.cuda.get_device_name(arguments.device), half or ("tf32" if arguments.tf32 else "float32"))
    return Compute(per_token, one and one * arguments.world_size * max(1, arguments.n_gpu))
