"""The exported formats as assets, on the tiny pipeline."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from ivr_dagster.cli.project import Project
from ivr_dagster.core.tokenizer.folder import BASE_TOKENIZER, BPE_TOKENIZER
from ivr_dagster.errors import InputError
from ivr_dagster.pipeline import STAGES, requested_stages
from ivr_dagster.settings import Settings
from ivr_dagster.storage.content_hash import content_hash
from ivr_dagster.storage.manifest import MANIFEST
from ivr_dagster_tests.exported_models import reassign_leaves
from ivr_dagster_tests.small_pipeline import TINY, documents, open_project, stale

EXPORTED = ["exported_model", "exported_gguf", "exported_tiktoken"]


@pytest.fixture(scope="module")
def root(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny pipeline whose final model contains a BPE form of its tokenizer."""
    copy = Path(shutil.copytree(tiny, tmp_path_factory.mktemp("export") / "copy"))
    model = copy / "artifacts" / "training/sft_checkpoint/final_model"
    if not (model / BPE_TOKENIZER).is_file():
        base = Tokenizer.from_file(str(model / BASE_TOKENIZER))
        reassign_leaves(base, documents()[:20], 20).save(str(model / BPE_TOKENIZER))
        note_evaluated(copy, content_hash(model))
    return copy


def note_evaluated(root: Path, version: str) -> None:
    """Record which version of the fine-tuned model was evaluated."""
    manifest = root / "artifacts/evaluation" / MANIFEST
    content = json.loads(manifest.read_text())
    content["made_of"]["upstream"]["sft_checkpoint"] = version
    manifest.write_text(json.dumps(content))


def open_copy(root: Path, tiny: Path, **changed: object) -> Project:
    return open_project(root, observe=False, model_name=str(tiny.parent / "model"), **TINY | changed)


def test_run_builds_up_to_the_evaluation_unless_asked() -> None:
    assert requested_stages()[-1] == "evaluate"
    assert requested_stages("export") == list(STAGES)


def test_formats_select_the_assets_and_their_order_does_not_matter(root: Path, tiny: Path) -> None:
    assert Settings.of(formats=" tiktoken, huggingface ").export.formats == "huggingface,tiktoken"
    assert open_copy(root, tiny).stage_assets("export") == EXPORTED
    project = open_copy(root, tiny, formats="gguf")
    assert project.stage_assets("export") == ["exported_gguf"]
    assert not project.builds("exported_model")


@pytest.mark.parametrize(("name", "value"), [("formats", "onnx"), ("formats", ""), ("gguf_types", "q4_k")])
def test_unknown_format_is_refused_with_the_known_ones(name: str, value: str) -> None:
    with pytest.raises(InputError, match=rf"{name} is '{value}': expected one or more of (huggingface|f16), "):
        Settings.of(**{name: value})


@pytest.mark.slow
def test_export_is_shown_once_built_and_contains_every_format(root: Path, tiny: Path) -> None:
    project = open_copy(root, tiny)
    assert not stale(project).keys() & set(EXPORTED)
    assert set(EXPORTED) <= {state.name for state in project.states(["export"]) if state.stale}
    project.check_export()

    result = project.run(EXPORTED)

    figures = result.figures
    assert figures["exported_model"]["evaluated"]
    assert figures["exported_gguf"]["files"] == 2
    assert figures["exported_gguf"]["pre_tokenizer"] == "gpt-2"
    assert figures["exported_tiktoken"]["agreement"] > 0.9
    exported = project.paths.root / "export"
    written = {file.relative_to(exported).as_posix() for file in exported.rglob("[!.]*") if file.is_file()}
    assert written == {
        *("gguf/model-f16.gguf", "gguf/model-q8_0.gguf"),
        *("tiktoken/README.md", "tiktoken/encoding.json", "tiktoken/ranks.tiktoken"),
        *(f"huggingface/{name}" for name in ("README.md", "config.json", "generation_config.json")),
        *(f"huggingface/{name}" for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json")),
    }
    card = (exported / "huggingface/README.md").read_text()
    assert card == (project.paths["evaluation_report"] / "model_card.md").read_text()
    assert not stale(project).keys() & set(EXPORTED)
    assert set(EXPORTED) <= {state.name for state in project.states()}
    project.instance.dispose()

    again = open_copy(root, tiny, gguf_types="f16")
    assert stale(again).keys() & set(EXPORTED) == {"exported_gguf"}
    again.instance.dispose()


@pytest.mark.slow
def test_card_of_another_model_is_not_exported(root: Path, tiny: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    note_evaluated(copy, "another")
    project = open_copy(copy, tiny)
    assert not project.run(["exported_model"]).figures["exported_model"]["evaluated"]
    assert "not evaluated" in (project.paths["exported_model"] / "README.md").read_text()
    project.instance.dispose()


def test_unsupported_model_is_refused_before_anything_is_written(root: Path, tiny: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    config = copy / "artifacts/training/sft_checkpoint/final_model/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "gpt_neox"}))
    with pytest.raises(InputError, match="gpt_neox; supported are gpt2, llama, qwen2, qwen3"):
        open_copy(copy, tiny).check_export()
    open_copy(copy, tiny, formats="huggingface,tiktoken").check_export()
