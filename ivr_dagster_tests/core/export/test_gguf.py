"""GGUF files, compared with the models by the `gguf` library and independent formulas."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from ivr_dagster.core.export.architectures import read_architecture
from ivr_dagster.core.export.gguf import ExportError, check_gguf, read_gguf_source, tensor_type, write_gguf
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.tokenizer.folder import BPE_TOKENIZER
from ivr_dagster.errors import InputError
from ivr_dagster_tests.core.export.conftest import ExportedModel

KINDS = ("gpt2", "llama", "qwen2", "qwen3")


def write(model: ModelFolder, file: Path, kind: str = "f16") -> dict[str, np.ndarray]:
    """Write a file and read its tensors as float32."""
    seen: list[tuple[float, float]] = []
    write_gguf(
        read_gguf_source(model), file, kind, name="name", progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1][0] == seen[-1][1] == len(seen)
    tensors = gguf.GGUFReader(file).tensors
    return {each.name: gguf.quants.dequantize(each.data, each.tensor_type) for each in tensors}


@pytest.mark.parametrize("kind", KINDS)
def test_f16_file_contains_the_tokenizer_and_the_weights(
    kind: str, random_model: ExportedModel, tmp_path: Path
) -> None:
    model = random_model(kind)
    tensors = write(model, tmp_path / "model.gguf")

    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tokenizer = json.loads((model.path / BPE_TOKENIZER).read_text())
    assert fields["general.architecture"] == kind
    assert fields["general.file_type"] == 1
    assert fields["tokenizer.ggml.model"] == "gpt2"
    vocabulary = tokenizer["model"]["vocab"]
    stored = {token: i for i, token in enumerate(fields["tokenizer.ggml.tokens"]) if token in vocabulary}
    assert stored == vocabulary
    assert fields["tokenizer.ggml.merges"] == [" ".join(pair) for pair in tokenizer["model"]["merges"]]
    weights = load_file(model.path / "model.safetensors")
    embeddings = next(rows for name, rows in weights.items() if name.endswith(("wte.weight", "embed_tokens.weight")))
    assert np.array_equal(tensors["token_embd.weight"], embeddings.half().float().numpy())
    names = {each.name: each.tensor_type.name for each in reader.tensors}
    assert names["output_norm.weight"] == "F32"
    assert names["blk.1.ffn_down.weight"] == "F16"


def test_llama_attention_rows_are_in_the_order_of_llama_cpp(random_model: ExportedModel, tmp_path: Path) -> None:
    model = random_model("llama")
    tensors = write(model, tmp_path / "model.gguf")
    weights = load_file(model.path / "model.safetensors")
    for theirs, ours, heads in (("attn_q", "q_proj", 4), ("attn_k", "k_proj", 2)):
        rows = weights[f"model.layers.0.self_attn.{ours}.weight"].half().float().numpy()
        size = len(rows) // heads
        for head in range(heads):
            for pair in range(size // 2):
                for half in range(2):  # transformers rotates rows i and i + size/2, llama.cpp rows 2i and 2i + 1
                    expected = rows[head * size + half * size // 2 + pair]
                    assert np.array_equal(tensors[f"blk.0.{theirs}.weight"][head * size + 2 * pair + half], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_q8_0_file_is_within_half_a_step_of_the_weights(kind: str, random_model: ExportedModel, tmp_path: Path) -> None:
    model = random_model(kind)
    exact, coarse = write(model, tmp_path / "f16.gguf"), write(model, tmp_path / "q8.gguf", "q8_0")
    sizes = [(tmp_path / name).stat().st_size for name in ("f16.gguf", "q8.gguf")]
    assert sizes[1] < sizes[0]
    types = {each.name: each.tensor_type.name for each in gguf.GGUFReader(tmp_path / "q8.gguf").tensors}
    assert types["token_embd.weight"] == "Q8_0"
    for name, values in exact.items():
        if types[name] != "Q8_0":
            continue
        steps = np.abs(values).reshape(-1, 32).max(axis=1) / 127
        errors = np.abs(values - coarse[name]).reshape(-1, 32).max(axis=1)
        assert np.all(errors <= 0.6 * steps + 1e-4)
        assert errors.max() > 0


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("output_norm.weight", (64,), "F32"),
        ("position_embd.weight", (128, 64), "F32"),
        ("token_embd.weight", (50, 64), "Q8_0"),
        ("token_embd.weight", (50, 80), "F16"),  # rows are no multiple of a block
    ],
)
def test_tensor_types_of_a_q8_0_file(name: str, shape: tuple[int, ...], expected: str) -> None:
    assert tensor_type(name, shape, "q8_0") == expected


def test_untied_output_matrix_is_written(random_model: ExportedModel, tmp_path: Path) -> None:
    model = random_model("llama", tie_word_embeddings=False)
    output = load_file(model.path / "model.safetensors")["lm_head.weight"]
    assert np.array_equal(write(model, tmp_path / "model.gguf")["output.weight"], output.half().float().numpy())


def test_llama3_rope_has_factors_between_one_and_the_scaling_factor(random_model: ExportedModel) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    factors = read_architecture(random_model("llama", rope_parameters=rope)).rope_factors
    assert factors is not None
    assert factors[0] == pytest.approx(1) and factors[-1] == pytest.approx(8)
    assert np.all(np.diff(factors) >= -1e-6)


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("gpt2", {"activation_function": "relu"}, "activation_function is 'relu'"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window is True"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
    ],
)
def test_settings_that_llama_cpp_fixes_are_refused(
    kind: str, config: dict[str, Any], message: str, random_model: ExportedModel
) -> None:
    with pytest.raises(InputError, match=message):
        read_gguf_source(random_model(kind, **config))


def test_other_architectures_are_refused_naming_the_supported_ones(random_model: ExportedModel, tmp_path: Path) -> None:
    config = json.loads((random_model("gpt2").path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "gpt_neox"}))
    with pytest.raises(InputError, match="gpt_neox; supported are gpt2, llama, qwen2, qwen3"):
        read_gguf_source(ModelFolder(tmp_path))


def test_tensor_without_a_name_is_refused(random_model: ExportedModel) -> None:
    model = random_model("llama")
    file = model.path / "model.safetensors"
    weights = load_file(file)
    save_file(weights | {"model.extra.weight": weights["model.norm.weight"].clone()}, file)
    with pytest.raises(InputError, match=r"no tensor for model\.extra\.weight"):
        read_gguf_source(model)


def test_weight_beyond_float16_is_refused(random_model: ExportedModel, tmp_path: Path) -> None:
    model = random_model("llama")
    file = model.path / "model.safetensors"
    weights = load_file(file)
    weights["model.embed_tokens.weight"][0, 0] = 1e6
    save_file(weights, file)
    with pytest.raises(InputError, match=r"token_embd\.weight has a weight of 1000000"):
        write(model, tmp_path / "model.gguf")


def test_changed_byte_of_a_tensor_is_found(random_model: ExportedModel, tmp_path: Path) -> None:
    model, file = random_model("gpt2"), tmp_path / "model.gguf"
    write(model, file)
    tensor = next(each for each in gguf.GGUFReader(file).tensors if each.name == "token_embd.weight")
    content = bytearray(file.read_bytes())
    content[int(tensor.data_offset) + 1] ^= 0x40
    file.write_bytes(content)
    with pytest.raises(ExportError, match=r"token_embd\.weight differs"):
        check_gguf(read_gguf_source(model), file, "f16", name="name")


def test_changed_name_is_found(random_model: ExportedModel, tmp_path: Path) -> None:
    model, file = random_model("gpt2"), tmp_path / "model.gguf"
    write(model, file)
    with pytest.raises(ExportError, match=r"general\.name"):
        check_gguf(read_gguf_source(model), file, "f16", name="another")
