"""How many new tokens pay off on a given text, at the compute of one epoch of the vanilla baseline.

For every number of new tokens, they are selected on the text that is trained on, their rows are initialized and
calibrated, and the model is fine-tuned until it has processed as many tokens as the vanilla baseline (0 new tokens),
initialization included; it reads the text several times meanwhile. All are scored on the same share of every held-out
document.

    ivr --artifacts-dir DIR run --until analyze --raw-corpora-dir … --model-name …
    python -m benchmarks.frontier --artifacts DIR --model FOLDER --train-bytes 211000 --new-tokens 0 300 1000 3000 \
        --output POINTS

Each point is saved in `--output` with its model when it is done; a repeated command measures only the missing points.
Several commands with the same output may run at the same time with different `--new-tokens`.
"""

import argparse
import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from benchmarks.quality import Clock
from benchmarks.quality_bench import first_bytes, log, size_of
from benchmarks.record import save
from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.corpus.subset import documents_within
from ivr_dagster.core.embedding.calibrate import Calibration, calibrate_new_rows
from ivr_dagster.core.embedding.extract import read_embeddings, write_model
from ivr_dagster.core.embedding.initialize import initialize_embeddings
from ivr_dagster.core.embedding.reorder import reorder_embeddings, row_sources
from ivr_dagster.core.evaluation.intervals import bpb_intervals
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.scoring.bits_per_byte import BitsPerByte, ScoringTokenizer, bits_per_byte
from ivr_dagster.core.tokenizer.bpe import read_bpe, strings_by_id
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokenizer.write import write_tokenizer
from ivr_dagster.core.tokens.counts import count_pretokens, token_frequencies
from ivr_dagster.core.tokens.sequences import reference_encoder
from ivr_dagster.core.training.blocks import read_blocks, used_ids, write_blocks
from ivr_dagster.core.training.sft import Training, fine_tune
from ivr_dagster.core.training.sft_config import read_sft_config
from ivr_dagster.core.training.validation import Validation
from ivr_dagster.core.vocabulary.candidates import choose_candidates
from ivr_dagster.core.vocabulary.remap import remap_tokenizer
from ivr_dagster.core.vocabulary.rules import RemapRules
from ivr_dagster.core.vocabulary.table import candidates_table, rules_from_table
from ivr_dagster.settings import SelectionSettings

CONTEXT = 1024
SNIPPET = 512


@dataclass(frozen=True)
class Point:
    """A fine-tuned model and what it took.

    Attributes:
        new_tokens: 0 for the vanilla baseline.
        tokens, heldout_tokens: of the training text and of the held-out text.
        unseen: share of held-out tokens that the training text does not contain.
        passes: how often the training text is read.
        start_bpb, bpb, validation_bpb: held-out bits per byte before and after training, and those of validation text.
        cpu_seconds: of training.
        document_bits: of the held-out documents.
    """

    new_tokens: int
    tokens: int
    heldout_tokens: int
    unseen: float
    passes: float
    start_bpb: float
    bpb: float
    validation_bpb: float
    cpu_seconds: float
    document_bits: list[float]


class Frontier:
    """The texts and the base model, the same for all points."""

    def __init__(self, options: argparse.Namespace) -> None:
        paths = ArtifactPaths(options.artifacts.resolve())
        self.options, self.model = options, ModelFolder(options.model)
        self.folder = TokenizerFolder(paths["original_tokenizer"])
        self.base, self.eos_id = self.folder.backend(), self.folder.end_of_text_id()
        self.bpe = read_bpe(self.base)
        corpus = CleanedCorpus(paths["cleaned_corpus"])
        train, heldout = sorted(corpus.documents("train")), [text for _, text in sorted(corpus.documents("heldout"))]
        kept, _ = documents_within(train, options.validation_bytes, from_the_end=True)
        self.train = first_bytes([text for i, text in train if i not in kept], options.train_bytes)
        share = min(1.0, options.heldout_bytes / size_of(heldout))
        self.heldout = [_beginning(text, share) for text in heldout]
        scoring = ScoringTokenizer.of(self.base, self.eos_id)
        self.context = min(CONTEXT, self.model.context() or CONTEXT)
        validation = [text for i, text in train if i in kept]
        self.validation = Validation.of(validation, scoring, options.block_size)
        self.context_bytes = scoring.fitting_context_bytes(self.heldout, self.context)
        self.base_tokens = _count(self.base, self.train)

    def measure(self, new_tokens: int, folder: Path) -> Point:
        """Select, initialize, fine-tune and score."""
        options = self.options
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        tokenizer, rules, start = self.base, None, self.model.path
        spent = 0.0
        if new_tokens:
            rules = self._select(new_tokens)
            tokenizer, start = remap_tokenizer(self.base, self.bpe, rules), folder / "initialized"
            start.mkdir()
            initial = self._initialize(tokenizer, rules)
            write_model(self.model.path, initial.tensors, start)
            spent = initial.tokens / 3  # forward passes only
        start_score = self._score(ModelFolder(start), tokenizer)
        encode, sizes = reference_encoder(tokenizer), {"eos_id": self.eos_id, "vocab_size": self.bpe.size}
        block_size = options.block_size
        blocks, tokenizer_folder = folder / "blocks", folder / "tokenizer"
        write_blocks(iter(encode(self.train)), blocks, block_size=block_size, **sizes)
        write_tokenizer(tokenizer, self.folder.path, tokenizer_folder)
        batch = options.batch if new_tokens else options.vanilla_batch
        steps = round((options.epochs * self.base_tokens - spent) / (batch * block_size))
        clock = Clock(f"{new_tokens} new tokens")
        config = read_sft_config(
            None,
            vanilla=not new_tokens,
            max_steps=steps,
            per_device_train_batch_size=batch,
            learning_rate=options.learning_rate if new_tokens else options.vanilla_learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,
            weight_decay=0.0,
            eval_strategy="steps",
            eval_steps=0.25,
            logging_steps=1,
            save_steps=10**6,
            seed=options.seed,
        )
        trained = fine_tune(
            Training(
                start,
                blocks,
                folder / "training",
                config,
                tokenizer_folder,
                fingerprint="",
                dtype="float32",
                new_tokens=rules.new_tokens() if rules else None,
                validation=self.validation,
            ),
            on_log=clock,
        )
        score = self._score(ModelFolder(trained.final_model), tokenizer)
        seen = used_ids(read_blocks(blocks))
        tokens = _count(tokenizer, self.train)
        return Point(
            new_tokens=len(rules) if rules else 0,
            tokens=tokens,
            heldout_tokens=score.tokens,
            unseen=float((~np.isin(np.concatenate(score.ids), seen)).mean()),
            passes=trained.tokens / tokens,
            start_bpb=start_score.bpb,
            bpb=score.bpb,
            validation_bpb=trained.validation[-1][1],
            cpu_seconds=clock.seconds,
            document_bits=score.document_bits.tolist(),
        )

    def _select(self, number: int) -> RemapRules:
        counts = count_pretokens(self.train, self.base)
        settings = SelectionSettings(max_candidates=number)
        selection = choose_candidates(self.base, self.bpe, counts, self.train, settings, budget=number)
        return rules_from_table(candidates_table(selection, self.bpe, token_frequencies(counts, self.base)))

    def _initialize(self, tokenizer: Tokenizer, rules: RemapRules) -> Calibration:
        base = read_embeddings(self.model.path)
        reordered = reorder_embeddings(base, row_sources(self.bpe.ids, strings_by_id(tokenizer)))
        constituents = {rule.id: [self.bpe.ids[part] for part in rule.constituents] for rule in rules}
        tensors = initialize_embeddings(
            reordered, base, constituents, strategy="constituents", vocabulary_size=self.bpe.size
        )
        return calibrate_new_rows(
            self.model.load("float32"),
            tensors,
            list(constituents),
            reference_encoder(tokenizer)(self.train),
            eos_id=self.eos_id,
            length=min(SNIPPET, self.context),
            dtype="float32",
        )

    def _score(self, model: ModelFolder, tokenizer: Tokenizer) -> BitsPerByte:
        scoring = ScoringTokenizer.of(tokenizer, self.eos_id)
        return bits_per_byte(
            model.load("float32"), scoring, self.heldout, context=self.context, context_bytes=self.context_bytes
        )


def _beginning(text: str, share: float) -> str:
    return text.encode()[: round(len(text.encode()) * share)].decode(errors="ignore")


def _count(tokenizer: Tokenizer, texts: list[str]) -> int:
    return sum(map(len, reference_encoder(tokenizer)(texts)))


def as_markdown(points: list[Point], document_bytes: list[int]) -> str:
    """The points as a table; differences from the vanilla baseline have 95 % intervals over documents."""
    names = {str(point.new_tokens): point for point in points}
    bits = {name: np.array(point.document_bits) for name, point in names.items()}
    pairs = [(name, "0") for name in names if name != "0" and "0" in names]
    _, differences = bpb_intervals(bits, np.array(document_bytes), pairs)
    lines = [
        "| new tokens | text in tokens | passes | unseen | start | CPU seconds | validation | held-out | − vanilla |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, point in names.items():
        each = differences.get((name, "0"))
        difference = f"{each.value:+.3f} ({each.low:+.3f} to {each.high:+.3f})" if each else ""
        lines.append(
            f"| {point.new_tokens:,} | {point.tokens:,} | {point.passes:.1f} | {point.unseen:.1%} "
            f"| {point.start_bpb:.3f} | {point.cpu_seconds:,.0f} | {point.validation_bpb:.3f} | {point.bpb:.3f} "
            f"| {difference} |"
        )
    return "\n".join(lines)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifacts", type=Path, required=True, help="artifacts folder with the corpus")
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--output", type=Path, required=True, help="folder for points and models")
    parser.add_argument("--new-tokens", type=int, nargs="+", default=[0, 300, 1000, 3000], help="0: vanilla baseline")
    parser.add_argument("--epochs", type=float, default=1.0, help="compute, in epochs of the vanilla baseline")
    parser.add_argument("--train-bytes", type=int, default=0, help="0: the whole train split")
    parser.add_argument("--validation-bytes", type=int, default=20_000)
    parser.add_argument("--heldout-bytes", type=int, default=40_000)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--vanilla-learning-rate", type=float, default=3e-4)
    parser.add_argument("--batch", type=int, default=1, help="blocks per step")
    parser.add_argument("--vanilla-batch", type=int, default=2)
    parser.add_argument("--block-size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", help="name of the result (default: the output folder's name)")
    return parser.parse_args()


def main() -> None:
    import torch

    options = parse_options()
    torch.set_num_threads(options.threads)
    shared = {key: str(value) for key, value in vars(options).items() if key not in ("new_tokens", "output", "name")}
    frontier = Frontier(options)
    for number in options.new_tokens:
        folder = options.output / str(number)
        file = folder / "point.json"
        if not file.is_file():
            started = time.monotonic()
            point = frontier.measure(number, folder)
            file.write_text(json.dumps({"options": shared, "point": asdict(point)}) + "\n", encoding="utf-8")
            log(f"{number} new tokens: {point.bpb:.4f} after {time.monotonic() - started:.0f} s")
    points = []
    for file in options.output.glob("*/point.json"):
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["options"] != shared:
            raise SystemExit(f"{file} was measured with other options, {found['options']}: name another --output")
        points.append(Point(**found["point"]))
    points.sort(key=lambda point: point.new_tokens)
    document_bytes = [len(text.encode()) for text in frontier.heldout]
    result = {
        "options": shared,
        "train_bytes": size_of(frontier.train),
        "document_bytes": document_bytes,
        "points": [asdict(point) for point in points],
    }
    save(f"frontier-{options.name or options.output.resolve().name}", result, "torch transformers tokenizers")
    print(as_markdown(points, document_bytes))


if __name__ == "__main__":
    main()
