"""The base model: a local folder or a snapshot from the Hugging Face hub, downloaded on first use."""

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
# without *.bin, *.pt, *.py: pickled weights and code are never downloaded
MODEL_FILES = ["config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", *TOKENIZER_FILES]


@dataclass(frozen=True)
class BaseModel:
    """The pretrained model and its tokenizer.

    Attributes:
        model_name: hub id, folder, or `sample` for the packaged model.
        revision: commit, tag or branch on the hub; empty for the main branch.
    """

    model_name: str
    revision: str = ""

    def tokenizer(self) -> TokenizerFolder:
        """The tokenizer's folder, without downloading weights."""
        return TokenizerFolder(self._folder([*TOKENIZER_FILES, CONFIG]))

    def model(self) -> ModelFolder:
        """The model's folder, with weights and tokenizer."""
        return ModelFolder(self._folder(MODEL_FILES))

    def version(self) -> str:
        """The content hash of a local folder, or the hub commit as far as the local cache knows it.

        Raises:
            InputError: no such model, or one that cannot be adapted.
        """
        folder = self._folder([*TOKENIZER_FILES, CONFIG])
        if self.local_folder() is not None:
            check_folder(folder)
            files = {file for pattern in MODEL_FILES for file in folder.glob(pattern) if file.is_file()}
            return hash_files(folder, files)
        if (folder / CONFIG).is_file():
            read_config(folder)
        return folder.name  # the cache names snapshot folders by commit

    def local_folder(self) -> Path | None:
        """The local folder, None for a model on the hub."""
        folder = SAMPLE_MODEL if self.model_name == "sample" else Path(self.model_name).expanduser()
        return folder if folder.is_dir() else None

    def _folder(self, files: list[str]) -> Path:
        if (local := self.local_folder()) is not None:
            return local.resolve()
        path = Path(self.model_name).expanduser()
        if path.is_file():
            raise _error(
                f"expected a model folder, {self.model_name!r} is a file",
                "Pass the folder with config.json, the safetensors files and the tokenizer.",
            )
        if path.is_absolute() or self.model_name.startswith((".", "~")) or self.model_name.count("/") > 1:
            raise _error(f"no such folder {self.model_name!r}", "Pass an existing folder or a hub id.")
        return self._snapshot(files)

    def _snapshot(self, files: list[str]) -> Path:
        # standard output and error are ours: no progress bars of the hub
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        try:
            return Path(snapshot_download(self.model_name, revision=self.revision or None, allow_patterns=files))
        except (HFValidationError, RepositoryNotFoundError) as error:
            raise _error(
                f"{self.model_name!r} is neither a folder nor a model on the hub",
                "Check --model-name; private models need a token in HF_TOKEN.",
            ) from error
        except RevisionNotFoundError as error:
            raise _error(
                f"{self.model_name} has no revision {self.revision!r}",
                "Use a commit, tag or branch that exists on the hub, or leave it empty.",
                where="revision",
            ) from error
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
            raise _error(
                f"no folder {self.model_name!r}, and the hub is unreachable and the model not in the local cache",
                "Go online once, pass a local model with `--model-name FOLDER`, copy a cache here and set HF_HOME, or"
                " run `ivr run --sample`, which needs no download.",
            ) from error


def _error(message: str, remedy: str, where: str = "model_name") -> InputError:
    return InputError(message, where=where, remedy=remedy)


BaseModelResource = dg.ResourceParam[BaseModel]


@dg.resource(required_resource_keys={"settings"}, description="The base model from the settings.")
def base_model_resource(context: dg.InitResourceContext) -> BaseModel:
    """The base model of this run's settings."""
    tokenizer = context.resources.settings.tokenizer
    return BaseModel(tokenizer.model_name, tokenizer.revision)
