"""Evaluation: every variant on the same held-out bytes."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import numpy as np

from ivr_dagster.assets import OWNERS
from ivr_dagster.assets.display import inline_png
from ivr_dagster.core.corpus.cleaned import SPLITS, CleanedCorpus
from ivr_dagster.core.corpus.other_text import read_other_documents, select_other_texts
from ivr_dagster.core.corpus.subset import documents_within
from ivr_dagster.core.evaluation.folder import ReportFolder
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.tokenizer.agreement import compare_lengths, measure_round_trip
from ivr_dagster.core.tokenizer.bpe import strings_by_id
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokenizer.write import read_certificate
from ivr_dagster.core.tokens.sequences import reference_encoder
from ivr_dagster.core.training.folders import TrainedModel, TrainingBlocks
from ivr_dagster.core.vocabulary.rules import RemapRules
from ivr_dagster.pipeline import baselines
from ivr_dagster.resources.accelerator import POOL, AcceleratorResource
from ivr_dagster.resources.base_model import BaseModel, BaseModelResource
from ivr_dagster.resources.progress import track
from ivr_dagster.resources.settings import SettingsResource
from ivr_dagster.storage.content_hash import content_hash

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from ivr_dagster.core.evaluation.bits_per_byte import BitsPerByte
    from ivr_dagster.core.evaluation.continuations import Speed
    from ivr_dagster.core.evaluation.figures import EvaluationReport, LearningCurve, LossCurve, Retention, Variant
    from ivr_dagster.core.evaluation.model_card import Provenance

GROUP = "evaluation"
PROMPT_CHARACTERS = 200
CONTINUATION_BYTES = 160
# generation is timed on so many texts, so many bytes each
SPEED_PROMPTS, SPEED_BYTES = 3, 160
# variants that write with the new vocabulary, and those whose speed is compared
ADAPTED = ("initialized", "sft")
TIMED = ("base", "sft")
# what the plots are called on the asset's page, where `bytes_per_token` is a figure already
PICTURES = {
    "bpb": "bits per byte by variant",
    "bytes_per_token": "bytes per token by variant",
    "training_loss": "training loss",
    "validation_by_text": "validation by text read",
    "validation_by_compute": "validation by compute",
}


@dataclass(frozen=True)
class _Text:
    """Documents to score, and the bytes of context for all variants."""

    texts: list[str]
    context_bytes: int


def evaluation_report_asset(wanted: Mapping[str, str]) -> dg.AssetsDefinition:
    """The evaluation; `wanted` are the baselines that are switched on, variant → asset."""

    @dg.asset(
        deps=["base_model", "retention_corpus", *wanted.values()],
        group_name=GROUP,
        kinds={"huggingface", "markdown", "json"},
        owners=OWNERS,
        io_manager_key="report_io",
        pool=POOL,
        code_version="2",
    )
    def evaluation_report(
        context: dg.AssetExecutionContext,
        settings: SettingsResource,
        accelerator: AcceleratorResource,
        base: BaseModelResource,
        cleaned_corpus: CleanedCorpus,
        original_tokenizer: TokenizerFolder,
        distilled_tokenizer: TokenizerFolder,
        remap_rules: RemapRules,
        remapped_tokenizer: TokenizerFolder,
        initialized_model: ModelFolder,
        training_blocks: TrainingBlocks,
        sft_checkpoint: TrainedModel,
    ) -> dg.MaterializeResult[ReportFolder]:
        """What the new vocabulary is worth: bits per byte of every variant on the same held-out text.

        Bits per byte (BPB) can be compared between tokenizers, perplexity per token cannot. Compared are the base
        model with its own and with the distilled tokenizer, the initialized and the fine-tuned model, and vanilla
        baselines; every model has equally many bytes of text before a token, and differences come with intervals.
        Also what the new tokens cost, how fast text is written, and what was unlearned on text of another domain.
        `report.md` has words, tables, plots and continuations, `report.json` the figures; `final_model/README.md` of
        the fine-tuned model becomes its model card.
        """
        from ivr_dagster.core.evaluation.figures import EvaluationReport, as_json, pairs_to_compare, reproducible
        from ivr_dagster.core.evaluation.intervals import bpb_intervals
        from ivr_dagster.core.evaluation.model_card import model_card, write_model_card
        from ivr_dagster.core.evaluation.report import write_report

        started = time.monotonic()
        wanted, size = documents_within(cleaned_corpus.documents("heldout"), settings.evaluation.evaluation_bytes)
        texts = [text for document_id, text in cleaned_corpus.documents("heldout") if document_id in wanted]
        prompts = [text[:PROMPT_CHARACTERS].rstrip() for text in texts if len(text) > 2 * PROMPT_CHARACTERS]
        device = accelerator.resolved_device()
        baselines = _baselines(settings)
        models = _variants(
            base,
            original_tokenizer,
            distilled_tokenizer,
            remapped_tokenizer,
            initialized_model,
            {"sft": sft_checkpoint, **baselines},
        )
        tokens_at_once = min(model.sequence_tokens() for model, _ in models.values())
        heldout = _text(texts, original_tokenizer, tokens_at_once)
        other, retention = _retention_text(settings, cleaned_corpus, original_tokenizer, tokens_at_once)
        new_ids = {rule.id for rule in remap_rules}
        variants, scores, other_scores, speeds = {}, {}, {}, {}
        for name, (model_folder, tokenizer_folder) in models.items():
            model, tokenizer = model_folder.load("float32"), tokenizer_folder.load()
            measure = _Measure(context, model, tokenizer, tokenizer_folder, tokens_at_once, device)
            scores[name] = scored = measure.score(heldout, f"evaluating {name}")
            if other is not None and (name in ("base", "sft") or name in baselines):
                other_scores[name] = measure.score(other, f"evaluating {name} on other text")
            if name in TIMED:
                speeds[name] = measure.speed(prompts or [texts[0][:PROMPT_CHARACTERS]])
            variants[name] = measure.variant(
                name,
                scored,
                prompts[: settings.evaluation.continuations],
                new_ids if name in ADAPTED else None,
                settings.compute.seed,
            )
            context.log.info(f"{name}: {scored.bpb:.4f} bits per byte, {scored.bytes_per_token:.3f} bytes per token")

        intervals, differences = bpb_intervals(
            {name: scored.document_bits for name, scored in scores.items()},
            scores["base"].document_bytes,
            pairs_to_compare(list(scores)),
            seed=settings.compute.seed,
        )
        variants = {name: replace(variant, interval=intervals[name]) for name, variant in variants.items()}
        remapped = remapped_tokenizer.backend()
        lengths = compare_lengths(original_tokenizer.backend(), remapped, cleaned_corpus.texts("heldout"))
        certificate = read_certificate(distilled_tokenizer.path)
        round_trip = measure_round_trip(remapped, texts)
        used = np.flatnonzero(scores["sft"].token_counts).tolist()
        curves, learning = _curves(training_blocks, {"sft": sft_checkpoint, **baselines})
        report = EvaluationReport(
            variants=variants,
            token_saving=lengths.saving,
            agreement=float(certificate["heldout"]["agreement"]),
            round_trip=round_trip.exact / max(round_trip.texts, 1),
            new_tokens=len(new_ids),
            new_tokens_used=len(new_ids & set(used)),
            heldout_documents=len(texts),
            heldout_bytes=size,
            prompts=tuple(prompts[: settings.evaluation.continuations]),
            settings=settings.public(),
            differences=differences,
            context_bytes=heldout.context_bytes,
            retention=_measured(retention, other_scores, settings.compute.seed),
            learning=learning,
            speeds=speeds,
        )
        with settings.staging("evaluation_report") as folder:
            plots = write_report(report, folder, curves)
        source = _provenance(
            base, cleaned_corpus, training_blocks, sft_checkpoint, remap_rules, remapped.get_vocab_size()
        )
        if not write_model_card(sft_checkpoint.final_model.path, model_card(report, source)):
            context.log.info("the model card in final_model was written by a person, it is left as it is")
        pictures = {PICTURES.get(name, name): inline_png(png, PICTURES.get(name, name)) for name, png in plots.items()}
        decisive = json.dumps(reproducible(as_json(report)), sort_keys=True)
        return dg.MaterializeResult(
            value=ReportFolder(folder),
            data_version=dg.DataVersion(content_hash(decisive)),
            metadata={
                **{f"bpb_{name}": variant.bpb for name, variant in variants.items()},
                **_against(report),
                "bytes_per_token_base": variants["base"].bytes_per_token,
                "bytes_per_token": variants["sft"].bytes_per_token,
                "token_saving": report.token_saving,
                "agreement": report.agreement,
                "round_trip": report.round_trip,
                "new_tokens_used_share": report.new_tokens_used_share,
                "new_tokens_written_share": variants["sft"].new_tokens_written or 0.0,
                **{f"tokens_per_second_{name}": round(speed.tokens, 1) for name, speed in speeds.items()},
                **{f"bytes_per_second_{name}": round(speed, 1) for name, speed in report.bytes_per_second.items()},
                **{
                    f"retention_rise_{name}": rise
                    for name, rise in (report.retention.rises if report.retention else {}).items()
                },
                "heldout_bytes": size,
                "context_bytes": heldout.context_bytes,
                "seconds": round(time.monotonic() - started, 2),
                **pictures,
                "report": dg.MetadataValue.path(settings.paths["evaluation_report"] / "report.md"),
                "model card": dg.MetadataValue.path(sft_checkpoint.final_model.path / "README.md"),
            },
        )

    return evaluation_report


class _Measure:
    """One model with its tokenizer, loaded, and what is measured of it."""

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerFast",
        folder: TokenizerFolder,
        tokens_at_once: int,
        device: str,
    ) -> None:
        from ivr_dagster.core.evaluation.bits_per_byte import byte_lengths

        self._context, self._model, self._tokenizer, self._device = context, model, tokenizer, device
        self._backend, self._tokens_at_once = folder.backend(), tokens_at_once
        self._lengths = byte_lengths(strings_by_id(self._backend))

    def score(self, text: _Text, label: str) -> "BitsPerByte":
        from ivr_dagster.core.evaluation.bits_per_byte import bits_per_byte

        return bits_per_byte(
            self._model,
            reference_encoder(self._backend),
            text.texts,
            eos_id=int(self._tokenizer.eos_token_id),
            context=self._tokens_at_once,
            context_bytes=text.context_bytes,
            token_bytes=self._lengths,
            device=self._device,
            progress=track(self._context.log, label, "tokens"),
        )

    def speed(self, prompts: Sequence[str]) -> "Speed":
        from ivr_dagster.core.evaluation.continuations import generation_speed

        return generation_speed(
            self._model, self._tokenizer, prompts[:SPEED_PROMPTS], new_bytes=SPEED_BYTES, device=self._device
        )

    def variant(
        self, name: str, scored: "BitsPerByte", prompts: Sequence[str], new_ids: set[int] | None, seed: int
    ) -> "Variant":
        from ivr_dagster.core.evaluation.continuations import continue_texts
        from ivr_dagster.core.evaluation.figures import Variant
        from ivr_dagster.core.evaluation.token_groups import share_of, token_groups

        written = continue_texts(
            self._model, self._tokenizer, prompts, max_new_bytes=CONTINUATION_BYTES, seed=seed, device=self._device
        )
        texts = [each.text for each in written]
        if new_ids is None:
            return Variant.of(name, scored, texts)
        ids = [token for each in written for token in each.ids]
        return Variant.of(
            name,
            scored,
            texts,
            groups=token_groups(scored, new_ids, self._lengths),
            new_tokens_written=share_of(ids, new_ids) if ids else None,
        )


def _variants(
    base: BaseModel,
    original: TokenizerFolder,
    distilled: TokenizerFolder,
    remapped: TokenizerFolder,
    initialized: ModelFolder,
    trained: Mapping[str, TrainedModel],
) -> dict[str, tuple[ModelFolder, TokenizerFolder]]:
    """Variant → model and tokenizer, in the order they are scored; those trained bring their own tokenizer."""
    return {
        "base": (base.model(), original),
        "distilled": (base.model(), distilled),
        "initialized": (initialized, remapped),
        **{name: (model.final_model, TokenizerFolder(model.final_model.path)) for name, model in trained.items()},
    }


def _baselines(settings: SettingsResource) -> dict[str, TrainedModel]:
    """Variant → fine-tuned baseline, of those that are switched on."""
    wanted = baselines(settings)
    return {name: TrainedModel(settings.paths[asset]) for name, asset in wanted.items()}


def _text(texts: list[str], base: TokenizerFolder, tokens_at_once: int) -> _Text:
    """Texts, with a context for all variants that the base model, of most tokens, can give nearly always."""
    from ivr_dagster.core.evaluation.bits_per_byte import byte_lengths, context_that_fits

    backend = base.backend()
    lengths = byte_lengths(strings_by_id(backend))
    encoded = reference_encoder(backend)(texts)
    return _Text(texts, context_that_fits([lengths[ids] for ids in encoded], tokens_at_once))


def _retention_text(
    settings: SettingsResource, corpus: CleanedCorpus, base: TokenizerFolder, tokens_at_once: int
) -> "tuple[_Text | None, Retention | None]":
    """Text of another domain, and what is known of it before it is scored."""
    from ivr_dagster.core.evaluation.figures import Retention
    from ivr_dagster.sample.other_text import ENGLISH_DOCUMENTATION, HELDOUT_CODE, english_documentation, heldout_code

    if not settings.evaluation.retention_bytes:
        return None, None
    root = settings.other_corpus_dir("retention_corpora_dir")
    if root is not None:
        source, documents = (
            f"the text in the folder {root.name}",
            read_other_documents(root, settings.corpus, "retention_corpora_dir"),
        )
    elif settings.tokenizer.model_name == "sample":
        source, documents = HELDOUT_CODE, heldout_code()
    else:
        source, documents = ENGLISH_DOCUMENTATION, english_documentation()
    known = (document_id for split in SPLITS for document_id in corpus.ids(split))
    texts = select_other_texts(
        documents,
        known,
        settings.evaluation.retention_bytes,
        normalization=settings.corpus.normalization,
        from_the_end=True,
    )
    if not texts:
        return None, Retention(
            source,
            skipped=f"the corpus itself holds {source}. Name a folder of other text with --retention-corpora-dir.",
        )
    size = sum(len(text.encode()) for text in texts)
    return _text(texts, base, tokens_at_once), Retention(source, len(texts), size)


def _measured(retention: "Retention | None", scores: "Mapping[str, BitsPerByte]", seed: int) -> "Retention | None":
    from ivr_dagster.core.evaluation.intervals import bpb_intervals

    if retention is None or not scores:
        return retention
    bits = {name: scored.document_bits for name, scored in scores.items()}
    return replace(retention, bpb=bpb_intervals(bits, scores["base"].document_bytes, seed=seed)[0])


def _curves(
    blocks: TrainingBlocks, trained: Mapping[str, TrainedModel]
) -> "tuple[dict[str, LossCurve], dict[str, LearningCurve]]":
    """Training loss by variant, and the validation during training where the run kept it."""
    from ivr_dagster.core.evaluation.figures import learning_curve, loss_curve

    curves, learning = {}, {}
    for name, run in trained.items():
        bytes_per_token, history = (
            blocks.bytes_per_token("remapped" if name == "sft" else "base"),
            run.history(),
        )
        if bytes_per_token is None or not history["steps"]:
            continue
        units = {"tokens_per_step": history["tokens"] / history["steps"], "bytes_per_token": bytes_per_token}
        curves[name] = loss_curve([(int(step), float(loss)) for step, loss in history["losses"]], **units)
        if history.get("validation"):
            learning[name] = learning_curve([(int(step), float(bpb)) for step, bpb in history["validation"]], **units)
    return curves, learning


def _against(report: "EvaluationReport") -> dict[str, float]:
    """The fine-tuned model's differences in BPB with the ends of their intervals, as figures of the asset."""
    figures = {}
    for (variant, against), interval in report.differences.items():
        if variant == "sft":
            figures[f"bpb_sft_less_{against}"] = interval.value
            figures |= {f"bpb_sft_less_{against}_low": interval.low, f"bpb_sft_less_{against}_high": interval.high}
    return figures


def _provenance(
    base: BaseModel,
    corpus: CleanedCorpus,
    blocks: TrainingBlocks,
    trained: TrainedModel,
    rules: RemapRules,
    vocabulary: int,
) -> "Provenance":
    from transformers import AutoConfig

    from ivr_dagster.core.evaluation.model_card import Provenance

    folder = Path(base.model_name).expanduser()
    config = AutoConfig.from_pretrained(trained.final_model.path, local_files_only=True, trust_remote_code=False)
    on_hub = base.model_name != "sample" and not folder.is_dir()
    return Provenance(
        base_model=base.model_name if on_hub else folder.name,
        on_hub=on_hub,
        base_version=base.version(),
        architecture=str(config.model_type),
        corpus_digest=corpus.digest(),
        train_documents=corpus.count("train"),
        train_bytes=blocks.text_bytes(),
        heldout_documents=corpus.count("heldout"),
        rules=len(rules),
        vocabulary=vocabulary,
    )
