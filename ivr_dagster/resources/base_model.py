"""The base model: where its files are, found or fetched when first asked for."""

import os
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from ivr_dagster.core.model.files import CONFIG, check_folder, read_config
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.errors import InputError
from ivr_dagster.sample import SAMPLE_MODEL
from ivr_dagster.storage.content_hash import hash_files

TOKENIZER_FILES = [
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "chat_template.jinja",
]
# no *.bin, *.pt, *.py: weights in pickles and code are never fetched
MODEL_FILES = ["config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", *TOKENIZER_FILES]


@dataclass(frozen=True)
class BaseModel:
    """The pretrained model and tokenizer that everything starts from: a folder, or an id on the hub.

    Attributes:
        model_name: an id on the hub, a folder, or `sample` for the packaged model.
        revision: commit, tag or branch on the hub. Empty: the main branch.
    """

    model_name: str
    revision: str = ""

    def tokenizer(self) -> TokenizerFolder:
        """The tokenizer's folder; weights are neither needed nor fetched."""
        return TokenizerFolder(self._folder([*TOKENIZER_FILES, CONFIG]))

    def model(self) -> ModelFolder:
        """The model's folder with weights and tokenizer."""
        return ModelFolder(self._folder(MODEL_FILES))

    def version(self) -> str:
        """A local folder's content hash, or the commit on the hub (as far as the local cache knows it).

        Raises:
            InputError: there is no such model, or it can be told from its files' beginnings that it is of no use.
        """
        folder = self._folder([*TOKENIZER_FILES, CONFIG])
        if self.local_folder() is not None:
            check_folder(folder)
            files = {file for pattern in MODEL_FILES for file in folder.glob(pattern) if file.is_file()}
            return hash_files(folder, files)
        if (folder / CONFIG).is_file():
            read_config(folder)
        return folder.name  # the cache names a snapshot's folder after its commit

    def local_folder(self) -> Path | None:
        """The folder on this machine, None for what is on the hub."""
        folder = SAMPLE_MODEL if self.model_name == "sample" else Path(self.model_name).expanduser()
        return folder if folder.is_dir() else None

    def _folder(self, files: list[str]) -> Path:
        if self.model_name == "sample":
            return SAMPLE_MODEL
        folder = Path(self.model_name).expanduser()
        if folder.is_dir():
            return folder.resolve()
        if folder.is_file():
            raise InputError(
                f"a model's folder was asked for, {self.model_name!r} is a file",
                where="model_name",
                remedy="Give the folder that holds config.json, the safetensors files and the tokenizer.",
            )
        if folder.is_absolute() or self.model_name.startswith((".", "~")) or self.model_name.count("/") > 1:
            raise InputError(
                f"no such folder {self.model_name!r}",
                where="model_name",
                remedy="Give a folder that exists, or an id on the hub.",
            )
        return self._snapshot(files)

    def _snapshot(self, files: list[str]) -> Path:
        # the hub's progress bars belong to nobody here: standard output is for figures, the log is Dagster's
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        revision = self.revision or None
        try:
            return Path(snapshot_download(self.model_name, revision=revision, allow_patterns=files))
        except (HFValidationError, RepositoryNotFoundError) as error:
            raise InputError(
                f"{self.model_name!r} is neither a folder nor a model on the hub",
                where="model_name",
                remedy="Check --model-name; private models need a token in HF_TOKEN.",
            ) from error
        except RevisionNotFoundError as error:
            raise InputError(
                f"{self.model_name} has no revision {self.revision!r}",
                where="revision",
                remedy="Give a commit, tag or branch that the hub shows, or leave it empty.",
            ) from error
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
            raise InputError(
                f"no folder {self.model_name!r}, the hub is out of reach, and the model is not in the local cache",
                where="model_name",
                remedy=(
                    "Ways out: go online once; `--model-name FOLDER` with a model you have; copy a cache here and set "
                    "HF_HOME; or `ivr run --sample`, which needs nothing."
                ),
            ) from error


BaseModelResource = dg.ResourceParam[BaseModel]


@dg.resource(required_resource_keys={"settings"}, description="The base model that the settings name.")
def base_model_resource(context: dg.InitResourceContext) -> BaseModel:
    """The base model of the settings."""
    settings = context.resources.settings
    return BaseModel(settings.tokenizer.model_name, settings.tokenizer.revision)
