"""Every setting, declared once, in one frozen group for each part of the pipeline.

A setting is one field. Its default, type, limits and description, the assets whose content it affects and the stages
that offer it give the command-line option, the environment variable, the settings file key, the launchpad field, the
code version of the assets and the reference documentation. All settings are in this one module (more than 400 lines)
because it is the list that users and the reference documentation see.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

# what 64-bit databases, arrays and columns hold; random generators of numpy take 32 bits
MAX_INTEGER, MAX_SEED = 2**63 - 1, 2**32 - 1
# thirty years: adding it to a time of day stays within the calendar
MAX_SECONDS = 1e9
# a smaller piece of text would not contain the context of every possible cut
MIN_SPLIT_BYTES = 256

Kind = Literal["value", "path", "output path", "model", "address"]


@dataclass(frozen=True)
class SettingInfo:
    """What is derived from a setting beyond its type, limits and description.

    Attributes:
        affects: assets whose content depends on it; their code versions include its value.
        stages: commands that offer it as an option, besides the stages of `affects`.
        kind: `path` is read from, `output path` written to, `model` is a hub id or a folder, `address` a host.
        one_run: whether the launchpad may change it for a single run. Settings that decide which definitions exist or
            where artifacts lie cannot change for one run.
        words: words accepted in place of numbers.
        options: further names of the command-line option, by command.
    """

    affects: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    kind: Kind = "value"
    one_run: bool = True
    words: Mapping[str, int] | None = None
    options: Mapping[str, str] | None = None


def setting(
    default: Any,
    description: str,
    *,
    affects: str = "",
    stages: str = "",
    kind: Kind = "value",
    one_run: bool = True,
    words: Mapping[str, int] | None = None,
    options: Mapping[str, str] | None = None,
    **limits: Any,
) -> Any:
    """A field of a settings group. `affects` and `stages` are names separated by spaces, `limits` are pydantic's."""
    info = SettingInfo(tuple(affects.split()), tuple(stages.split()), kind, one_run, words, options)
    return Field(default, description=description, json_schema_extra={"info": info}, **limits)  # type: ignore[dict-item]


def setting_info(field: FieldInfo) -> SettingInfo:
    """What :func:`setting` recorded about a field."""
    extra: Any = field.json_schema_extra
    info: SettingInfo = extra["info"]
    return info


class SettingsGroup(BaseModel):
    """Base of all groups: unknown keys and infinities are refused, values are checked and frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _convert_words(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[str(info.field_name)]
        words = setting_info(field).words
        if words is not None:
            if isinstance(value, bool):  # YAML reads on and off as booleans
                value = "on" if value else "off"
            return words.get(value, value) if isinstance(value, str) else value
        if isinstance(value, bool) and field.annotation in (int, float):
            raise ValueError("expected a number")
        return value

    @field_validator("*")
    @classmethod
    def _check_storable(cls, value: Any) -> Any:
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            raise ValueError(f"the largest possible number is {MAX_INTEGER:,}")
        if isinstance(value, str) and any(character < " " or "\ud800" <= character <= "\udfff" for character in value):
            raise ValueError("expected one line of UTF-8 text without control characters")
        return value


class CorpusSettings(SettingsGroup):
    """Reading, cleaning and splitting the corpus."""

    raw_corpora_dir: str = setting(
        "",
        "Folder of raw text (.txt, .jsonl, .json, each also as .gz). Empty: corpora/raw in the artifacts folder.",
        stages="init",
        kind="path",
        one_run=False,
    )
    cleaned_corpora_dir: str = setting(
        "",
        "Folder to write the cleaned corpus to. Empty: corpora/cleaned in the artifacts folder.",
        stages="init",
        kind="output path",
        one_run=False,
    )
    text_key: str = setting(
        "text",
        "Key of the text in JSON documents; dots lead into nested objects (`meta.body`).",
        affects="cleaned_corpus training_blocks",
    )
    encoding: str = setting("utf-8", "Encoding of the raw files.", affects="cleaned_corpus training_blocks")
    encoding_errors: Literal["strict", "replace"] = setting(
        "strict",
        "What to do with undecodable bytes. strict: refuse the file; replace: replace them with U+FFFD.",
        affects="cleaned_corpus training_blocks",
    )
    on_bad_input: Literal["fail", "skip"] = setting(
        "fail",
        "What to do with damaged files and JSON records without text. fail: stop before any work; skip: leave them "
        "out and count them.",
        affects="cleaned_corpus training_blocks",
    )
    normalization: Literal["NFC", "NFKC", "none"] = setting(
        "NFC", "Unicode normalization of the text.", affects="cleaned_corpus training_blocks"
    )
    heldout_fraction: float = setting(
        0.05,
        "Share of documents held out for evaluation, chosen by a hash of the document.",
        affects="cleaned_corpus",
        gt=0,
        lt=0.9,
    )
    heldout_floor: int = setting(
        20,
        "Minimum number of held-out documents; with fewer, a check warns that the figures are imprecise.",
        stages="init",
        ge=0,
    )
    text_split_bytes: int = setting(
        16_384,
        "Split longer .txt files, and JSON texts of many megabytes, at blank lines into documents of about this many "
        "bytes. 0: never.",
        affects="cleaned_corpus training_blocks",
        ge=0,
    )
    max_texts: int = setting(
        0,
        "Analyze and train on the first N documents only. 0: the whole train split.",
        affects="pretoken_counts token_stats token_sequences replacement_candidates fitted_embeddings tuning_study",
        ge=0,
    )

    @field_validator("text_split_bytes")
    @classmethod
    def _check_split_size(cls, value: int) -> int:
        if 0 < value < MIN_SPLIT_BYTES:
            raise ValueError(f"expected 0 (never split) or at least {MIN_SPLIT_BYTES} bytes")
        return value


class TokenizerSettings(SettingsGroup):
    """The base model and the distillation of its tokenizer."""

    model_name: str = setting(
        "openai-community/gpt2",
        "Base model: a Hugging Face Hub id or a folder; `sample` is the packaged model.",
        stages="init align",
        kind="model",
        one_run=False,
    )
    revision: str = setting(
        "",
        "Commit, tag or branch of the base model on the Hub. Empty: its main branch.",
        stages="init",
        one_run=False,
    )
    original_tokenizer_dir: str = setting(
        "",
        "Folder of an external base tokenizer, only read. Empty: the base model's tokenizer.",
        stages="align",
        kind="path",
        one_run=False,
    )
    max_pretoken_types: int = setting(
        300_000,
        "Keep the N most frequent pre-token types; rarer ones count in token frequencies only. 0: all, whatever "
        "memory they take.",
        affects="pretoken_counts",
        ge=0,
    )
    agreement_floor: float = setting(
        0.99,
        "Minimum agreement of a Unigram with the BPE that it is distilled from, as a share of pre-token occurrences.",
        affects="distilled_tokenizer remapped_tokenizer",  # their checks must run again
        ge=0,
        le=1,
    )
    tokenizer_model: Literal["unigram", "bpe"] = setting(
        "unigram",
        "Form of the remapped tokenizer that the model is trained and saved with. Both forms have the same ids; bpe "
        "encodes faster and runs in more inference engines.",
        affects="fitted_embeddings initialized_model",
    )
    exceptions: int = setting(
        10_000,
        "Maximum number of pre-token types, most frequent first, that get explicit cuts where scores cannot reproduce "
        "the BPE. 0 or off: none.",
        affects="distilled_tokenizer remapped_tokenizer tuning_study",
        words={"off": 0, "on": 10_000, "no": 0, "yes": 10_000, "false": 0, "true": 10_000},
        ge=0,
    )


class SelectionSettings(SettingsGroup):
    """Which strings get an id and which tokens lose theirs."""

    max_candidates: int = setting(
        4000,
        "Maximum number of ids to reassign. 0 or auto: continue while the next hundred new tokens save least_saving "
        "and occur often enough in the text that is trained on (least_occurrences).",
        affects="replacement_candidates",
        words={"auto": 0},
        ge=0,
    )
    least_saving: float = setting(
        0.001,
        "With max_candidates auto: share of held-out tokens that the next hundred new tokens must save.",
        affects="replacement_candidates",
        gt=0,
        lt=1,
    )
    least_occurrences: int = setting(
        20,
        "With max_candidates auto: how often the next hundred new tokens must occur in the text that is trained on "
        "(train_bytes), in the median. Rows of rarer tokens are hardly learned. 0: no minimum.",
        affects="replacement_candidates",
        ge=0,
    )
    min_token_len: int = setting(
        2, "Minimum length of a new token in UTF-8 bytes.", affects="replacement_candidates", ge=2
    )
    max_token_len: int = setting(
        0, "Maximum length of a new token in UTF-8 bytes. 0: no limit.", affects="replacement_candidates", ge=0
    )
    min_frequency: int = setting(
        2,
        "Minimum number of tokens that a new token must save on the train split.",
        affects="replacement_candidates",
        ge=1,
    )
    letters_only: bool = setting(
        False,
        "New tokens contain letters only, each word with at most one space before it; no digits or symbols.",
        affects="replacement_candidates",
    )
    join_digits: bool = setting(True, "Allow digits in new tokens.", affects="replacement_candidates")
    merge_scope: Literal["within", "across"] = setting(
        "within",
        "within: new tokens lie inside one pre-token; across: they may join whole pre-tokens (' of the').",
        affects="replacement_candidates",
    )
    max_phrases: int = setting(
        0,
        "Maximum number of new tokens that join pre-tokens. 0: as many as are worth it.",
        affects="replacement_candidates",
        ge=0,
    )
    least_documents: int = setting(
        3,
        "Minimum number of train documents that contain a phrase of joined pre-tokens.",
        affects="replacement_candidates",
        ge=1,
    )
    sticky: bool = setting(
        True,
        "Keep the rules of the previous selection, with their ids, while they still pay off, so that a fine-tuned "
        "model stays usable after a small corpus change.",
        affects="replacement_candidates",
    )
    least_gain: float = setting(
        0.005,
        "Additional share of held-out tokens that a new selection must save to replace the previous one, since it "
        "means retraining. 0: any gain.",
        affects="replacement_candidates",
        ge=0,
        lt=1,
    )
    saving_floor: float = setting(
        0.10,
        "Share of held-out tokens that new tokens must save; below it a check warns that training is hardly worth it.",
        affects="selection_log remapped_bpe_tokenizer",  # its check must run again
        stages="select",
        ge=0,
        lt=1,
    )
    longer_documents_ceiling: float = setting(
        0.001,
        "Maximum share of held-out documents that may need more tokens than with the base tokenizer.",
        affects="remapped_bpe_tokenizer",  # its check must run again
        ge=0,
        le=1,
    )
    remap_rules_path: str = setting(
        "",
        "External remap rules (YAML), only read. Empty: the rules of the selection.",
        stages="remap align",
        kind="path",
        one_run=False,
    )
    remapped_tokenizer_dir: str = setting(
        "",
        "Folder of an external remapped tokenizer, only read. Empty: built from the rules.",
        stages="align",
        kind="path",
        one_run=False,
    )


class EmbeddingSettings(SettingsGroup):
    """The rows of new tokens before training."""

    embeddings_dir: str = setting(
        "",
        "Folder to write embeddings and the initialized model to. Empty: embeddings in the artifacts folder.",
        stages="align",
        kind="output path",
        one_run=False,
    )
    init_strategy: Literal[
        "constituents", "constituents_first", "constituents_last", "first_last", "mean", "random", "zeros"
    ] = setting(
        "constituents",
        "Initial values of new rows. constituents: mean of the rows of the base tokens that the new token replaces; "
        "constituents_first, constituents_last: the same, weighted towards the first or last; first_last: mean of the "
        "first and the last; mean: mean of all kept rows; random: normal, with the kept rows' mean and deviation.",
        affects="fitted_embeddings",
    )
    calibration_bytes: int = setting(
        2_000_000,
        "Bytes of the train split on which new rows are calibrated: each new token becomes as probable as it is "
        "frequent. 0: no calibration.",
        affects="fitted_embeddings",
        ge=0,
    )
    token_distillation_bytes: int = setting(
        0,
        "Bytes of the train split on which new rows are fitted before training, everything else frozen. 0: no fitting.",
        affects="fitted_embeddings",
        ge=0,
    )
    token_distillation_learning_rate: float = setting(
        3e-3, "Learning rate of token distillation.", affects="fitted_embeddings", gt=0
    )
    token_distillation_hidden_weight: float = setting(
        0.0,
        "Weight of the base model's hidden states, which new tokens learn to reproduce, next to the likelihood of the "
        "text. Above 0, the base model reads the text as well.",
        affects="fitted_embeddings",
        ge=0,
    )


class TrainingSettings(SettingsGroup):
    """Fine-tuning the adapted model and the vanilla baselines."""

    train_model_name: str = setting(
        "",
        "Folder of an external model to fine-tune, only read. Empty: the initialized model.",
        stages="train",
        kind="model",
        one_run=False,
        options={"train": "model-name"},
    )
    tokenizer_path: str = setting(
        "",
        "Folder of an external tokenizer to train with and to save with the model, only read. Empty: the remapped "
        "tokenizer.",
        stages="train",
        kind="path",
        one_run=False,
    )
    dataset_path: str = setting(
        "",
        "Folder of external packed blocks (with base/ and remapped/), only read. Empty: packed from the corpus.",
        stages="train",
        kind="path",
        one_run=False,
    )
    output_dir: str = setting(
        "",
        "Folder to write checkpoints and the final model to. Empty: training/sft_checkpoint in the artifacts folder.",
        stages="train",
        kind="output path",
        one_run=False,
    )
    config_path: str = setting(
        "",
        "Training settings (YAML). Empty: sft_config.yaml in the artifacts folder, else the packaged one.",
        affects="sft_checkpoint vanilla_sft_checkpoint vanilla_compute_checkpoint tuning_study",
        kind="path",
    )
    accelerate_config: str = setting(
        "",
        "Launch settings, the number of processes and machines to train on (accelerate's YAML). Empty: "
        "accelerate_config.yaml in the artifacts folder, else one process.",
        affects="sft_checkpoint vanilla_sft_checkpoint vanilla_compute_checkpoint",
        kind="path",
    )
    block_size: int = setting(
        0,
        "Tokens of a training block. 0: the model's context, at most 1,024.",
        affects="training_blocks tuning_study",
        ge=0,
    )
    train_bytes: int = setting(
        0,
        "Train on about this many bytes of the train split. 0: all of it.",
        affects="replacement_candidates fitted_embeddings training_blocks",
        ge=0,
    )
    validation_bytes: int = setting(
        100_000,
        "Bytes of the train split, at most a twentieth of it, kept for validation during training. 0: none.",
        affects="fitted_embeddings training_blocks",
        ge=0,
    )
    general_corpora_dir: str = setting(
        "",
        "Folder of general text to mix into training against forgetting. Empty: none; with the preset sample, code of "
        "the standard library.",
        affects="training_blocks",
        stages="train",
        kind="path",
        one_run=False,
    )
    general_share: float = setting(
        0.1,
        "Share of general text in the bytes trained on, as far as that text reaches.",
        affects="training_blocks",
        ge=0,
        lt=1,
    )
    warm_start: bool = setting(
        False,
        "Start from the previously fine-tuned model if a rebuild kept its rules. Off: every training starts from the "
        "initialized model, and the same inputs give the same model.",
        affects="sft_checkpoint",
    )
    vanilla: bool = setting(
        True,
        "Also fine-tune the base model with its own tokenizer on the same text, for comparison.",
        affects="training_blocks evaluation_report",
        one_run=False,
    )
    vanilla_compute: bool = setting(
        True,
        "Also fine-tune the base model with as much compute as the adapted model used: as many tokens, fewer bytes.",
        affects="evaluation_report",
        stages="train",
        one_run=False,
    )


class TuningSettings(SettingsGroup):
    """The search for better training settings."""

    tune_trials: int = setting(
        20,
        "Number of trials of the search for training settings, those of earlier runs included.",
        affects="tuning_study",
        options={"tune": "trials"},
        ge=1,
    )
    tune_bytes: int = setting(
        1_000_000,
        "Bytes of the train split that a trial reads once; a fifth as much is used for validation.",
        affects="tuning_study",
        ge=1,
    )
    tune_seconds: float = setting(
        0, "Start no further trial after this many seconds. 0: no limit.", affects="tuning_study", ge=0, le=MAX_SECONDS
    )
    tune_new_tokens: bool = setting(
        False,
        "Also try a half and a quarter of the new tokens. Short trials favor few new tokens, since each must be "
        "learned.",
        affects="tuning_study",
    )
    tune_vanilla: bool = setting(
        False,
        "Also tune the vanilla baseline, with as many trials and the same limit of seconds. Recommended before you "
        "compare the two.",
        affects="tuning_study",
    )


class EvaluationSettings(SettingsGroup):
    """What the report measures."""

    evaluation_bytes: int = setting(
        1_000_000, "Bytes of held-out text to evaluate on.", affects="evaluation_report", ge=1
    )
    retention_bytes: int = setting(
        100_000,
        "Bytes of out-of-domain text on which the report measures forgetting. 0: none.",
        affects="training_blocks evaluation_report",
        ge=0,
    )
    retention_corpora_dir: str = setting(
        "",
        "Folder of out-of-domain text (.txt, .jsonl, .json, each also as .gz). Empty: the English documentation that "
        "comes with Python.",
        affects="training_blocks evaluation_report",
        stages="evaluate",
        kind="path",
        one_run=False,
    )
    distilled_tolerance: float = setting(
        0.005,
        "Maximum difference in bits per byte, as a share, between the base model with the distilled tokenizer and with "
        "its own.",
        stages="evaluate",
        ge=0,
    )
    retention_tolerance: float = setting(
        0.05,
        "Maximum additional forgetting compared with the vanilla baseline: rise in bits per byte of out-of-domain "
        "text, as a share of the base model's.",
        stages="evaluate",
        ge=0,
    )
    continuations: int = setting(3, "Number of sample continuations in the report.", affects="evaluation_report", ge=0)
    language: str = setting(
        "",
        "Codes of the text's languages for the model card, separated by spaces, such as ko. Empty: not stated.",
        affects="evaluation_report",
        pattern=r"^([a-z]{2,3}(-[A-Za-z0-9]+)*( +|$))*$",
    )
    license: str = setting(
        "",
        "The Hugging Face Hub's identifier of the license for the model card, such as apache-2.0. Empty: the license "
        "in the base model's card, if its folder contains one.",
        affects="evaluation_report",
        pattern=r"^[a-z0-9.-]*$",
    )


# formats of `ivr export`, and types of weights in GGUF files
EXPORT_FORMATS, GGUF_TYPES = ("huggingface", "gguf", "tiktoken"), ("f16", "q8_0")


class ExportSettings(SettingsGroup):
    """The formats in which the fine-tuned model is written."""

    formats: str = setting(
        ",".join(EXPORT_FORMATS),
        f"Formats to write, separated by commas: {', '.join(EXPORT_FORMATS)}.",
        stages="export",
        one_run=False,
    )
    gguf_types: str = setting(
        ",".join(GGUF_TYPES),
        f"Types of weights to write a GGUF file for, separated by commas: {', '.join(GGUF_TYPES)}.",
        affects="exported_gguf",
    )
    gguf_converter: str = setting(
        "",
        "llama.cpp's convert_hf_to_gguf.py, to convert architectures that ivr_dagster does not write itself. Empty: "
        "not used.",
        affects="exported_gguf",
        kind="path",
        one_run=False,
    )

    @field_validator("formats", "gguf_types", mode="before")
    @classmethod
    def _check_choices(cls, value: Any, info: ValidationInfo) -> Any:
        choices = EXPORT_FORMATS if info.field_name == "formats" else GGUF_TYPES
        given = value.split(",") if isinstance(value, str) else value
        if not isinstance(given, (list, tuple)) or not all(isinstance(each, str) for each in given):
            return value
        names = [each.strip() for each in given if each.strip()]
        if not names or not set(names) <= set(choices):
            raise ValueError(f"expected one or more of {', '.join(choices)}")
        return ",".join(choice for choice in choices if choice in names)


class ComputeSettings(SettingsGroup):
    """Where and how the work is done."""

    engine: Literal["local", "ray"] = setting(
        "local",
        "What cleans, counts and encodes the corpus: local (the cores of this machine) or ray (a cluster).",
        stages="init analyze",
    )
    ray_address: str = setting(
        "",
        "Address of the Ray cluster (auto, host:6379, ray://host:10001). Empty: start one on this machine.",
        stages="init analyze",
        kind="address",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = setting(
        "auto", "Device that trains and evaluates.", stages="align train evaluate tune"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto",
        "Data type of training. auto: bfloat16 on devices with native support, else float32.",
        affects="fitted_embeddings sft_checkpoint vanilla_sft_checkpoint vanilla_compute_checkpoint tuning_study",
    )
    seed: int = setting(
        42,
        "Seed of random rows, continuations and the search for training settings; training has its own in "
        "sft_config.yaml.",
        affects="fitted_embeddings tuning_study evaluation_report",
        ge=0,
        le=MAX_SEED,
    )


class AutomationSettings(SettingsGroup):
    """What the Dagster daemon rebuilds without being asked."""

    rebuild: Literal["everything", "tokenizer_side", "nothing"] = setting(
        "everything",
        "What the daemon rebuilds when it is stale: everything, the tokenizer_side (up to the remapped tokenizer: "
        "minutes) or nothing. The first training is always started by a user.",
        stages="ui",
        one_run=False,
    )
    retrain: Literal["new_vocabulary", "new_text"] = setting(
        "new_vocabulary",
        "What makes the daemon retrain: a new_vocabulary (or base model, or settings), or new_text as well, however "
        "little. `ivr run` always trains on new text.",
        stages="ui",
        one_run=False,
    )
    quiet_seconds: float = setting(
        10.0,
        "Observe a changed corpus or model once it has not changed for this many seconds.",
        stages="ui",
        one_run=False,
        ge=0,
        le=MAX_SECONDS,
    )
