from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM

from ivr_dagster.core.embedding.calibrate import calibrate_new_rows
from ivr_dagster.core.embedding.extract import extract_embeddings, replace_embeddings
from ivr_dagster.core.errors import InputError

EOS, V, NEW = 0, 40, [30, 31, 32, 33]
SIZE = {"vocab_size": V, "bos_token_id": 0, "eos_token_id": 0}
LLAMA = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def gpt2(tied: bool) -> Any:
    return GPT2LMHeadModel(GPT2Config(**SIZE, n_positions=64, n_embd=16, n_layer=2, n_head=2, tie_word_embeddings=tied))


def llama(tied: bool) -> Any:
    return LlamaForCausalLM(LlamaConfig(**SIZE, **LLAMA, max_position_embeddings=64, tie_word_embeddings=tied))


def granite(tied: bool) -> Any:
    config = GraniteConfig(
        **SIZE,
        **LLAMA,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        logits_scaling=0.25,
        embedding_multiplier=3,
    )
    return GraniteForCausalLM(config)


MODELS = pytest.mark.parametrize("make", [gpt2, llama, granite])
TIED = pytest.mark.parametrize("tied", [True, False])


def model_of(make: Callable[[bool], Any], tied: bool) -> Any:
    """A model whose hidden states have a large common part, as those of trained models have."""
    torch.manual_seed(0)
    model = make(tied).eval()
    with torch.no_grad():
        common = torch.randn(16, generator=torch.Generator().manual_seed(1))
        for parameter in model.parameters():
            if parameter.shape == (V, 16):
                parameter.mul_(5).add_(0.1 * common)
        if isinstance(model, GPT2LMHeadModel):
            model.transformer.ln_f.bias.add_(3 * common)
        else:
            for layer in model.model.layers:  # what is written to all positions alike
                layer.mlp.down_proj.weight.mul_(0.1)
                layer.self_attn.o_proj.weight.mul_(0.1)
            model.model.embed_tokens.weight.add_(10 * common)
    return model


def documents() -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    often = np.ones(V)
    often[NEW] = [30, 3, 1, 0]
    return [generator.choice(V, size=40, p=often / often.sum()) for _ in range(60)]


def mean_probabilities(model: Any) -> np.ndarray:
    """By the whole model's own logits, document by document."""
    found = []
    for ids in documents():
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[EOS, *ids[:-1]]])).logits[0]
        found.append(torch.softmax(logits.double(), -1).numpy())
    return np.concatenate(found).mean(axis=0)


def calibrated(model: Any, **options: Any) -> dict[str, torch.Tensor]:
    return calibrate_new_rows(
        model, extract_embeddings(model), NEW, documents(), eos_id=EOS, length=40, positions=10**6, **options
    )


@MODELS
@TIED
def test_new_tokens_become_as_probable_as_they_are_frequent(make: Callable[[bool], Any], tied: bool) -> None:
    model = model_of(make, tied)
    before = mean_probabilities(model)[NEW]
    replace_embeddings(model, calibrated(model))
    counts = np.bincount(np.concatenate(documents()), minlength=V) + 0.5
    frequencies = (counts / counts.sum())[NEW]
    far = np.abs(np.log(before / frequencies)).max()
    near = np.abs(np.log(mean_probabilities(model)[NEW] / frequencies)).max()
    assert far > 1
    # tied rows are read, too: then hidden states move a little, and with them what was averaged over
    assert near < (0.25 * far if tied else 0.1)


@MODELS
@TIED
def test_all_other_rows_stay_bit_for_bit(make: Callable[[bool], Any], tied: bool) -> None:
    model = model_of(make, tied)
    before = extract_embeddings(model)
    after = calibrated(model)
    kept = [i for i in range(V) if i not in NEW]
    head = "wte" if tied else "lm_head"
    assert after.keys() == before.keys()
    for name, rows in before.items():
        assert torch.equal(after[name][kept], rows[kept])
        assert torch.equal(after[name][NEW], rows[NEW]) == (name != head)


def test_a_bias_is_moved_where_the_model_has_one() -> None:
    model = model_of(gpt2, tied=False)
    model.lm_head = torch.nn.Linear(16, V)
    before = extract_embeddings(model)
    after = calibrated(model)
    assert torch.equal(after["lm_head"], before["lm_head"])
    replace_embeddings(model, after)
    counts = np.bincount(np.concatenate(documents()), minlength=V) + 0.5
    assert mean_probabilities(model)[NEW] == pytest.approx((counts / counts.sum())[NEW], rel=0.05)


def test_the_dtype_stays_and_the_seed_decides() -> None:
    def rows(seed: int) -> torch.Tensor:
        model = model_of(llama, tied=True)
        tensors = {name: each.half() for name, each in extract_embeddings(model).items()}
        return calibrate_new_rows(
            model, tensors, NEW, documents(), eos_id=EOS, length=40, positions=200, seed=seed
        )["wte"]  # fmt: skip

    assert rows(1).dtype == torch.float16
    assert torch.equal(rows(1), rows(1))
    assert not torch.equal(rows(1), rows(2))


def test_progress_ends_at_what_there_was_to_read() -> None:
    told: list[tuple[int, int]] = []
    calibrated(model_of(llama, tied=True), progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (60 * 40, 60 * 40)


def test_no_text_is_refused() -> None:
    model = model_of(llama, tied=True)
    with pytest.raises(InputError, match="no text to calibrate"):
        calibrate_new_rows(model, extract_embeddings(model), NEW, [np.array([])], eos_id=EOS, length=40)
