from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ivr_dagster.core.embedding import token_distillation
from ivr_dagster.core.embedding.extract import extract_embeddings
from ivr_dagster.core.embedding.token_distillation import (
    DistillationCheckpoint,
    DistillationOptions,
    RowObjective,
    cut_snippets,
    fit_new_rows,
)
from ivr_dagster.errors import InputError
from ivr_dagster_tests.core.embedding.conftest import gpt2, granite, llama

EOS, V = 0, 40
CONSTITUENTS = {30: [5, 6], 31: [7, 8, 9], 32: [5, 6, 7]}
STRINGS = {30: "ab", 31: "cde", 32: "abc"}


def initial_of(base: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    initial = {name: rows.clone() for name, rows in base.items()}
    for rows in initial.values():
        for token, parts in CONSTITUENTS.items():
            rows[token] = rows[parts].mean(dim=0)
    return initial


def documents(seed: int = 1) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.choice([1, 2, 5, 30, 31, 32], size=generator.integers(5, 40)).tolist() for _ in range(12)]


def snippets(length: int = 24) -> list[token_distillation.Snippet]:
    return list(cut_snippets(documents(), CONSTITUENTS, eos_id=EOS, length=length))


def test_a_snippet_has_the_same_text_under_both_tokenizers() -> None:
    snippet, *more = cut_snippets([[1, 30, 2, 31]], CONSTITUENTS, eos_id=EOS, length=99)
    assert (snippet.ids.tolist(), snippet.base_ids.tolist()) == ([0, 1, 30, 2, 31], [0, 1, 5, 6, 2, 7, 8, 9])
    assert snippet.ends.tolist() == [0, 1, 3, 4, 7]
    assert not more


@pytest.mark.parametrize("length", [2, 5, 17])
def test_snippets_lose_no_token_and_respect_their_length(length: int) -> None:
    cut = list(cut_snippets(documents(), CONSTITUENTS, eos_id=EOS, length=length))
    joined = [token for snippet in cut for token in snippet.ids[1:].tolist()]
    assert joined == [token for document in documents() for token in document]
    assert all(len(snippet.base_ids) <= length or len(snippet.ids) == 2 for snippet in cut)


# Llama's norm always computes in float32
@pytest.mark.parametrize(("make", "size", "tolerance"), [(gpt2, 1e-5, 1e-6), (llama, 3e-3, 3e-3)])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("hidden_weight", [0.0, 2.0])
def test_the_gradient_equals_finite_differences(
    make: Callable[[bool], Any], size: float, tolerance: float, tied: bool, hidden_weight: float
) -> None:
    model = make(tied).double()
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(20)
    base = extract_embeddings(model)
    options = DistillationOptions(hidden_weight=hidden_weight, dtype="float64")
    objective = RowObjective(model, base, initial_of(base), list(CONSTITUENTS), options)
    batch = snippets()[:3]
    objective(batch).backward()
    generator = torch.Generator().manual_seed(3)
    assert set(objective.rows) == ({"wte"} if tied else {"wte", "lm_head"})
    for rows in objective.rows.values():
        direction = torch.randn(rows.shape, generator=generator, dtype=torch.float64)
        values = []
        for step in (size, -size):
            with torch.no_grad():
                rows += step * direction
                values.append(objective(batch).item())
                rows -= step * direction
        assert float((rows.grad * direction).sum()) == pytest.approx(
            (values[0] - values[1]) / (2 * size), rel=tolerance
        )


@pytest.mark.parametrize("make", [llama, granite])
@pytest.mark.parametrize("tied", [True, False])
def test_the_likelihood_equals_the_loss_of_the_model(make: Callable[[bool], Any], tied: bool) -> None:
    model = make(tied)
    base = extract_embeddings(model)
    initial = initial_of(base)
    objective = RowObjective(model, base, initial, list(CONSTITUENTS), DistillationOptions(hidden_weight=0.0))
    snippet = snippets()[0]
    adapted = make(tied)
    with torch.no_grad():
        adapted.get_input_embeddings().weight.copy_(initial["wte"])
        adapted.get_output_embeddings().weight.copy_(initial.get("lm_head", initial["wte"]))
    ids = torch.from_numpy(snippet.ids)[None]
    assert objective([snippet]).item() == pytest.approx(adapted(ids, labels=ids).loss.item(), rel=1e-5)


def test_a_row_that_reproduces_the_teacher_has_no_distance() -> None:
    # a token with one constituent and the same row
    model = gpt2(tied=True)
    base = extract_embeddings(model)
    initial = {"wte": base["wte"].clone()}
    initial["wte"][30] = base["wte"][5]
    same = list(cut_snippets([[1, 30, 2, 30]], {30: [5]}, eos_id=EOS, length=24))
    plain, both = (
        RowObjective(model, base, initial, [30], DistillationOptions(hidden_weight=weight))(same).item()
        for weight in (0.0, 1000.0)
    )
    assert both == pytest.approx(plain, abs=1e-6)


def fit(
    *, checkpoint: DistillationCheckpoint | None = None, progress: Any = None, **options: Any
) -> token_distillation.FittedRows:
    model = gpt2(tied=True)
    base = extract_embeddings(model)
    changed = DistillationOptions(**{"epochs": 3, "learning_rate": 0.02} | options)
    return fit_new_rows(
        model, base, initial_of(base), STRINGS, snippets(), changed, checkpoint=checkpoint, progress=progress
    )


def test_training_lowers_the_loss_and_keeps_kept_rows_bitwise() -> None:
    fitted = fit(hidden_weight=1.0)
    losses = [loss for _, loss in fitted.losses]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.05
    initial = initial_of(extract_embeddings(gpt2(tied=True)))
    kept = [i for i in range(V) if i not in CONSTITUENTS]
    assert torch.equal(fitted.tensors["wte"][kept], initial["wte"][kept])
    assert not torch.equal(fitted.tensors["wte"][30], initial["wte"][30])
    assert fitted.base_tokens > fitted.tokens == 3 * sum(map(len, documents()))


def test_new_rows_are_at_most_as_long_as_the_longest_kept_row() -> None:
    rows = fit(learning_rate=5.0).tensors["wte"].norm(dim=1)
    kept = [i for i in range(V) if i not in CONSTITUENTS]
    assert rows[sorted(CONSTITUENTS)].max() <= rows[kept].max() * (1 + 1e-5)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_distillation, "CHECKPOINT_STEPS", 3)
    checkpoint = DistillationCheckpoint(tmp_path / "fit.safetensors", "a")

    class Stopped(Exception):
        pass

    def stop(done: int, steps: int, loss: float) -> None:
        if done == 7:
            raise Stopped

    with pytest.raises(Stopped):
        fit(checkpoint=checkpoint, progress=stop)
    resumed, uninterrupted = fit(checkpoint=checkpoint), fit()
    assert resumed.resumed_from == 6
    assert torch.equal(resumed.tensors["wte"], uninterrupted.tensors["wte"])
    assert resumed.losses == uninterrupted.losses
    assert fit(checkpoint=replace(checkpoint, run="another")).resumed_from is None


def test_a_damaged_checkpoint_is_ignored(tmp_path: Path) -> None:
    checkpoint = DistillationCheckpoint(tmp_path / "fit.safetensors", "a")
    checkpoint.file.write_bytes(b"half a file")
    assert fit(checkpoint=checkpoint, epochs=1).resumed_from is None


def test_empty_text_is_rejected() -> None:
    model = gpt2(tied=True)
    base = extract_embeddings(model)
    with pytest.raises(InputError, match="no text to train new rows on"):
        fit_new_rows(model, base, initial_of(base), STRINGS, [], DistillationOptions())
