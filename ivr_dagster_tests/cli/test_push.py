"""`ivr push`, without a hub."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from ivr_dagster.cli.app import cli
from ivr_dagster.cli.rendering import _key_figures
from ivr_dagster.core.tokenizer.folder import BASE_TOKENIZER, BPE_TOKENIZER
from ivr_dagster_tests.cli.conftest import Ivr


@pytest.mark.slow
def test_push_lists_what_it_would_upload_after_the_export(folder: Path, ivr: Ivr) -> None:
    missing = ivr("push", "me/model", "--dry-run")
    assert missing.returncode == 2
    assert "huggingface was to be uploaded, but was not exported yet" in missing.stderr
    assert "ivr export --formats huggingface" in missing.stderr

    model = folder / "training/sft_checkpoint/final_model"
    if not (model / BPE_TOKENIZER).is_file():
        shutil.copyfile(model / BASE_TOKENIZER, model / BPE_TOKENIZER)
    built = ivr("--json", "export", "--formats", "huggingface,tiktoken")
    assert built.returncode == 0, built.stderr
    assert list(json.loads(built.stdout)["assets"]) == ["exported_model", "exported_tiktoken"]

    listed = ivr("--json", "push", "me/model", "--formats", "huggingface,tiktoken", "--dry-run")
    assert listed.returncode == 0, listed.stderr
    found = json.loads(listed.stdout)
    sizes = {each["name"]: each["bytes"] for each in found["files"]}
    assert sizes["model.safetensors"] == (folder / "export/huggingface/model.safetensors").stat().st_size
    assert "tiktoken/ranks.tiktoken" in sizes and ".ivr.json" not in sizes
    assert found["bytes"] == sum(sizes.values()) and found["dry_run"] and found["commit"] == ""

    without_token = ivr("push", "me/model", HF_TOKEN="")
    assert without_token.returncode == 2
    assert "HF_TOKEN is not set" in without_token.stderr


def test_push_refuses_unknown_formats(tmp_path: Path) -> None:
    arguments = ["--artifacts-dir", str(tmp_path), "push", "me/model", "--formats", "onnx", "--dry-run"]
    error = CliRunner().invoke(cli, arguments).exception
    assert "'onnx', expected one or more of huggingface, gguf, tiktoken" in str(error)


def test_figures_that_are_names_are_shown() -> None:
    assert _key_figures("exported_gguf", {"files": 2, "pre_tokenizer": "gpt-2"}) == "files 2, pre tokenizer gpt-2"
