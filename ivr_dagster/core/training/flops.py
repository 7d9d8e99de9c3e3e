"""What training computes: FLOPs a token, and the share that they are of what the devices could do (MFU)."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainingArguments

# by torch's name of a device: dense FLOPs a second in bfloat16 and float16 (accumulated in float32), and in float32
# without TF32, which has half of the former on all of these; NVIDIA's datasheets. A part of a device (MIG) and what
# has another clock or fewer cores (PCIe, laptops) has another name, and other figures.
_PEAKS = {
    r"NVIDIA H100 80GB HBM3": (989e12, 67e12),
    r"NVIDIA H200": (989e12, 67e12),
    r"NVIDIA A100(-SXM4-[48]0GB|-PCIE-40GB| 80GB PCIe)": (312e12, 19.5e12),
    r"NVIDIA L4": (121e12, 30.3e12),
    r"NVIDIA GeForce RTX 4090": (165e12, 82.6e12),
}


@dataclass(frozen=True)
class Compute:
    """What a run computes, and on what.

    Attributes:
        per_token: FLOPs.
        peak: FLOPs a second that all its devices together could do, None where it is not known.
    """

    per_token: float
    peak: float | None

    def figures(self, tokens_per_second: float) -> dict[str, float]:
        """`flops_per_second` and, where the peak is known, `mfu`, a share."""
        achieved = self.per_token * tokens_per_second
        return {"flops_per_second": achieved, **({"mfu": achieved / self.peak} if self.peak else {})}


def flops_per_token(parameters: int, layers: int, width: int, block_size: int) -> int:
    """FLOPs that a token takes in training, forward and backward: 6N + 12LCT.

    What is computed twice to save memory is left out, and what is not trained for a while is not. PaLM
    (arXiv:2204.02311), appendix B.

    Args:
        parameters: all of the model's, those that two matrices share counted once.
        layers: blocks of attention.
        width: of the residual stream, which all heads together have too.
        block_size: tokens that attend to each other.
    """
    return 6 * parameters + 12 * layers * width * block_size


def peak_flops(device: str, arithmetic: str) -> float | None:
    """Dense peak of a device, FLOPs a second; None where it is not known.

    Args:
        device: torch's name of it.
        arithmetic: bfloat16, float16, tf32 or float32.
    """
    for pattern, (half, single) in _PEAKS.items():
        if re.fullmatch(pattern, device):
            return {"bfloat16": half, "float16": half, "tf32": half / 2, "float32": single}[arithmetic]
    return None


def compute_of(model: "PreTrainedModel", block_size: int, arguments: "TrainingArguments") -> Compute:
    """What training the model computes with these arguments, on the devices of all processes, which are alike."""
    import torch

    config = model.config.get_text_config()
    per_token = flops_per_token(
        sum(each.numel() for each in model.parameters()), config.num_hidden_layers, config.hidden_size, block_size
    )
    if arguments.device.type != "cuda":
        return Compute(per_token, None)
    half = "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else ""
    one = peak_flops(torch.cuda.get_device_name(arguments.device), half or ("tf32" if arguments.tf32 else "float32"))
    return Compute(per_token, one and one * arguments.world_size * max(1, arguments.n_gpu))
