"""Tensors through safetensors, bit for bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ivr_dagster.core.embedding.fit import FittedEmbeddings
from ivr_dagster.core.model.folder import InitializationCompute
from ivr_dagster.storage.content_hash import content_hash


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_are_read_back_bit_for_bit(
    dtype: torch.dtype, materialize: Callable[..., None], load: Callable[..., Any]
) -> None:
    size = torch.empty(0, dtype=dtype).element_size()
    noise = torch.randint(0, 256, (7, 4 * size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tensors = {"wte": noise.view(dtype), "lm_head": noise.view(dtype).T, "lm_head_bias": noise.view(dtype)[:, 0]}
    materialize("original_embeddings", "tensors_io", lambda: tensors)
    back = load("original_embeddings", "tensors_io")
    assert {name: (rows.dtype, rows.shape) for name, rows in back.items()} == {
        name: (rows.dtype, rows.shape) for name, rows in tensors.items()
    }
    assert content_hash(back) == content_hash(tensors)  # of bits, so that NaNs count


def test_fitted_embeddings_keep_what_was_computed(materialize: Callable[..., None], load: Callable[..., Any]) -> None:
    fitted = FittedEmbeddings({"wte": torch.ones(3, 2)}, InitializationCompute(1, 2, 3))
    materialize("fitted_embeddings", "fitted_embeddings_io", lambda: fitted)
    back = load("fitted_embeddings", "fitted_embeddings_io")
    assert back.compute == fitted.compute
    assert content_hash(back.tensors) == content_hash(fitted.tensors)
