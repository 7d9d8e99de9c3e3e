"""The texts, tokenizers and embeddings of an artifacts folder, for `benchmarks.quality`."""

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.corpus.other_text import read_other_documents, select_other_texts
from ivr_dagster.core.corpus.subset import documents_within
from ivr_dagster.core.embedding.calibrate import calibrate_new_rows
from ivr_dagster.core.embedding.extract import read_embeddings
from ivr_dagster.core.embedding.initialize import initialize_embeddings
from ivr_dagster.core.embedding.reorder import reorder_embeddings, row_sources
from ivr_dagster.core.embedding.token_distillation import DistillationOptions, cut_snippets, fit_new_rows
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.scoring.bits_per_byte import BitsPerByte, ScoringTokenizer, bits_per_byte
from ivr_dagster.core.tokenizer.bpe import read_bpe, strings_by_id
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokens.sequences import reference_encoder
from ivr_dagster.core.vocabulary.rules import read_rules
from ivr_dagster.settings.groups import CorpusSettings

CONTEXT = 512
TOKENIZERS = {"base": "original_tokenizer", "distilled": "distilled_tokenizer", "remapped": "remapped_tokenizer"}


def log(line: object) -> None:
    print(line, file=sys.stderr, flush=True)


def size_of(texts: Iterable[str]) -> int:
    """UTF-8 bytes of texts."""
    return sum(len(text.encode()) for text in texts)


def first_bytes(texts: list[str], size: int) -> list[str]:
    """The first texts that together have `size` bytes; all for 0."""
    found: list[str] = []
    read = 0
    for text in texts:
        if size and read >= size:
            break
        found.append(text)
        read += len(text.encode())
    return found


class Bench:
    """An artifacts folder with its tokenizers and texts; computes embeddings and scores models."""

    def __init__(self, options: argparse.Namespace) -> None:
        paths = ArtifactPaths(options.artifacts.resolve())
        self.model, self.dtype = ModelFolder(options.model), options.dtype
        self.tokenizers = {name: TokenizerFolder(paths[asset]) for name, asset in TOKENIZERS.items()}
        backends = {name: folder.backend() for name, folder in self.tokenizers.items()}
        self.encoders = {name: reference_encoder(backend) for name, backend in backends.items()}
        self.eos_id = int(self.tokenizers["base"].load().eos_token_id)
        self.scoring = {name: ScoringTokenizer.of(each, self.eos_id) for name, each in backends.items()}
        rules = read_rules(paths["remap_rules"])
        self.bpe = read_bpe(backends["base"])
        self.constituents = {rule.id: [self.bpe.ids[part] for part in rule.constituents] for rule in rules}
        self.new_tokens = rules.new_tokens()
        longest = self.model.context() or 2 * CONTEXT
        self.context, self.length = min(2 * CONTEXT, longest), min(CONTEXT, longest)
        self._read_texts(CleanedCorpus(paths["cleaned_corpus"]), options)
        self.context_bytes = self.scoring["base"].fitting_context_bytes(self.heldout, self.context)
        self.base = read_embeddings(options.model)
        sources = row_sources(self.bpe.ids, strings_by_id(backends["remapped"]))
        self.reordered = reorder_embeddings(self.base, sources)

    def _read_texts(self, corpus: CleanedCorpus, options: argparse.Namespace) -> None:
        heldout, train = list(corpus.documents("heldout")), list(corpus.documents("train"))
        wanted, self.heldout_bytes = documents_within(heldout, options.heldout_bytes)
        self.heldout = [text for i, text in heldout if i in wanted]
        kept, _ = documents_within(train, options.validation_bytes, from_the_end=True)
        self.train = [text for i, text in sorted(train) if i not in kept]
        self.validation = [text for i, text in train if i in kept]

        def other_texts(folder: Path | None, option: str, size: int) -> list[str]:
            if folder is None:
                return []
            documents = read_other_documents(folder, CorpusSettings(text_split_bytes=10_000), option)
            return select_other_texts(documents, (), size)

        share = options.general_share / (1 - options.general_share)
        self.retention = other_texts(options.retention, "--retention", options.heldout_bytes)
        self.general = other_texts(options.general, "--general", round(size_of(self.train) * share))

    def initial(self, strategy: str = "constituents") -> dict[str, Any]:
        """Embeddings whose new rows are initialized."""
        return initialize_embeddings(
            self.reordered, self.base, self.constituents, strategy=strategy, vocabulary_size=self.bpe.size
        )

    def calibrated(self, texts: list[str]) -> dict[str, Any]:
        """Embeddings whose new rows are initialized and calibrated on texts."""
        calibration = calibrate_new_rows(
            self.model.load("float32"),
            self.initial(),
            list(self.new_tokens),
            self.encoders["remapped"](texts),
            eos_id=self.eos_id,
            length=self.length,
            dtype=self.dtype,
        )
        return calibration.tensors

    def distilled(self, size: int, hidden_weight: float, learning_rate: float) -> tuple[dict[str, Any], dict[str, Any]]:
        """Embeddings after token distillation on `size` bytes, and its cost."""
        texts = first_bytes(self.train, max(size, 1))
        sequences = [ids.tolist() for ids in self.encoders["remapped"](texts)]
        started = time.monotonic()
        fitted = fit_new_rows(
            self.model.load("float32"),
            self.base,
            self.calibrated(self.train),
            self.new_tokens,
            list(cut_snippets(sequences, self.constituents, eos_id=self.eos_id, length=self.length)),
            DistillationOptions(learning_rate=learning_rate, hidden_weight=hidden_weight, dtype=self.dtype),
            progress=lambda done, steps, loss: log(f"  step {done} of {steps}: {loss:.3f}") if done % 10 == 0 else None,
        )
        figures = {"bytes": size_of(texts), "tokens": fitted.tokens, "base_tokens": fitted.base_tokens}
        return fitted.tensors, figures | {"seconds": time.monotonic() - started}

    def score(self, model: Any, tokenizer: str, texts: list[str] | None = None) -> BitsPerByte:
        """Score a model, by default on the held-out text."""
        import torch

        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == "bfloat16"):
            return bits_per_byte(
                model,
                self.scoring[tokenizer],
                texts or self.heldout,
                context=self.context,
                context_bytes=self.context_bytes,
            )

    def retention_bpb(self, model: Any, tokenizer: str) -> float | None:
        """Out-of-domain BPB, if there is out-of-domain text."""
        return self.score(model, tokenizer, self.retention).bpb if self.retention else None
