"""Documents, models and pipelines small enough for tests."""

import json
import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from ivr_dagster.cli.project import Project
from ivr_dagster.core.training.validation import Validation
from ivr_dagster.pipeline import ASSETS, STAGES, requested_stages
from ivr_dagster.resources.settings import ProjectSettings
from ivr_dagster.settings import Settings, load_settings

Figures = dict[str, dict[str, Any]]

STAGE_ASSETS: dict[str, tuple[str, ...]] = {
    stage: tuple(asset.name for asset in ASSETS.values() if asset.stage == stage) for stage in STAGES
}
TUNING = ("tuning_study",)
BASELINES = tuple(asset.name for asset in ASSETS.values() if asset.variant)
END = "<|endoftext|>"
# settings for the sample model
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
# settings for the model of `write_tiny_model`, in addition to SMALL
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


@cache
def documents() -> list[str]:
    """320 English documents of at least 1,000 characters: sections of Python's help topics."""
    found: list[str] = []
    for _, topic in sorted(topics.items()):
        section = ""
        for paragraph in topic.strip().split("\n\n"):
            section += ("\n\n" if section else "") + paragraph
            if len(section) >= 1_000:
                found.append(section)
                section = ""
    return list(dict.fromkeys(found))


def write_documents(file: Path, texts: Iterable[str]) -> None:
    """Write documents as JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def train_bpe(
    texts: Iterable[str],
    merges: int,
    *,
    alphabet: Sequence[str] | None = None,
    pre_tokenizer: pre_tokenizers.PreTokenizer | None = None,
) -> Tokenizer:
    """Train a BPE tokenizer with the last token `<|endoftext|>`; by default, all bytes and GPT-2's pre-tokenizer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) if alphabet is None else alphabet
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + merges,
        initial_alphabet=list(alphabet),
        limit_alphabet=len(alphabet),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(END, normalized=False, special=True)])
    return tokenizer


def write_tiny_model(folder: Path, size: int = 1_057) -> None:
    """Write an untrained one-layer GPT-2 with `size` tokens, and its tokenizer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    tokenizer = train_bpe((text for _, text in sorted(topics.items())), size - 257)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END).save_pretrained(folder)
    torch.manual_seed(0)
    ids = {"bos_token_id": size - 1, "eos_token_id": size - 1}
    config = GPT2Config(vocab_size=size, n_positions=64, n_embd=16, n_layer=1, n_head=2, **ids)
    GPT2LMHeadModel(config).save_pretrained(folder)


def write_training_inputs(folder: Path, *, layers: int, dropout: float) -> None:
    """Write `model/`, a GPT-2 with 257 tokens, its `tokenizer/` of bytes, and 50 `blocks/` of 16 tokens."""
    import numpy as np
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    from ivr_dagster.core.training.blocks import write_blocks

    torch.manual_seed(1)
    config = GPT2Config(vocab_size=257, n_positions=32, n_embd=16, n_layer=layers, n_head=2)
    config.bos_token_id = config.eos_token_id = 256
    config.attn_pdrop = config.embd_pdrop = config.resid_pdrop = dropout
    GPT2LMHeadModel(config).save_pretrained(folder / "model")
    alphabet = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet | {END: 256}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(folder / "tokenizer")
    ids = np.random.default_rng(2)
    texts = (ids.integers(0, 256, 39) for _ in range(20))
    write_blocks(texts, folder / "blocks", block_size=16, eos_id=256, vocab_size=257)


def tiny_validation(documents: int) -> Validation:
    """Documents of three windows of 16 tokens each, for the model of :func:`write_training_inputs`."""
    import numpy as np

    letters = np.random.default_rng(5).integers(97, 123, (documents, 46), dtype=np.uint8)
    return Validation(tuple(each.tobytes().decode() for each in letters), context_bytes=15)


def write_inputs(root: Path, count: int = 220) -> None:
    """Write `count` documents to `raw/documents.jsonl`, and training settings."""
    write_documents(root / "raw" / "documents.jsonl", documents()[:count])
    (root / "sft_config.yaml").write_text(TRAINING)


def open_project(root: Path, *, observe: bool = True, **changed: Any) -> Project:
    """Open the project in `artifacts/` with the settings `SMALL | changed`; by default, observe the sources."""
    os.environ.pop("DAGSTER_HOME", None)
    options = SMALL | {"raw_corpora_dir": str(root / "raw"), "config_path": str(root / "sft_config.yaml")} | changed
    project = Project(load_settings(root / "artifacts", options=options, environ={}), root / "artifacts")
    if observe:
        project.observe_sources()
    return project


def open_tiny_project(root: Path, **changed: Any) -> Project:
    """Open the project of the fixture `tiny_run` without observing the sources."""
    return open_project(root, observe=False, model_name=str(root.parent / "model"), **TINY | changed)


def build(root: Path, **changed: Any) -> Figures:
    """Run the stages of `ivr run` once, in order; returns the figures by asset."""
    project = open_project(root, **changed)
    figures: Figures = {}
    for stage in requested_stages():
        result = project.run(stale_in(project, stage))
        figures |= result.figures
        assert all(check["passed"] for check in result.checks if check["severity"] == "ERROR"), result.checks
    project.instance.dispose()
    return figures


def build_sample(root: Path) -> Figures:
    """Build every asset with the packaged sample model."""
    write_inputs(root)
    return build(root)


def build_tiny(root: Path) -> Figures:
    """Build every asset with the tiny model, written to `../model`, from two corpus files of 60 and 4 documents."""
    write_tiny_model(root.parent / "model")
    write_inputs(root, 60)
    write_documents(root / "raw" / "few.jsonl", documents()[60:64])
    return build(root, model_name=str(root.parent / "model"), **TINY)


def project_settings(folder: Path, **values: Any) -> ProjectSettings:
    """The resource `settings` that assets receive."""
    return ProjectSettings.in_folder(Settings.of(**values), folder)


def stale(project: Project) -> dict[str, str]:
    """The stale assets, each with the reason."""
    return {state.name: state.stale for state in project.states() if state.stale}


def stale_in(project: Project, stage: str) -> list[str]:
    """The stale assets of a stage, including those that are stale only because an upstream asset is."""
    return [state.name for state in project.states() if state.stage == stage and state.stale]
