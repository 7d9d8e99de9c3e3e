"""Bits per byte (BPB) of the adapted model compared with the base model and the vanilla baseline.

`start`: before training: the base model under its own and the distilled tokenizer, every initialization strategy,
calibration, token distillation.
`curves`: the adapted model and the vanilla baseline, fine-tuned on the same number of tokens, or with `--equal-bytes`
on the same text, with validation curves, for several seeds. `--retention` also measures out-of-domain text. The result
is saved after every run.
`compare`: results of `curves` in one table, with means over seeds, confidence intervals and a plot.

All variants are scored on the same held-out bytes with equal contexts in bytes.

    ivr --artifacts-dir DIR run --until align --raw-corpora-dir … --model-name …
    python -m benchmarks.quality start --artifacts DIR --model FOLDER
    python -m benchmarks.quality curves --artifacts DIR --model FOLDER --tokens 72000 --sft sft.yaml --seeds 1,2,3
    python -m benchmarks.quality compare benchmarks/results/quality-curves-A.json … --plot curves.png
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.quality_bench import Bench, first_bytes, log, size_of
from benchmarks.quality_tables import as_markdown, compare
from benchmarks.record import save
from ivr_dagster.core.embedding.calibrate import POSITIONS
from ivr_dagster.core.embedding.extract import replace_embeddings, write_model
from ivr_dagster.core.embedding.initialize import STRATEGIES
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.training.blocks import write_blocks
from ivr_dagster.core.training.sft import Training, fine_tune
from ivr_dagster.core.training.sft_config import read_sft_config
from ivr_dagster.core.training.validation import Validation


class Clock:
    """Logging callback that sums CPU seconds between log entries of single steps, without validation."""

    def __init__(self, name: str) -> None:
        self.name, self.seconds, self.validated = name, 0.0, dict[int, float]()
        self._last: float | None = None

    def __call__(self, entry: dict[str, float]) -> None:
        now = time.process_time()
        if "bits_per_byte" in entry:
            self.validated[int(entry["step"])] = self.seconds
            log(f"{self.name} {entry} {self.seconds:.0f} s")
        elif self._last is not None:
            self.seconds += now - self._last
        self._last = now


def start(bench: Bench, distillations: list[tuple[int, float, float]]) -> dict[str, Any]:
    """BPB before training, by initialization of new rows."""
    rows: dict[str, Any] = {}
    model = bench.model.load("float32")

    def score(name: str, tokenizer: str = "remapped", **figures: Any) -> None:
        rows[name] = figures | {"bpb": bench.score(model, tokenizer).bpb}
        log(f"{name} {rows[name]}")

    for name in ("base", "distilled"):
        score(f"base model, {name} tokenizer", name)
    for strategy in STRATEGIES:
        replace_embeddings(model, bench.initial(strategy))
        score(strategy)
    started = time.process_time()
    replace_embeddings(model, bench.calibrated(bench.train))
    score("constituents, calibrated", cpu_seconds=time.process_time() - started)
    for size, weight, rate in distillations:
        tensors, figures = bench.distilled(size, weight, rate)
        replace_embeddings(model, tensors)
        score(f"token distillation, {size:,} bytes, hidden states {weight:g}, learning rate {rate:g}", **figures)
    return {"heldout_bytes": bench.heldout_bytes, "context_bytes": bench.context_bytes, "rows": rows}


@dataclass(frozen=True)
class TrainingInput:
    """What all seeds of a variant share.

    Attributes:
        variant: `adapted` or `vanilla`.
        model: folder of the model to start from.
        tokenizer: key of `TOKENIZERS`.
        blocks: folder of training blocks.
        block_size: tokens per block.
        block_count: number of blocks.
        bytes_per_token: of the training text.
        validation: text to validate on.
        earlier_tokens: forward and backward passes before training, in tokens trained.
    """

    variant: str
    model: Path
    tokenizer: str
    blocks: Path
    block_size: int
    block_count: int
    bytes_per_token: float
    validation: Validation
    earlier_tokens: float


def training_input(
    bench: Bench, variant: str, texts: list[str], options: argparse.Namespace, folder: Path
) -> TrainingInput:
    """Write a variant's blocks and, for the adapted variant, its initialized model."""
    is_adapted = variant == "adapted"
    tokenizer = "remapped" if is_adapted else "base"
    model, earlier_tokens = bench.model.path, 0.0
    if is_adapted:
        model, earlier_tokens = folder / "adapted", POSITIONS / 3
        model.mkdir()
        if options.distillation:
            tensors, figures = bench.distilled(*options.distillation[0])
            earlier_tokens += figures["tokens"] * 2 / 3 + figures["base_tokens"] / 3
        else:
            tensors = bench.calibrated(texts)
        write_model(bench.model.path, tensors, model)
    # a vanilla block holds less text, so it gets more tokens
    block_size = options.block_size if is_adapted else 2 * options.block_size
    sizes = {"block_size": block_size, "eos_id": bench.eos_id, "vocab_size": bench.bpe.size}
    blocks = folder / f"{variant}-blocks"
    general = bench.general[: round(len(bench.general) * size_of(texts) / size_of(bench.train))]
    encode = bench.encoders[tokenizer]
    counts = write_blocks(iter(encode([*texts, *general])), blocks, **sizes)
    return TrainingInput(
        variant,
        model,
        tokenizer,
        blocks,
        block_size,
        counts.blocks,
        size_of([*texts, *general]) / counts.tokens,
        Validation.of(bench.validation, bench.scoring["base"], options.block_size),
        earlier_tokens,
    )


def train_and_score(
    bench: Bench, given: TrainingInput, seed: int, options: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Fine-tune one variant with one seed; its figures."""
    is_vanilla = given.variant == "vanilla"
    config = read_sft_config(options.sft, vanilla=is_vanilla, seed=seed)
    batch = config.arguments["per_device_train_batch_size"]
    if options.equal_bytes:
        steps = round(options.epochs * given.block_count / batch)
    else:
        tokens_per_step = batch * given.block_size
        steps = round(options.tokens / tokens_per_step) - round(given.earlier_tokens / tokens_per_step)
    once = {"max_steps": steps, "save_steps": 10**6, "logging_steps": 1}
    clock = Clock(given.variant)
    training = Training(
        given.model,
        given.blocks,
        folder,
        read_sft_config(options.sft, vanilla=is_vanilla, seed=seed, **once),
        bench.tokenizers[given.tokenizer].path,
        fingerprint="",
        dtype=bench.dtype,
        new_tokens=None if is_vanilla else bench.new_tokens,
        validation=given.validation,
    )
    trained = fine_tune(training, on_log=clock)
    model = ModelFolder(trained.final_model).load("float32")
    score = bench.score(model, given.tokenizer)
    per_step = trained.tokens / trained.steps
    return {
        "variant": given.variant,
        "seed": seed,
        "steps": trained.steps,
        "tokens": trained.tokens,
        "bytes": trained.tokens * given.bytes_per_token,
        "tokens_before_training": given.earlier_tokens,
        "cpu_seconds": clock.seconds,
        "tokens_per_second": trained.tokens_per_second,
        "bpb": score.bpb,
        "document_bits": score.document_bits.tolist(),
        "document_bytes": score.document_bytes.tolist(),
        "retention_bpb": bench.retention_bpb(model, given.tokenizer),
        "curve": [
            {
                "tokens": step * per_step,
                "bytes": step * per_step * given.bytes_per_token,
                "cpu_seconds": clock.validated[step],
                "bpb": bpb,
            }
            for step, bpb in trained.validation
        ],
    }


def curves(bench: Bench, options: argparse.Namespace, save_result: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Fine-tune every variant with every seed; the result is saved after each run."""
    import torch

    texts = first_bytes(bench.train, options.train_bytes)
    read, base = size_of(texts), bench.model.load("float32")
    configs = {"sft": read_sft_config(options.sft), "vanilla_sft": read_sft_config(options.sft, vanilla=True)}
    result: dict[str, Any] = {
        "heldout_bytes": bench.heldout_bytes,
        "context_bytes": bench.context_bytes,
        "equal": "bytes" if options.equal_bytes else "tokens",
        "train_bytes": read,
        "general_bytes": size_of(bench.general) * read / size_of(bench.train),
        **{name: config.arguments | {"rates": vars(config.rates)} for name, config in configs.items()},
        "base": {"bpb": bench.score(base, "base").bpb, "retention_bpb": bench.retention_bpb(base, "base")},
        "runs": [],
    }
    del base
    with tempfile.TemporaryDirectory() as folder:
        for variant in options.variants.split(","):
            given = training_input(bench, variant, texts, options, Path(folder))
            for seed in map(int, options.seeds.split(",")):
                with tempfile.TemporaryDirectory(dir=folder) as output:
                    result["runs"].append(train_and_score(bench, given, seed, options, Path(output) / "run"))
                save_result(result)
                log(as_markdown("curves", result))
                torch.manual_seed(0)
    return result


def parse_options() -> argparse.Namespace:
    def distillation(text: str) -> tuple[int, float, float]:
        size, weight, rate = text.split(":")
        return int(size), float(weight), float(rate)

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["start", "curves", "compare"])
    parser.add_argument("files", type=Path, nargs="*", help="results to compare")
    parser.add_argument("--plot", type=Path, help="image file for the curves of `compare`")
    parser.add_argument("--artifacts", type=Path, help="artifacts folder after `ivr … run --until align`")
    parser.add_argument("--model", type=Path, help="folder of the base model")
    parser.add_argument("--heldout-bytes", type=int, default=40_000)
    parser.add_argument("--validation-bytes", type=int, default=20_000)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--retention", type=Path, help="folder of out-of-domain text to score")
    parser.add_argument("--general", type=Path, help="folder of general text to mix into the training text")
    parser.add_argument("--general-share", type=float, default=0.1, help="share of general text in the training bytes")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch; 0: torch's default")
    parser.add_argument(
        "--distillation", type=distillation, action="append", default=[], help="bytes:hidden weight:learning rate"
    )
    parser.add_argument("--tokens", type=int, default=72_000, help="tokens per run, token distillation included")
    parser.add_argument("--equal-bytes", action="store_true", help="train all variants on the same text")
    parser.add_argument("--epochs", type=float, default=1.0, help="with --equal-bytes")
    parser.add_argument("--train-bytes", type=int, default=0, help="0: the whole train split")
    parser.add_argument("--seeds", default="42", help="comma-separated")
    parser.add_argument("--sft", type=Path, help="training settings; its key `vanilla` holds those of the baseline")
    parser.add_argument("--block-size", type=int, default=256, help="tokens, under the remapped tokenizer")
    parser.add_argument("--variants", default="adapted,vanilla")
    parser.add_argument("--name", help="name of the result (default: the artifacts folder's name)")
    options = parser.parse_args()
    if options.part != "compare" and not (options.artifacts and options.model):
        parser.error("--artifacts and --model are required")
    return options


def main() -> None:
    options = parse_options()
    if options.part == "compare":
        print(as_markdown("curves", compare(options.files, options.plot)))
        return
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    bench = Bench(options)

    def save_result(result: dict[str, Any]) -> None:
        name = f"quality-{options.part}-{options.name or options.artifacts.resolve().name}"
        source = {"model": options.model.name, "dtype": options.dtype, "threads": torch.get_num_threads()}
        save(name, result | source, "torch transformers tokenizers")

    result = start(bench, options.distillation) if options.part == "start" else curves(bench, options, save_result)
    save_result(result)
    print(as_markdown(options.part, result))


if __name__ == "__main__":
    main()
