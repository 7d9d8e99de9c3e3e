"""Uploading exported files to a model repository on the Hugging Face Hub."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ivr_dagster.core.export.folder import ExportFolder
from ivr_dagster.errors import InputError, short_message

TOKEN = "HF_TOKEN"  # noqa: S105 (a variable's name)


class UploadError(Exception):
    """The hub refused an upload or cannot be reached."""


@dataclass(frozen=True)
class HubFile:
    """A file to upload.

    Attributes:
        name: its path in the repository.
        file: the local file.
        bytes: its size.
    """

    name: str
    file: Path
    bytes: int


def hub_files(folders: Mapping[str, ExportFolder]) -> list[HubFile]:
    """The files of exported formats with their places in the repository.

    The model and GGUF files are at the top, where the hub and its clients look for them; tiktoken's have a folder.

    Args:
        folders: the exported folders by format.
    """
    found = []
    for kind, folder in folders.items():
        prefix = "tiktoken/" if kind == "tiktoken" else ""
        for file in folder.files():
            name = prefix + file.relative_to(folder.path).as_posix()
            found.append(HubFile(name, file, file.stat().st_size))
    return found


def upload(repository: str, files: Iterable[HubFile], *, private: bool) -> str:
    """Create the repository if it does not exist, and upload all files in one commit; returns the commit's address.

    Args:
        repository: `owner/name`.
        files: what to upload.
        private: whether a new repository is private.

    Raises:
        InputError: the environment has no token, or the repository's name is invalid.
        UploadError: the hub refuses the upload or cannot be reached.
    """
    token = os.environ.get(TOKEN)
    if not token:
        raise InputError(
            f"{repository} was to be uploaded, but the environment variable {TOKEN} is not set",
            remedy="Create a token with write access at https://huggingface.co/settings/tokens and set it. "
            "`--dry-run` needs none.",
        )
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HFValidationError

    operations = [CommitOperationAdd(path_in_repo=each.name, path_or_fileobj=each.file) for each in files]
    api = HfApi(token=token)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.create_commit(repository, operations, commit_message="Upload with ivr push")
    except HFValidationError as error:
        raise InputError(f"invalid repository name ({short_message(error)})", where=repository) from error
    except Exception as error:  # the hub's client raises errors of several libraries
        raise UploadError(f"{repository} was not uploaded: {short_message(error)}") from error
    return str(commit.commit_url)
