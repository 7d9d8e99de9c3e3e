"""Trains the packaged sample model: a small GPT-2 on the code of the running Python's standard library.

    python -m benchmarks.train_sample_model --output DIR

Docstrings are removed from the training text, because the sample corpus consists of them: fine-tuning on it must have
something to teach.

The vocabulary is GPT-2's, and a softmax over 50,257 tokens costs ten times as much as the rest of so small a network.
So training normalizes over the tokens in the batch and a random sample of the others, weighted to represent all of
them (importance sampling: Bengio and Senécal 2008, Jean et al. 2015). Bits per byte are measured with the whole
vocabulary.

Everything that produced the packaged model is in this file, which is longer than others for that reason.
"""

import argparse
import json
import math
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from ivr_dagster.errors import InputError
from ivr_dagster.sample import SAMPLE_MODEL
from ivr_dagster.sample.stdlib_source import (
    HELDOUT_SHARE,
    SourceFile,
    is_heldout,
    path_position,
    read_stdlib,
    strip_docstrings,
)

# GPT-2's id of <|endoftext|>, which precedes every file in training and evaluation.
END_OF_TEXT = 50256
# An interrupted training loses at most this much work.
CHECKPOINT_SECONDS = 120.0
# Positions per slice of the logits: 256 x 6,000 floats fit into the processor's cache.
_LOSS_CHUNK = 256


def _setting(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True)
class TrainingSettings:
    """Command-line options that determine the weights, reproducible on one machine."""

    steps: int = _setting(5000, "optimizer steps")
    batch: int = _setting(4, "blocks per step")
    block: int = _setting(512, "tokens per block, and the model's n_positions")
    width: int = _setting(80, "embedding size")
    layers: int = _setting(6, "transformer layers")
    heads: int = _setting(5, "attention heads; must divide the width")
    learning_rate: float = _setting(3e-3, "peak learning rate")
    warmup: float = _setting(0.05, "share of the steps with linear warm-up")
    weight_decay: float = _setting(0.1, "weight decay of the layers' matrices")
    sampled_tokens: int = _setting(4096, "tokens sampled for the softmax besides the batch's own; 0: whole vocabulary")
    seed: int = _setting(42, "seed of weights, text order and sampling")


@dataclass(frozen=True)
class TrainingResult:
    """Losses (nats per token, over the sampled vocabulary), tokens seen, and time of a training."""

    first_loss: float
    last_loss: float
    tokens: int
    seconds: float


def read_training_texts(source: Path | None = None) -> tuple[list[SourceFile], list[SourceFile]]:
    """Python files without docstrings: (training, held-out), split by `stdlib_source.is_heldout`.

    Args:
        source: folder of the files; by default the standard library.

    Raises:
        InputError: fewer than two Python files with code below `source`.
    """
    files = [SourceFile(file.path, strip_docstrings(file.text)) for file in read_stdlib(source)]
    files = sorted((file for file in files if file.text.strip()), key=lambda file: path_position(file.path))
    if len(files) < 2:
        raise InputError(
            f"training needs at least two Python files, found {len(files)}",
            where=source,
            remedy="Choose a folder with Python source code, or omit --source to use the standard library",
        )
    count = max(1, sum(is_heldout(file.path) for file in files))
    return files[count:], files[:count]


def encode_blocks(tokenizer: Tokenizer, texts: Sequence[str], block: int, seed: int) -> torch.Tensor:
    """The texts in random order, each after <|endoftext|>, as int32 ids [blocks, block + 1]; the rest is dropped.

    The extra column is the last target.
    """
    order = np.random.default_rng(seed).permutation(len(texts))
    encodings = tokenizer.encode_batch_fast([texts[i] for i in order], add_special_tokens=False)
    ids = np.concatenate([np.asarray([END_OF_TEXT, *encoding.ids], dtype=np.int32) for encoding in encodings])
    count = (len(ids) - 1) // block
    if count == 0:
        raise InputError(f"the text has {len(ids)} tokens, not enough for one block of {block}", remedy="Add text")
    windows = np.lib.stride_tricks.sliding_window_view(ids, block + 1)[::block][:count]
    return torch.from_numpy(windows.copy())


def new_model(settings: TrainingSettings, vocabulary: int = END_OF_TEXT + 1) -> GPT2LMHeadModel:
    """An untrained GPT-2 in float32, without dropout: no text is seen often enough to overfit."""
    torch.manual_seed(settings.seed)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=settings.block,
        n_embd=settings.width,
        n_layer=settings.layers,
        n_head=settings.heads,
        # the same function as gelu_new, but one pass instead of eight: half of a forward pass at this width
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=END_OF_TEXT,
        eos_token_id=END_OF_TEXT,
    )
    return GPT2LMHeadModel(config)


def training_loss(
    model: GPT2LMHeadModel, ids: torch.Tensor, sampled_tokens: int, generator: torch.Generator
) -> torch.Tensor:
    """Mean cross entropy in nats of a batch [B, T + 1], over a sample of the vocabulary.

    All tokens of the batch compete, and a uniform sample of the others. The logits of the sample are increased by
    log(others / sampled), so that the expected normalizer is that of the whole vocabulary.
    """
    weight = model.lm_head.weight
    hidden = model.transformer(input_ids=ids[:, :-1], use_cache=False).last_hidden_state.flatten(0, 1)
    targets = ids[:, 1:].flatten()
    present, classes = targets.unique(return_inverse=True)
    absent_mask = torch.ones(len(weight), dtype=torch.bool)
    absent_mask[present] = False
    absent = absent_mask.nonzero().squeeze(1)
    bonus = 0.0
    if 0 < sampled_tokens < len(absent):
        bonus = math.log(len(absent) / sampled_tokens)
        absent = absent[torch.randperm(len(absent), generator=generator)[:sampled_tokens]]
    bias = torch.full((len(present) + len(absent),), bonus)
    bias[: len(present)] = 0.0
    return F.linear_cross_entropy(
        hidden,
        weight[torch.cat([present, absent])],
        classes,
        linear_bias=bias,
        options=torch.nn.LinearCrossEntropyOptions(batch_chunk_size=_LOSS_CHUNK, chunking_method=None),
    )


def learning_rate_at(step: int, settings: TrainingSettings) -> float:
    """Linear warm-up, then cosine down to a twentieth of the peak at the last step."""
    warmup = max(1, round(settings.steps * settings.warmup))
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, settings.steps - warmup)
    return settings.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def train(
    model: GPT2LMHeadModel, blocks: torch.Tensor, settings: TrainingSettings, checkpoint: Path | None = None
) -> TrainingResult:
    """Trains `model` in place on ids [blocks, block + 1] for as many epochs as the steps take.

    Data order and samples depend only on seed and step, so a checkpoint has only weights and optimizer state. An
    interrupted run with the same settings resumes from its checkpoint.
    """
    optimizer = _optimizer(model, settings)
    step, losses, spent = _load_checkpoint(checkpoint, model, optimizer, settings)
    started = last_report = last_saved = time.monotonic()
    model.train()
    while step < settings.steps:
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, settings)
        loss = training_loss(model, _batch(blocks, step, settings), settings.sampled_tokens, generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        step += 1
        now = time.monotonic()
        if now - last_report > 5 or step == settings.steps:
            last_report = now
            seconds = spent + now - started
            _report(
                f"step {step}/{settings.steps}  loss {_mean(losses[-50:]):.3f}  "
                f"{step * settings.batch * settings.block / seconds:,.0f} tokens/s  "
                f"{seconds / step * (settings.steps - step):.0f} s left"
            )
        if checkpoint is not None and now - last_saved > CHECKPOINT_SECONDS and step < settings.steps:
            last_saved = now
            _save_checkpoint(checkpoint, model, optimizer, settings, losses, spent + now - started)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return TrainingResult(
        first_loss=losses[0],
        last_loss=_mean(losses[-50:]),
        tokens=settings.steps * settings.batch * settings.block,
        seconds=spent + time.monotonic() - started,
    )


def _optimizer(model: GPT2LMHeadModel, settings: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW with weight decay on the matrices of the layers only."""
    decayed = [p for name, p in model.named_parameters() if p.ndim == 2 and not name.startswith("transformer.w")]
    others = [p for name, p in model.named_parameters() if p.ndim < 2 or name.startswith("transformer.w")]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )


def _batch(blocks: torch.Tensor, step: int, settings: TrainingSettings) -> torch.Tensor:
    """Ids [batch, block + 1] of a step. Each epoch has a new order of all blocks."""
    places = range(step * settings.batch, (step + 1) * settings.batch)
    rows = []
    for epoch in sorted({place // len(blocks) for place in places}):
        order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(settings.seed + epoch))
        rows += [order[place % len(blocks)] for place in places if place // len(blocks) == epoch]
    return blocks[torch.stack(rows)].long()


def _save_checkpoint(
    path: Path,
    model: GPT2LMHeadModel,
    optimizer: torch.optim.Optimizer,
    settings: TrainingSettings,
    losses: list[float],
    seconds: float,
) -> None:
    temporary = path.with_name(path.name + ".tmp")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "settings": asdict(settings)}
    torch.save({**state, "losses": losses, "seconds": seconds}, temporary)
    temporary.replace(path)


def _load_checkpoint(
    path: Path | None, model: GPT2LMHeadModel, optimizer: torch.optim.Optimizer, settings: TrainingSettings
) -> tuple[int, list[float], float]:
    """Restores the state of an interrupted run: (steps done, their losses, seconds spent)."""
    if path is None or not path.exists():
        return 0, [], 0.0
    state = torch.load(path, weights_only=True)
    if state["settings"] != asdict(settings):
        _report(f"{path} has other settings: starting from the beginning")
        return 0, [], 0.0
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    _report(f"resuming from {path} at step {len(state['losses'])}")
    return len(state["losses"]), state["losses"], state["seconds"]


def bits_per_byte(model: GPT2LMHeadModel, tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    """Negative log-likelihood of the texts in bits, divided by their UTF-8 bytes; each text follows <|endoftext|>.

    A text longer than the model's context is divided into windows that do not overlap.
    """
    model.eval()
    nats = 0.0
    with torch.inference_mode():
        for window in _windows(tokenizer, texts, model.config.n_positions):
            ids = torch.tensor(window)
            logits = model(input_ids=ids[None, :-1], use_cache=False).logits[0]
            nats += F.cross_entropy(logits.float(), ids[1:], reduction="sum").item()
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def _windows(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> Iterator[list[int]]:
    for text in texts:
        ids = [END_OF_TEXT, *tokenizer.encode(text, add_special_tokens=False).ids]
        for start in range(0, len(ids) - 1, length):
            yield ids[start : start + length + 1]


def save_model(model: GPT2LMHeadModel, tokenizer_folder: Path, output: Path) -> None:
    """Writes weights (float16), configuration and tokenizer, atomically."""
    temporary = output.with_name(f".{output.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    half = GPT2LMHeadModel(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(temporary)
    (temporary / "model.safetensors").chmod(0o644)  # written as 0600, but a package is for all users
    # stored in float16, loaded in float32 by default
    config = json.loads((temporary / "config.json").read_text(encoding="utf-8"))
    _write_json(temporary / "config.json", {**config, "dtype": "float32"}, indent=2)
    tokenizer = json.loads((tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8"))
    _write_json(temporary / "tokenizer.json", tokenizer)
    _write_json(
        temporary / "tokenizer_config.json",
        {
            "tokenizer_class": "GPT2Tokenizer",
            "model_max_length": model.config.n_positions,
            "add_prefix_space": False,
            "bos_token": "<|endoftext|>",
            "eos_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
        },
        indent=2,
    )
    if output.exists():
        shutil.rmtree(output)
    temporary.replace(output)


def _write_json(path: Path, value: object, indent: int | None = None) -> None:
    separators = (",", ":") if indent is None else None
    path.write_text(
        json.dumps(value, ensure_ascii=False, indent=indent, separators=separators) + "\n", encoding="utf-8"
    )


_CARD_HEADER = """---
license: apache-2.0
language:
- code
library_name: transformers
pipeline_tag: text-generation
tags:
- gpt2
- test-fixture
---

"""


def model_card(
    settings: TrainingSettings,
    result: TrainingResult,
    training_bytes: int,
    heldout_bytes: int,
    heldout_bpb: float,
    parameters: int,
) -> str:
    """A Hugging Face model card with the figures of this training."""
    version = platform.python_version()
    return f"""{_CARD_HEADER}# A small GPT-2 trained on Python's standard library

{parameters / 1e6:.2f} million parameters, {settings.layers} layers of width {settings.width} with {settings.heads} \
heads, {settings.block} positions, tied embeddings, GPT-2's vocabulary of 50,257 tokens. Stored in float16, meant to \
be computed in float32.

## Intended use

A test fixture: it loads offline, runs on any processor, and behaves as a trained model does, so that tokenizer \
transfer, embedding initialization and fine-tuning can be shown and tested within seconds. It is no use for writing \
code or text.

## Training

| | |
|---|---|
| text | source code of the standard library of Python {version}, tests included, without docstrings, `pydoc_data` \
and `encodings` |
| bytes of training text | {training_bytes:,} |
| tokens seen | {result.tokens:,} |
| steps | {settings.steps:,} of {settings.batch * settings.block:,} tokens |
| optimizer | AdamW, betas 0.9 and 0.95, peak learning rate {settings.learning_rate:g}, cosine; softmax over the \
batch's tokens and {settings.sampled_tokens:,} sampled ones |
| seed | {settings.seed} |
| time | {result.seconds:,.0f} s on {torch.get_num_threads()} processor cores, no accelerator |

Docstrings and help topics were left out because the sample corpus of ivr_dagster consists of them.

To train it again: `python -m benchmarks.train_sample_model --output DIR --steps {settings.steps}`.

## Evaluation

**{heldout_bpb:.3f} bits per byte** on {heldout_bytes:,} bytes of held-out files ({HELDOUT_SHARE:.0%} of the files, \
by a hash of their path), measured with these float16 weights after reloading them, each file after an end-of-text \
token, in windows of {settings.block} tokens that do not overlap.

## Licences

The weights are under the Apache License 2.0. The training text is under the Python Software Foundation License. \
Vocabulary and merges are those of OpenAI's GPT-2, under the MIT licence.
"""


def main(arguments: Sequence[str] | None = None) -> TrainingResult:
    """Trains, saves, reloads and evaluates the model, and writes the model card."""
    options = _parse_arguments(arguments)
    if not (options.tokenizer / "tokenizer.json").is_file():
        raise InputError(
            "the tokenizer folder has no tokenizer.json",
            where=options.tokenizer,
            remedy="Choose a folder with GPT-2's tokenizer with --tokenizer",
        )
    tokenizer = Tokenizer.from_file(str(options.tokenizer / "tokenizer.json"))
    training, heldout = ([file.text for file in files] for files in read_training_texts(options.source))
    settings = TrainingSettings(**{each.name: getattr(options, each.name) for each in fields(TrainingSettings)})
    blocks = encode_blocks(tokenizer, training, settings.block, settings.seed)
    training_bytes, heldout_bytes = (sum(len(text.encode()) for text in texts) for texts in (training, heldout))
    _report(
        f"{len(training)} files, {training_bytes:,} bytes, {blocks.shape[0] * settings.block:,} tokens to train on; "
        f"{len(heldout)} files, {heldout_bytes:,} bytes held out"
    )
    torch.manual_seed(settings.seed)
    model = new_model(settings)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    result = train(model, blocks, settings, options.output.with_name(f".{options.output.name}.checkpoint.pt"))
    save_model(model, options.tokenizer, options.output)
    reloaded = GPT2LMHeadModel.from_pretrained(options.output, dtype=torch.float32)
    heldout_bpb = bits_per_byte(reloaded, tokenizer, heldout)
    card = model_card(settings, result, training_bytes, heldout_bytes, heldout_bpb, model.num_parameters())
    (options.output / "README.md").write_text(card, encoding="utf-8")
    size = (options.output / "model.safetensors").stat().st_size
    _report(f"{options.output}: {size:,} bytes of weights, held-out {heldout_bpb:.3f} bits per byte")
    return result


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_sample_model",
        description="Train a small GPT-2 on the code of this Python's standard library.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the model; replaced if it exists")
    parser.add_argument("--tokenizer", type=Path, default=SAMPLE_MODEL, help="folder with GPT-2's tokenizer.json")
    parser.add_argument("--source", type=Path, help="folder with Python files instead of the standard library")
    for each in fields(TrainingSettings):
        option = f"--{each.name.replace('_', '-')}"
        parser.add_argument(option, type=type(each.default), default=each.default, help=each.metadata["help"])
    return parser.parse_args(arguments)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _report(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
