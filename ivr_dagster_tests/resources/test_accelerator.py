"""Resolution of device and dtype."""

from typing import Any

import pytest
import torch

from ivr_dagster.errors import InputError
from ivr_dagster.resources.accelerator import Accelerator


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
        ({"avx2": True, "avx512_bf16": False}, "float32"),
        ({}, "float32"),
    ],
)
def test_a_cpu_trains_in_bfloat16_if_it_computes_in_it(
    capabilities: dict[str, Any], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert Accelerator("cpu").resolved_dtype() == dtype
    assert Accelerator("cpu", "float32").resolved_dtype() == "float32"


@pytest.mark.parametrize(("supported", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_a_gpu_is_found_and_asked_for_its_dtype(supported: bool, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    assert (Accelerator().resolved_device(), Accelerator().resolved_dtype()) == ("cuda", dtype)


def test_an_unavailable_device_or_dtype_is_rejected() -> None:
    missing = "mps" if not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(InputError, match=f"requested a {missing} device, found .*cpu"):
        Accelerator(missing).resolved_device()
    with pytest.raises(InputError, match="requested float16"):
        Accelerator("cpu", "float16").resolved_dtype()
