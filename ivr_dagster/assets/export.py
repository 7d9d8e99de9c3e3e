"""Export: the fine-tuned model in the formats of inference engines."""

from collections.abc import Callable
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import dagster as dg

from ivr_dagster.assets import OWNERS
from ivr_dagster.core.evaluation.model_card import MODEL_CARD
from ivr_dagster.core.export.folder import ExportFolder
from ivr_dagster.core.export.probes import probe_texts
from ivr_dagster.core.model.files import read_config, read_header, weight_files
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.training.folders import TrainedModel
from ivr_dagster.io_managers.provenance import size_of
from ivr_dagster.resources.progress import track
from ivr_dagster.resources.settings import ProjectSettings, SettingsResource
from ivr_dagster.sample.other_text import english_documentation
from ivr_dagster.storage.content_hash import content_hash
from ivr_dagster.storage.manifest import read_manifest

GROUP = "export"
# documents of English text on which tokenizers are compared, next to texts made from the vocabulary
_DOCUMENTS = 200


def exported_asset(*kinds: str) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """The decorator of all exported formats."""
    return dg.asset(group_name=GROUP, kinds=set(kinds), owners=OWNERS, io_manager_key="export_io", code_version="1")


@exported_asset("huggingface", "safetensors")
def exported_model(settings: SettingsResource, sft_checkpoint: TrainedModel) -> dg.MaterializeResult[ExportFolder]:
    """The fine-tuned model with the BPE form of its tokenizer, for transformers, vLLM and transformers.js.

    The folder is a model repository: weights, configuration, tokenizer, chat template, and the model card of the
    evaluation if the evaluated model is this one. transformers opened it, and its tokenizer returned the expected ids.
    """
    from ivr_dagster.core.export.huggingface import write_huggingface

    model = sft_checkpoint.final_model
    card, is_evaluated = _model_card(settings, sft_checkpoint)
    with settings.staging("exported_model") as folder:
        compared = write_huggingface(model, card, folder, _english_texts())
    return _result(folder, texts_compared=compared, parameters=_parameters(folder), evaluated=is_evaluated)


@exported_asset("gguf", "llamacpp")
def exported_gguf(
    context: dg.AssetExecutionContext, settings: SettingsResource, sft_checkpoint: TrainedModel
) -> dg.MaterializeResult[ExportFolder]:
    """The fine-tuned model as GGUF, for llama.cpp, ollama and LM Studio: one file per type of weights.

    Each file contains the BPE form of the tokenizer. The `gguf` library read it back, and all keys and tensors agree
    with the model; of a file from `gguf_converter`, only the keys of the tokenizer are compared.
    llama.cpp does not normalize text, so ids of text that is not in NFC differ if the tokenizer normalizes.
    """
    from ivr_dagster.core.export.converter import check_converter, convert_with
    from ivr_dagster.core.export.gguf import read_gguf_source, write_gguf

    model, name = sft_checkpoint.final_model, _name(settings)
    converter = settings.export.gguf_converter
    figures: dict[str, Any] = {}
    if converter:
        check_converter(Path(converter).expanduser(), model)
    else:
        source = read_gguf_source(model)
        figures["tensors"] = len(source.shapes)
    with settings.staging("exported_gguf") as folder:
        kinds = settings.export.gguf_types.split(",")
        for kind in kinds:
            file = folder / f"model-{kind}.gguf"
            if converter:
                pre = convert_with(Path(converter).expanduser(), model, file, kind, name=name).pre
            else:
                write_gguf(source, file, kind, name=name, progress=track(context.log, file.name, "tensors"))
                pre = source.tokenizer.pre
            figures[f"bytes_{kind}"] = size_of(file)
    normalizes = TokenizerFolder(model.path).bpe_form().normalizer is not None
    return _result(folder, files=len(kinds), pre_tokenizer=pre, normalizes=normalizes, **figures)


@exported_asset("tiktoken")
def exported_tiktoken(settings: SettingsResource, sft_checkpoint: TrainedModel) -> dg.MaterializeResult[ExportFolder]:
    """The BPE form of the tokenizer for tiktoken: ranks, pattern, special tokens, and the id of each rank.

    tiktoken opened the files and encoded every token, random sequences of tokens and English text; `agreement` is the
    share of these texts with the same ids as the tokenizer. The README contains a loader and says where ids differ.
    """
    from ivr_dagster.core.export.tiktoken import write_tiktoken

    tokenizer = TokenizerFolder(sft_checkpoint.final_model.path).bpe_form()
    with settings.staging("exported_tiktoken") as folder:
        texts = [*probe_texts(tokenizer), *_english_texts()]
        found = write_tiktoken(tokenizer, folder, texts, name=_name(settings))
    return _result(
        folder,
        ranks=found.tokens,
        agreement=found.agreement,
        texts_compared=found.texts,
        texts_differing=found.differing,
    )


def _result(folder: Path, **figures: Any) -> dg.MaterializeResult[ExportFolder]:
    files = {file.relative_to(folder).as_posix(): file.stat().st_size for file in ExportFolder(folder).files()}
    metadata = {**figures, "sizes": dg.MetadataValue.json(files)}
    return dg.MaterializeResult(
        value=ExportFolder(folder), data_version=dg.DataVersion(content_hash(folder)), metadata=metadata
    )


def _model_card(settings: ProjectSettings, trained: TrainedModel) -> tuple[str, bool]:
    """The evaluation's model card if this model was evaluated, else a card without figures; and whether it was."""
    from ivr_dagster.core.export.huggingface import plain_card

    report = settings.paths["evaluation_report"]
    manifest = read_manifest(report) if report.is_dir() else None
    evaluated = manifest.made_of.get("upstream", {}).get("sft_checkpoint") if manifest else None
    if evaluated == content_hash(trained.final_model.path) and (report / MODEL_CARD).is_file():
        return (report / MODEL_CARD).read_text(encoding="utf-8"), True
    architecture = str(read_config(trained.final_model.path)["model_type"])
    return plain_card(architecture, _name(settings)), False


def _name(settings: ProjectSettings) -> str:
    """The base model's name without its owner or folder."""
    return Path(settings.tokenizer.model_name).name


def _english_texts() -> list[str]:
    return list(islice(english_documentation(), _DOCUMENTS))


def _parameters(folder: Path) -> int:
    """Number of values in the weight files."""
    headers = (read_header(file)[0] for file in weight_files(folder))
    return sum(prod(entry["shape"]) for header in headers for entry in header.values())
