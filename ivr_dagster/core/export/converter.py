"""GGUF files from llama.cpp's own converter, for architectures that we do not write.

The converter recognizes a pre-tokenizer by the ids of a test string. After vocabulary surgery it would recognize none,
so it receives the model with its *base* tokenizer, and the tokens and merges in its file are then replaced.
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from ivr_dagster.core.export.gguf import add_value, check_metadata
from ivr_dagster.core.export.huggingface import copy_model
from ivr_dagster.core.export.llama_cpp import OTHER_FORMATS, LlamaCppTokenizer, check_merge_scope, describe_tokenizer
from ivr_dagster.core.model.files import embedding_rows, read_config
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokenizer.write import write_tokenizer
from ivr_dagster.errors import InputError

_REPLACED = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges")
_LOG_CHARACTERS = 300


def check_converter(converter: Path, model: ModelFolder) -> None:
    """Check what :func:`convert_with` needs, before any work.

    Raises:
        InputError: the converter does not exist, or new tokens join whole pre-tokens.
    """
    if not converter.is_file():
        raise InputError(
            "the converter does not exist",
            where=f"--gguf-converter {converter}",
            remedy="Name the file convert_hf_to_gguf.py in a checkout of llama.cpp.",
        )
    check_merge_scope(TokenizerFolder(model.path))


def convert_with(converter: Path, model: ModelFolder, file: Path, kind: str, *, name: str) -> LlamaCppTokenizer:
    """Convert a model with llama.cpp's converter; returns the tokenizer in the file.

    Args:
        converter: `convert_hf_to_gguf.py`.
        model: the fine-tuned model with its tokenizer.
        file: the new file.
        kind: `f16` or `q8_0`.
        name: the model's name.

    Raises:
        InputError: the converter fails, or its file has another kind of tokenizer.
        ExportError: the reader does not return what was written.
    """
    check_converter(converter, model)
    tokenizer = TokenizerFolder(model.path)
    with TemporaryDirectory(dir=file.parent, prefix=".converter-") as place:
        folder, converted = Path(place) / name, Path(place) / "converted.gguf"
        folder.mkdir()
        copy_model(model, folder)
        base = tokenizer.base_backend() if tokenizer.base_file.is_file() else tokenizer.bpe_form()
        write_tokenizer(base, model.path, folder)
        command = [sys.executable, str(converter), str(folder), "--outfile", str(converted), "--outtype", kind]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode or not converted.is_file():
            log = " ".join((result.stderr or result.stdout).split())[-_LOG_CHARACTERS:]
            raise InputError(
                f"the converter failed with exit code {result.returncode}: {log}",
                where=f"--gguf-converter {converter}",
                remedy="Install its requirements in this environment and check that it supports the architecture.",
            )
        return _replace_tokenizer(converted, model, file)


def _replace_tokenizer(converted: Path, model: ModelFolder, file: Path) -> LlamaCppTokenizer:
    """Copy a GGUF file with the tokens and merges of the model's tokenizer."""
    import gguf

    reader = gguf.GGUFReader(converted)
    values = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    kind = values["tokenizer.ggml.model"].contents()
    if kind != "gpt2" or not set(_REPLACED) <= values.keys():
        raise InputError(
            f"the converter wrote a {kind} tokenizer; expected gpt2, a byte-level BPE",
            where=model.path,
            remedy=f"{OTHER_FORMATS}.",
        )
    rows = embedding_rows(read_config(model.path)) or len(values[_REPLACED[0]].data)
    pre = str(values["tokenizer.ggml.pre"].contents())
    tokenizer = describe_tokenizer(TokenizerFolder(model.path), rows, pre)
    replaced = {key: value for key, value in tokenizer.metadata().items() if key in _REPLACED}
    writer = gguf.GGUFWriter(file, str(values.pop("general.architecture").contents()))
    try:
        for key, field in values.items():
            if key in replaced:
                add_value(writer, key, replaced[key])
            else:
                sub_type = field.types[-1] if len(field.types) > 1 else None
                writer.add_key_value(key, field.contents(), field.types[0], sub_type=sub_type)
        for tensor in reader.tensors:
            shape, dtype = tensor.data.shape, tensor.data.dtype
            writer.add_tensor_info(tensor.name, shape, dtype, tensor.data.nbytes, tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in reader.tensors:
            writer.write_tensor_data(tensor.data)
    finally:
        writer.close()
    check_metadata(gguf.GGUFReader(file), {**replaced, "tokenizer.ggml.pre": pre}, file)
    return tokenizer
