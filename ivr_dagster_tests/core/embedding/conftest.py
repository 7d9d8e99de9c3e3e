"""Causal LMs with 24 tokens, tied and untied, and their folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ivr_dagster_tests.small_models import one_thread  # noqa: F401

VOCABULARY = 24
KINDS = ["gpt2 tied", "gpt2 untied", "llama tied", "llama untied", "phi with a bias"]


def _build(kind: str, seed: int = 3, vocabulary: int = VOCABULARY) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    name, _, rest = kind.partition(" ")
    torch.manual_seed(seed)
    more = {} if name == "gpt2" else {"intermediate_size": 24, "num_key_value_heads": 2}
    config = AutoConfig.for_model(
        name,
        vocab_size=vocabulary,
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


@pytest.fixture(scope="session")
def build() -> Callable[..., Any]:
    """`build(kind, seed=3, vocabulary=24)`: an untrained model."""
    return _build


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Architecture and tying; only Phi has an output bias."""
    return str(request.param)


@pytest.fixture
def model(kind: str) -> Any:
    """An untrained model of `kind`."""
    return _build(kind)


@pytest.fixture(params=["one file", "shards"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], Path]:
    """`saved(model)`: its folder, weights in one file or in several."""

    def save(model: Any) -> Path:
        size = "5GB" if request.param == "one file" else "1KB"
        model.save_pretrained(tmp_path / "base", max_shard_size=size)
        assert (tmp_path / "base" / "model.safetensors").is_file() == (request.param == "one file")
        return tmp_path / "base"

    return save


SIZE = {"vocab_size": 40, "bos_token_id": 0, "eos_token_id": 0}
LLAMA = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def gpt2(tied: bool) -> Any:
    """An untrained GPT-2 with 40 tokens and 16 dimensions."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**SIZE, n_positions=64, n_embd=16, n_layer=2, n_head=2, tie_word_embeddings=tied))


def llama(tied: bool) -> Any:
    """An untrained Llama of the same size."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZE, **LLAMA, max_position_embeddings=64, tie_word_embeddings=tied))


def granite(tied: bool) -> Any:
    """An untrained Granite of the same size, which scales embeddings and logits."""
    import torch
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    scales = {"logits_scaling": 0.25, "embedding_multiplier": 3.0}
    return GraniteForCausalLM(GraniteConfig(**SIZE, **LLAMA, **scales, tie_word_embeddings=tied))
