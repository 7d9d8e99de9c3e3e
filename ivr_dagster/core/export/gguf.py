"""Writing a model as GGUF, the format of llama.cpp, ollama and LM Studio, and reading it back.

Matrices become float16, or 8-bit blocks (q8_0) if their rows are multiples of 32; vectors and GPT-2's position
embeddings stay float32, as in llama.cpp's converter.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ivr_dagster.core.export.architectures import Architecture, read_architecture
from ivr_dagster.core.export.llama_cpp import (
    LlamaCppTokenizer,
    check_merge_scope,
    describe_tokenizer,
    pre_tokenizer_name,
)
from ivr_dagster.core.model.files import weight_files
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.errors import InputError

if TYPE_CHECKING:
    import gguf

Progress = Callable[[float, float], None]

# `llama_ftype` in llama.h
_FILE_TYPES = {"f16": 1, "q8_0": 7}
_Q8_BLOCK = 32
_FLOAT32_NAMES = ("position_embd.weight",)
_ROPE_FACTORS = "rope_freqs.weight"
# Rounding to 127 steps loses half a step; the scale itself is rounded to float16.
_Q8_ERROR = (0.5 + 127 * 2**-11) / 127


class ExportError(Exception):
    """A file was written, but its reader does not return what was written."""


@dataclass(frozen=True)
class GGUFSource:
    """A model to write as GGUF.

    Attributes:
        model: the model's folder.
        architecture: its architecture.
        tokenizer: its tokenizer.
        names: GGUF name of each tensor of the checkpoint.
        shapes: shape of each tensor of the file by its GGUF name, slowest dimension first.
    """

    model: ModelFolder
    architecture: Architecture
    tokenizer: LlamaCppTokenizer
    names: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]

    def metadata(self, name: str, kind: str) -> dict[str, Any]:
        """All keys and values of a file of type `kind`."""
        return {
            "general.type": "model",
            "general.name": name,
            "general.file_type": _FILE_TYPES[kind],
            "general.quantization_version": 2,
            **self.architecture.metadata,
            **self.tokenizer.metadata(),
        }

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the name and values of each tensor in float32, one at a time, always in the same order."""
        from safetensors import safe_open

        for file in weight_files(self.model.path):
            with safe_open(file, framework="pt") as weights:
                for key in weights.keys():  # noqa: SIM118 (not a dict)
                    if key in self.names:
                        yield self.names[key], self.architecture.convert(key, weights.get_tensor(key))
        if self.architecture.rope_factors is not None:
            yield _ROPE_FACTORS, self.architecture.rope_factors


def read_gguf_source(model: ModelFolder) -> GGUFSource:
    """Check that a model can be written as GGUF, without reading a tensor.

    Raises:
        InputError: llama.cpp has no such architecture, setting, tensor or pre-tokenizer.
    """
    from safetensors import safe_open

    architecture = read_architecture(model)
    folder = TokenizerFolder(model.path)
    check_merge_scope(folder)
    tokenizer = describe_tokenizer(folder, architecture.rows, pre_tokenizer_name(folder))
    found: dict[str, tuple[int, ...]] = {}
    for file in weight_files(model.path):
        with safe_open(file, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118 (not a dict)
                found[key] = architecture.shape(key, weights.get_slice(key).get_shape())
    names = architecture.names(list(found))
    shapes = {name: found[key] for key, name in names.items()}
    if architecture.rope_factors is not None:
        shapes[_ROPE_FACTORS] = architecture.rope_factors.shape
    return GGUFSource(model, architecture, tokenizer, names, shapes)


def write_gguf(source: GGUFSource, file: Path, kind: str, *, name: str, progress: Progress) -> None:
    """Write a GGUF file and read it back.

    Args:
        source: what to write.
        file: the new file.
        kind: `f16` or `q8_0`.
        name: the model's name, for display.
        progress: receives tensors written and read, and their total.

    Raises:
        InputError: a weight is beyond the range of float16.
        ExportError: the reader does not return what was written.
    """
    import gguf

    types = {key: tensor_type(key, shape, kind) for key, shape in source.shapes.items()}
    total = 2 * len(types)
    writer = gguf.GGUFWriter(file, source.architecture.name)
    try:
        for key, value in source.metadata(name, kind).items():
            add_value(writer, key, value)
        for key, shape in source.shapes.items():
            _add_tensor_info(writer, key, shape, types[key])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, (key, values) in enumerate(source.tensors(), start=1):
            writer.write_tensor_data(_quantize(key, values, types[key], source.model.path))
            progress(done, total)
    finally:
        writer.close()
    check_gguf(source, file, kind, name=name, progress=lambda done: progress(len(types) + done, total))


def tensor_type(name: str, shape: tuple[int, ...], kind: str) -> str:
    """The type of a tensor in a file of type `kind`: `F32`, `F16` or `Q8_0`."""
    if len(shape) == 1 or name in _FLOAT32_NAMES:
        return "F32"
    return "Q8_0" if kind == "q8_0" and shape[-1] % _Q8_BLOCK == 0 else "F16"


def add_value(writer: "gguf.GGUFWriter", key: str, value: Any) -> None:
    """Add a value with the type that llama.cpp expects of it."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _add_tensor_info(writer: "gguf.GGUFWriter", name: str, shape: tuple[int, ...], kind: str) -> None:
    import gguf

    found = gguf.GGMLQuantizationType[kind]
    dtype = np.dtype({"F32": np.float32, "F16": np.float16, "Q8_0": np.uint8}[kind])
    if kind == "Q8_0":
        shape = gguf.quant_shape_to_byte_shape(shape, found)
    writer.add_tensor_info(name, shape, dtype, math.prod(shape) * dtype.itemsize, raw_dtype=found)


def _quantize(name: str, values: np.ndarray, kind: str, where: Path) -> np.ndarray:
    import gguf

    limit = float(np.finfo(np.float16).max) * (127 if kind == "Q8_0" else 1)
    if kind != "F32" and not np.abs(values).max(initial=0.0) <= limit:  # also true of NaN
        raise InputError(
            f"GGUF was requested, but {name} has a weight of {np.abs(values).max()}, beyond the range of float16",
            where=where,
            remedy="Train again with a lower learning_rate: such a model has diverged.",
        )
    quantized: np.ndarray = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    return quantized


def check_gguf(
    source: GGUFSource, file: Path, kind: str, *, name: str, progress: Callable[[float], None] = lambda done: None
) -> None:
    """Compare a GGUF file, as the `gguf` library reads it, with the model and its tokenizer.

    Raises:
        ExportError: it differs in a key or a tensor.
    """
    import gguf

    reader = gguf.GGUFReader(file)
    check_metadata(reader, source.metadata(name, kind), file)
    found = {tensor.name: tensor for tensor in reader.tensors}
    for done, (key, values) in enumerate(source.tensors(), start=1):
        tensor = found.pop(key, None)
        if tensor is None:
            raise ExportError(f"{file}: the tensor {key} is missing")
        stored = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(values.shape)
        error = np.abs(stored - values)
        if not np.all(error <= _largest_error(values, tensor.tensor_type.name)):
            raise ExportError(f"{file}: the tensor {key} differs from the model's by {error.max()}")
        progress(done)
    if found:
        raise ExportError(f"{file}: the tensor {min(found)} is not the model's")


def check_metadata(reader: "gguf.GGUFReader", expected: Mapping[str, Any], file: Path) -> None:
    """Compare the keys that a GGUF file contains with the expected ones.

    Raises:
        ExportError: a value differs.
    """
    for key, value in expected.items():
        field = reader.get_field(key)
        stored = None if field is None else field.contents()
        if isinstance(value, float):
            value, stored = np.float32(value), None if stored is None else np.float32(stored)
        if stored != value:
            raise ExportError(f"{file}: {key} reads differently from what was written")


def _largest_error(values: np.ndarray, kind: str) -> Any:
    """The largest possible difference between stored and original values, broadcast to their shape."""
    if kind == "F32":
        return 0.0
    if kind == "F16":
        # half a unit in the last of 11 binary digits; below the smallest normal number the unit is constant
        return np.maximum(np.abs(values) * 2.0**-11, 2.0**-25)
    blocks = np.abs(values).reshape(-1, _Q8_BLOCK).max(axis=1, keepdims=True)
    bound = np.repeat(blocks * _Q8_ERROR * (1 + 1e-3) + 127 * 2.0**-25, _Q8_BLOCK, axis=1)
    return bound.reshape(values.shape)
