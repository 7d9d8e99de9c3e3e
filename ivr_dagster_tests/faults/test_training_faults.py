"""Training that diverges, runs out of memory, or has contradictory settings."""

import gc
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from ivr_dagster.cli.app import main
from ivr_dagster.core.training.blocks import write_blocks
from ivr_dagster.core.training.checkpoints import MARKER
from ivr_dagster.core.training.memory import TrainingOutOfMemoryError
from ivr_dagster.core.training.sft import SftResult, Training, TrainingDivergedError, fine_tune
from ivr_dagster.core.training.sft_config import read_sft_config
from ivr_dagster.core.training.validation import Validation
from ivr_dagster.errors import InputError
from ivr_dagster_tests.small_pipeline import tiny_validation, write_training_inputs

END, BLOCK = 256, 16
# 50 blocks, 8 a step: 7 steps an epoch, the last of 2 blocks; checkpoints fall inside epochs
SETTINGS: dict[str, Any] = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_steps": 3,
    "report_to": "none",
}
Log = list[dict[str, float]]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on several threads, and much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()  # what other tests left is looked through whenever memory is freed
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model, tokenizer and blocks of `write_training_inputs`."""
    folder = tmp_path_factory.mktemp("given")
    write_training_inputs(folder, layers=1, dropout=0.0)
    return folder


def train(given: Path, output_dir: Path, log: Log | None = None, **arguments: Any) -> SftResult:
    settings = {**SETTINGS, **arguments.pop("settings", {})}
    arguments = {"model_dir": given / "model", "blocks": given / "blocks", "fingerprint": "a", **arguments}
    config = read_sft_config(None, **settings)
    on_log = None if log is None else log.append
    training = Training(output_dir=output_dir, config=config, tokenizer_dir=given / "tokenizer", **arguments)
    return fine_tune(training, on_log=on_log)


def complete(output_dir: Path) -> list[int]:
    return sorted(int(marker.parent.name.split("-")[1]) for marker in output_dir.glob(f"checkpoint-*/{MARKER}"))


@pytest.fixture
def memory_for(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """`memory_for(blocks, error, from_step)`: a model that does not fit with more blocks; the batches it was given."""
    from transformers import GPT2LMHeadModel

    forward = GPT2LMHeadModel.forward

    def only(blocks: int, error: Exception | None = None, calls_before: int = 0) -> list[int]:
        seen: list[int] = []

        @wraps(forward)  # Trainer asks for its parameters
        def checked(self: Any, input_ids: Any = None, **others: Any) -> Any:
            seen.append(len(input_ids))
            if len(input_ids) > blocks and len(seen) > calls_before:
                raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            return forward(self, input_ids, **others)

        monkeypatch.setattr(GPT2LMHeadModel, "forward", checked)
        return seen

    return only


@pytest.fixture(scope="module")
def plain(given: Path, tmp_path_factory: pytest.TempPathFactory) -> SftResult:
    return train(given, tmp_path_factory.mktemp("plain"))


class TestOutOfMemory:
    """Micro-batches get smaller, batches do not."""

    def test_losses_equal_those_of_full_batches(
        self, given: Path, tmp_path: Path, plain: SftResult, memory_for: Callable[..., list[int]]
    ) -> None:
        memory_for(3)
        log: Log = []
        result = train(given, tmp_path, log)
        assert (result.micro_batch, result.accumulated) == (2, 4)
        assert (plain.micro_batch, plain.accumulated) == (8, 1)
        assert (result.steps, result.tokens) == (plain.steps, plain.tokens)
        assert [step for step, _ in result.loss_history] == [step for step, _ in plain.loss_history]
        assert result.loss_history == [(step, pytest.approx(loss, abs=1e-5)) for step, loss in plain.loss_history]
        told = [entry for entry in log if "micro_batch" in entry]
        assert told == [{"step": 0, "max_steps": 14, "micro_batch": m, "accumulated": 8 / m} for m in (4, 2)]

    def test_run_resumes_from_its_newest_checkpoint(
        self, given: Path, tmp_path: Path, plain: SftResult, memory_for: Callable[..., list[int]]
    ) -> None:
        seen = memory_for(4, calls_before=8)  # the ninth step
        log: Log = []
        result = train(given, tmp_path, log)
        assert (result.resumed_from, result.micro_batch, result.accumulated) == (6, 4, 2)
        assert [entry["step"] for entry in log if "micro_batch" in entry] == [6]
        # six of eight and a rest in the first epoch, one of eight and the one too many; then the seventh step anew
        assert seen == [8] * 6 + [2, 8, 8] + [2] + [4] * 12 + [2]
        assert result.loss_history == [(step, pytest.approx(loss, abs=1e-5)) for step, loss in plain.loss_history]
        assert result.tokens == plain.tokens

    def test_odd_batches_are_divided_by_their_smallest_factor(
        self, given: Path, tmp_path: Path, memory_for: Callable[..., list[int]]
    ) -> None:
        settings = {"per_device_train_batch_size": 9, "gradient_accumulation_steps": 2, "max_steps": 3}
        whole = train(given, tmp_path / "whole", settings=settings)
        memory_for(4)
        result = train(given, tmp_path / "parts", settings=settings)
        assert (result.micro_batch, result.accumulated) == (3, 6)
        assert result.loss_history == [(step, pytest.approx(loss, abs=1e-5)) for step, loss in whole.loss_history]

    def test_validation_batches_are_not_larger_than_training_batches(
        self, given: Path, tmp_path: Path, memory_for: Callable[..., list[int]]
    ) -> None:
        arguments: dict[str, Any] = {
            "validation": tiny_validation(6),
            "settings": {"eval_strategy": "steps", "eval_steps": 3, "per_device_train_batch_size": 2, "max_steps": 6},
        }
        whole = train(given, tmp_path / "whole", **arguments)
        seen = memory_for(2)  # validation alone is too large, 8 blocks by default
        result = train(given, tmp_path / "parts", **arguments)
        assert max(seen[seen.index(8) + 1 :]) == 1
        assert result.validation == [(step, pytest.approx(bits, abs=1e-5)) for step, bits in whole.validation]

    def test_error_names_the_settings_to_change_if_one_block_is_too_large(
        self, given: Path, tmp_path: Path, memory_for: Callable[..., list[int]]
    ) -> None:
        seen = memory_for(0, calls_before=4)
        with pytest.raises(TrainingOutOfMemoryError) as error:
            train(given, tmp_path)
        assert seen == [8] * 5 + [4, 2, 1]
        for part in (
            "sft_config.yaml",
            "on cpu with 1 block of 16 tokens at a time",
            "Tried to allocate 20.00 MiB",
            "--block-size",
            "gradient_checkpointing: true",
            "--dtype bfloat16",
        ):
            assert part in str(error.value)
        assert complete(tmp_path) == [3]  # and the next run goes on from it
        assert not (tmp_path / "final_model").exists()

    @pytest.mark.parametrize("why", ["several processes", "left-out rests"])
    def test_error_asks_for_smaller_batches_if_they_must_not_change(
        self, why: str, given: Path, tmp_path: Path, memory_for: Callable[..., list[int]], monkeypatch: Any
    ) -> None:
        memory_for(4)
        settings: dict[str, Any] = {"max_steps": 2}
        if why == "left-out rests":  # smaller pieces would leave out others
            settings["dataloader_drop_last"] = True
            size = "8"
        else:
            monkeypatch.setattr("ivr_dagster.core.training.sft._run", out_of_memory)
            monkeypatch.setenv("WORLD_SIZE", "2")
            size = "4"
        with pytest.raises(TrainingOutOfMemoryError, match=f"a per_device_train_batch_size below {size} with more"):
            train(given, tmp_path, settings=settings)

    @pytest.mark.parametrize(
        "error",
        [
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
                "to allocate 99 bytes. Error code 12 (Cannot allocate memory)"
            ),
            RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 99 bytes."),
            MemoryError(),
        ],
        ids=["of the CPU", "of the CPU on Windows", "of Python"],
    )
    def test_errors_of_every_allocator_are_recognized(
        self, error: Exception, given: Path, tmp_path: Path, memory_for: Callable[..., list[int]]
    ) -> None:
        memory_for(4, error)
        assert train(given, tmp_path, settings={"max_steps": 1}).micro_batch == 4

    def test_other_errors_are_not_changed(
        self, given: Path, tmp_path: Path, memory_for: Callable[..., list[int]]
    ) -> None:
        memory_for(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            train(given, tmp_path)


def out_of_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory.")


class TestDivergence:
    """The error names the step; no checkpoint contains the diverged state."""

    def finite(self, output_dir: Path) -> bool:
        from safetensors.torch import load_file

        return all(
            bool(tensor.isfinite().all())
            for step in complete(output_dir)
            for tensor in load_file(output_dir / f"checkpoint-{step}" / "model.safetensors").values()
        )

    def test_nan_loss_keeps_the_earlier_checkpoint_and_the_next_run_resumes(
        self, given: Path, tmp_path: Path, plain: SftResult, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from transformers import GPT2LMHeadModel

        forward, calls = GPT2LMHeadModel.forward, []

        @wraps(forward)
        def corrupted(self: Any, *given: Any, **others: Any) -> Any:
            output: Any = forward(self, *given, **others)
            calls.append(1)
            if len(calls) == 5:
                output.loss = output.loss * math.nan
            return output

        with monkeypatch.context() as patch, pytest.raises(TrainingDivergedError) as error:
            patch.setattr(GPT2LMHeadModel, "forward", corrupted)
            train(given, tmp_path)
        for part in ("sft_config.yaml: the loss is nan at step 5 of 14", "lower learning_rate", "checkpoint-3 is kept"):
            assert part in str(error.value)
        assert complete(tmp_path) == [3]
        assert self.finite(tmp_path)
        assert not (tmp_path / "final_model").exists()
        result = train(given, tmp_path)
        assert result.resumed_from == 3
        assert result.loss_history == plain.loss_history
        weights = [(each.final_model / "model.safetensors").read_bytes() for each in (result, plain)]
        assert weights[0] == weights[1]

    def test_exploding_loss_is_stopped_before_it_is_nan(
        self, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from transformers import GPT2LMHeadModel

        forward, calls = GPT2LMHeadModel.forward, []

        @wraps(forward)
        def growing(self: Any, *given: Any, **others: Any) -> Any:
            output: Any = forward(self, *given, **others)
            calls.append(1)
            output.loss = output.loss * 2.0 ** len(calls)
            return output

        monkeypatch.setattr(GPT2LMHeadModel, "forward", growing)
        # ten times ln 257 is 55.5; the loss begins at twice 5.5
        with pytest.raises(
            TrainingDivergedError, match=r"the loss has exploded to \d\d\.\d+ nats per token at step 4 of"
        ):
            train(given, tmp_path, settings={"learning_rate": 1e-9})
        assert complete(tmp_path) == [3]

    def test_infinite_weights_are_not_saved(self, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from accelerate.optimizer import AcceleratedOptimizer

        step, steps = AcceleratedOptimizer.step, []

        def corrupted(self: Any, *given: Any, **others: Any) -> Any:
            done = step(self, *given, **others)
            steps.append(1)
            if len(steps) == 6:
                self.param_groups[0]["params"][0].data[:1] = math.inf
            return done

        monkeypatch.setattr(AcceleratedOptimizer, "step", corrupted)
        with pytest.raises(
            TrainingDivergedError, match=r"\.weight contains values that are not finite at step 6 of.*t-3 is"
        ):
            train(given, tmp_path)
        assert complete(tmp_path) == [3]

    def test_nan_validation_is_not_saved(self, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Validation, "score", lambda *_, **__: SimpleNamespace(bits=math.nan, bytes=1))
        settings = {"eval_strategy": "steps", "eval_steps": 3}
        with pytest.raises(TrainingDivergedError, match=r"the validation is nan bits per byte at step 3 of 14"):
            train(given, tmp_path, validation=tiny_validation(1), settings=settings)
        assert complete(tmp_path) == []


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"optim": "adamw_bnb_8bit"}, "bitsandbytes"),
        ({"report_to": "wandb"}, "wandb to be installed"),
        ({"lr_scheduler_kwargs": {"nonsense": 1}}, "'nonsense'"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "'num_decay_steps'"),
        ({"use_liger_kernel": True}, "liger-kernel"),
        ({"dataloader_persistent_workers": True}, "persistent_workers option needs num_workers > 0"),
        ({"dataloader_prefetch_factor": 2}, "dataloader_num_workers > 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_contradictory_settings_are_rejected_with_their_file(
    settings: dict[str, Any], says: str, given: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        train(given, tmp_path, settings=settings)
    assert "the training settings contradict each other or do not fit this machine (" in str(error.value)
    assert says in str(error.value)
    assert str(error.value.where).endswith("sft_config.yaml")
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def root(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """External inputs, and a folder for artifacts."""
    root = tmp_path_factory.mktemp("brought")
    (root / "raw").mkdir()
    (root / "raw" / "one.txt").write_text("one document")
    (root / "rules.yaml").write_text("rules: []\n")
    shutil.copytree(given / "model", root / "model")
    shutil.copytree(given / "tokenizer", root / "model", dirs_exist_ok=True)
    shutil.copytree(given / "blocks", root / "blocks" / "remapped")
    (root / "artifacts").mkdir()
    settings = {
        "model_name": str(root / "model"),
        "train_model_name": str(root / "model"),
        "tokenizer_path": str(root / "model"),
        "dataset_path": str(root / "blocks"),
        "remap_rules_path": str(root / "rules.yaml"),
        "raw_corpora_dir": str(root / "raw"),
        "config_path": str(root / "sft_config.yaml"),
        "vanilla": False,
        "vanilla_compute": False,
        "dtype": "float32",
    }
    (root / "artifacts" / "ivr.yaml").write_text(yaml.safe_dump(settings))
    return root


class TestCommandLine:
    """`ivr train` with external model, tokenizer, rules and blocks."""

    @pytest.fixture
    def ivr(
        self, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., tuple[int, list[str], str]]:
        """`ivr(training settings, options)`: exit code, lines on standard error, and standard output."""
        for name in [name for name in os.environ if name.startswith(("IVR_", "DAGSTER_HOME"))]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setenv("DAGSTER_HOME", str(root / "home"))

        def run(changed: dict[str, Any], device: str = "cpu") -> tuple[int, list[str], str]:
            (root / "sft_config.yaml").write_text(yaml.safe_dump(SETTINGS | changed))
            command = ["ivr", "--artifacts-dir", str(root / "artifacts"), "--json", "train", "--device", device]
            monkeypatch.setattr("sys.argv", command)
            capsys.readouterr()
            with pytest.raises(SystemExit) as ended:
                main()
            said = capsys.readouterr()
            return int(str(ended.value.code)), said.err.splitlines(), said.out

        return run

    def test_divergence_fails_with_one_line_and_the_next_run_succeeds(
        self, ivr: Callable[..., tuple[int, list[str], str]], root: Path
    ) -> None:
        place = root / "artifacts" / "training" / "sft_checkpoint"
        wild = {"learning_rate": 1e4, "max_grad_norm": 0, "lr_scheduler_type": "constant", "warmup_ratio": 0}
        code, said, out = ivr(wild)
        assert (code, out) == (1, "")
        assert "Traceback" not in "".join(said)
        for part in (str(root / "sft_config.yaml"), " at step ", " of 14", "set a lower learning_rate"):
            assert part in said[-1]
        assert not (place / "final_model").exists()
        code, said, out = ivr({})
        assert code == 0, said
        figures = json.loads(out)["assets"]["sft_checkpoint"]
        assert (figures["micro_batch"], figures["gradient_accumulation_steps"]) == (8, 1)

    def test_out_of_memory_is_logged_and_training_succeeds(
        self, ivr: Callable[..., tuple[int, list[str], str]], memory_for: Callable[..., list[int]]
    ) -> None:
        memory_for(4)
        code, said, out = ivr({"seed": 7})
        assert code == 0, said
        assert any("continuing with micro-batches of 4 blocks, 2 per step" in line for line in said)
        figures = json.loads(out)["assets"]["sft_checkpoint"]
        assert (figures["micro_batch"], figures["gradient_accumulation_steps"]) == (4, 2)

    def test_out_of_memory_with_one_block_fails(
        self, ivr: Callable[..., tuple[int, list[str], str]], memory_for: Callable[..., list[int]]
    ) -> None:
        memory_for(0)
        code, said, out = ivr({"per_device_train_batch_size": 1})
        assert (code, out) == (1, "")
        assert "Traceback" not in "".join(said)


class TestBlocks:
    """Invalid training blocks."""

    def refused(self, given: Path, tmp_path: Path, blocks: Path) -> str:
        with pytest.raises(InputError) as error:
            train(given, tmp_path / "run", blocks=blocks)
        assert error.value.where == blocks
        return str(error.value)

    def test_ids_without_an_embedding_row_are_rejected(self, given: Path, tmp_path: Path) -> None:
        write_blocks(iter([np.full(40, 300)]), tmp_path / "blocks", block_size=BLOCK, eos_id=END, vocab_size=400)
        said = self.refused(given, tmp_path, tmp_path / "blocks")
        assert "the blocks contain the id 300, the model has 257 embedding rows" in said

    def test_rows_of_several_lengths_are_rejected(self, given: Path, tmp_path: Path) -> None:
        from datasets import Dataset

        Dataset.from_dict({"input_ids": [[1, 2, 3], [4, 5]]}).save_to_disk(tmp_path / "blocks")
        assert "expected blocks of equal length" in self.refused(given, tmp_path, tmp_path / "blocks")

    @pytest.mark.parametrize("name", ["data-00000-of-00001.arrow", "state.json", "dataset_info.json"])
    def test_truncated_file_is_rejected(self, name: str, given: Path, tmp_path: Path) -> None:
        blocks = Path(shutil.copytree(given / "blocks", tmp_path / "blocks"))
        (blocks / name).write_bytes((blocks / name).read_bytes()[:40])
        assert "cannot read training blocks (" in self.refused(given, tmp_path, blocks)
