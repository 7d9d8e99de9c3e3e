"""FLOPs of training, compared with manual calculations."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, TrainingArguments

from ivr_dagster.core.training.flops import Compute, compute_of, flops_per_token, peak_flops
from ivr_dagster.sample import SAMPLE_MODEL

# the sample's: 50,257 tokens and 512 places of 80 numbers; six layers, each of two norms (2 x 80), queries, keys and
# values (80 x 80 and 80, three times), their output (80 x 80 + 80) and 80 x 320 + 320 and 320 x 80 + 80; a last norm
PARAMETERS = 4_020_560 + 40_960 + 6 * (2 * 160 + 19_440 + 6_480 + 25_920 + 25_680) + 160
# 6 x 4,528,720 + 12 x 6 x 80 x 512
PER_TOKEN = 27_172_320 + 2_949_120


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(SAMPLE_MODEL))


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU by its name."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")


def arguments(folder: Path, **given: Any) -> Any:
    return TrainingArguments(output_dir=str(folder), use_cpu=True, **given)


class OnGpu:
    """Arguments of a training on a GPU."""

    device = torch.device("cuda", 0)
    n_gpu, world_size = 1, 1
    bf16 = fp16 = False
    tf32: bool | None = None

    def __init__(self, **given: Any) -> None:
        vars(self).update(given)


def test_sample_model_takes_30_million_flops_per_token(model: Any, tmp_path: Path) -> None:
    assert PARAMETERS == 4_528_720 == model.num_parameters()
    assert flops_per_token(PARAMETERS, PARAMETERS, 6, 80, 512) == PER_TOKEN == 30_121_440
    assert compute_of(model, 512, arguments(tmp_path)) == Compute(PER_TOKEN, None)


@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize(
    ("given", "peak"),
    [
        ({"bf16": True}, 989e12),
        ({"fp16": True}, 989e12),
        ({}, 67e12),
        ({"tf32": True}, 494.5e12),
        ({"bf16": True, "world_size": 4}, 4 * 989e12),
        ({"bf16": True, "n_gpu": 2}, 2 * 989e12),
    ],
)
def test_peak_is_that_of_all_devices_in_the_dtype_of_the_training(
    given: dict[str, Any], peak: float, model: Any
) -> None:
    computed = compute_of(model, 512, OnGpu(**given))  # type: ignore[arg-type]
    assert computed.peak == pytest.approx(peak)
    assert computed.figures(1e6)["mfu"] == pytest.approx(1e6 * 30_121_440 / peak)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA L40S", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)
def test_device_is_matched_by_its_full_name(name: str, peak: float | None) -> None:
    assert peak_flops(name, "bfloat16") == peak
