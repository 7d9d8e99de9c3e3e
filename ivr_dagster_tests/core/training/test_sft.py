import json
import math
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ivr_dagster.core.training.blocks import read_blocks, write_blocks
from ivr_dagster.core.training.sft import SftResult, Training, TrainingDivergedError, fine_tune
from ivr_dagster.core.training.sft_config import read_sft_config
from ivr_dagster.errors import InputError

# 50 blocks, 4 a step: 13 steps an epoch, the last of 2 blocks; checkpoints fall inside epochs
SETTINGS: dict[str, Any] = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 3,
    "save_steps": 5,
}


class Stopped(Exception):
    pass


def train(
    tiny: Path,
    output_dir: Path,
    *,
    stop_at: int | None = None,
    on_log: Callable[[dict[str, float]], None] | None = None,
    final_dir: Path | None = None,
    **arguments: Any,
) -> SftResult:
    def stop(progress: dict[str, float]) -> None:
        if progress["step"] == stop_at:
            raise Stopped

    settings = {**SETTINGS, **arguments.pop("settings", {})}
    arguments = {
        "model_dir": tiny / "model",
        "tokenizer_dir": tiny / "tokenizer",
        "blocks": tiny / "blocks",
        "fingerprint": "a",
        **arguments,
    }
    training = Training(output_dir=output_dir, config=read_sft_config(None, **settings), **arguments)
    return fine_tune(training, on_log=on_log or stop, final_dir=final_dir)


def checkpoints(output_dir: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in output_dir.glob("checkpoint-*"))


def weights(result: SftResult) -> bytes:
    return (result.final_model / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> SftResult:
    return train(tiny, tmp_path_factory.mktemp("undisturbed"))


def test_run_takes_every_step_and_counts_every_token(undisturbed: SftResult) -> None:
    assert undisturbed.steps == 26
    assert undisturbed.tokens == 2 * 50 * 16
    assert undisturbed.resumed_from is None
    assert 0 < undisturbed.tokens / undisturbed.seconds < undisturbed.tokens_per_second
    # 257 tokens and 32 places of 16 numbers, two layers of 3,280, a norm; blocks of 16
    per_token = 6 * (257 * 16 + 32 * 16 + 2 * 3_280 + 32) + 12 * 2 * 16 * 16
    assert undisturbed.flops_per_second == pytest.approx(per_token * undisturbed.tokens_per_second)
    assert undisturbed.mfu is None
    assert [step for step, _ in undisturbed.loss_history] == [3, 5, 6, 9, 10, 12, 15, 18, 20, 21, 24, 25, 26]


def test_train_loss_is_the_mean_over_all_steps(tiny: Path, tmp_path: Path, undisturbed: SftResult) -> None:
    single = train(tiny, tmp_path, settings={"logging_steps": 1})
    assert undisturbed.train_loss == pytest.approx(np.mean([loss for _, loss in single.loss_history]))


def test_loss_is_the_mean_over_predictions_and_every_token_is_a_label(tiny: Path, tmp_path: Path) -> None:
    import torch
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(tiny / "model", attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
    model.save_pretrained(tmp_path / "model")
    settings = {"max_steps": 1, "per_device_train_batch_size": 50, "logging_steps": 1}
    result = train(tiny, tmp_path / "run", model_dir=tmp_path / "model", settings=settings)
    ids = torch.from_numpy(read_blocks(tiny / "blocks")["input_ids"][:])
    with torch.no_grad():
        log_probabilities = model(ids).logits[:, :-1].log_softmax(-1)
    wanted = -log_probabilities.gather(-1, ids[:, 1:, None]).mean().item()
    assert result.train_loss == pytest.approx(wanted, rel=1e-5)


def test_interrupted_run_resumes_to_the_same_bits(tiny: Path, tmp_path: Path, undisturbed: SftResult) -> None:
    for stop_at in (12, 18):
        with pytest.raises(Stopped):
            train(tiny, tmp_path, stop_at=stop_at)
    result = train(tiny, tmp_path)
    assert result.resumed_from == 15
    assert weights(result) == weights(undisturbed)
    assert result.loss_history == undisturbed.loss_history
    assert (result.steps, result.tokens, result.train_loss) == (26, undisturbed.tokens, undisturbed.train_loss)


@pytest.mark.slow
def test_run_killed_while_saving_resumes_from_the_previous_checkpoint(
    tiny: Path, tmp_path: Path, undisturbed: SftResult
) -> None:
    script = """
import os, signal, sys, torch
from pathlib import Path
from ivr_dagster.core.training.sft import Training, fine_tune
from ivr_dagster.core.training.sft_config import read_sft_config

tiny, output_dir = map(Path, sys.argv[1:3])
torch.set_num_threads(1)
save = torch.save

def killed(value, path, *rest, **more):
    if "checkpoint-20" in str(path) and "rng_state" in str(path):
        os.kill(os.getpid(), signal.SIGKILL)
    save(value, path, *rest, **more)

torch.save = killed
config = read_sft_config(None, **eval(sys.argv[3]))
fine_tune(Training(tiny / "model", tiny / "blocks", output_dir, config, tiny / "tokenizer", "a"))
"""
    done = subprocess.run([sys.executable, "-c", script, tiny, tmp_path, repr(SETTINGS)], check=False, timeout=120)
    assert done.returncode == -9
    half = tmp_path / "checkpoint-20"
    assert (half / "model.safetensors").exists()
    assert not (half / "complete.json").exists()
    result = train(tiny, tmp_path)
    assert result.resumed_from == 15
    assert weights(result) == weights(undisturbed)


def test_checkpoint_of_another_run_is_discarded(tiny: Path, tmp_path: Path, undisturbed: SftResult) -> None:
    with pytest.raises(Stopped):
        train(tiny, tmp_path, stop_at=12, fingerprint="another")
    assert checkpoints(tmp_path) == [5, 10]
    result = train(tiny, tmp_path)
    assert result.resumed_from is None
    assert weights(result) == weights(undisturbed)
    assert len(list((tmp_path / "logs").iterdir())) == 1


def test_finished_run_rewrites_its_model_without_another_step(tiny: Path, tmp_path: Path) -> None:
    settings = {"max_steps": 7}
    first = train(tiny, tmp_path, settings=settings)
    before = weights(first)
    (first.final_model / "model.safetensors").write_bytes(b"")
    again = train(tiny, tmp_path, settings=settings)
    assert (again.resumed_from, again.steps, again.tokens_per_second) == (7, 7, 0)
    assert weights(again) == before
    assert again.loss_history == first.loss_history


def test_save_total_limit_holds_and_one_checkpoint_is_always_complete(tiny: Path, tmp_path: Path) -> None:
    whole: list[int] = []

    def on_log(_: dict[str, float]) -> None:
        whole.append(len(list(tmp_path.glob("checkpoint-*/complete.json"))))

    train(tiny, tmp_path, on_log=on_log, settings={"save_total_limit": 1})
    assert checkpoints(tmp_path) == [26]
    assert set(whole[whole.index(1) :]) == {1}


def test_finished_run_removes_checkpoints_that_a_killed_one_left(tiny: Path, tmp_path: Path) -> None:
    settings = {"max_steps": 12, "save_total_limit": 1}
    train(tiny, tmp_path, settings=settings)
    assert checkpoints(tmp_path) == [12]
    for step in (5, 10):
        shutil.copytree(tmp_path / "checkpoint-12", tmp_path / f"checkpoint-{step}")
    assert train(tiny, tmp_path, settings=settings).resumed_from == 12
    assert checkpoints(tmp_path) == [12]


def test_pickle_in_a_checkpoint_is_rejected_and_not_executed(tiny: Path, tmp_path: Path) -> None:
    class Planted:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "it ran",)

    with pytest.raises(Stopped):
        train(tiny, tmp_path, stop_at=6)
    (tmp_path / "checkpoint-5" / "optimizer.pt").write_bytes(pickle.dumps(Planted(), protocol=2))
    with pytest.raises(pickle.UnpicklingError):
        train(tiny, tmp_path)
    assert not (tmp_path / "it ran").exists()


def test_nan_loss_stops_the_run_and_is_not_saved(tiny: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    with pytest.raises(TrainingDivergedError, match=r"the (loss|grad_norm) is (nan|inf) at step \d+ of 26"):
        train(tiny, tmp_path, settings={"learning_rate": 1e38, "warmup_steps": 6, "max_grad_norm": 0})
    assert not (tmp_path / "final_model").exists()
    for checkpoint in tmp_path.glob("checkpoint-*"):
        assert all(np.isfinite(tensor).all() for tensor in load_file(checkpoint / "model.safetensors").values())


def test_progress_is_reported_and_nothing_is_printed(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[dict[str, float]] = []
    with pytest.raises(Stopped):
        train(tiny, tmp_path, stop_at=6)
    train(tiny, tmp_path, on_log=seen.append)
    assert capfd.readouterr() == ("", "")
    keys = {"step", "max_steps", "loss", "learning_rate", "tokens_per_second", "flops_per_second", "seconds_left"}
    assert all(set(progress) == keys and all(map(math.isfinite, progress.values())) for progress in seen)
    assert (seen[-1]["step"], seen[-1]["max_steps"], seen[-1]["seconds_left"]) == (26, 26, 0)


def test_final_model_has_the_tokenizer_and_the_dtype_of_the_initial_one(tiny: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

    GPT2LMHeadModel.from_pretrained(tiny / "model", dtype=torch.bfloat16).save_pretrained(tmp_path / "model")
    final = tmp_path / "elsewhere" / "final"
    result = train(tiny, tmp_path / "run", model_dir=tmp_path / "model", final_dir=final, settings={"max_steps": 1})
    assert result.final_model == final
    assert not (tmp_path / "run" / "final_model").exists()
    model = AutoModelForCausalLM.from_pretrained(final, dtype="auto")
    assert model.dtype == torch.bfloat16
    assert model.config.use_cache is True
    assert (final / "generation_config.json").exists()
    for file in (tiny / "tokenizer").iterdir():
        assert (final / file.name).read_bytes() == file.read_bytes()
    assert len(AutoTokenizer.from_pretrained(final)("two 단어")["input_ids"]) == len("two 단어".encode())


def test_tokenizer_with_its_own_class_is_copied(tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GPT2Tokenizer

    shutil.copytree(tiny / "model", tmp_path / "model")
    backend = json.loads((tiny / "tokenizer" / "tokenizer.json").read_text())
    tokenizer = GPT2Tokenizer(vocab=backend["model"]["vocab"], merges=[], eos_token="<|endoftext|>")
    tokenizer.save_pretrained(tmp_path / "model")
    result = train(
        tiny,
        tmp_path / "run",
        model_dir=tmp_path / "model",
        tokenizer_dir=tmp_path / "model",
        settings={"max_steps": 1},
    )
    loaded = AutoTokenizer.from_pretrained(result.final_model)
    assert type(loaded) is GPT2Tokenizer
    assert loaded("two 단어")["input_ids"] == tokenizer("two 단어")["input_ids"]


def test_training_updates_float32_weights_for_any_stored_dtype(tiny: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import GPT2LMHeadModel

    GPT2LMHeadModel.from_pretrained(tiny / "model", dtype=torch.bfloat16).save_pretrained(tmp_path / "model")
    train(tiny, tmp_path / "run", model_dir=tmp_path / "model", settings={"max_steps": 1})
    stored = load_file(tmp_path / "run" / "checkpoint-1" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


def test_mixed_precision_trains_a_similar_model(tiny: Path, tmp_path: Path, undisturbed: SftResult) -> None:
    result = train(tiny, tmp_path, dtype="bfloat16")
    assert result.train_loss == pytest.approx(undisturbed.train_loss, rel=0.02)
    assert result.train_loss != undisturbed.train_loss


def test_tensorboard_has_each_loss_of_a_resumed_run_once(tiny: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(Stopped):
        train(tiny, tmp_path, stop_at=9)
    result = train(tiny, tmp_path)
    assert result.resumed_from == 5
    board = EventAccumulator(str(tmp_path / "logs"))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [step for step, _ in result.loss_history]


@pytest.mark.parametrize(("report_to", "logging_dir"), [("none", None), ("tensorboard", "boards")])
def test_tensorboard_logs_go_to_logging_dir(
    tiny: Path, tmp_path: Path, report_to: str, logging_dir: str | None
) -> None:
    wanted = {"report_to": report_to, "logging_dir": logging_dir and str(tmp_path / logging_dir), "max_steps": 1}
    train(tiny, tmp_path / "run", settings=wanted)
    assert not (tmp_path / "run" / "logs").exists()
    assert (tmp_path / "boards").exists() == (logging_dir is not None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "tpu"}, "unknown device 'tpu', expected one of cpu, cuda, mps"),
        ({"dtype": "int8"}, "unknown dtype 'int8', expected one of float32, bfloat16, float16"),
        ({"dtype": "float16"}, "the CPU does not train in float16"),
        ({"settings": {"fp16": True, "bf16": True}}, r"sft_config.yaml: .*At most one of fp16 and bf16"),
        ({"model_dir": Path("no/model")}, "no/model: no model found"),
        ({"blocks": Path("no/blocks")}, "no/blocks: cannot read training blocks"),
        ({"tokenizer_dir": Path("no/tokenizer")}, "no/tokenizer/tokenizer.json: no tokenizer"),
    ],
)
def test_invalid_request_is_rejected(tiny: Path, tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(tiny, tmp_path, **arguments)


def test_missing_device_is_rejected(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match="device cuda requested, but torch finds none"):
        train(tiny, tmp_path, device="cuda")


def test_blocks_longer_than_the_context_are_rejected(tiny: Path, tmp_path: Path) -> None:
    write_blocks(iter([np.arange(99)]), tmp_path / "long", block_size=33, eos_id=256, vocab_size=257)
    with pytest.raises(InputError, match="the blocks have 33 tokens, the model's context 32"):
        train(tiny, tmp_path, blocks=tmp_path / "long")


def test_folders_that_do_not_fit_are_rejected(tiny: Path, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    small = GPT2Config(vocab_size=200, n_embd=4, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(small).save_pretrained(tmp_path / "small")
    with pytest.raises(InputError, match="the tokenizer has 257 tokens, the model 200 embedding rows"):
        train(tiny, tmp_path, model_dir=tmp_path / "small")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(InputError, match="broken: expected weights in safetensors format, found none"):
        train(tiny, tmp_path, model_dir=tmp_path / "broken")
    with pytest.raises(InputError, match=r"broken/tokenizer.json: no tokenizer"):
        train(tiny, tmp_path, tokenizer_dir=tmp_path / "broken")
