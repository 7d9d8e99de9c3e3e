"""Trains the sample model: a small GPT-2 on the code of the running Python's standard library, without docstrings.

Run as `python -m ivr_dagster.sample.train_model --output DIR`. Everything that made the shipped folder is here: the
split into training and held-out files, the training loop, the measurement and the model card. The sample corpus is
made of docstrings, so docstrings are taken out: fine-tuning on it must have something to teach.

The vocabulary is GPT-2's whole one, and a softmax over 50,257 tokens costs ten times the rest of so small a network.
Training therefore normalizes over the tokens that occur in the batch plus a random sample of the others, weighted to
stand for all of them (importance sampling: Bengio and Senécal 2008, Jean et al. 2015). Bits per byte are measured
over the whole vocabulary.
"""

import argparse
import hashlib
import json
import math
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ivr_dagster.errors import InputError
from ivr_dagster.sample import SAMPLE_MODEL
from ivr_dagster.sample.stdlib_source import SourceFile, read_stdlib, strip_docstrings

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import GPT2LMHeadModel

END_OF_TEXT = 50256
"""GPT-2's id of <|endoftext|>: stands before every file, in training and in measuring."""

HELDOUT_SHARE = 0.02
"""Share of the files that the model never sees."""

CHECKPOINT_SECONDS = 120.0
"""An interrupted training loses at most this much work."""

_LOSS_CHUNK = 256  # positions a slice of the logits: 256 x 6,000 floats stay in the processor's cache


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides which weights come out; two runs with equal settings on one machine agree.

    Attributes:
        steps: optimizer steps.
        batch: blocks a step.
        block: tokens a block, and the model's n_positions.
        width, layers, heads: n_embd, n_layer, n_head of the GPT-2 configuration.
        learning_rate: the peak; linear warm-up over `warmup` of the steps, then cosine to a twentieth.
        sampled_tokens: tokens sampled a step from those that the batch does not hold; 0 takes the whole vocabulary.
        seed: of the weights, the order of the text and the sampled tokens.
    """

    steps: int = 5000
    batch: int = 4
    block: int = 512
    width: int = 80
    layers: int = 6
    heads: int = 5
    learning_rate: float = 3e-3
    warmup: float = 0.05
    weight_decay: float = 0.1
    sampled_tokens: int = 4096
    seed: int = 42


@dataclass(frozen=True)
class TrainingResult:
    """What a training saw. Losses are in nats a token, over the sampled vocabulary; times in seconds."""

    first_loss: float
    last_loss: float
    tokens: int
    seconds: float


# --- text ----------------------------------------------------------------------------------------------------------


def read_training_texts(source: Path | None = None) -> tuple[list[SourceFile], list[SourceFile]]:
    """The standard library's files without docstrings: (training, held-out).

    The split goes by a hash of the path: a file stays on its side from one Python version to the next, even where
    its text has changed, so that held-out text of a later Python is unseen by a model of an earlier one.

    Raises:
        InputError: fewer than two Python files with code below `source`.
    """
    files = [SourceFile(file.path, strip_docstrings(file.text)) for file in read_stdlib(source)]
    files = sorted((file for file in files if file.text.strip()), key=lambda file: _position(file.path))
    if len(files) < 2:
        raise InputError(
            f"training needs at least two Python files, found {len(files)}",
            where=source,
            remedy="Name a folder with Python source code, or leave --source out to take the standard library",
        )
    count = max(1, sum(is_heldout(file.path) for file in files))
    return files[count:], files[:count]


def is_heldout(path: str) -> bool:
    """Whether the standard library's file of this path was kept from the sample model."""
    return _position(path) < HELDOUT_SHARE


def _position(path: str) -> float:
    """A place in [0, 1) that depends on the path alone."""
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest()) / 2**64


def encode_blocks(tokenizer: "Tokenizer", texts: Sequence[str], block: int, seed: int) -> "torch.Tensor":
    """The texts in random order, <|endoftext|> before each, cut into [blocks, block + 1] ids (int32).

    The extra column is the last target. What does not fill a block at the end is left out.
    """
    import numpy as np
    import torch

    order = np.random.default_rng(seed).permutation(len(texts))
    encodings = tokenizer.encode_batch_fast([texts[i] for i in order], add_special_tokens=False)
    ids = np.concatenate([np.asarray([END_OF_TEXT, *encoding.ids], dtype=np.int32) for encoding in encodings])
    count = (len(ids) - 1) // block
    if count == 0:
        raise InputError(f"the text has {len(ids)} tokens, not enough for one block of {block}", remedy="Add text")
    windows = np.lib.stride_tricks.sliding_window_view(ids, block + 1)[::block][:count]
    return torch.from_numpy(windows.copy())


# --- training ------------------------------------------------------------------------------------------------------


def new_model(settings: TrainingSettings, vocabulary: int = END_OF_TEXT + 1) -> "GPT2LMHeadModel":
    """A freshly initialized GPT-2 in float32; without dropout, for no text is seen often enough to overfit."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(settings.seed)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=settings.block,
        n_embd=settings.width,
        n_layer=settings.layers,
        n_head=settings.heads,
        # the same function as gelu_new, in one pass instead of eight: half of a forward pass at this width
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=END_OF_TEXT,
        eos_token_id=END_OF_TEXT,
    )
    return GPT2LMHeadModel(config)


def training_loss(
    model: "GPT2LMHeadModel", ids: "torch.Tensor", sampled_tokens: int, generator: "torch.Generator"
) -> "torch.Tensor":
    """Mean cross entropy in nats of a batch [B, T + 1], over a sample of the vocabulary.

    Every token of the batch competes as itself; of the others a uniform sample does, each one raised by
    log(others / sampled), so that the expected normalizer is that of the whole vocabulary.
    """
    import torch
    import torch.nn.functional as F
    from torch.nn import LinearCrossEntropyOptions

    weight = model.lm_head.weight
    hidden = model.transformer(input_ids=ids[:, :-1], use_cache=False).last_hidden_state.flatten(0, 1)
    targets = ids[:, 1:].flatten()
    present, places = targets.unique(return_inverse=True)
    absent_mask = torch.ones(len(weight), dtype=torch.bool)
    absent_mask[present] = False
    absent = absent_mask.nonzero().squeeze(1)
    raise_by = 0.0
    if 0 < sampled_tokens < len(absent):
        raise_by = math.log(len(absent) / sampled_tokens)
        absent = absent[torch.randperm(len(absent), generator=generator)[:sampled_tokens]]
    bias = torch.full((len(present) + len(absent),), raise_by)
    bias[: len(present)] = 0.0
    return F.linear_cross_entropy(
        hidden,
        weight[torch.cat([present, absent])],
        places,
        linear_bias=bias,
        options=LinearCrossEntropyOptions(batch_chunk_size=_LOSS_CHUNK, chunking_method=None),
    )


def learning_rate_at(step: int, settings: TrainingSettings) -> float:
    """Linear warm-up, then cosine down to a twentieth of the peak at the last step."""
    warmup = max(1, round(settings.steps * settings.warmup))
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, settings.steps - warmup)
    return settings.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def train(
    model: "GPT2LMHeadModel", blocks: "torch.Tensor", settings: TrainingSettings, checkpoint: Path | None = None
) -> TrainingResult:
    """Trains `model` in place on [blocks, block + 1] ids, epoch after epoch until the steps are done.

    Data order and samples are functions of seed and step, so a checkpoint holds only weights and optimizer state:
    an interrupted run with the same settings goes on where its last checkpoint stands.
    """
    import torch

    decayed = [p for name, p in model.named_parameters() if p.ndim == 2 and not name.startswith("transformer.w")]
    others = [p for name, p in model.named_parameters() if p.ndim < 2 or name.startswith("transformer.w")]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    step, losses, spent = _load_checkpoint(checkpoint, model, optimizer, settings)
    begun = last_word = last_saved = time.monotonic()
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
        if now - last_word > 5 or step == settings.steps:
            last_word = now
            seconds = spent + now - begun
            _say(
                f"step {step}/{settings.steps}  loss {_mean(losses[-50:]):.3f}  "
                f"{step * settings.batch * settings.block / seconds:,.0f} tokens/s  "
                f"{seconds / step * (settings.steps - step):.0f} s left"
            )
        if checkpoint is not None and now - last_saved > CHECKPOINT_SECONDS and step < settings.steps:
            last_saved = now
            _save_checkpoint(checkpoint, model, optimizer, settings, losses, spent + now - begun)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return TrainingResult(
        first_loss=losses[0],
        last_loss=_mean(losses[-50:]),
        tokens=settings.steps * settings.batch * settings.block,
        seconds=spent + time.monotonic() - begun,
    )


def _batch(blocks: "torch.Tensor", step: int, settings: TrainingSettings) -> "torch.Tensor":
    """The step's [batch, block + 1] ids: a new order of all blocks every epoch."""
    import torch

    places = range(step * settings.batch, (step + 1) * settings.batch)
    rows = []
    for epoch in sorted({place // len(blocks) for place in places}):
        order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(settings.seed + epoch))
        rows += [order[place % len(blocks)] for place in places if place // len(blocks) == epoch]
    return blocks[torch.stack(rows)].long()


def _save_checkpoint(
    path: Path,
    model: "GPT2LMHeadModel",
    optimizer: "torch.optim.Optimizer",
    settings: TrainingSettings,
    losses: list[float],
    seconds: float,
) -> None:
    import torch

    temporary = path.with_name(path.name + ".tmp")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "settings": asdict(settings)}
    torch.save({**state, "losses": losses, "seconds": seconds}, temporary)
    temporary.replace(path)


def _load_checkpoint(
    path: Path | None, model: "GPT2LMHeadModel", optimizer: "torch.optim.Optimizer", settings: TrainingSettings
) -> tuple[int, list[float], float]:
    """Puts an interrupted run's state in place: (steps done, their losses, seconds spent)."""
    import torch

    if path is None or not path.exists():
        return 0, [], 0.0
    state = torch.load(path, weights_only=True)
    if state["settings"] != asdict(settings):
        _say(f"{path} is of a run with other settings: starting anew")
        return 0, [], 0.0
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    _say(f"going on from {path} at step {len(state['losses'])}")
    return len(state["losses"]), state["losses"], state["seconds"]


# --- measuring -----------------------------------------------------------------------------------------------------


def bits_per_byte(model: "GPT2LMHeadModel", tokenizer: "Tokenizer", texts: Sequence[str]) -> float:
    """Total negative log-likelihood in bits over the UTF-8 bytes of the texts; the first context is <|endoftext|>.

    A text longer than the model's window is cut into windows that do not overlap.
    """
    import torch
    import torch.nn.functional as F

    model.eval()
    nats = 0.0
    with torch.inference_mode():
        for window in _windows(tokenizer, texts, model.config.n_positions):
            ids = torch.tensor(window)
            logits = model(input_ids=ids[None, :-1], use_cache=False).logits[0]
            nats += F.cross_entropy(logits.float(), ids[1:], reduction="sum").item()
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def _windows(tokenizer: "Tokenizer", texts: Sequence[str], length: int) -> Iterator[list[int]]:
    for text in texts:
        ids = [END_OF_TEXT, *tokenizer.encode(text, add_special_tokens=False).ids]
        for start in range(0, len(ids) - 1, length):
            yield ids[start : start + length + 1]


# --- the folder ----------------------------------------------------------------------------------------------------


def save_model(model: "GPT2LMHeadModel", tokenizer_folder: Path, output: Path) -> None:
    """Writes weights (float16), configuration and tokenizer; the folder appears at once or not at all."""
    from transformers import GPT2LMHeadModel

    temporary = output.with_name(f".{output.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    half = GPT2LMHeadModel(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(temporary)
    (temporary / "model.safetensors").chmod(0o644)  # written for its owner alone, while a package is for all users
    # stored in half the bytes, yet meant to be computed in float32: that is what loads when nothing is asked
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


def write_model_card(
    folder: Path,
    settings: TrainingSettings,
    result: TrainingResult,
    training_bytes: int,
    heldout_bytes: int,
    heldout_bpb: float,
    parameters: int,
) -> None:
    """Writes README.md, a Hugging Face model card with the figures of this very training."""
    version = platform.python_version()
    card = f"""---
license: apache-2.0
language:
- code
library_name: transformers
pipeline_tag: text-generation
tags:
- gpt2
- test-fixture
---

# A small GPT-2 trained on Python's standard library

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
| time | {result.seconds:,.0f} s on {_threads()} processor cores, no accelerator |

Docstrings and help topics were left out because the sample corpus of ivr_dagster consists of them.

To train it again: `python -m ivr_dagster.sample.train_model --output DIR --steps {settings.steps}`.

## Evaluation

**{heldout_bpb:.3f} bits per byte** on {heldout_bytes:,} bytes of held-out files ({HELDOUT_SHARE:.0%} of the files, \
by a hash of their path), measured with these float16 weights after reloading them, each file after an end-of-text \
token, in windows of {settings.block} tokens that do not overlap.

## Licences

The weights are under the Apache License 2.0. The training text is under the Python Software Foundation License. \
Vocabulary and merges are those of OpenAI's GPT-2, under the MIT licence.
"""
    (folder / "README.md").write_text(card, encoding="utf-8")


# --- the command ---------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> TrainingResult:
    """Reads the standard library, trains, saves, reloads, measures and writes the model card."""
    options = _parse_arguments(arguments)
    import torch
    from tokenizers import Tokenizer
    from transformers import GPT2LMHeadModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    if not (options.tokenizer / "tokenizer.json").is_file():
        raise InputError(
            "there is no tokenizer.json in the tokenizer folder",
            where=options.tokenizer,
            remedy="Name a folder with GPT-2's tokenizer by --tokenizer",
        )
    tokenizer = Tokenizer.from_file(str(options.tokenizer / "tokenizer.json"))
    training, heldout = read_training_texts(options.source)
    settings = TrainingSettings(**{name: getattr(options, name) for name in TrainingSettings.__dataclass_fields__})
    blocks = encode_blocks(tokenizer, [file.text for file in training], settings.block, settings.seed)
    training_bytes = sum(len(file.text.encode()) for file in training)
    heldout_bytes = sum(len(file.text.encode()) for file in heldout)
    _say(
        f"{len(training)} files, {training_bytes:,} bytes, {blocks.shape[0] * settings.block:,} tokens to train on; "
        f"{len(heldout)} files, {heldout_bytes:,} bytes held out"
    )
    torch.manual_seed(settings.seed)
    model = new_model(settings)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    result = train(model, blocks, settings, options.output.with_name(f".{options.output.name}.checkpoint.pt"))
    save_model(model, options.tokenizer, options.output)
    reloaded = GPT2LMHeadModel.from_pretrained(options.output, dtype=torch.float32)
    heldout_bpb = bits_per_byte(reloaded, tokenizer, [file.text for file in heldout])
    write_model_card(
        options.output, settings, result, training_bytes, heldout_bytes, heldout_bpb, model.num_parameters()
    )
    size = (options.output / "model.safetensors").stat().st_size
    _say(f"{options.output}: {size:,} bytes of weights, held-out {heldout_bpb:.3f} bits per byte")
    return result


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ivr_dagster.sample.train_model",
        description="Train a small GPT-2 on the code of this Python's standard library.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    defaults = TrainingSettings()
    parser.add_argument("--output", type=Path, required=True, help="folder to write the model to; replaced if there")
    parser.add_argument("--tokenizer", type=Path, default=SAMPLE_MODEL, help="folder with GPT-2's tokenizer.json")
    parser.add_argument("--source", type=Path, help="folder with Python files instead of the standard library")
    parser.add_argument("--steps", type=int, default=defaults.steps, help="optimizer steps")
    parser.add_argument("--batch", type=int, default=defaults.batch, help="blocks a step")
    parser.add_argument("--block", type=int, default=defaults.block, help="tokens a block, and the model's positions")
    parser.add_argument("--width", type=int, default=defaults.width, help="embedding size")
    parser.add_argument("--layers", type=int, default=defaults.layers, help="transformer layers")
    parser.add_argument("--heads", type=int, default=defaults.heads, help="attention heads; must divide the width")
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate, help="peak learning rate")
    parser.add_argument("--warmup", type=float, default=defaults.warmup, help="share of the steps to warm up over")
    parser.add_argument("--weight-decay", type=float, default=defaults.weight_decay, help="of the layers' matrices")
    parser.add_argument(
        "--sampled-tokens",
        type=int,
        default=defaults.sampled_tokens,
        help="tokens sampled a step for the softmax, beside the batch's own; 0 for the whole vocabulary",
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of weights, text order and sampling")
    return parser.parse_args(arguments)


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
