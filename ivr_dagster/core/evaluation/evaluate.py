"""Measures every variant on the same held-out text and collects the figures of the report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.corpus.subset import documents_within
from ivr_dagster.core.embedding.extract import read_embeddings
from ivr_dagster.core.evaluation.continuations import Speed, continue_texts, generation_speed
from ivr_dagster.core.evaluation.diagnosis import DiagnosedText, Diagnosis, output_rows
from ivr_dagster.core.evaluation.figures import (
    BpeForm,
    EvaluationReport,
    Retention,
    TrainingCurve,
    Variant,
    pairs_to_compare,
    to_bits_per_byte,
)
from ivr_dagster.core.evaluation.intervals import bpb_intervals
from ivr_dagster.core.evaluation.model_card import Provenance
from ivr_dagster.core.evaluation.token_groups import new_token_share, token_groups
from ivr_dagster.core.model.files import read_config
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.scoring.bits_per_byte import BitsPerByte, ScoringTokenizer, bits_per_byte, byte_lengths
from ivr_dagster.core.tokenizer.agreement import compare_lengths, measure_agreement, measure_round_trip
from ivr_dagster.core.tokenizer.bpe import strings_by_id
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokenizer.write import read_certificate
from ivr_dagster.core.tokens.counts import count_pretokens
from ivr_dagster.core.training.folders import TrainedModel
from ivr_dagster.core.vocabulary.rules import applied_rules
from ivr_dagster.settings.groups import EvaluationSettings

PROMPT_CHARACTERS = 200
CONTINUATION_BYTES = 160
# number of prompts for timing generation, and bytes to generate per prompt
SPEED_PROMPTS, SPEED_BYTES = 3, 160
ADAPTED = ("initialized", "sft")
TIMED = ("base", "sft")
# variant → the variant with the same model
SAME_MODEL = {"distilled": "base"}

# (label, unit) → progress callback (done, total)
Progress = Callable[[str, str], Callable[[float, float], None]]


@dataclass(frozen=True)
class OutOfDomainText:
    """Text to measure forgetting on; without texts, `skipped` says why."""

    source: str
    texts: list[str] = field(default_factory=list)
    skipped: str = ""


@dataclass(frozen=True)
class EvaluatedModels:
    """The models to compare.

    Attributes:
        base: the base model.
        distilled: the distilled tokenizer, with the base tokenizer.
        initialized: the initialized model, with the remapped tokenizer and its rules.
        trained: `sft` and the vanilla baselines by variant, each with its tokenizer.
    """

    base: ModelFolder
    distilled: TokenizerFolder
    initialized: ModelFolder
    trained: Mapping[str, TrainedModel]

    @property
    def remapped(self) -> TokenizerFolder:
        """The remapped tokenizer."""
        return TokenizerFolder(self.initialized.path)

    def variants(self) -> dict[str, tuple[ModelFolder, Tokenizer, int]]:
        """Variant → model, tokenizer and end-of-text id, in the order of evaluation."""
        eos_id = self.distilled.end_of_text_id()
        own = {"initialized": self.initialized} | {name: each.final_model for name, each in self.trained.items()}
        return {
            "base": (self.base, self.distilled.base_backend(), eos_id),
            "distilled": (self.base, self.distilled.backend(), eos_id),
        } | {
            name: (model, TokenizerFolder(model.path).backend(), TokenizerFolder(model.path).end_of_text_id())
            for name, model in own.items()
        }


def evaluate(
    models: EvaluatedModels,
    corpus: CleanedCorpus,
    settings: EvaluationSettings,
    out_of_domain: OutOfDomainText | None,
    *,
    seed: int,
    device: str,
    progress: Progress,
    run_settings: Mapping[str, Any],
) -> EvaluationReport:
    """Evaluate all variants.

    Args:
        models: the models to compare.
        corpus: the corpus whose held-out split is scored.
        settings: amounts of text and number of continuations.
        out_of_domain: text to measure forgetting on; None to skip.
        seed: seed of the bootstrap.
        device: cpu, cuda or mps.
        progress: creates the progress callback of each variant.
        run_settings: the settings that the models depend on, for the report.
    """
    wanted, size = documents_within(corpus.documents("heldout"), settings.evaluation_bytes)
    texts = [text for document, text in corpus.documents("heldout") if document in wanted]
    prompts = [text[:PROMPT_CHARACTERS].rstrip() for text in texts if len(text) > 2 * PROMPT_CHARACTERS]
    new_ids = set(applied_rules(models.remapped).new_tokens())
    measurements = _Measurements(models, texts, out_of_domain, device, progress)
    for name in measurements.variants:
        measurements.measure(name, prompts or [texts[0][:PROMPT_CHARACTERS]], settings.continuations, new_ids)
    scores = measurements.scores
    intervals, differences = bpb_intervals(
        {name: score.document_bits for name, score in scores.items()},
        scores["base"].document_bytes,
        pairs_to_compare(list(scores)),
        seed=seed,
    )
    base_tokenizer, remapped = models.distilled.base_backend(), models.remapped.backend()
    round_trip = measure_round_trip(remapped, texts)
    losses, validation = training_curves(models.trained)
    unseen_ids = new_ids.intersection(models.trained["sft"].history().get("unseen_new_tokens", ()))
    return EvaluationReport(
        variants={name: replace(each, interval=intervals[name]) for name, each in measurements.measured.items()},
        token_saving=compare_lengths(base_tokenizer, remapped, texts).saving,
        agreement=float(read_certificate(models.distilled.path)["heldout"]["agreement"]),
        round_trip=round_trip.exact / max(round_trip.texts, 1),
        new_tokens=len(new_ids),
        new_tokens_used=len(new_ids & set(np.flatnonzero(scores["sft"].token_counts).tolist())),
        heldout_documents=len(texts),
        heldout_bytes=size,
        prompts=tuple(prompts[: settings.continuations]),
        settings=run_settings,
        differences=differences,
        context_bytes=measurements.context_bytes,
        retention=measurements.retention(seed),
        training_loss=losses,
        validation=validation,
        speeds=measurements.speeds,
        bpe_form=measurements.bpe_form,
        diagnosis=measurements.diagnosis(new_ids, unseen_ids),
        hyperparameters={name: each.history().get("hyperparameters", {}) for name, each in models.trained.items()},
    )


class _Measurements:
    """Loads the variants one by one and collects their measurements."""

    def __init__(
        self,
        models: EvaluatedModels,
        texts: list[str],
        out_of_domain: OutOfDomainText | None,
        device: str,
        progress: Progress,
    ) -> None:
        self.variants = models.variants()
        self.measured: dict[str, Variant] = {}
        self.scores: dict[str, BitsPerByte] = {}
        self.speeds: dict[str, Speed] = {}
        self.bpe_form: BpeForm | None = None
        self._texts, self._out_of_domain, self._device, self._progress = texts, out_of_domain, device, progress
        self._out_of_domain_variants, self._out_of_domain_scores = {"base", *models.trained}, dict[str, BitsPerByte]()
        self._context = min(model.sequence_tokens() for model, _, _ in self.variants.values())
        # the base tokenizer produces the most tokens, so a context that fits it fits the others
        _, backend, eos_id = self.variants["base"]
        base = ScoringTokenizer.of(backend, eos_id)
        self.context_bytes = base.fitting_context_bytes(texts, self._context)
        self._out_of_domain_context_bytes = 0
        if out_of_domain and out_of_domain.texts:
            self._out_of_domain_context_bytes = base.fitting_context_bytes(out_of_domain.texts, self._context)

    def measure(self, name: str, prompts: Sequence[str], continuations: int, new_ids: set[int]) -> None:
        """Measure one variant."""
        folder, backend, eos_id = self.variants[name]
        model, tokenizer = folder.load("float32"), ScoringTokenizer.of(backend, eos_id)
        score, _ = self._score_again(self.scores.get(SAME_MODEL.get(name, "")), model, tokenizer, f"evaluating {name}")
        if self._out_of_domain_context_bytes and self._out_of_domain and name in self._out_of_domain_variants:
            label = f"evaluating {name} on out-of-domain text"
            self._out_of_domain_scores[name] = self._score(
                model, tokenizer, self._out_of_domain.texts, self._out_of_domain_context_bytes, label
            )
        generation: dict[str, Any] = {"eos_id": eos_id, "device": self._device}
        if name in TIMED:
            timed = prompts[:SPEED_PROMPTS]
            self.speeds[name] = generation_speed(model, backend, timed, new_bytes=SPEED_BYTES, **generation)
        written = continue_texts(
            model, backend, prompts[:continuations], max_new_bytes=CONTINUATION_BYTES, **generation
        )
        adapted: dict[str, Any] = {}
        if name in ADAPTED:
            ids = [token for each in written for token in each.ids]
            adapted = {
                "groups": token_groups(score, new_ids, tokenizer.token_bytes),
                "new_tokens_written": new_token_share(ids, new_ids),
            }
        if name == "sft":
            self.bpe_form = self._bpe_form(TokenizerFolder(folder.path), model, eos_id, score)
        self.scores[name] = score
        self.measured[name] = Variant.from_score(score, continuations=tuple(each.text for each in written), **adapted)

    def _bpe_form(self, folder: TokenizerFolder, model: Any, eos_id: int, score: BitsPerByte) -> BpeForm | None:
        """The model with the BPE form of its Unigram tokenizer; only documents with other ids are scored again."""
        if not folder.has_bpe_form():
            return None
        bpe, agreement = folder.bpe_form(), 1.0
        tokenizer, label = ScoringTokenizer.of(bpe, eos_id), "evaluating sft with the BPE form"
        result, differing = self._score_again(score, model, tokenizer, label)
        if differing:
            counts = count_pretokens(self._texts, folder.base_backend())
            agreement = measure_agreement(bpe, folder.backend(), counts).share
        return BpeForm(agreement, len(differing), result.bpb)

    def _score_again(
        self, score: BitsPerByte | None, model: Any, tokenizer: ScoringTokenizer, label: str
    ) -> tuple[BitsPerByte, list[int]]:
        """The held-out text's score with another tokenizer, and the documents with other ids than in `score`.

        Only these are scored again; without a score of the same model, all are.
        """
        if score is None:
            return self._score(model, tokenizer, self._texts, self.context_bytes, label), [*range(len(self._texts))]
        encoded = enumerate(tokenizer.encode(self._texts))
        differing = [n for n, ids in encoded if not np.array_equal(ids, score.ids[n])]
        if not differing:
            return score, []
        texts = [self._texts[n] for n in differing]
        again = self._score(model, tokenizer, texts, self.context_bytes, label)
        ids, losses, shortened = [*score.ids], [*score.losses], score.document_shortened.copy()
        for n, its_ids, its_losses, count in zip(
            differing, again.ids, again.losses, again.document_shortened, strict=True
        ):
            ids[n], losses[n], shortened[n] = its_ids, its_losses, count
        return replace(score, ids=ids, losses=losses, document_shortened=shortened), differing

    def diagnosis(self, new_ids: set[int], unseen_ids: set[int]) -> dict[str, DiagnosedText]:
        """Where the adapted model loses bits; call this after measuring all variants."""
        folder, backend, eos_id = self.variants["base"]
        _, remapped, _ = self.variants["initialized"]
        tokenizer = ScoringTokenizer.of(backend, eos_id)
        base, initialized = self.scores["base"], self.scores["initialized"]
        own_bytes = byte_lengths(strings_by_id(remapped))
        diagnosis = Diagnosis(base, initialized, tokenizer.token_bytes, own_bytes, new_ids, unseen_ids)
        model = folder.load("float32")
        with output_rows(model, read_embeddings(self.variants["initialized"][0].path)):
            label = "evaluating base with the initialized output rows"
            output_side = self._score(
                model, tokenizer, self._texts, self.context_bytes, label, targets=diagnosis.targets()
            )
        compared = {name: score for name, score in self.scores.items() if name not in SAME_MODEL}
        return diagnosis.result(compared, output_side)

    def retention(self, seed: int) -> Retention | None:
        """Bits per byte on out-of-domain text; call this after measuring all variants."""
        text = self._out_of_domain
        if text is None or not self._out_of_domain_scores:
            return Retention(text.source, skipped=text.skipped) if text else None
        bits = {name: score.document_bits for name, score in self._out_of_domain_scores.items()}
        sizes = self._out_of_domain_scores["base"].document_bytes
        intervals, _ = bpb_intervals(bits, sizes, seed=seed)
        return Retention(text.source, len(sizes), int(sizes.sum()), intervals)

    def _score(
        self,
        model: Any,
        tokenizer: ScoringTokenizer,
        texts: list[str],
        context_bytes: int,
        label: str,
        *,
        targets: list[NDArray[np.int64]] | None = None,
    ) -> BitsPerByte:
        return bits_per_byte(
            model,
            tokenizer,
            texts,
            context=self._context,
            context_bytes=context_bytes,
            device=self._device,
            targets=targets,
            progress=self._progress(label, "tokens"),
        )


def training_curves(
    trained: Mapping[str, TrainedModel],
) -> tuple[dict[str, TrainingCurve], dict[str, TrainingCurve]]:
    """Training loss and validation by variant, for runs that recorded them."""
    losses, validation = {}, {}
    for name, run in trained.items():
        history = run.history()
        bytes_per_token = history.get("bytes_per_token")
        if not bytes_per_token or not history["steps"]:
            continue
        scale = {"tokens_per_step": history["tokens"] / history["steps"], "bytes_per_token": bytes_per_token}
        points = [(int(step), to_bits_per_byte(loss, bytes_per_token)) for step, loss in history["losses"]]
        losses[name] = TrainingCurve.from_steps(points, **scale)
        if history.get("validation"):
            points = [(int(step), float(bpb)) for step, bpb in history["validation"]]
            validation[name] = TrainingCurve.from_steps(points, **scale)
    return losses, validation


def provenance(
    models: EvaluatedModels,
    corpus: CleanedCorpus,
    *,
    base_model: str,
    is_on_hub: bool,
    base_version: str,
    languages: tuple[str, ...],
    license: str,
) -> Provenance:
    """Provenance of the fine-tuned model, for its model card; see its attributes."""
    sft = models.trained["sft"]
    return Provenance(
        base_model=base_model,
        is_on_hub=is_on_hub,
        base_version=base_version,
        architecture=str(read_config(sft.final_model.path)["model_type"]),
        corpus_digest=corpus.digest(),
        train_documents=corpus.count("train"),
        train_bytes=sft.history().get("text_bytes"),
        heldout_documents=corpus.count("heldout"),
        rules=len(applied_rules(models.remapped)),
        vocabulary=models.remapped.backend().get_vocab_size(),
        languages=languages,
        license=license,
    )
