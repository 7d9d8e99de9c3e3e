"""What is uploaded to the Hugging Face Hub, without a hub."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from ivr_dagster.core.export.folder import ExportFolder
from ivr_dagster.core.export.hub import HubFile, UploadError, hub_files, upload
from ivr_dagster.errors import InputError


@pytest.fixture
def files(tmp_path: Path) -> list[HubFile]:
    """A model folder and files for tiktoken."""
    for name in ("huggingface/README.md", "huggingface/.ivr.json", "tiktoken/README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return hub_files({name: ExportFolder(tmp_path / name) for name in ("huggingface", "tiktoken")})


def test_model_is_at_the_top_and_tiktoken_in_a_folder(files: list[HubFile]) -> None:
    assert [(each.name, each.bytes) for each in files] == [
        ("README.md", len("huggingface/README.md")),
        ("tiktoken/README.md", len("tiktoken/README.md")),
    ]


def test_missing_token_is_reported(files: list[HubFile], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(InputError, match="me/model was to be uploaded, but the environment variable HF_TOKEN"):
        upload("me/model", files, private=True)


def test_all_files_are_uploaded_in_one_commit(files: list[HubFile], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Hub:
        def __init__(self, token: str) -> None:
            calls.append(token)

        def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
            calls.append((repository, private, exist_ok))

        def create_commit(self, repository: str, operations: list[Any], commit_message: str) -> Any:
            calls.append([each.path_in_repo for each in operations])
            return SimpleNamespace(commit_url="https://hub/commit")

    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert upload("me/model", files, private=True) == "https://hub/commit"
    assert calls == ["secret", ("me/model", True, True), ["README.md", "tiktoken/README.md"]]


def test_refusal_of_the_hub_is_one_line(files: list[HubFile], monkeypatch: pytest.MonkeyPatch) -> None:
    class Hub:
        def __init__(self, token: str) -> None: ...

        def create_repo(self, repository: str, **options: Any) -> None:
            raise OSError("403 Forbidden:\nno write access")

    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    with pytest.raises(UploadError, match="me/model was not uploaded: 403 Forbidden: no write access"):
        upload("me/model", files, private=True)
