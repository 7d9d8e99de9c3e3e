"""Device and arithmetic that `auto` comes to."""

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
def test_a_processor_trains_in_bfloat16_where_it_computes_with_it(
    capabilities: dict[str, Any], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert Accelerator("cpu").resolved_dtype() == dtype
    assert Accelerator("cpu", "float32").resolved_dtype() == "float32"


def test_a_gpu_is_asked_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for supported, dtype in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda supported=supported: supported)
        assert Accelerator().resolved_device() == "cuda"
        assert Accelerator().resolved_dtype() == dtype


def test_a_device_that_is_not_there_is_named_with_those_that_are() -> None:
    missing = "mps" if not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(InputError, match=f"no {missing} device here, found .*cpu"):
        Accelerator(missing).resolved_device()


def test_arithmetic_that_the_device_does_not_train_in_is_refused() -> None:
    with pytest.raises(InputError, match="float16 was asked for, and the CPU"):
        Accelerator("cpu", "float16").resolved_dtype()
