"""Evaluation: every variant on the same held-out text."""

import json
import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg

from ivr_dagster.assets import OWNERS
from ivr_dagster.assets.display import inline_png
from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.corpus.other_text import read_other_documents, select_other_texts
from ivr_dagster.core.corpus.splits import SPLITS
from ivr_dagster.core.evaluation.evaluate import EvaluatedModels, OutOfDomainText, evaluate, provenance
from ivr_dagster.core.evaluation.figures import EvaluationReport, as_json, reproducible_part
from ivr_dagster.core.evaluation.folder import ReportFolder
from ivr_dagster.core.evaluation.model_card import MODEL_CARD, license_of, model_card
from ivr_dagster.core.evaluation.report import write_report
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.training.folders import TrainedModel
from ivr_dagster.pipeline import requested_stages, settings_of, stage_assets
from ivr_dagster.resources.accelerator import POOL, Accelerator, AcceleratorResource
from ivr_dagster.resources.base_model import BaseModel, BaseModelResource
from ivr_dagster.resources.progress import track
from ivr_dagster.resources.settings import ProjectSettings, SettingsResource
from ivr_dagster.sample.other_text import ENGLISH_DOCUMENTATION, HELDOUT_CODE, english_documentation, heldout_code
from ivr_dagster.storage.content_hash import content_hash

GROUP = "evaluation"
# metadata labels of plots whose own name is that of a figure
PLOT_LABELS = {
    "bpb": "bits per byte by variant",
    "bytes_per_token": "bytes per token by variant",
    "training_loss": "training loss",
    "validation_by_text": "validation by text read",
    "validation_by_compute": "validation by compute",
}


def evaluation_report_asset(baselines: Mapping[str, str], *, has_retention_corpus: bool) -> dg.AssetsDefinition:
    """The asset `evaluation_report`.

    Args:
        baselines: enabled vanilla baselines, variant → asset.
        has_retention_corpus: whether a setting names a folder of out-of-domain text.
    """

    @dg.asset(
        ins={variant: dg.AssetIn(asset) for variant, asset in baselines.items()},
        deps=["base_model", *(["retention_corpus"] if has_retention_corpus else [])],
        group_name=GROUP,
        kinds={"huggingface", "markdown", "json"},
        owners=OWNERS,
        io_manager_key="report_io",
        pool=POOL,
        code_version="6",
    )
    def evaluation_report(
        context: dg.AssetExecutionContext,
        settings: SettingsResource,
        accelerator: AcceleratorResource,
        base: BaseModelResource,
        cleaned_corpus: CleanedCorpus,
        distilled_tokenizer: TokenizerFolder,
        initialized_model: ModelFolder,
        sft_checkpoint: TrainedModel,
        **vanilla: TrainedModel,
    ) -> dg.MaterializeResult[ReportFolder]:
        """The effect of the new vocabulary: bits per byte of every variant on the same held-out text.

        Bits per byte (BPB) are comparable between tokenizers, perplexity per token is not. Compared are the base model
        with its own and with the distilled tokenizer, the initialized and the fine-tuned model, and the vanilla
        baselines. Every model sees the same bytes of context, and differences have confidence intervals. Also
        measured: where bits are lost, by kind of token and on the input and the output side; generation speed; and
        forgetting of out-of-domain text. `report.md` has tables, plots and samples, `report.json` the figures.
        `model_card.md` is a model card for the fine-tuned model;
        `exported_model` contains it as `README.md`.
        """
        trained = {"sft": sft_checkpoint, **vanilla}
        models = EvaluatedModels(base.model(), distilled_tokenizer, initialized_model, trained)
        return _evaluate(context, settings, accelerator, base, cleaned_corpus, models)

    return evaluation_report


def _evaluate(
    context: dg.AssetExecutionContext,
    settings: ProjectSettings,
    accelerator: Accelerator,
    base: BaseModel,
    corpus: CleanedCorpus,
    models: EvaluatedModels,
) -> dg.MaterializeResult[ReportFolder]:
    started = time.monotonic()
    report = evaluate(
        models,
        corpus,
        settings.evaluation,
        out_of_domain_text(settings, corpus),
        seed=settings.compute.seed,
        device=accelerator.resolved_device(),
        progress=partial(track, context.log),
        run_settings=_relevant(settings),
    )
    is_on_hub = base.local_folder() is None
    name = base.model_name if is_on_hub else Path(base.model_name).name
    source = provenance(
        models,
        corpus,
        base_model=name,
        is_on_hub=is_on_hub,
        base_version=base.version(),
        languages=tuple(settings.evaluation.language.split()),
        license=settings.evaluation.license or license_of(models.base.path),
    )
    with settings.staging("evaluation_report") as folder:
        plots = write_report(report, folder)
        (folder / MODEL_CARD).write_text(model_card(report, source), encoding="utf-8")
    place = settings.paths["evaluation_report"]
    return dg.MaterializeResult(
        value=ReportFolder(folder),
        data_version=dg.DataVersion(content_hash(json.dumps(reproducible_part(as_json(report)), sort_keys=True))),
        metadata={
            **report_metadata(report),
            "seconds": round(time.monotonic() - started, 2),
            **{PLOT_LABELS[name]: inline_png(png, PLOT_LABELS[name]) for name, png in plots.items()},
            "report": dg.MetadataValue.path(place / "report.md"),
            "model card": dg.MetadataValue.path(place / MODEL_CARD),
        },
    )


def _relevant(settings: ProjectSettings) -> dict[str, Any]:
    """The public settings that the content of the evaluated assets depends on."""
    assets = stage_assets(requested_stages("evaluate"), settings)
    names = {"preset", *(name for asset in assets for name in settings_of(asset))}
    return {name: value for name, value in settings.public().items() if name in names}


def out_of_domain_text(settings: ProjectSettings, corpus: CleanedCorpus) -> OutOfDomainText | None:
    """Text to measure forgetting on, without documents of the corpus: a configured folder, else what Python ships."""
    if not settings.evaluation.retention_bytes:
        return None
    folder = settings.other_corpora.get("retention_corpus")
    documents: Iterable[str]
    if folder is not None:
        source = f"the folder {folder.name}"
        documents = read_other_documents(folder, settings.corpus, "retention_corpora_dir")
    elif settings.tokenizer.model_name == "sample":
        source, documents = HELDOUT_CODE, heldout_code()
    else:
        source, documents = ENGLISH_DOCUMENTATION, english_documentation()
    texts = select_other_texts(
        documents,
        (document for split in SPLITS for document in corpus.ids(split)),
        settings.evaluation.retention_bytes,
        normalization=settings.corpus.normalization,
        from_the_end=True,
    )
    skipped = f"the corpus contains all of {source}. Name a folder of other text with --retention-corpora-dir."
    return OutOfDomainText(source, texts, "" if texts else skipped)


def report_metadata(report: EvaluationReport) -> dict[str, Any]:
    """The figures of a report as asset metadata."""
    variants, metadata = report.variants, {f"bpb_{name}": each.bpb for name, each in report.variants.items()}
    for (variant, reference), difference in report.differences.items():
        if variant == "sft":
            metadata[f"bpb_sft_minus_{reference}"] = difference.value
            metadata[f"bpb_sft_minus_{reference}_low"] = difference.low
            metadata[f"bpb_sft_minus_{reference}_high"] = difference.high
    return {
        **metadata,
        "bytes_per_token_base": variants["base"].bytes_per_token,
        "bytes_per_token": variants["sft"].bytes_per_token,
        "token_saving": report.token_saving,
        "agreement": report.agreement,
        "round_trip": report.round_trip,
        "new_tokens_used_share": report.new_tokens_used_share,
        "new_tokens_written_share": variants["sft"].new_tokens_written or 0.0,
        **{f"tokens_per_second_{name}": round(speed.tokens, 1) for name, speed in report.speeds.items()},
        **{f"bytes_per_second_{name}": round(speed, 1) for name, speed in report.bytes_per_second.items()},
        **{f"retention_rise_{k}": v for k, v in (report.retention.forgetting if report.retention else {}).items()},
        "heldout_bytes": report.heldout_bytes,
        "context_bytes": report.context_bytes,
    }
