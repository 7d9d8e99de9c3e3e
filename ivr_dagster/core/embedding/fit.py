"""Fits the rows of new tokens to the corpus: initialization, calibration, token distillation, in this order."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.corpus.subset import document_sizes, ids_within, split_validation
from ivr_dagster.core.embedding.calibrate import Calibration, calibrate_new_rows
from ivr_dagster.core.embedding.extract import read_embeddings, replace_embeddings
from ivr_dagster.core.embedding.initialize import initialize_embeddings
from ivr_dagster.core.embedding.reorder import check_new_ids, row_sources
from ivr_dagster.core.embedding.token_distillation import (
    DistillationCheckpoint,
    DistillationOptions,
    FittedRows,
    cut_snippets,
    fit_new_rows,
)
from ivr_dagster.core.model.folder import InitializationCompute, ModelFolder
from ivr_dagster.core.tokenizer.bpe import strings_by_id
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokens.sequences import reference_encoder
from ivr_dagster.core.vocabulary.rules import applied_rules
from ivr_dagster.settings.groups import EmbeddingSettings, TrainingSettings
from ivr_dagster.storage.content_hash import content_hash

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ivr_dagster.core.embedding.extract import Embeddings

# base tokens of a snippet, and tokens of the context that bits per byte are measured with
SNIPPET_TOKENS = 512
# UTF-8 bytes of validation text that bits per byte are measured on
VALIDATION_BYTES = 40_000

# (label, unit) -> callback (done, total)
Progress = Callable[[str, str], Callable[[float, float], None]]


@dataclass(frozen=True)
class FittedEmbeddings:
    """Embedding tensors by new id with fitted new rows, and what was computed for them."""

    tensors: "Embeddings"
    compute: InitializationCompute


@dataclass(frozen=True)
class FitOptions:
    """How to fit, apart from the settings of embedding and training.

    Attributes:
        max_texts: documents of the train split that are used; 0 for all.
        seed: of random rows, sampled documents and the order of snippets.
        device, dtype: cpu, cuda or mps; float32, or bfloat16 or float16 for mixed precision.
        checkpoint: token distillation resumes from this file and deletes it when done.
        score: (model, texts, context in tokens) → bits per byte, measured before and after token distillation.
        progress: makes progress callbacks.
    """

    max_texts: int
    seed: int
    device: str
    dtype: str
    checkpoint: Path
    score: "Callable[[PreTrainedModel, list[str], int], float]"
    progress: Progress


@dataclass(frozen=True)
class EmbeddingFit:
    """Result of a fit.

    Attributes:
        fitted: the embeddings.
        new_ids: ids of new tokens, ascending.
        base_norms: float32 `[V]`, norms of the base model's input rows by base id.
        norms: float32 `[V]`, norms of the fitted input rows by new id.
        calibration: with the UTF-8 bytes of text it read; None if there was none.
        distillation: with the UTF-8 bytes of text it read; None if there was none.
        bpb: bits per byte on validation text before and after token distillation; None if not measured.
    """

    fitted: FittedEmbeddings
    new_ids: list[int]
    base_norms: NDArray[np.float32]
    norms: NDArray[np.float32]
    calibration: tuple[Calibration, int] | None = None
    distillation: tuple[FittedRows, int] | None = None
    bpb: tuple[float, float] | None = None


def fit_embeddings(
    base: ModelFolder,
    reordered: "Embeddings",
    tokenizer: TokenizerFolder,
    corpus: CleanedCorpus,
    embedding: EmbeddingSettings,
    training: TrainingSettings,
    options: FitOptions,
) -> EmbeddingFit:
    """Fill the zero rows of new tokens in `reordered`. All other rows stay bit for bit the same.

    Args:
        base: the base model.
        reordered: embedding tensors by new id, [V', d].
        tokenizer: the remapped tokenizer with its base tokenizer and rules.
        corpus: the cleaned corpus; read is the train split without the documents that training validates on.
        embedding: initialization, and UTF-8 bytes for calibration and token distillation (0: skipped).
        training: says which documents are for validation.
        options: everything else.

    Raises:
        InputError: the model is invalid, or rules and tokenizer do not match.
    """
    bpe, rules = tokenizer.base_bpe(), applied_rules(tokenizer)
    constituents = {rule.id: [bpe.ids[part] for part in rule.constituents] for rule in rules}
    check_new_ids(row_sources(bpe.ids, strings_by_id(tokenizer.backend())), constituents)
    original = read_embeddings(base.path)
    settings: dict[str, Any] = {"strategy": embedding.init_strategy, "seed": options.seed}
    tensors = initialize_embeddings(reordered, original, constituents, vocabulary_size=bpe.size, **settings)
    calibration = distillation = bpb = None
    if constituents and (embedding.calibration_bytes or embedding.token_distillation_bytes):
        fitter = _Fitter(base, tokenizer, corpus, embedding, training, options)
        if embedding.calibration_bytes:
            calibration = fitter.calibrate(tensors, list(constituents))
            tensors = calibration[0].tensors
        if embedding.token_distillation_bytes:
            before = fitter.score(tensors)
            distillation = fitter.distill(original, tensors, rules.new_tokens(), constituents)
            tensors = distillation[0].tensors
            after = fitter.score(tensors)
            bpb = None if before is None or after is None else (before, after)
            options.checkpoint.unlink(missing_ok=True)
    distilled = (distillation[0].tokens, distillation[0].base_tokens) if distillation else (0, 0)
    compute = InitializationCompute(calibration[0].tokens if calibration else 0, *distilled)
    norms = (_norms(original["wte"], bpe.size), _norms(tensors["wte"], bpe.size))
    fitted = FittedEmbeddings(tensors, compute)
    return EmbeddingFit(fitted, sorted(constituents), *norms, calibration, distillation, bpb)


def read_texts(corpus: CleanedCorpus, sizes: Mapping[str, int], max_bytes: int) -> tuple[list[str], int]:
    """Training documents with at most `max_bytes` of text (0: all), in the order of their ids, and their bytes."""
    wanted, size = ids_within(sizes, max_bytes)
    texts = {document: text for document, text in corpus.documents("train") if document in wanted}
    return [texts[document] for document in sorted(wanted)], size


class _Fitter:
    """The steps that read text with the base model."""

    def __init__(
        self,
        base: ModelFolder,
        tokenizer: TokenizerFolder,
        corpus: CleanedCorpus,
        embedding: EmbeddingSettings,
        training: TrainingSettings,
        options: FitOptions,
    ) -> None:
        self._corpus, self._embedding, self._training, self._options = corpus, embedding, training, options
        self._common = {"seed": options.seed, "device": options.device, "dtype": options.dtype}
        self._encode, self._eos_id = reference_encoder(tokenizer.backend()), tokenizer.end_of_text_id()
        self._model, self._length = base.load("float32"), min(SNIPPET_TOKENS, base.context() or SNIPPET_TOKENS)
        sizes = document_sizes(islice(corpus.documents("train"), options.max_texts or None))
        self._sizes, validation = split_validation(sizes, training.validation_bytes, training.train_bytes)
        self._validation, _ = read_texts(corpus, validation, VALIDATION_BYTES)

    def score(self, tensors: "Embeddings") -> float | None:
        """Bits per byte on validation text, None if there is none."""
        if not self._validation:
            return None
        replace_embeddings(self._model, tensors)
        return self._options.score(self._model, self._validation, self._length)

    def calibrate(self, tensors: "Embeddings", new_ids: Sequence[int]) -> tuple[Calibration, int]:
        limit, progress = self._embedding.calibration_bytes, self._options.progress("calibration", "tokens")
        texts, size = read_texts(self._corpus, self._sizes, min(limit, self._training.train_bytes or limit))
        options: dict[str, Any] = {"eos_id": self._eos_id, "length": self._length, **self._common}
        return (
            calibrate_new_rows(self._model, tensors, new_ids, self._encode(texts), progress=progress, **options),
            size,
        )

    def distill(
        self,
        original: "Embeddings",
        initial: "Embeddings",
        new_tokens: Mapping[int, str],
        constituents: Mapping[int, Sequence[int]],
    ) -> tuple[FittedRows, int]:
        texts, size = read_texts(self._corpus, self._sizes, self._embedding.token_distillation_bytes)
        sequences = [ids.tolist() for ids in self._encode(texts)]
        settings: dict[str, Any] = {
            "learning_rate": self._embedding.token_distillation_learning_rate,
            "hidden_weight": self._embedding.token_distillation_hidden_weight,
            **self._common,
        }
        inputs = json.dumps([sequences, sorted(constituents.items()), {k: str(v) for k, v in settings.items()}])
        run = content_hash(content_hash(original) + content_hash(initial) + inputs)
        advance = self._options.progress("token distillation", "steps")
        fitted = fit_new_rows(
            self._model,
            original,
            initial,
            new_tokens,
            list(cut_snippets(sequences, constituents, eos_id=self._eos_id, length=self._length)),
            DistillationOptions(**settings),
            checkpoint=DistillationCheckpoint(self._options.checkpoint, run),
            progress=lambda done, total, _: advance(done, total),
        )
        return fitted, size


def _norms(matrix: Any, size: int) -> NDArray[np.float32]:
    import torch

    norms: NDArray[np.float32] = matrix[:size].norm(dim=1, dtype=torch.float32).numpy()
    return norms
