from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from ivr_dagster.core.embedding.calibrate import MIN_EXPLAINED, Calibration, calibrate_new_rows
from ivr_dagster.core.embedding.extract import extract_embeddings, replace_embeddings
from ivr_dagster.errors import InputError
from ivr_dagster_tests.core.embedding.conftest import gpt2, granite, llama

EOS, V, NEW = 0, 40, [30, 31, 32, 33]
MODELS = pytest.mark.parametrize("make", [gpt2, llama, granite])
TIED = pytest.mark.parametrize("tied", [True, False])


def model_of(make: Callable[[bool], Any], tied: bool) -> Any:
    """A model whose hidden states have a large common component, as those of trained models do."""
    model = make(tied).eval()
    with torch.no_grad():
        common = torch.randn(16, generator=torch.Generator().manual_seed(1))
        for parameter in model.parameters():
            if parameter.shape == (V, 16):
                parameter.mul_(5).add_(0.1 * common)
        if isinstance(model, GPT2LMHeadModel):
            model.transformer.ln_f.bias.add_(3 * common)
        else:
            for layer in model.model.layers:  # what differs between positions
                layer.mlp.down_proj.weight.mul_(0.1)
                layer.self_attn.o_proj.weight.mul_(0.1)
            model.model.embed_tokens.weight.add_(10 * common)
    return model


def documents(often: tuple[float, ...] = (30, 3, 1, 0), number: int = 60, seed: int = 3) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    weights = np.ones(V)
    weights[NEW] = often
    return [generator.choice(V, size=40, p=weights / weights.sum()) for _ in range(number)]


def frequencies(texts: list[np.ndarray]) -> np.ndarray:
    counts = np.bincount(np.concatenate(texts), minlength=V)
    return np.maximum(counts, 0.5)[NEW] / counts.sum()


def mean_probabilities(model: Any, texts: list[np.ndarray]) -> np.ndarray:
    """Of new tokens, from the model's own logits."""
    found = []
    for ids in texts:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[EOS, *ids[:-1]]])).logits[0]
        found.append(torch.softmax(logits.double(), -1).numpy())
    return np.concatenate(found).mean(axis=0)[NEW]


def calibrated(model: Any, texts: list[np.ndarray], **options: Any) -> Calibration:
    return calibrate_new_rows(
        model, extract_embeddings(model), NEW, texts, eos_id=EOS, length=40, positions=10**6, **options
    )


@MODELS
@TIED
@pytest.mark.parametrize("often", [(30, 3, 1, 0.0), (900, 90, 30, 20)])  # two fifths of the text, and nearly all of it
def test_calibration_makes_new_tokens_as_probable_as_frequent(
    make: Callable[[bool], Any], tied: bool, often: tuple[float, ...]
) -> None:
    model, texts = model_of(make, tied), documents(often)
    before = mean_probabilities(model, texts)
    replace_embeddings(model, calibrated(model, texts).tensors)
    far = np.abs(np.log(before / frequencies(texts))).max()
    found = mean_probabilities(model, texts)
    near = np.abs(np.log(found / frequencies(texts))).max()
    assert far > 1
    # tied rows are also inputs, so that hidden states change a little
    assert near < (0.3 * far if tied else 0.1)
    if not tied:
        assert found.sum() == pytest.approx(frequencies(texts).sum(), rel=0.01)


@pytest.mark.parametrize("texts, other, rel", [(60, 60, 0.15), (1, None, 0.1)], ids=["unseen text", "little text"])
def test_calibration_holds_on_unseen_and_on_little_text(texts: int, other: int | None, rel: float) -> None:
    model, seen = model_of(llama, tied=False), documents(number=texts)
    replace_embeddings(model, calibrated(model, seen).tensors)
    measured = documents(number=other, seed=4) if other else seen
    assert mean_probabilities(model, measured)[0] == pytest.approx(frequencies(measured)[0], rel=rel)


@MODELS
@TIED
def test_calibration_keeps_all_other_rows_bit_for_bit(make: Callable[[bool], Any], tied: bool) -> None:
    model = model_of(make, tied)
    before = extract_embeddings(model)
    seen: list[tuple[int, int]] = []
    calibration = calibrated(model, documents(), progress=lambda *counts: seen.append(counts))
    assert (seen[-1], calibration.tokens) == ((60 * 40, 60 * 40), 60 * 40)
    after = calibration.tensors
    kept = [i for i in range(V) if i not in NEW]
    head = "wte" if tied else "lm_head"
    assert after.keys() == before.keys()
    for name, rows in before.items():
        assert torch.equal(after[name][kept], rows[kept])
        assert torch.equal(after[name][NEW], rows[NEW]) == (name != head)


def test_calibration_changes_the_output_bias_if_there_is_one() -> None:
    model, texts = model_of(gpt2, tied=False), documents()
    model.lm_head = torch.nn.Linear(16, V)
    before = extract_embeddings(model)
    after = calibrated(model, texts).tensors
    assert torch.equal(after["lm_head"], before["lm_head"])
    replace_embeddings(model, after)
    assert mean_probabilities(model, texts) == pytest.approx(frequencies(texts), rel=0.05)


def test_calibration_is_not_applied_without_a_common_hidden_component() -> None:
    torch.manual_seed(0)
    model = gpt2(tied=True)  # its final norm removes the mean, and an untrained model has no bias
    before = extract_embeddings(model)
    found = calibrate_new_rows(model, before, NEW, documents(), eos_id=EOS, length=40)
    assert not found.is_applied
    assert found.explained < MIN_EXPLAINED
    assert all(torch.equal(found.tensors[name], rows) for name, rows in before.items())
    assert calibrated(model_of(gpt2, tied=True), documents()).is_applied


def test_calibration_keeps_the_dtype_and_depends_on_the_seed() -> None:
    def rows(seed: int) -> torch.Tensor:
        model = model_of(llama, tied=True)
        tensors = {name: each.half() for name, each in extract_embeddings(model).items()}
        options: dict[str, Any] = {"eos_id": EOS, "length": 40, "positions": 200, "seed": seed}
        return calibrate_new_rows(model, tensors, NEW, documents(), **options).tensors["wte"]

    assert rows(1).dtype == torch.float16
    assert torch.equal(rows(1), rows(1))
    assert not torch.equal(rows(1), rows(2))


def test_calibration_rejects_empty_text() -> None:
    model = model_of(llama, tied=True)
    with pytest.raises(InputError, match="no text to calibrate"):
        calibrate_new_rows(model, extract_embeddings(model), NEW, [np.array([])], eos_id=EOS, length=40)
