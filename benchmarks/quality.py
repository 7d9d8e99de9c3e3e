"""What the new vocabulary costs or brings, in bits per byte, on an artifacts folder that the stage align has left.

`start`: the base model under its own and the distilled tokenizer, every initialization strategy, calibration, token
distillation.
`curves`: the adapted model and the vanilla baseline, fine-tuned for the same number of tokens, validated on the way;
with `--equal-bytes` for the same text instead. Several seeds. All on the same held-out bytes with equal contexts; with
`--retention` also on text of another domain. The result is written after every run.
`compare`: files that `curves` wrote, variants and seeds in one table, means with intervals over seeds, and a plot.

    ivr --artifacts-dir DIR run --until align --raw-corpora-dir … --model-name …
    python -m benchmarks.quality start --artifacts DIR --model FOLDER
    python -m benchmarks.quality curves --artifacts DIR --model FOLDER --tokens 72000 --sft sft.yaml --seeds 1,2,3
    python -m benchmarks.quality compare benchmarks/results/quality-curves-A.json … --plot curves.png
"""

import argparse
import json
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.corpus.other_text import read_other_documents, select_other_texts
from ivr_dagster.core.corpus.subset import documents_within
from ivr_dagster.core.embedding.calibrate import POSITIONS, calibrate_new_rows
from ivr_dagster.core.embedding.extract import read_embeddings, replace_embeddings, write_model
from ivr_dagster.core.embedding.initialize import STRATEGIES, initialize_embeddings
from ivr_dagster.core.embedding.reorder import reorder_embeddings, row_sources
from ivr_dagster.core.embedding.token_distillation import cut_snippets, fit_new_rows
from ivr_dagster.core.evaluation.bits_per_byte import BitsPerByte, ScoringTokenizer, bits_per_byte
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.tokenizer.bpe import read_bpe, strings_by_id
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokens.sequences import reference_encoder
from ivr_dagster.core.training.blocks import write_blocks, write_validation_blocks
from ivr_dagster.core.training.sft import Training, Validation, fine_tune
from ivr_dagster.core.training.sft_config import read_sft_config
from ivr_dagster.core.vocabulary.rules import read_rules
from ivr_dagster.pipeline import ArtifactPaths
from ivr_dagster.settings.groups import CorpusSettings

RESULTS = Path(__file__).parent / "results"
# Student's t, 97.5 %, by degrees of freedom; beyond them 2
T_95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
CONTEXT = 512


class Bench:
    """One artifacts folder, its tokenizers and texts, and how models are scored on them."""

    def __init__(
        self,
        artifacts: Path,
        model: Path,
        heldout_bytes: int,
        validation_bytes: int,
        dtype: str,
        retention: Path | None = None,
        general: Path | None = None,
        general_share: float = 0.1,
    ) -> None:
        paths = ArtifactPaths(artifacts.resolve())
        self.model, self.dtype = ModelFolder(model), dtype
        self.tokenizers = {
            name: TokenizerFolder(paths[asset])
            for name, asset in (
                ("base", "original_tokenizer"),
                ("distilled", "distilled_tokenizer"),
                ("remapped", "remapped_tokenizer"),
            )
        }
        self.backends = {name: folder.backend() for name, folder in self.tokenizers.items()}
        self.encoders = {name: reference_encoder(backend) for name, backend in self.backends.items()}
        self.eos_id = int(self.tokenizers["base"].load().eos_token_id)
        self.scoring = {name: ScoringTokenizer.of(each, self.eos_id) for name, each in self.backends.items()}
        self.rules = read_rules(paths["remap_rules"])
        self.bpe = read_bpe(self.backends["base"])
        self.constituents = {rule.id: [self.bpe.ids[part] for part in rule.constituents] for rule in self.rules}
        self.new_tokens = self.rules.new_tokens()
        corpus = CleanedCorpus(paths["cleaned_corpus"])
        wanted, self.heldout_bytes = documents_within(corpus.documents("heldout"), heldout_bytes)
        self.heldout = [text for i, text in corpus.documents("heldout") if i in wanted]
        kept, _ = documents_within(corpus.documents("train"), validation_bytes, from_the_end=True)
        train = sorted((i, text) for i, text in corpus.documents("train") if i not in kept)
        self.train = [text for _, text in train]
        self.validation = [text for i, text in corpus.documents("train") if i in kept]
        self.context = min(2 * CONTEXT, self.model.context() or 2 * CONTEXT)
        self.retention: list[str] = []
        if retention:
            others = read_other_documents(retention, CorpusSettings(text_split_bytes=10_000), "--retention")
            self.retention = select_other_texts(others, (), heldout_bytes)
        self.general: list[str] = []
        if general:
            others = read_other_documents(general, CorpusSettings(text_split_bytes=10_000), "--general")
            size = sum(len(text.encode()) for text in self.train)
            self.general = select_other_texts(others, (), round(size * general_share / (1 - general_share)))
        self.context_bytes = self.scoring["base"].fitting_context_bytes(self.heldout, self.context)
        self.base = read_embeddings(model)
        sources = row_sources(self.bpe.ids, strings_by_id(self.backends["remapped"]))
        self.reordered = reorder_embeddings(self.base, sources)

    def initial(self, strategy: str = "constituents") -> dict[str, Any]:
        return initialize_embeddings(
            self.reordered, self.base, self.constituents, strategy=strategy, vocabulary_size=self.bpe.size
        )

    def calibrated(self, texts: list[str]) -> dict[str, Any]:
        calibration = calibrate_new_rows(
            self.model.load("float32"),
            self.initial(),
            list(self.new_tokens),
            self.encoders["remapped"](texts),
            eos_id=self.eos_id,
            length=CONTEXT,
            dtype=self.dtype,
        )
        return calibration.tensors

    def score(self, model: Any, tokenizer: str, texts: list[str] | None = None) -> BitsPerByte:
        """On the held-out text unless told otherwise; contexts of the same bytes under every tokenizer."""
        import torch

        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == "bfloat16"):
            return bits_per_byte(
                model,
                self.scoring[tokenizer],
                texts or self.heldout,
                context=self.context,
                context_bytes=self.context_bytes,
            )

    def distilled(self, size: int, hidden_weight: float, learning_rate: float) -> tuple[dict[str, Any], dict[str, Any]]:
        texts, read = [], 0
        for text in self.train:
            if read >= size:
                break
            texts.append(text)
            read += len(text.encode())
        sequences = [ids.tolist() for ids in self.encoders["remapped"](texts)]
        started = time.monotonic()
        fitted = fit_new_rows(
            self.model.load("float32"),
            self.base,
            self.calibrated(self.train),
            self.new_tokens,
            list(cut_snippets(sequences, self.constituents, eos_id=self.eos_id, length=CONTEXT)),
            learning_rate=learning_rate,
            hidden_weight=hidden_weight,
            dtype=self.dtype,
            progress=lambda done, steps, loss: (
                told(f"  step {done} of {steps}: {loss:.3f}") if done % 10 == 0 else None
            ),
        )
        figures = {"bytes": read, "tokens": fitted.tokens, "base_tokens": fitted.base_tokens}
        return fitted.tensors, figures | {"seconds": time.monotonic() - started}


class Clock:
    """Processor seconds of training from the first step on: what passes before a loss is logged, at every step.

    Validation is left out.
    """

    def __init__(self, name: str) -> None:
        self.name, self.seconds, self.validated = name, 0.0, dict[int, float]()
        self._last: float | None = None

    def __call__(self, entry: dict[str, float]) -> None:
        now = time.process_time()
        if "bits_per_byte" in entry:
            self.validated[int(entry["step"])] = self.seconds
            told(f"{self.name} {entry} {self.seconds:.0f} s")
        elif self._last is not None:
            self.seconds += now - self._last
        self._last = now


def told(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def start(bench: Bench, distillations: list[tuple[int, float, float]]) -> dict[str, Any]:
    """BPB before any training, by how new rows begin."""
    rows: dict[str, Any] = {}
    model = bench.model.load("float32")
    for name in ("base", "distilled"):
        rows[f"base model, {name} tokenizer"] = {"bpb": bench.score(model, name).bpb}
        told(str(rows))
    for strategy in STRATEGIES:
        replace_embeddings(model, bench.initial(strategy))
        rows[strategy] = {"bpb": bench.score(model, "remapped").bpb}
        told(f"{strategy} {rows[strategy]}")
    started = time.process_time()
    replace_embeddings(model, bench.calibrated(bench.train))
    seconds = time.process_time() - started
    rows["constituents, calibrated"] = {"bpb": bench.score(model, "remapped").bpb, "cpu_seconds": seconds}
    told(str(rows["constituents, calibrated"]))
    for size, weight, rate in distillations:
        tensors, figures = bench.distilled(size, weight, rate)
        replace_embeddings(model, tensors)
        name = f"token distillation, {size:,} bytes, hidden states {weight:g}, learning rate {rate:g}"
        rows[name] = figures | {"bpb": bench.score(model, "remapped").bpb}
        told(f"{name} {rows[name]}")
    return {"heldout_bytes": bench.heldout_bytes, "context_bytes": bench.context_bytes, "rows": rows}


def curves(
    bench: Bench,
    *,
    tokens: int,
    epochs: float,
    equal_bytes: bool,
    train_bytes: int,
    seeds: list[int],
    sft: Path | None,
    block_size: int,
    variants: list[str],
    distillation: tuple[int, float, float] | None,
    save: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Fine-tuned variants: validation on the way, BPB at the end on held-out text and on that of another domain."""
    import torch

    texts, read = [], 0
    for text in bench.train:
        if train_bytes and read >= train_bytes:
            break
        texts.append(text)
        read += len(text.encode())
    all_bytes = sum(len(text.encode()) for text in bench.train)
    base = bench.model.load("float32")
    result: dict[str, Any] = {
        "heldout_bytes": bench.heldout_bytes,
        "context_bytes": bench.context_bytes,
        "equal": "bytes" if equal_bytes else "tokens",
        "train_bytes": read,
        "general_bytes": sum(len(text.encode()) for text in bench.general) * read / all_bytes,
        "sft": read_sft_config(sft).arguments | {"rates": vars(read_sft_config(sft).rates)},
        "vanilla_sft": read_sft_config(sft, vanilla=True).arguments
        | {"rates": vars(read_sft_config(sft, vanilla=True).rates)},
        "base": {
            "bpb": bench.score(base, "base").bpb,
            "retention_bpb": bench.score(base, "base", bench.retention).bpb if bench.retention else None,
        },
        "runs": [],
    }
    del base
    with tempfile.TemporaryDirectory() as folder:
        adapted, extra = Path(folder) / "adapted", POSITIONS / 3
        adapted.mkdir()
        if distillation:
            tensors, figures = bench.distilled(*distillation)
            extra += figures["tokens"] * 2 / 3 + figures["base_tokens"] / 3
        else:
            tensors = bench.calibrated(texts)
        write_model(bench.model.path, tensors, adapted)
        for name in variants:
            tokenizer = "remapped" if name == "adapted" else "base"
            # a vanilla block holds less text, so that it gets more tokens of context
            size = block_size if name == "adapted" else 2 * block_size
            common = {"block_size": size, "eos_id": bench.eos_id, "vocab_size": bench.bpe.size}
            blocks, kept = Path(folder) / f"{name}-blocks", Path(folder) / f"{name}-validation"
            general = bench.general[: round(len(bench.general) * read / all_bytes)]
            counts = write_blocks(iter(bench.encoders[tokenizer]([*texts, *general])), blocks, **common)
            valid = write_validation_blocks(bench.encoders[tokenizer](bench.validation), kept, **common)
            bytes_per_token = (read + sum(len(text.encode()) for text in general)) / counts.tokens
            validation = Validation(kept, sum(len(text.encode()) for text in bench.validation) / valid)
            for seed in seeds:
                config = read_sft_config(sft, vanilla=name == "vanilla", seed=seed)
                batch = config.arguments["per_device_train_batch_size"]
                steps = round(epochs * counts.blocks / batch) if equal_bytes else round(tokens / (batch * size))
                if name == "adapted" and not equal_bytes:
                    steps -= round(extra / (batch * size))
                config = read_sft_config(
                    sft, vanilla=name == "vanilla", seed=seed, max_steps=steps, save_steps=10**6, logging_steps=1
                )
                clock = Clock(name)
                training = Training(
                    bench.model.path if name == "vanilla" else adapted,
                    blocks,
                    Path(folder) / f"{name}-{seed}",
                    config,
                    bench.tokenizers[tokenizer].path,
                    fingerprint="",
                    dtype=bench.dtype,
                    new_tokens=bench.new_tokens if name == "adapted" else None,
                    validation=validation,
                )
                trained = fine_tune(training, on_log=clock)
                model = ModelFolder(trained.final_model).load("float32")
                score = bench.score(model, tokenizer)
                other = bench.score(model, tokenizer, bench.retention).bpb if bench.retention else None
                per_step = trained.tokens / trained.steps
                result["runs"].append(
                    {
                        "variant": name,
                        "seed": seed,
                        "steps": trained.steps,
                        "tokens": trained.tokens,
                        "bytes": trained.tokens * bytes_per_token,
                        "tokens_before_training": extra if name == "adapted" else 0.0,
                        "cpu_seconds": clock.seconds,
                        "tokens_per_second": trained.tokens_per_second,
                        "bpb": score.bpb,
                        "document_bits": score.document_bits.tolist(),
                        "document_bytes": score.document_bytes.tolist(),
                        "retention_bpb": other,
                        "curve": [
                            {
                                "tokens": step * per_step,
                                "bytes": step * per_step * bytes_per_token,
                                "cpu_seconds": clock.validated[step],
                                "bpb": bpb,
                            }
                            for step, bpb in trained.validation
                        ],
                    }
                )
                save(result)
                told(as_markdown("curves", result))
                del trained, model
                shutil.rmtree(Path(folder) / f"{name}-{seed}")
                torch.manual_seed(0)
    return result


def as_markdown(part: str, result: dict[str, Any]) -> str:
    """The table for README."""
    if part == "start":
        lines = ["| before any training | BPB |", "|---|---:|"]
        lines += [f"| {name} | {row['bpb']:.3f} |" for name, row in result["rows"].items()]
        return "\n".join(lines)
    lines = ["| variant | seed | tokens | bytes of text | CPU seconds | BPB | other text |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|"]
    lines += [
        f"| {run['variant']} | {run['seed']} | {run['tokens']:,} | {run['bytes']:,.0f} | {run['cpu_seconds']:,.0f} "
        f"| {run['bpb']:.4f} | {run['retention_bpb'] or 0:.4f} |"
        for run in result["runs"]
    ]
    return "\n".join([*lines, "", *_over_seeds(result)])


def _over_seeds(result: dict[str, Any]) -> list[str]:
    """Means over seeds, and the difference of two variants, with 95 % intervals (Student's t; Welch for two)."""

    def told_with(value: str, error: float, freedom: float) -> str:
        return f"{value} ± {T_95.get(int(freedom), 2.0) * error:.4f}" if freedom >= 1 else f"{value} (one seed)"

    lines, found = [], {}
    for name in dict.fromkeys(run["variant"] for run in result["runs"]):
        for key, on in (("bpb", "held-out"), ("retention_bpb", "other text")):
            values = np.array([run[key] for run in result["runs"] if run["variant"] == name and run[key]])
            if not len(values):
                continue
            freedom = len(values) - 1
            error = float(values.std(ddof=1)) / len(values) ** 0.5 if freedom else 0.0
            found[name, key] = float(values.mean()), error, freedom
            rise = f"{values.mean() / result['base'][key] - 1:+.1%} against the base model"
            lines.append(f"{name}, {on}: {told_with(f'{values.mean():.4f}', error, freedom)}, {rise}")
    for key in ("bpb", "retention_bpb"):
        if {("adapted", key), ("vanilla", key)} <= found.keys():
            (one, a, n), (two, b, m) = found["adapted", key], found["vanilla", key]
            freedom = (a**2 + b**2) ** 2 / (a**4 / n + b**4 / m) if n and m else 0.0
            difference = told_with(f"{one - two:+.4f}", (a**2 + b**2) ** 0.5, freedom)
            lines.append(f"adapted − vanilla, {key}: {difference}, ratio {one / two:.3f}")
    return lines


def compare(files: list[Path], plot: Path | None) -> dict[str, Any]:
    """Runs of several files as one result; its curves drawn over computation and over text."""
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    joined: dict[str, Any] = results[0] | {"runs": [run for result in results for run in result["runs"]]}
    if plot:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        left.set_ylabel("bits per byte, validation")
        colours = {"adapted": "tab:blue", "vanilla": "tab:orange"}
        for axes, key, scale, label in (
            (left, "cpu_seconds", 1, "seconds of one core"),
            (right, "bytes", 1e3, "text read, KB"),
        ):
            axes.set_xlabel(label)
            named = set()
            for run in joined["runs"]:
                name = run["variant"]
                axes.plot(
                    [point[key] / scale for point in run["curve"]],
                    [point["bpb"] for point in run["curve"]],
                    "o-",
                    color=colours[name],
                    label=None if name in named else name,
                )
                named.add(name)
            axes.legend()
        figure.savefig(plot, dpi=110)
    return joined


def _triple(text: str) -> tuple[int, float, float]:
    size, weight, rate = text.split(":")
    return int(size), float(weight), float(rate)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["start", "curves", "compare"])
    parser.add_argument("files", type=Path, nargs="*", help="to compare")
    parser.add_argument("--plot", type=Path, help="where `compare` draws the curves")
    parser.add_argument("--artifacts", type=Path, help="what `ivr … run --until align` left")
    parser.add_argument("--model", type=Path, help="folder of the base model")
    parser.add_argument("--heldout-bytes", type=int, default=40_000)
    parser.add_argument("--validation-bytes", type=int, default=20_000)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--retention", type=Path, help="folder of text of another domain")
    parser.add_argument("--general", type=Path, help="folder of text mixed in, so that the model does not forget")
    parser.add_argument("--general-share", type=float, default=0.1, help="of the bytes trained on")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: as many as it takes by itself")
    parser.add_argument(
        "--distillation", type=_triple, action="append", default=[], help="bytes:hidden weight:learning rate"
    )
    parser.add_argument("--tokens", type=int, default=72_000, help="trained on in each run, distillation included")
    parser.add_argument("--equal-bytes", action="store_true", help="the same text for all, --epochs times")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--train-bytes", type=int, default=0, help="0: the whole train split")
    parser.add_argument("--seeds", default="42", help="comma-separated")
    parser.add_argument("--sft", type=Path, help="training settings; `vanilla` in it holds the baseline's own")
    parser.add_argument("--block-size", type=int, default=256, help="tokens, under the remapped tokenizer")
    parser.add_argument("--variants", default="adapted,vanilla")
    parser.add_argument("--name", help="of the result's file; the artifacts folder's by default")
    options = parser.parse_args()
    if options.part == "compare":
        print(as_markdown("curves", compare(options.files, options.plot)))
        return
    if not options.artifacts or not options.model:
        parser.error("--artifacts and --model are needed")
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    bench = Bench(
        options.artifacts,
        options.model,
        options.heldout_bytes,
        options.validation_bytes,
        options.dtype,
        options.retention,
        options.general,
        options.general_share,
    )
    file = RESULTS / f"quality-{options.part}-{options.name or options.artifacts.resolve().name}.json"

    def save(result: dict[str, Any]) -> None:
        made_with = {
            "model": options.model.name,
            "dtype": options.dtype,
            "threads": torch.get_num_threads(),
            "machine": platform.processor() or platform.machine(),
            "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
        }
        RESULTS.mkdir(exist_ok=True)
        file.write_text(json.dumps(result | made_with, indent=2) + "\n", encoding="utf-8")

    if options.part == "start":
        result = start(bench, options.distillation)
    else:
        result = curves(
            bench,
            tokens=options.tokens,
            epochs=options.epochs,
            equal_bytes=options.equal_bytes,
            train_bytes=options.train_bytes,
            seeds=[int(seed) for seed in options.seeds.split(",")],
            sft=options.sft,
            block_size=options.block_size,
            variants=options.variants.split(","),
            distillation=options.distillation[0] if options.distillation else None,
            save=save,
        )
    save(result)
    print(as_markdown(options.part, result))


if __name__ == "__main__":
    main()
