"""Inspects a model folder without torch or transformers: config.json and the headers of the weight files.

A folder without an adaptable causal language model is rejected within milliseconds; no tensor is read. Checks that need
the model class are in `embedding.extract`.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ivr_dagster.errors import InputError, short_message

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# formats that can run code when they are loaded, or that only other frameworks load
_UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers")
# configuration keys for sizes in transformers models; a value is a positive integer or null
_SIZES = (
    *("vocab_size", "hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "head_dim"),
    *("num_attention_heads", "n_head", "num_key_value_heads", "n_positions", "max_position_embeddings"),
    *_LAYERS,
)
# suffixes of model classes that do not predict the next token
_OTHER_HEAD = re.compile(r"For(MaskedLM|\w*Classification|QuestionAnswering|MultipleChoice|PreTraining|CTC|Next\w+)$")
# encoders for which transformers also has a causal class: model types in both MODEL_FOR_MASKED_LM_MAPPING_NAMES and
# MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, except the decoders reformer and xlm
_ENCODERS = frozenset({
    *("bert", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert", "roberta"),
    *("roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod"),
})  # fmt: skip
_DOWNLOAD_AGAIN = "Download it again."
_USE_DECODER = "Use a decoder-only language model (GPT-2, Llama, Qwen, SmolLM2, ...)."
_SAME_MODEL = "Use weights and config.json of the same model."
_LOAD = "AutoModelForCausalLM.from_pretrained(FOLDER"
_SAVE = ".save_pretrained(NEW_FOLDER)"


def check_folder(folder: Path) -> None:
    """Check that the model files in a folder, if any, belong to a model that can be adapted.

    A folder that contains only a tokenizer, with or without a config.json, passes.

    Raises:
        InputError: see :func:`read_config` and :func:`weight_files`.
    """
    names = [file.name for file in folder.iterdir()]
    has_weights = any(name.endswith((".safetensors", *_UNSAFE_SUFFIXES)) or name == INDEX for name in names)
    has_gguf = any(name.endswith(".gguf") for name in names)
    if has_weights or (has_gguf and "tokenizer.json" not in names):
        weight_files(folder)
    elif CONFIG in names:
        read_config(folder)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that transformers loads from a model folder, checked against its config.json.

    Raises:
        InputError: see :func:`read_config`; weights are absent, incomplete, damaged or in another format; config.json
            states sizes that match no tensor.
    """
    config = read_config(folder)
    files = _find_weights(folder)
    _check_tensor_shapes(config, files, folder / CONFIG)
    return files


def read_config(folder: Path) -> dict[str, Any]:
    """A model's config.json.

    Raises:
        InputError: the file is absent, is not valid JSON or has invalid sizes; the model is quantized or not a
            decoder-only language model.
    """
    file = folder / CONFIG
    if not file.is_file():
        if (folder / "adapter_config.json").is_file():
            remedy = f"Merge the adapter into its model first: PeftModel.merge_and_unload(), then {_SAVE[1:]}."
            raise InputError(
                "expected a model, found only an adapter (adapter_config.json)", where=folder, remedy=remedy
            )
        _reject_gguf(folder)
        raise InputError(
            f"no model found: {CONFIG} is missing", where=folder, remedy="Build the model, or pass a model folder."
        )
    try:
        config: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"invalid JSON ({short_message(error)})", where=file, remedy=_DOWNLOAD_AGAIN) from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        found = f"model_type {config.get('model_type')!r}" if isinstance(config, dict) else f"a {type(config).__name__}"
        remedy = "Pass a folder written by save_pretrained."
        raise InputError(f"expected a model configuration with a model_type, found {found}", where=file, remedy=remedy)
    _reject_quantized(config, file)
    _reject_other_architectures(config, file)
    _check_sizes(config, file)
    return config


def embedding_rows(config: Mapping[str, Any]) -> int | None:
    """V, the number of embedding rows according to a configuration; None if it does not state it."""
    rows = _text_config(config).get("vocab_size")
    return rows if isinstance(rows, int) else None


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file (dtype, shape and offsets by key) and the file position of offset 0.

    Layout: 8 bytes little-endian header length, JSON header, tensors (https://huggingface.co/docs/safetensors).

    Raises:
        InputError: the file is unreadable, truncated or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with file.open("rb"):  # safetensors reports an unreadable file as a missing one
            pass
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})", where=file, remedy="Grant this user read permission."
        ) from error
    try:
        with safe_open(file, framework="numpy"):  # checks the header against the file size
            pass
    except (SafetensorError, OSError) as error:
        raise InputError(f"damaged: {short_message(error)}", where=file, remedy=_DOWNLOAD_AGAIN) from error
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(size))
    header.pop("__metadata__", None)
    return header, 8 + size


def _find_weights(folder: Path) -> tuple[Path, ...]:
    for file in (folder / WEIGHTS, folder / INDEX):
        if file.is_symlink() and not file.exists():
            raise InputError(
                f"broken link to {file.readlink()}", where=file, remedy="Download the file again, or fix the link."
            )
    if (folder / WEIGHTS).is_file():
        return (folder / WEIGHTS,)
    if (folder / INDEX).is_file():
        return _shards(folder / INDEX)
    names = sorted(file.name for file in folder.iterdir())
    if found := [name for name in names if name.endswith(".safetensors")][:3]:
        remedy = "Download the index too, or load the model with transformers and save it with save_pretrained."
        raise InputError(f"expected {WEIGHTS} or {INDEX}, found only {', '.join(found)}", where=folder, remedy=remedy)
    if found := [name for name in names if name.endswith(_UNSAFE_SUFFIXES)][:3]:
        remedy = f"Such files can run code and are never loaded. If you trust them, convert them: {_LOAD}){_SAVE}."
        raise InputError(
            f"expected weights in safetensors format, found {', '.join(found)}", where=folder, remedy=remedy
        )
    _reject_gguf(folder)
    raise InputError(
        "expected weights in safetensors format, found none", where=folder, remedy="Pass a folder with weights."
    )


def _shards(index: Path) -> tuple[Path, ...]:
    """The files that an index lists, sorted by name."""
    try:
        weight_map = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        names = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise InputError("not an index of safetensors files", where=index, remedy=_DOWNLOAD_AGAIN) from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            remedy = "Shards belong next to their index: download the model again from a source you trust."
            raise InputError(f"the index names a file outside its folder: {name!r}", where=index, remedy=remedy)
        if not (index.parent / name).is_file():
            raise InputError(f"the index names {name}, which does not exist", where=index, remedy=_DOWNLOAD_AGAIN)
    headers = {name: read_header(index.parent / name)[0] for name in names}
    for key, name in sorted(weight_map.items()):
        if key not in headers[name]:
            raise InputError(
                f"the index lists {key} in {name}, which lacks it", where=index, remedy="Download both again."
            )
    return tuple(index.parent / name for name in names)


def _reject_gguf(folder: Path) -> None:
    for file in sorted(folder.glob("*.gguf"))[:1]:
        remedy = (
            "GGUF is the format of llama.cpp: use the original model, or dequantize the file once: "
            f"{_LOAD}, gguf_file={file.name!r}){_SAVE}."
        )
        raise InputError(f"expected weights in safetensors format, found {file.name}", where=folder, remedy=remedy)


def _reject_quantized(config: dict[str, Any], file: Path) -> None:
    for name in ("quantization_config", "compression_config"):
        if settings := config.get(name):
            method = settings.get("quant_method") if isinstance(settings, dict) else settings
            remedy = f"Use the model it was quantized from, or dequantize it once: {_LOAD}).dequantize(){_SAVE}."
            message = f"expected unquantized weights, found a quantized model ({name}: {method or 'unknown method'})"
            raise InputError(message, where=file, remedy=remedy)


def _reject_other_architectures(config: dict[str, Any], file: Path) -> None:
    kind, classes = config["model_type"], config.get("architectures")
    names = [str(name) for name in classes] if isinstance(classes, list) else []
    found = ""
    if config.get("is_encoder_decoder") is True:
        found = f"{kind}, an encoder-decoder"
    elif names and all(_OTHER_HEAD.search(name) for name in names):
        found = ", ".join(names)
    elif kind in _ENCODERS and config.get("is_decoder") is not True:
        found = f"{kind}, an encoder"
    if found:
        raise InputError(f"expected a decoder-only language model, found {found}", where=file, remedy=_USE_DECODER)


def _check_sizes(config: dict[str, Any], file: Path) -> None:
    for name in _SIZES:
        value = _text_config(config).get(name)
        if value is None or isinstance(value, list):  # some models have one value per layer
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} is {value!r}, expected a positive integer", where=file, remedy=_DOWNLOAD_AGAIN)


def _check_tensor_shapes(config: dict[str, Any], files: Iterable[Path], where: Path) -> None:
    """Check vocabulary size and layer count against the tensors before a model class allocates them."""
    shapes = [entry["shape"] for file in files for entry in read_header(file)[0].values()]
    rows, found = embedding_rows(config), {shape[0] for shape in shapes if len(shape) == 2}
    if rows is not None and rows not in found:
        message = f"vocab_size is {rows:,}, but no weight matrix has that many rows (at most {max(found, default=0):,})"
        raise InputError(message, where=where, remedy=_SAME_MODEL)
    for name in _LAYERS:
        layers = _text_config(config).get(name)
        if isinstance(layers, int) and layers > len(shapes):
            message = f"{name} is {layers:,}, but the weights have only {len(shapes):,} tensors"
            raise InputError(message, where=where, remedy=_SAME_MODEL)


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The text part of a configuration, which multimodal models nest."""
    part = config.get("text_config")
    return part if isinstance(part, dict) else config
