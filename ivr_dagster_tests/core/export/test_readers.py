"""Exported files in the programs that read them: a real llama.cpp, and @huggingface/tokenizers in node.

`make node` installs both; without them these tests are skipped. SMOLLM2_DIR names a folder with SmolLM2-135M-Instruct
to export a pretrained Llama as well.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from ivr_dagster.core.export.gguf import read_gguf_source, write_gguf
from ivr_dagster.core.export.huggingface import write_huggingface
from ivr_dagster.core.export.tiktoken import write_tiktoken
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.sample import SAMPLE_MODEL
from ivr_dagster_tests.core.export.conftest import ExportedModel
from ivr_dagster_tests.exported_models import add_bpe_form, reassign_leaves
from ivr_dagster_tests.node_packages import in_node, needs_node_packages

PRETRAINED = {"sample": str(SAMPLE_MODEL), "smollm2": os.environ.get("SMOLLM2_DIR", "")}
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = (3, 250, 450, 700, 900), 12, 16
# llama.cpp computes products of float16 matrices in float16
LARGEST_GAP = 0.01

pytestmark = [pytest.mark.slow, needs_node_packages]


@pytest.fixture(scope="module", params=["sample", "smollm2", "llama", "qwen2", "qwen3"])
def model(
    request: pytest.FixtureRequest, random_model: ExportedModel, lines: list[str], tmp_path_factory: Any
) -> ModelFolder:
    """A model whose tokenizer had ids reassigned: pretrained ones, and random ones of other architectures."""
    if request.param not in PRETRAINED:
        return random_model(request.param)
    source = PRETRAINED[request.param]
    if not source:
        pytest.skip("SMOLLM2_DIR names no folder with SmolLM2")
    folder = Path(shutil.copytree(source, tmp_path_factory.mktemp(request.param) / "model"))
    base = Tokenizer.from_file(str(folder / "tokenizer.json"))
    add_bpe_form(folder, base, reassign_leaves(base, lines, 200))
    return ModelFolder(folder)


@pytest.fixture(scope="module")
def expected(model: ModelFolder, lines: list[str]) -> list[list[int]]:
    """The ids of all lines, with reassigned ids among them."""
    folder = TokenizerFolder(model.path)
    ids = [each.ids for each in folder.bpe_form().encode_batch_fast(lines, add_special_tokens=False)]
    assert ids != [each.ids for each in folder.base_backend().encode_batch_fast(lines, add_special_tokens=False)]
    return ids


def test_llama_cpp_has_the_same_ids_and_continuations(
    model: ModelFolder, expected: list[list[int]], lines: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(read_gguf_source(model), file, "f16", name="name", progress=lambda done, total: None)
    prompts = [expected[i][:PROMPT_TOKENS] for i in PROMPTS]

    found = in_node("llama.mjs", file, tmp_path, lines=lines, prompts=prompts, tokens=NEW_TOKENS)

    assert found["name"] == "name"
    assert [line for line, ids, wanted in zip(lines, found["ids"], expected, strict=True) if ids != wanted] == []
    loaded = model.load("float16").float()  # the weights in the file
    for prompt, continuation in zip(prompts, found["continuations"], strict=True):
        assert len(continuation) == NEW_TOKENS
        ids = list(prompt)
        for token in continuation:
            with torch.no_grad():
                logits = loaded(torch.tensor([ids])).logits[0, -1]
            gap = float(logits.max() - logits[token])
            assert gap <= LARGEST_GAP, f"{token} after {len(ids) - len(prompt)} tokens is {gap} below the maximum"
            ids.append(token)


def test_javascript_tokenizer_has_the_same_ids(
    model: ModelFolder, expected: list[list[int]], lines: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "huggingface"
    folder.mkdir()
    write_huggingface(model, "", folder)
    found = in_node("tokenizers.mjs", folder, tmp_path, lines=lines)["ids"]
    assert [line for line, ids, wanted in zip(lines, found, expected, strict=True) if ids != wanted] == []


def test_tiktoken_has_the_same_ids(model: ModelFolder, lines: list[str], tmp_path: Path) -> None:
    tokenizer = TokenizerFolder(model.path).bpe_form()
    assert write_tiktoken(tokenizer, tmp_path, lines, name="name").differing == 0
