"""The whole pipeline on input small enough for seconds: the packaged model and a part of the sample corpus."""

import os
from pathlib import Path
from typing import Any

from ivr_dagster.cli.workbench import Workbench
from ivr_dagster.pipeline import ASSETS, STAGES
from ivr_dagster.resources.settings import ProjectSettings
from ivr_dagster.sample.corpus import write_sample_corpus
from ivr_dagster.settings import Settings, load_settings

STAGE_ASSETS: dict[str, tuple[str, ...]] = {
    stage: tuple(asset.name for asset in ASSETS.values() if asset.stage == stage) for stage in STAGES
}
TUNING = ("tuning_study",)
BASELINES = tuple(asset.name for asset in ASSETS.values() if asset.variant)
SMALL = {
    "model_name": "sample",
    "heldout_fraction": 0.1,
    "max_candidates": 150,
    "train_bytes": 6_000,
    "block_size": 64,
    "evaluation_bytes": 4_000,
    "retention_bytes": 3_000,
    "token_distillation_bytes": 3_000,
    "continuations": 1,
}
# beside SMALL, where the model is tiny
TINY = {
    "max_candidates": 40,
    "heldout_fraction": 0.1,
    "train_bytes": 3_000,
    "block_size": 32,
    "evaluation_bytes": 500,
    "retention_bytes": 0,
    "continuations": 0,
    "vanilla_compute": False,
}
TRAINING = (
    "num_train_epochs: 1\nlearning_rate: 2.0e-3\nper_device_train_batch_size: 4\nsave_steps: 2\nlogging_steps: 1\n"
)


def write_tiny_model(folder: Path, size: int = 1_057) -> None:
    """A GPT-2 of one layer and `size` tokens, untrained: for what does not depend on how good a model is."""
    from pydoc_data.topics import topics

    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    tokenizer.train_from_iterator([text for _, text in sorted(topics.items())], trainer)
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end).save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=size, n_positions=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)


def prepare(root: Path) -> None:
    """Raw documents in `raw/` and training settings."""
    write_sample_corpus(root / "all")
    lines = [line for file in sorted((root / "all").glob("*.jsonl")) for line in file.read_text().splitlines()]
    (root / "raw").mkdir()
    short = [line for line in lines if 400 < len(line) < 4_000][:220]
    (root / "raw" / "documents.jsonl").write_text("\n".join(short) + "\n")
    (root / "sft_config.yaml").write_text(TRAINING)


def workbench(root: Path, *, observe: bool = True, **changed: Any) -> Workbench:
    """The assets in `artifacts/` under `SMALL` settings, sources looked at unless told otherwise."""
    os.environ.pop("DAGSTER_HOME", None)
    options = SMALL | {"raw_corpora_dir": str(root / "raw"), "config_path": str(root / "sft_config.yaml")} | changed
    bench = Workbench(load_settings(root / "artifacts", options=options, environ={}), root / "artifacts")
    if observe:
        bench.observe_sources()
    return bench


def build(root: Path, **changed: Any) -> dict[str, dict[str, Any]]:
    """Every stage once, in order; figures by asset."""
    bench = workbench(root, **changed)
    figures: dict[str, dict[str, Any]] = {}
    for stage in STAGES:
        result = bench.run(stale_in(bench, stage))
        figures |= result.figures
        assert all(check["passed"] for check in result.checks if check["severity"] == "ERROR"), result.checks
    bench.instance.dispose()
    return figures


def project_settings(folder: Path, **values: Any) -> ProjectSettings:
    """What assets get as the resource `settings`."""
    return ProjectSettings.in_folder(Settings.of(**values), folder)


def stale(bench: Workbench) -> dict[str, str]:
    """Why assets are stale, those that are."""
    return {state.name: state.stale for state in bench.states() if state.stale}


def stale_in(bench: Workbench, stage: str) -> list[str]:
    """Assets of a stage that are stale, those included that only follow from such a one in the stage."""
    return [state.name for state in bench.states() if state.stage == stage and state.stale]


def build_tiny(root: Path) -> None:
    """A few documents and a tiny model, in `../model`, taken through every stage."""
    write_tiny_model(root.parent / "model")
    prepare(root)
    documents = (root / "raw" / "documents.jsonl").read_text().splitlines(keepends=True)
    (root / "raw" / "documents.jsonl").write_text("".join(documents[:60]))
    (root / "raw" / "few.jsonl").write_text("".join(documents[60:64]))
    build(root, model_name=str(root.parent / "model"), **TINY)
