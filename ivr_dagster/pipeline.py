"""The single declaration of the pipeline: its stages, and its assets with their artifacts.

Stages, command-line options, artifact paths, the figures of `status` and `--json`, code versions and the reference
documentation derive from these records and from the settings' fields (`affects`). :mod:`ivr_dagster.artifact_paths`
resolves the paths in one artifacts folder.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from ivr_dagster.settings.loading import INFO, Settings, option_name

# the code location's name, and the module that it loads; workspace.yaml and pyproject.toml have them too
LOCATION, MODULE = "ivr_dagster", "ivr_dagster.definitions"

Side = Literal["tokenizer", "training"]


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline, which is also a command of `ivr`.

    Attributes:
        name: the command.
        help: its help text.
        side: `tokenizer` stages take seconds to minutes and are built in one Dagster run; `training` stages are
            expensive.
        on_request: whether `ivr run` and the jobs build it only if a user asks for it by name.
    """

    name: str
    help: str
    side: Side
    on_request: bool = False


@dataclass(frozen=True)
class Asset:
    """An asset and its artifact.

    Attributes:
        name: its asset key.
        stage: the command that builds it; `tune` is not a stage and runs only when requested by name.
        path: its file or folder, relative to the artifacts folder.
        figures: names of the metadata shown by `status`, after each stage and in `--json`, in this order.
        external: the setting that names an external artifact to use instead.
        output: the setting that overrides the path to which it is written.
        requires: settings that must be enabled.
        variant: for a baseline, its name in the evaluation.
        format: for an exported format, its name in the setting `formats`.
    """

    name: str
    stage: str
    path: str
    figures: tuple[str, ...] = ()
    external: str = ""
    output: str = ""
    requires: tuple[str, ...] = ()
    variant: str = ""
    format: str = ""


@dataclass(frozen=True)
class ExternalArtifact:
    """An external artifact that a setting names; it is read in place and never written.

    Attributes:
        setting: the setting that names its path.
        replaces: the asset that it replaces.
        only_in: the assets that read it instead of the replaced asset. If empty, all readers do, and the replaced asset
            is not built.
    """

    setting: str
    replaces: str
    only_in: tuple[str, ...] = ()

    @property
    def option(self) -> str:
        """The command-line option of the setting."""
        return option_name(self.setting, "train")


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("init", "Clean and split the corpus; fetch the base tokenizer.", "tokenizer"),
        Stage("analyze", "Count pre-tokens and tokens; write token id sequences.", "tokenizer"),
        Stage("distill-tokenizer", "Distill the base BPE into a Unigram tokenizer with the same ids.", "tokenizer"),
        Stage("select", "Select new tokens and the ids they receive.", "tokenizer"),
        Stage("remap", "Write the remap rules and the remapped tokenizer, as BPE and as Unigram.", "tokenizer"),
        Stage("align", "Reorder embeddings, initialize new rows, and write the initialized model.", "training"),
        Stage("train", "Fine-tune the adapted model and the vanilla baselines.", "training"),
        Stage("evaluate", "Compare all variants in bits per byte and write the report.", "training"),
        Stage("export", "Write the fine-tuned model in the formats of inference engines.", "training", on_request=True),
    )
}
# the last stage that `ivr run` builds by default
LAST_STAGE = [stage.name for stage in STAGES.values() if not stage.on_request][-1]


def _asset(name: str, stage: str, path: str, figures: str = "", **options: Any) -> Asset:
    """An asset record; `figures` is a space-separated list of names."""
    return Asset(name, stage, path, tuple(figures.split()), **options)


_TRAINED = "steps train_loss tokens_per_second"
_ASSETS = (
    _asset(
        "cleaned_corpus",
        "init",
        "corpora/cleaned",
        "train_documents train_bytes heldout_documents heldout_bytes dropped_duplicates dropped_empty",
        output="cleaned_corpora_dir",
    ),
    _asset(
        "original_tokenizer", "init", "tokenizers/original", "vocabulary_size merges", external="original_tokenizer_dir"
    ),
    _asset("pretoken_counts", "analyze", "analysis/pretoken_counts.parquet", "pretoken_types pretokens"),
    _asset("token_stats", "analyze", "analysis/reports/token_frequency.parquet", "tokens bytes_per_token unused_ids"),
    _asset("token_sequences", "analyze", "analysis/token_sequences", "tokens"),
    _asset(
        "distilled_tokenizer",
        "distill-tokenizer",
        "tokenizers/distilled_unigram",
        "agreement agreement_heldout exceptions",
    ),
    _asset(
        "replacement_candidates",
        "select",
        "analysis/reports/replacement_candidates.csv",
        "candidates token_saving_train token_saving_heldout rules_kept rules_moved rules_dropped",
    ),
    _asset("selection_log", "select", "analysis/reports/selection_log.md"),
    _asset("remap_rules", "remap", "tokenizers/remap_rules.yaml", "rules edited_by_hand", external="remap_rules_path"),
    _asset(
        "remapped_bpe_tokenizer",
        "remap",
        "tokenizers/remapped_bpe",
        "tokens_reassigned token_saving bytes_per_token agreement_kept documents_longer",
    ),
    _asset(
        "remapped_tokenizer",
        "remap",
        "tokenizers/remapped",
        "tokens_reassigned token_saving bytes_per_token agreement agreement_heldout",
        external="remapped_tokenizer_dir",
    ),
    _asset(
        "original_embeddings",
        "align",
        "embeddings/original_embeddings.safetensors",
        "rows columns tied",
        output="embeddings_dir",
    ),
    _asset(
        "reordered_embeddings",
        "align",
        "embeddings/reordered_embeddings.safetensors",
        "kept_rows new_rows",
        output="embeddings_dir",
    ),
    _asset(
        "fitted_embeddings",
        "align",
        "embeddings/fitted_embeddings.safetensors",
        "new_rows bpb_before bpb_after",
        output="embeddings_dir",
    ),
    _asset("initialized_model", "align", "embeddings/initialized_model", "parameters", output="embeddings_dir"),
    _asset("training_blocks", "train", "training/blocks", "blocks bytes tokens tokens_base", external="dataset_path"),
    _asset("sft_checkpoint", "train", "training/sft_checkpoint", _TRAINED, output="output_dir"),
    _asset(
        "vanilla_sft_checkpoint",
        "train",
        "training/vanilla_sft_checkpoint",
        _TRAINED,
        requires=("vanilla",),
        variant="vanilla_sft",
    ),
    _asset(
        "vanilla_compute_checkpoint",
        "train",
        "training/vanilla_compute_checkpoint",
        _TRAINED,
        requires=("vanilla", "vanilla_compute"),  # the comparison needs both
        variant="vanilla_compute_sft",
    ),
    _asset(
        "evaluation_report", "evaluate", "evaluation", "bpb_base bpb_initialized bpb_sft bpb_vanilla_sft token_saving"
    ),
    _asset("exported_model", "export", "export/huggingface", "parameters texts_compared", format="huggingface"),
    _asset("exported_gguf", "export", "export/gguf", "files tensors pre_tokenizer bytes_f16 bytes_q8_0", format="gguf"),
    _asset("exported_tiktoken", "export", "export/tiktoken", "ranks agreement", format="tiktoken"),
    _asset("tuning_study", "tune", "training/tuning", "best_bits_per_byte default_bits_per_byte trials given_up"),
)
# in build order
ASSETS: dict[str, Asset] = {asset.name: asset for asset in _ASSETS}

# figures that are fractions of 1, shown as percentages
SHARES = frozenset(
    {
        *("agreement", "agreement_heldout", "agreement_kept", "round_trip", "new_tokens_used_share"),
        *("token_saving", "token_saving_train", "token_saving_heldout", "retention_rise_sft"),
    }
)

_TRAINING = ("training_blocks", "sft_checkpoint", "tuning_study")
# By the name of the source asset. Those that only some assets read come last and take precedence in these assets.
EXTERNAL: dict[str, ExternalArtifact] = {
    f"external_{asset.name}": ExternalArtifact(asset.external, asset.name)
    for asset in ASSETS.values()
    if asset.external
} | {
    "external_train_model": ExternalArtifact("train_model_name", "initialized_model", _TRAINING),
    "external_train_tokenizer": ExternalArtifact("tokenizer_path", "remapped_tokenizer", _TRAINING),
}
# sources of out-of-domain text and the settings that name their folders; a source exists only if its setting is given
OTHER_CORPORA = {"general_corpus": "general_corpora_dir", "retention_corpus": "retention_corpora_dir"}


def stage_of(asset: str) -> str:
    """The command that builds an asset."""
    return ASSETS[asset].stage if asset in ASSETS else "run"


def stages_of_side(side: Side) -> tuple[str, ...]:
    """The stages of the tokenizer side or of the training side, in order."""
    return tuple(stage.name for stage in STAGES.values() if stage.side == side)


def requested_stages(until: str | None = None) -> list[str]:
    """The stages up to and including one, by default up to `LAST_STAGE`, in order."""
    names = list(STAGES)
    return names[: names.index(until or LAST_STAGE) + 1]


def stage_assets(stages: Iterable[str], settings: Settings) -> list[str]:
    """Names of the assets that stages build under these settings, in order."""
    wanted = set(stages)
    return [asset.name for asset in ASSETS.values() if asset.stage in wanted and is_enabled(asset.name, settings)]


def is_enabled(asset: str, settings: Settings) -> bool:
    """Whether all settings that an asset requires are enabled, and its format is one of `formats`."""
    wanted, name = ASSETS[asset].requires, ASSETS[asset].format
    return all(settings.get(each) for each in wanted) and (not name or name in settings.export.formats.split(","))


def baselines(settings: Settings) -> dict[str, str]:
    """The enabled vanilla baselines: evaluation variant → asset."""
    return {each.variant: each.name for each in ASSETS.values() if each.variant and is_enabled(each.name, settings)}


@cache
def settings_of(asset: str) -> tuple[str, ...]:
    """The settings that the content of an asset depends on, in order of declaration."""
    return tuple(name for name, info in INFO.items() if asset in info.affects)


@cache
def stage_options(stage: str) -> tuple[str, ...]:
    """The settings that a command offers as options, in order of declaration."""
    return tuple(
        name
        for name, info in INFO.items()
        if stage in info.stages or any(ASSETS[asset].stage == stage for asset in info.affects)
    )


def settings_hash(values: Mapping[str, Any]) -> str:
    """A short hash of settings (name → value), identical on every machine."""
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=4).hexdigest()


def changed_values(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`name: stored -> current` for each setting that differs."""

    def text(values: Mapping[str, Any], name: str) -> str:
        if name not in values:
            return "not recorded"
        return "empty" if values[name] == "" else str(values[name])

    names = [*now, *(name for name in before if name not in now)]
    changed = (name for name in names if name not in before or name not in now or before[name] != now[name])
    return [f"{name}: {text(before, name)} -> {text(now, name)}" for name in changed]


def code_version(code: str | None, values: Mapping[str, Any]) -> str:
    """The code version of an asset: the version of its code, and a hash of the settings that it depends on."""
    return f"{code}-{settings_hash(values)}"


def split_code_version(version: str | None) -> tuple[str, str]:
    """Split a :func:`code_version` into the version of the code and the hash of the settings."""
    code, _, settings = str(version).partition("-")
    return code, settings
