"""Settings: option > environment > settings file > preset > default.

One flat set of keys serves the command line (`--max-candidates`), the environment (`IVR_MAX_CANDIDATES`), the settings
file (`max_candidates: 4000`) and the Dagster launchpad (resource `settings`). What belongs here: the keys with their
defaults and limits, where values come from, and the settings file.
"""

import difflib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ivr_dagster.pipeline import ArtifactPaths
from ivr_dagster.core.embedding.initialize import STRATEGIES
from ivr_dagster.errors import InputError, short_repr
from ivr_dagster.storage.yaml_files import MOST_NUMBER, MOST_SEED, read_settings_yaml

ENVIRONMENT_PREFIX = "IVR_"
LISTED = "`ivr STAGE --help` and the launchpad list the settings."
# environment variables with the prefix that are no keys of the settings file
ENVIRONMENT_ONLY = {
    "IVR_ARTIFACTS_DIR",
    "IVR_CONFIG",
    "IVR_EXPERIMENT",
    "IVR_LOG_LEVEL",
    "IVR_ALERT_URL",
    "IVR_POSTGRES_URL",
}

CHOICES: dict[str, tuple[str, ...]] = {
    "preset": ("none", "sample", "laptop", "gpu"),
    "normalization": ("NFC", "NFKC", "none"),
    "encoding_errors": ("strict", "replace"),
    "on_bad_input": ("fail", "skip"),
    "merge_scope": ("within", "across"),
    "init_strategy": tuple(STRATEGIES),
    "rebuild": ("everything", "tokenizer_side", "nothing"),
    "retrain": ("new_vocabulary", "new_text"),
    "device": ("auto", "cpu", "cuda", "mps"),
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "engine": ("local", "ray"),
}


@dataclass(frozen=True)
class Brought:
    """What a person may bring in place of an artifact of ours: it is read where it lies and never written.

    Attributes:
        setting: the key that names its place.
        instead_of: the asset whose part it takes.
        in_assets: assets that read it instead; empty where all do, so that ours is not made at all.
    """

    setting: str
    instead_of: str
    in_assets: tuple[str, ...] = ()

    @property
    def option(self) -> str:
        """The command line's name of the setting."""
        return "--model-name" if self.setting == "train_model_name" else f"--{self.setting.replace('_', '-')}"


TRAINING = ("training_blocks", "sft_checkpoint", "tuning_study")
# by the name of the source that stands for it: a name of its own, so that what followed from our artifact and what
# follows from the person's are told apart. Those for some assets alone come last, and go before the others
BROUGHT: dict[str, Brought] = {
    "brought_original_tokenizer": Brought("original_tokenizer_dir", "original_tokenizer"),
    "brought_remapped_tokenizer": Brought("remapped_tokenizer_dir", "remapped_tokenizer"),
    "brought_remap_rules": Brought("remap_rules_path", "remap_rules"),
    "brought_training_blocks": Brought("dataset_path", "training_blocks"),
    "brought_train_model": Brought("train_model_name", "initialized_model", TRAINING),
    "brought_train_tokenizer": Brought("tokenizer_path", "remapped_tokenizer", TRAINING),
}

# words that stand for numbers
WORDS: dict[str, dict[str, int]] = {
    "max_candidates": {"auto": 0},
    "exceptions": {"off": 0, "on": 10_000, "false": 0, "true": 10_000},
}

PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    # the packaged model on the standard library's docstrings: minutes on two cores
    "sample": {
        "model_name": "sample",
        "max_candidates": 1000,
        "train_bytes": 150_000,
        "block_size": 256,
        "tune_bytes": 150_000,
        "evaluation_bytes": 60_000,
        "retention_bytes": 30_000,
        "vanilla_compute": False,
    },
    # no accelerator: a model of a hundred million parameters in an afternoon
    "laptop": {
        "train_bytes": 1_000_000,
        "validation_bytes": 30_000,
        "block_size": 256,
        "calibration_bytes": 500_000,
        "tune_trials": 8,
        "tune_bytes": 200_000,
        "evaluation_bytes": 100_000,
        "retention_bytes": 30_000,
    },
    # all text, contexts as long as the model's, and more of everything that is only measured
    "gpu": {
        "device": "cuda",
        "validation_bytes": 500_000,
        "tune_bytes": 5_000_000,
        "evaluation_bytes": 5_000_000,
        "retention_bytes": 1_000_000,
    },
}

# thirty years: what is added to a time of day must not leave the calendar
MOST_SECONDS = 1e9

# how the names of settings end that name a file or folder
_PLACES = ("_dir", "_path", "_address", "accelerate_config")
# settings that name places to write to: an experiment writes below its own folder
WRITTEN_TO = ("cleaned_corpora_dir", "embeddings_dir", "output_dir")

# settings that decide which definitions there are and where artifacts lie: not for one run alone
NOT_FOR_ONE_RUN = (
    "model_name",
    "revision",
    "raw_corpora_dir",
    *WRITTEN_TO,
    *(source.setting for source in BROUGHT.values()),
    "general_corpora_dir",
    "retention_corpora_dir",
    "vanilla",
    "vanilla_compute",
    "rebuild",
    "retrain",
    "quiet_seconds",
)


class Settings(BaseModel):
    """Everything that can be set. Empty strings and zeros mean what the description says."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    preset: str = Field(
        "none",
        description="Bundle of defaults: `sample` runs the packaged model on the standard library's docstrings, "
        "`laptop` is for a machine without an accelerator, `gpu` for one with CUDA.",
    )

    model_name: str = Field(
        "openai-community/gpt2", description="Base model: an id on the hub or a folder; `sample` is the packaged one."
    )
    revision: str = Field("", description="Commit, tag or branch of the base model on the hub. Empty: its main branch.")

    raw_corpora_dir: str = Field(
        "",
        description="Folder of raw text (.txt, .jsonl, .json, each also .gz). Empty: corpora/raw below the artifacts.",
    )
    cleaned_corpora_dir: str = Field(
        "", description="Where the cleaned corpus goes. Empty: corpora/cleaned below the artifacts."
    )
    text_key: str = Field(
        "text", description="Key of the text in JSON documents; dots lead into nested objects (`meta.body`)."
    )
    encoding: str = Field("utf-8", description="Encoding of the raw files.")
    encoding_errors: str = Field(
        "strict",
        description="What becomes of bytes that are not of the encoding: strict: the file is at fault; replace: each "
        "becomes the replacement character U+FFFD.",
    )
    on_bad_input: str = Field(
        "fail",
        description="What becomes of raw files that are damaged or not of the encoding, and of JSON records that are "
        "no documents: fail: nothing is done until they are mended; skip: they are left out and counted.",
    )
    normalization: str = Field("NFC", description="Unicode normalization: NFC, NFKC or none.")
    heldout_fraction: float = Field(
        0.05, gt=0, lt=0.9, description="Share of documents kept for evaluation, chosen by a hash of the document."
    )
    text_split_bytes: int = Field(
        16_384,
        ge=0,
        description="Longer .txt files, and texts of many megabytes in JSON, are cut into documents of about this many "
        "bytes at blank lines. 0: never.",
    )

    max_texts: int = Field(
        0, ge=0, description="Analyze and train on the first so many documents only. 0: all of the train split."
    )
    max_pretoken_types: int = Field(
        300_000,
        ge=0,
        description="Keep so many pre-token types, the most frequent; what is rarer counts in token frequencies only. "
        "0: all, whatever memory they take.",
    )
    agreement_floor: float = Field(
        0.99,
        ge=0,
        le=1,
        description="Least agreement of the distilled tokenizer with the base, as a share of pre-token occurrences.",
    )

    exceptions: int = Field(
        10_000,
        ge=0,
        description="How many pre-token types, the most frequent first, may get cuts of their own where scores cannot "
        "make them agree with the base. 0 or off: none.",
    )

    longer_documents_ceiling: float = Field(
        0.001,
        ge=0,
        le=1,
        description="Greatest share of held-out documents that may take more tokens than before.",
    )

    saving_floor: float = Field(
        0.10,
        ge=0,
        lt=1,
        description="Share of held-out tokens that new tokens must save; below it a check warns that training them is "
        "hardly worth it.",
    )

    max_candidates: int = Field(
        4000,
        ge=0,
        description="How many ids to give to new tokens at most. 0 or auto: as long as the next hundred save "
        "least_saving.",
    )
    least_saving: float = Field(
        0.001,
        gt=0,
        lt=1,
        description="With max_candidates auto: share of held-out tokens that the next hundred new tokens must save.",
    )
    min_token_len: int = Field(2, ge=2, description="Least length of a new token in UTF-8 bytes.")
    max_token_len: int = Field(0, ge=0, description="Greatest length of a new token in UTF-8 bytes. 0: no limit.")
    letters_only: bool = Field(
        False, description="New tokens hold letters and single spaces before them only, no digits or symbols."
    )
    join_digits: bool = Field(True, description="Whether new tokens may hold digits.")
    min_frequency: int = Field(
        2, ge=1, description="Least number of tokens that a new token must save on the train split."
    )
    merge_scope: str = Field(
        "within",
        description="`within`: new tokens lie inside one pre-token; `across`: they may join whole ones (' of the').",
    )
    max_phrases: int = Field(
        0, ge=0, description="How many of the new tokens may join pre-tokens. 0: as many as are worth it."
    )
    least_documents: int = Field(
        3, ge=1, description="In how many documents of the train split a phrase of pre-tokens must stand."
    )
    sticky: bool = Field(
        True,
        description="Rules in force that are still worth it stay, with their ids, so that a fine-tuned model stays "
        "usable when the corpus changes a little.",
    )
    least_gain: float = Field(
        0.005,
        ge=0,
        lt=1,
        description="Share of held-out tokens that another selection must save beyond the one in force to take its "
        "place, since it means training. 0: any that saves more.",
    )

    original_tokenizer_dir: str = Field(
        "", description="Folder of a base tokenizer that you bring; it is only read. Empty: the base model's."
    )
    remapped_tokenizer_dir: str = Field(
        "", description="Folder of a remapped tokenizer that you bring; it is only read. Empty: made from the rules."
    )
    remap_rules_path: str = Field(
        "", description="Remap rules (YAML) that you bring; they are only read. Empty: made by the selection."
    )
    embeddings_dir: str = Field("", description="Folder of embeddings and initialized model. Empty: the artifact.")
    init_strategy: str = Field(
        "constituents",
        description="First values of new rows: "
        + "; ".join(f"{name}: {strategy.description}" for name, strategy in STRATEGIES.items())
        + ".",
    )

    calibration_bytes: int = Field(
        2_000_000,
        ge=0,
        description="Bytes of the train split that new tokens are counted in, to make each as probable as it is "
        "frequent before training. 0: leave new rows as initialized.",
    )
    token_distillation_bytes: int = Field(
        0,
        ge=0,
        description="Fit the rows of new tokens on about so many bytes of the train split before training, all else "
        "frozen. 0: leave them as initialized.",
    )
    token_distillation_learning_rate: float = Field(3e-3, gt=0, description="Learning rate of that fit.")
    token_distillation_hidden_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the base model's hidden states, which new tokens are to reproduce, beside the "
        "likelihood of the text. Above 0 the base model reads the text too, in its own tokens.",
    )

    train_model_name: str = Field(
        "", description="Folder of a model of yours to fine-tune; it is only read. Empty: the initialized model."
    )
    tokenizer_path: str = Field(
        "",
        description="Folder of a tokenizer of yours to train with and to save beside the model; it is only read. "
        "Empty: the remapped tokenizer.",
    )
    dataset_path: str = Field(
        "",
        description="Packed blocks of yours to train on (folder with base/ and remapped/); they are only read. Empty: "
        "made from the corpus.",
    )
    output_dir: str = Field("", description="Where checkpoints and the final model go. Empty: the artifact.")
    config_path: str = Field(
        "",
        description="Training settings (YAML). Empty: sft_config.yaml below the artifacts, else the packaged one.",
    )
    accelerate_config: str = Field(
        "",
        description="On how many processes and machines to train (accelerate's YAML). Empty: accelerate_config.yaml "
        "below the artifacts, else one process.",
    )
    block_size: int = Field(0, ge=0, description="Tokens in a training block. 0: the model's context, 1,024 at most.")
    train_bytes: int = Field(0, ge=0, description="Train on about so many bytes of the train split. 0: all of it.")
    validation_bytes: int = Field(
        100_000,
        ge=0,
        description="Keep about so many bytes of the train split, a twentieth at most, to validate on while training. "
        "0: none.",
    )
    general_corpora_dir: str = Field(
        "", description="Folder of general text to mix into training, so that the model does not forget. Empty: none."
    )
    general_share: float = Field(
        0.1, ge=0, lt=1, description="Share of the bytes trained on that general text makes up, as far as it reaches."
    )
    warm_start: bool = Field(
        False,
        description="Go on from the model fine-tuned before where a rebuild kept its rules; off, every training starts "
        "from the initialized model, and the same inputs give the same model.",
    )
    vanilla: bool = Field(
        True, description="Also fine-tune the base model with its own tokenizer on the same text, for comparison."
    )

    vanilla_compute: bool = Field(
        True,
        description="And once more with as much computation as the adapted model had: fewer bytes, as many tokens.",
    )

    tune_trials: int = Field(
        20, ge=1, description="How many trials the search for training settings makes; those of earlier calls count."
    )
    tune_bytes: int = Field(
        1_000_000,
        ge=1,
        description="Text of a trial: about so many bytes of the train split, read once; a fifth as much more to "
        "validate on.",
    )
    tune_seconds: float = Field(
        0, ge=0, le=MOST_SECONDS, description="Start no further trial after so many seconds. 0: no limit."
    )
    tune_new_tokens: bool = Field(
        False,
        description="Also try a half and a quarter of the new tokens. Short trials favour few: their rows must be "
        "learned.",
    )

    evaluation_bytes: int = Field(1_000_000, ge=1, description="Evaluate on about so many bytes of held-out text.")
    retention_bytes: int = Field(
        100_000,
        ge=0,
        description="Bytes of another domain's text on which the report shows what fine-tuning unlearned. 0: none.",
    )
    retention_corpora_dir: str = Field(
        "",
        description="Folder of that text (.txt, .jsonl, .json, each also .gz). Empty: the English documentation that "
        "every Python carries.",
    )
    heldout_floor: int = Field(
        20, ge=0, description="Least number of held-out documents; below it a check warns that figures will be vague."
    )
    distilled_tolerance: float = Field(
        0.005,
        ge=0,
        description="Greatest difference in bits per byte, as a share, between the base model with the distilled and "
        "with its own tokenizer.",
    )
    retention_tolerance: float = Field(
        0.05,
        ge=0,
        description="How much more bits per byte on other text may rise than the vanilla baseline's, as a share of the "
        "base model's.",
    )
    continuations: int = Field(3, ge=0, description="How many sample continuations the report shows.")

    rebuild: str = Field(
        "everything",
        description="What the UI's daemon makes anew by itself once it is stale: everything, the tokenizer_side (up to "
        "the remapped tokenizer: minutes) or nothing. Training is never done by itself for the first time.",
    )
    retrain: str = Field(
        "new_vocabulary",
        description="What has the daemon train anew: a new_vocabulary (or base model, or settings), or new_text too, "
        "however little. `ivr run` always trains on new text.",
    )
    quiet_seconds: float = Field(
        10.0,
        ge=0,
        le=MOST_SECONDS,
        description="A changed corpus or model is taken up once it has kept still for so many seconds.",
    )

    engine: str = Field(
        "local",
        description="What cleans, counts and encodes the corpus: local (the cores of this machine) or ray (a cluster).",
    )
    ray_address: str = Field(
        "", description="Address of the Ray cluster (auto, host:6379, ray://host:10001). Empty: one on this machine."
    )
    device: str = Field("auto", description="Accelerator: auto, cpu, cuda or mps.")
    dtype: str = Field(
        "auto",
        description="Arithmetic of training: auto (bfloat16 on GPUs and processors that compute with it), float32, "
        "bfloat16, float16.",
    )
    seed: int = Field(
        42,
        ge=0,
        le=MOST_SEED,
        description="Seed of random rows, continuations and the search for training settings; training has its own in "
        "sft_config.yaml.",
    )

    @field_validator("text_split_bytes")
    @classmethod
    def _room_for_a_document(cls, value: int) -> int:
        if 0 < value < 256:
            raise ValueError("give 0 (never cut) or at least 256 bytes")
        return value

    @field_validator("*")
    @classmethod
    def _can_be_stored(cls, value: Any) -> Any:
        if isinstance(value, int) and abs(value) > MOST_NUMBER:
            raise ValueError(f"at most {MOST_NUMBER:,} is possible")
        if isinstance(value, str) and any(character < " " or "\ud800" <= character <= "\udfff" for character in value):
            raise ValueError("a text on one line is wanted, without control characters or bytes that are no UTF-8")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: Any) -> Any:
        number = cls.model_fields[info.field_name].annotation in (int, float) and info.field_name not in WORDS
        if isinstance(value, bool) and number:
            raise ValueError("a number is wanted")
        return value

    @field_validator(*WORDS, mode="before")
    @classmethod
    def _word_for_a_number(cls, value: Any, info: Any) -> Any:
        words = WORDS[info.field_name]
        if isinstance(value, bool):  # YAML reads on and off so
            value = "on" if value else "off"
        return words.get(value, value) if isinstance(value, str) else value

    @field_validator(*CHOICES)
    @classmethod
    def _known_choice(cls, value: str, info: Any) -> str:
        if value not in CHOICES[info.field_name]:
            raise ValueError(f"{short_repr(value)} is none of {', '.join(CHOICES[info.field_name])}")
        return value

    def fingerprint(self, *keys: str) -> str:
        """A short hash of the named settings; the same on every machine."""
        return fingerprint({key: getattr(self, key) for key in keys})

    def public(self) -> dict[str, Any]:
        """Settings by key, for reports; folders and addresses, which are this machine's business, are left out."""
        return {key: getattr(self, key) for key in Settings.model_fields if not key.endswith(_PLACES)}

    def paths(self, artifacts_dir: Path) -> ArtifactPaths:
        """Where artifacts lie under these settings."""
        elsewhere = {
            "raw_corpus": self.raw_corpora_dir,
            "cleaned_corpus": self.cleaned_corpora_dir,
            "sft_checkpoint": self.output_dir,
        }
        places = {asset: Path(place).expanduser().resolve() for asset, place in elsewhere.items() if place}
        if self.embeddings_dir:
            folder = Path(self.embeddings_dir).expanduser().resolve()
            names = ("original_embeddings", "reordered_embeddings", "fitted_embeddings", "initialized_model")
            default = ArtifactPaths(folder)
            places |= {name: folder / default[name].name for name in names}
        ours = ArtifactPaths(artifacts_dir.expanduser().resolve(), places)
        brought: dict[str, Path] = {}
        replaced: dict[str, str] = {}
        for name, source in BROUGHT.items():
            given = getattr(self, source.setting)
            place = Path(given).expanduser().resolve() if given else None
            # who names the place that is read anyway brings nothing
            if place and place != ArtifactPaths(ours.root, places, brought, replaced)[source.instead_of]:
                brought[name] = place
                replaced |= {} if source.in_assets else {source.instead_of: name}
        return ArtifactPaths(ours.root, places, brought, replaced)


def fingerprint(values: Mapping[str, Any]) -> str:
    """A short hash of settings by key, for code versions; the same on every machine."""
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=4).hexdigest()


def version_with(code: str | None, values: Mapping[str, Any]) -> str:
    """An asset's code version with the settings that it depends on folded in."""
    return f"{code}-{fingerprint(values)}"


def version_parts(version: str | None) -> tuple[str, str]:
    """The code's part and the settings' of what :func:`version_with` made."""
    code, _, settings = str(version).rpartition("-")
    return code, settings


def load_settings(
    artifacts_dir: Path,
    *,
    config: Path | None = None,
    options: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Settings from all their sources; all faults are reported together.

    Args:
        artifacts_dir: the artifacts folder, whose `ivr.yaml` is read where `config` names no other file.
        config: a settings file that must exist.
        options: what was given on the command line, by key.
        environ: the environment; `os.environ` if not given.

    Raises:
        InputError: unknown keys (with the nearest known one), wrong types or values, with the place they come from.
    """
    environ = os.environ if environ is None else environ
    file = config or ArtifactPaths(artifacts_dir).settings_file
    if config is not None and not config.is_file():
        raise InputError("no such settings file", where=config, remedy="Check --config or IVR_CONFIG.")
    from_file, lines = read_settings_file(file) if file.is_file() else ({}, {})
    from_environment = {
        name.removeprefix(ENVIRONMENT_PREFIX).lower(): value
        for name, value in environ.items()
        if name.startswith(ENVIRONMENT_PREFIX) and name not in ENVIRONMENT_ONLY
    }
    given = dict(options or {})
    merged = from_file | from_environment | given
    sources = {key: f"{file}:{line}" for key, line in lines.items()}
    sources |= {key: f"{ENVIRONMENT_PREFIX}{key.upper()}" for key in from_environment}
    sources |= {key: f"--{key.replace('_', '-')}" for key in given}
    return _with_preset(merged, sources)


def _with_preset(given: dict[str, Any], sources: Mapping[str, str]) -> Settings:
    """The settings given, over their preset's; `model_fields_set` of the result are those given."""
    preset = PRESETS.get(str(given.get("preset", "none")), {})
    settings = _validated(preset | given, sources)
    return Settings.model_construct(_fields_set=set(given), **settings.model_dump())


def settings_for_one_run(current: Settings, given: Mapping[str, Any]) -> Settings:
    """The settings with those that somebody gives for one run.

    With another preset go its defaults, and those of the one before, as far as nobody gave these settings.

    Args:
        current: the settings of this artifacts folder; its `model_fields_set` were given.
        given: values by key, those that stay as they are among them.

    Raises:
        InputError: values at fault, or settings that no single run can change.
    """
    changed = {key: value for key, value in given.items() if value != getattr(current, key)}
    fixed = [key for key in changed if key in NOT_FOR_ONE_RUN]
    if fixed:
        raise InputError(
            f"{', '.join(fixed)}: cannot be changed for one run alone",
            where="launchpad",
            remedy="Write it into the settings file, ivr.yaml; the UI takes it up by itself.",
        )
    kept = current.model_fields_set | set(NOT_FOR_ONE_RUN) if "preset" in changed else set(Settings.model_fields)
    before = {key: getattr(current, key) for key in kept}
    return _with_preset(before | changed, dict.fromkeys(changed, "launchpad"))


def _validated(values: dict[str, Any], sources: Mapping[str, str]) -> Settings:
    try:
        settings = Settings(**values)
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            key = str(fault["loc"][0])
            place = sources.get(key, key)
            if fault["type"] == "extra_forbidden":
                near = difflib.get_close_matches(key, Settings.model_fields, n=1)
                hint = f" (did you mean {near[0]!r})" if near else ""
                faults.append(f"{place}: unknown setting {short_repr(key)}{hint}")
            else:
                message = fault["msg"].removeprefix("Value error, ")
                if key in WORDS:
                    message += f" (or {', '.join(WORDS[key])})"
                faults.append(f"{place}: {key} is {short_repr(fault['input'])}: {message[:1].lower()}{message[1:]}")
        raise InputError("; ".join(faults), remedy=LISTED) from error
    if faults := [
        f"{sources.get(keys[0], keys[0])}: {fault}"
        for keys, fault in _contradictions(settings)
        if sources.keys() & keys
    ]:
        raise InputError("; ".join(faults), remedy=LISTED)
    return settings


def _contradictions(settings: Settings) -> Iterator[tuple[tuple[str, ...], str]]:
    """What cannot be had together: the settings, and what is wrong with them."""
    if 0 < settings.max_token_len < settings.min_token_len:
        yield (
            ("max_token_len", "min_token_len"),
            f"max_token_len is {settings.max_token_len} and min_token_len {settings.min_token_len}: no token is as "
            "short and as long",
        )


def read_settings_file(file: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The settings of a YAML file and the line of each key.

    Raises:
        InputError: as of yaml_files.read_settings_yaml.
    """
    return read_settings_yaml(file, "the settings file", "Write `key: value` lines, each key once", version="1.1")


def remember_settings(file: Path, given: Mapping[str, Any]) -> None:
    """Write what was given into the settings file, keeping what else stands there, comments too."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    from ivr_dagster.storage.atomic import atomic_write

    # what a relative folder means depends on where one stands
    given = {
        key: str(Path(value).expanduser().resolve()) if _is_place(key, value) else value for key, value in given.items()
    }
    if not given:
        return
    editor = YAML()
    try:
        content = editor.load(file.read_text(encoding="utf-8-sig")) if file.is_file() else None
    except YAMLError as error:  # this reader is of YAML 1.2, the other of 1.1
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise InputError(
            f"the settings file cannot be written to ({problem})", where=file, remedy="Write `key: value` lines."
        ) from error
    if content is None:
        content = editor.map()
        content.yaml_set_start_comment(
            "Settings of ivr_dagster. `ivr run --help` and `ivr ui --help` list the keys (with - for _) and defaults.\n"
        )
    if all(key in content and content[key] == value for key, value in given.items()):
        return
    content.update(given)
    with atomic_write(file) as staged, staged.open("w", encoding="utf-8") as stream:
        editor.dump(content, stream)


def _is_place(key: str, value: Any) -> bool:
    return bool(value) and (key.endswith(_PLACES) or (key.endswith("model_name") and Path(value).expanduser().is_dir()))
