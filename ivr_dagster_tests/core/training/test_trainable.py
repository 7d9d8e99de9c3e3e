"""What fine-tuning trains: embeddings, edges or low-rank updates; the rest keeps its bits."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from ivr_dagster.core.tokens.byte_level import string_of
from ivr_dagster.core.training.sft import SftResult, Training, fine_tune
from ivr_dagster.core.training.sft_config import read_sft_config
from ivr_dagster.core.training.trainable import TRAINABLE
from ivr_dagster.errors import InputError
from ivr_dagster_tests.small_pipeline import tiny_validation

NEW = {7: string_of("abc"), 11: string_of("bc")}
SETTINGS: dict[str, Any] = {
    "num_train_epochs": 1,
    "per_device_train_batch_size": 4,
    "learning_rate": 5e-3,
    "save_steps": 4,
    "lora_rank": 2,
}


class Stopped(Exception):
    pass


def train(tiny: Path, output_dir: Path, model: Path | None = None, stop_at: int | None = None, **given: Any) -> Any:
    def stop(entry: dict[str, float]) -> None:
        if entry["step"] == stop_at:
            raise Stopped

    config = read_sft_config(None, **{**SETTINGS, "logging_steps": 1, **given})
    training = Training(
        model or tiny / "model",
        tiny / "blocks",
        output_dir,
        config,
        tiny / "tokenizer",
        "a",
        "cpu",
        "float32",
        NEW,
        tiny_validation(2),
    )
    return fine_tune(training, on_log=stop)


def tensors(result: SftResult) -> dict[str, torch.Tensor]:
    return load_file(result.final_model / "model.safetensors")


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """A GPT-2 with three layers."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=257, n_positions=32, n_embd=16, n_layer=3, n_head=2, resid_pdrop=0.1)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "deep")
    return tmp_path / "deep"


@pytest.mark.parametrize(
    ("trainable", "trains"),
    [
        ("embeddings", lambda name: "wte" in name),
        ("edges", lambda name: "wte" in name or ".h.0." in name or ".h.2." in name),
        ("lora", lambda name: "wte" in name or (".h." in name and "ln_" not in name and not name.endswith("bias"))),
        ("all", lambda name: True),
    ],
)
def test_exactly_the_chosen_parameters_change(
    tiny: Path, deep: Path, tmp_path: Path, trainable: str, trains: Callable[[str], bool]
) -> None:
    before = load_file(deep / "model.safetensors")
    after = tensors(train(tiny, tmp_path / "out", deep, trainable=trainable))
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if trains(name)}


def test_low_rank_updates_have_their_rank(tiny: Path, deep: Path, tmp_path: Path) -> None:
    before = load_file(deep / "model.safetensors")
    after = tensors(train(tiny, tmp_path / "out", deep, trainable="lora"))
    name = "transformer.h.1.mlp.c_fc.weight"
    singular = torch.linalg.svdvals((after[name] - before[name]).double())
    assert singular[1] > 100 * singular[2]


@pytest.mark.parametrize("trainable", ["edges", "lora"])
def test_interrupted_run_ends_with_the_bits_of_an_uninterrupted_one(tiny: Path, tmp_path: Path, trainable: str) -> None:
    undisturbed = train(tiny, tmp_path / "a", trainable=trainable, embedding_phase=0.2)
    with pytest.raises(Stopped):
        train(tiny, tmp_path / "b", stop_at=6, trainable=trainable, embedding_phase=0.2)
    resumed = train(tiny, tmp_path / "b", trainable=trainable, embedding_phase=0.2)
    assert resumed.resumed_from == 4
    again = train(tiny, tmp_path / "b", trainable=trainable, embedding_phase=0.2)
    assert again.resumed_from == undisturbed.steps
    for result in (resumed, again):
        assert all(torch.equal(each, tensors(result)[name]) for name, each in tensors(undisturbed).items())


def test_best_checkpoint_of_low_rank_updates_is_a_plain_model(tiny: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=256,
        eos_token_id=256,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    given = {"trainable": "lora", "load_best_model_at_end": True, "eval_steps": 4, "learning_rate": 0.05}
    result = train(tiny, tmp_path / "out", tmp_path / "llama", **given)
    saved = tensors(train(tiny, tmp_path / "out", tmp_path / "llama", **given))  # from its checkpoints
    assert saved.keys() == load_file(tmp_path / "llama/model.safetensors").keys()
    assert all(torch.equal(each, saved[name]) for name, each in tensors(result).items())
    AutoModelForCausalLM.from_pretrained(result.final_model)


def test_lora_without_its_package_is_rejected_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"trainable is 'lora', which needs the package peft: pip install"):
        read_sft_config(None, trainable="lora")


def test_unknown_choice_is_rejected_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=", ".join(TRAINABLE)):
        read_sft_config(None, trainable="head")
