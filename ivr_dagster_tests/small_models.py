"""Fixtures for tests with models small enough for one call per token."""

from collections.abc import Iterator
from typing import Any

import pytest

END = 256
CONTEXT = 16


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Several threads slow down such small models."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", params=["gpt2", "llama", "gemma2"])
def model(request: pytest.FixtureRequest) -> Any:
    """An untrained byte model with large weights: learned and rotary positions, and soft-capped logits."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": CONTEXT}
    more: dict[str, Any] = {
        "gpt2": {},
        "llama": {"intermediate_size": 24, "num_key_value_heads": 2},
        "gemma2": {"intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": 2.0},
    }
    config = AutoConfig.for_model(
        request.param,
        vocab_size=300,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=None,
        **sizes,
        **more[request.param],
    )
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    return model
