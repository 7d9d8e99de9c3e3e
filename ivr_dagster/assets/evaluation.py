"""Evaluation: every variant on the same held-out bytes."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import dagster as dg

from ivr_dagster.assets import OWNERS, depends_on_settings
from ivr_dagster.assets.display import inline_png
from ivr_dagster.core.content_hash import content_hash
from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.corpus.subset import documents_within
from ivr_dagster.core.handles import ModelFolder, ReportFolder, TokenizerFolder, TrainedModel, TrainingBlocks
from ivr_dagster.core.tokenizer.agreement import compare_lengths, measure_round_trip
from ivr_dagster.core.tokenizer.folder import read_certificate
from ivr_dagster.core.tokens.sequences import reference_encoder
from ivr_dagster.core.vocabulary.remap import RemapRules
from ivr_dagster.progress import track
from ivr_dagster.resources.accelerator import POOL, AcceleratorResource
from ivr_dagster.resources.base_model import BaseModelResource
from ivr_dagster.resources.settings import SettingsResource
from ivr_dagster.stages import VANILLA

if TYPE_CHECKING:
    from ivr_dagster.core.evaluation.report import LossCurve

GROUP = "evaluation"
LONGEST_CONTEXT = 1024
PROMPT_CHARACTERS = 200
CONTINUATION_BYTES = 160
# what the plots are called on the asset's page, where `bytes_per_token` is a figure already
PICTURES = {
    "bpb": "bits per byte by variant",
    "bytes_per_token": "bytes per token by variant",
    "training_loss": "training loss",
}


def evaluation_report_asset(vanilla: bool) -> dg.AssetsDefinition:
    """The evaluation; the vanilla baseline is one of its variants where it is switched on."""

    @dg.asset(
        deps=["base_model", VANILLA] if vanilla else ["base_model"],
        group_name=GROUP,
        kinds={"huggingface", "markdown", "json"},
        owners=OWNERS,
        io_manager_key="report_io",
        pool=POOL,
        code_version="1",
        metadata=depends_on_settings("evaluation_bytes", "continuations", "vanilla", "seed"),
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
        model with its own and with the distilled tokenizer, the initialised and the fine-tuned model, and the vanilla
        baseline. `report.md` has tables, plots and continuations, `report.json` the figures.
        """
        from ivr_dagster.core.evaluation.bits_per_byte import bits_per_byte
        from ivr_dagster.core.evaluation.continuations import continue_texts
        from ivr_dagster.core.evaluation.report import EvaluationReport, Variant, write_report

        started = time.monotonic()
        wanted, size = documents_within(cleaned_corpus.documents("heldout"), settings.evaluation_bytes)
        texts = [text for document_id, text in cleaned_corpus.documents("heldout") if document_id in wanted]
        prompts = [text[:PROMPT_CHARACTERS].rstrip() for text in texts if len(text) > 2 * PROMPT_CHARACTERS]
        prompts = prompts[: settings.continuations]
        device = accelerator.resolved_device()
        variants = {}
        for name, model_folder, tokenizer_folder in _variants(
            settings,
            base,
            original_tokenizer,
            distilled_tokenizer,
            remapped_tokenizer,
            initialized_model,
            sft_checkpoint,
        ):
            model, tokenizer = model_folder.load("float32"), tokenizer_folder.load()
            scored = bits_per_byte(
                model,
                reference_encoder(tokenizer_folder.backend()),
                texts,
                eos_id=tokenizer.eos_token_id,
                context=min(int(getattr(model.config, "max_position_embeddings", LONGEST_CONTEXT)), LONGEST_CONTEXT),
                device=device,
                progress=track(context.log, f"evaluating {name}", "tokens"),
            )
            written = continue_texts(
                model, tokenizer, prompts, max_new_bytes=CONTINUATION_BYTES, seed=settings.seed, device=device
            )
            variants[name] = Variant.of(name, scored, written)
            context.log.info(f"{name}: {scored.bpb:.4f} bits per byte, {scored.bytes_per_token:.3f} bytes per token")

        remapped = remapped_tokenizer.backend()
        lengths = compare_lengths(original_tokenizer.backend(), remapped, cleaned_corpus.texts("heldout"))
        certificate = read_certificate(distilled_tokenizer.path)
        round_trip = measure_round_trip(remapped, texts)
        used = {i for encoding in remapped.encode_batch_fast(texts, add_special_tokens=False) for i in encoding.ids}
        new_ids = {rule.id for rule in remap_rules}
        report = EvaluationReport(
            variants=variants,
            token_saving=lengths.saving,
            agreement=float(certificate["heldout"]["agreement"]),
            round_trip=round_trip.exact / max(round_trip.texts, 1),
            new_tokens=len(new_ids),
            new_tokens_used=len(new_ids & used),
            heldout_documents=len(texts),
            heldout_bytes=size,
            prompts=tuple(prompts),
            settings=settings.public(),
        )
        curves = _curves(settings, training_blocks, sft_checkpoint)
        with settings.staged("evaluation_report") as folder:
            plots = write_report(report, folder, curves)
        pictures = {PICTURES.get(name, name): inline_png(png, PICTURES.get(name, name)) for name, png in plots.items()}
        return dg.MaterializeResult(
            value=ReportFolder(folder),
            data_version=dg.DataVersion(content_hash((folder / "report.json").read_text(encoding="utf-8"))),
            metadata={
                **{f"bpb_{name}": variant.bpb for name, variant in variants.items()},
                "bytes_per_token_base": variants["base"].bytes_per_token,
                "bytes_per_token": variants["sft"].bytes_per_token,
                "token_saving": report.token_saving,
                "agreement": report.agreement,
                "round_trip": report.round_trip,
                "new_tokens_used_share": report.new_tokens_used_share,
                "heldout_bytes": size,
                "seconds": round(time.monotonic() - started, 2),
                **pictures,
                "report": dg.MetadataValue.path(settings.places["evaluation_report"] / "report.md"),
            },
        )

    return evaluation_report


def _variants(
    settings: SettingsResource,
    base: BaseModelResource,
    original: TokenizerFolder,
    distilled: TokenizerFolder,
    remapped: TokenizerFolder,
    initialized: ModelFolder,
    sft: TrainedModel,
) -> Iterator[tuple[str, ModelFolder, TokenizerFolder]]:
    yield "base", base.model(), original
    yield "distilled", base.model(), distilled
    yield "initialized", initialized, remapped
    yield "sft", sft.final_model, TokenizerFolder(sft.final_model.path)
    if settings.vanilla:
        model = TrainedModel(settings.places[VANILLA]).final_model
        yield VANILLA.removesuffix("_checkpoint"), model, TokenizerFolder(model.path)


def _curves(settings: SettingsResource, blocks: TrainingBlocks, sft: TrainedModel) -> dict[str, "LossCurve"]:
    from ivr_dagster.core.evaluation.report import loss_curve

    runs = {"sft": (sft, "remapped")}
    if settings.vanilla:
        runs[VANILLA.removesuffix("_checkpoint")] = (TrainedModel(settings.places[VANILLA]), "base")
    curves = {}
    for name, (trained, tokenizer) in runs.items():
        bytes_per_token, history = blocks.bytes_per_token(tokenizer), trained.history()
        if bytes_per_token is not None and history["steps"]:
            losses = [(int(step), float(loss)) for step, loss in history["losses"]]
            tokens_per_step = history["tokens"] / history["steps"]
            curves[name] = loss_curve(losses, tokens_per_step=tokens_per_step, bytes_per_token=bytes_per_token)
    return curves
