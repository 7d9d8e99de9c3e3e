"""Causal LMs of 24 tokens, tied and untied."""

from collections.abc import Iterator
from typing import Any

import pytest

VOCABULARY = 24


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on several threads, and much slower beside other work."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["gpt2 tied", "gpt2 untied", "llama tied", "llama untied", "phi with a bias"])
def model(request: pytest.FixtureRequest) -> Any:
    """An untrained model; only Phi's output projection has a bias."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, _, rest = request.param.partition(" ")
    torch.manual_seed(3)
    more = {} if kind == "gpt2" else {"intermediate_size": 24, "num_key_value_heads": 2}
    config = AutoConfig.for_model(
        kind,
        vocab_size=VOCABULARY,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        tie_word_embeddings=rest == "tied",
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
        **more,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model
