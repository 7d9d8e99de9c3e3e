"""Rows of new tokens, the embedding phase, and validation."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from ivr_dagster.core.tokens.byte_level import string_of
from ivr_dagster.core.training.sft import SftResult, Training, fine_tune
from ivr_dagster.core.training.sft_config import read_sft_config
from ivr_dagster_tests.small_pipeline import tiny_validation

END = 256
VALIDATION = tiny_validation(4)
NEW = {7: string_of("abc"), 11: string_of("bc"), 200: string_of("가나"), 201: string_of("나")}
SETTINGS: dict[str, Any] = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 5e-3,
    "logging_steps": 3,
    "save_steps": 5,
    "eval_steps": 5,
    "new_row_rate": 4.0,
    "shared_row_rate": 3.0,
}


class Stopped(Exception):
    pass


def train(
    tiny: Path,
    output_dir: Path,
    *,
    stop_at: int | None = None,
    on_log: Callable[[dict[str, float]], None] | None = None,
    **given: Any,
) -> SftResult:
    def stop(entry: dict[str, float]) -> None:
        if entry["step"] == stop_at and "loss" in entry:
            raise Stopped

    settings = {**SETTINGS, **given.pop("settings", {})}
    given = {"new_tokens": NEW, "fingerprint": "a", **given}
    config = read_sft_config(None, **settings)
    training = Training(tiny / "model", tiny / "blocks", output_dir, config, tiny / "tokenizer", **given)
    return fine_tune(training, on_log=on_log or stop)


def tensors(result: SftResult) -> dict[str, torch.Tensor]:
    return load_file(result.final_model / "model.safetensors")


def test_run_interrupted_three_times_ends_with_the_bits_of_an_uninterrupted_one(tiny: Path, tmp_path: Path) -> None:
    settings = {
        "embedding_phase": 0.3,
        "second_moment_floor": True,
        "load_best_model_at_end": True,
        "warmup_ratio": 0.2,
    }
    undisturbed = train(tiny, tmp_path / "a", validation=VALIDATION, settings=settings)
    for stop_at in (6, 12, 18):
        with pytest.raises(Stopped):
            train(tiny, tmp_path / "b", stop_at=stop_at, validation=VALIDATION, settings=settings)
    resumed = train(tiny, tmp_path / "b", validation=VALIDATION, settings=settings)
    assert resumed.resumed_from == 15
    assert (resumed.validation, resumed.loss_history) == (undisturbed.validation, undisturbed.loss_history)
    wanted = tensors(undisturbed)
    assert all(torch.equal(value, wanted[name]) for name, value in tensors(resumed).items())


def test_new_row_rate_scales_the_updates_of_new_rows_only(tiny: Path, tmp_path: Path) -> None:
    settings = {"max_steps": 1, "lr_scheduler_type": "constant", "warmup_steps": 0}
    rates = {"new_row_rate": 6.0, "shared_row_rate": 0.0}
    plain = tensors(train(tiny, tmp_path / "a", new_tokens=None, settings=settings))
    rated = tensors(train(tiny, tmp_path / "b", settings=settings | rates))
    before = load_file(tiny / "model" / "model.safetensors")
    name = next(name for name in before if name.endswith("wte.weight"))
    new, kept = sorted(NEW), [i for i in range(END + 1) if i not in NEW]
    assert torch.equal(rated[name][kept], plain[name][kept])
    moved, moved_plainly = (after[name][new] - before[name][new] for after in (rated, plain))
    assert torch.allclose(moved, 6 * moved_plainly, rtol=1e-3, atol=1e-5)
    assert all(torch.equal(rated[other], plain[other]) for other in rated if other != name)


def test_new_rows_share_updates_by_their_ngrams(tiny: Path, tmp_path: Path) -> None:
    # an id that never occurs gets the gradient of the softmax only; sharing moves it with the others
    settings = {"max_steps": 3}
    alone = tensors(train(tiny, tmp_path / "a", settings=settings | {"shared_row_rate": 0.0}))
    shared = tensors(train(tiny, tmp_path / "b", settings=settings))
    name = next(name for name in alone if name.endswith("wte.weight"))
    assert not torch.allclose(alone[name][sorted(NEW)], shared[name][sorted(NEW)], atol=1e-4)


def test_embedding_phase_trains_embeddings_only(tiny: Path, tmp_path: Path) -> None:
    before = load_file(tiny / "model" / "model.safetensors")
    settings = {"max_steps": 5, "embedding_phase": 0.99}
    after = tensors(train(tiny, tmp_path / "a", settings=settings))
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {name for name in after if name.endswith("wte.weight")}
    # a model without new tokens has no embedding phase
    vanilla = tensors(train(tiny, tmp_path / "b", new_tokens=None, settings=settings))
    assert {name for name in vanilla if torch.equal(vanilla[name], before[name])} == set()


def test_validation_is_in_bits_per_byte(tiny: Path, tmp_path: Path) -> None:
    result = train(tiny, tmp_path, validation=VALIDATION, settings={"max_steps": 5})
    assert [step for step, _ in result.validation] == [5]
    model: Any = AutoModelForCausalLM.from_pretrained(result.final_model).eval()
    nats = 0.0
    for text in VALIDATION.texts:
        ids = Tokenizer.from_file(str(tiny / "tokenizer" / "tokenizer.json")).encode(text).ids
        for number, token in enumerate(ids):
            start = 15 * max(0, math.ceil((number - 15) / 15))
            with torch.no_grad():
                logits = model(torch.tensor([[END, *ids[start:number]]])).logits[0, -1]
            nats -= float(logits.log_softmax(-1)[token])
    assert result.validation[0][1] == pytest.approx(nats / math.log(2) / (4 * 46), rel=1e-5)


def test_best_checkpoint_becomes_the_final_model(tiny: Path, tmp_path: Path) -> None:
    settings = {"load_best_model_at_end": True, "save_total_limit": 1, "learning_rate": 3e-2}
    result = train(tiny, tmp_path, validation=VALIDATION, settings=settings)
    assert result.best_step == min(result.validation, key=lambda entry: entry[1])[0] < result.steps
    best = load_file(tmp_path / f"checkpoint-{result.best_step}" / "model.safetensors")
    assert all(torch.equal(value, best[name]) for name, value in tensors(result).items())


def test_run_without_improvement_stops_early(tiny: Path, tmp_path: Path) -> None:
    settings = {"load_best_model_at_end": True, "learning_rate": 3e-2, "early_stopping_patience": 1}
    result = train(tiny, tmp_path, validation=VALIDATION, settings=settings)
    assert result.steps < 26
    assert result.validation[-1][1] > result.validation[-2][1]


def test_second_moment_floor_applies_without_new_tokens(tiny: Path, tmp_path: Path) -> None:
    floored, plain = (
        tensors(train(tiny, tmp_path / name, new_tokens=None, settings={"second_moment_floor": floor}))
        for name, floor in (("floored", True), ("plain", False))
    )
    begun = load_file(tiny / "model" / "model.safetensors")
    name = "transformer.wte.weight"
    moved, freely = ((each[name] - begun[name]).abs().mean() for each in (floored, plain))
    assert moved < 0.9 * freely
