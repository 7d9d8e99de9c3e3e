"""A model's folder looked at without torch and transformers: what config.json says, which files hold the weights.

What belongs here: telling within milliseconds, before any work, that a folder holds no causal language model that can
be adapted. What only the model's class knows is asked in `embedding.extract`; no tensor is read.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ivr_dagster.errors import InputError, short_message

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# weights in formats that can run code when they are read, or that only other frameworks read
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
# where any model of transformers keeps a size: a whole number above 0, or null
_SIZES = (
    *("vocab_size", "hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "head_dim"),
    *("num_hidden_layers", "n_layer", "n_layers", "num_attention_heads", "n_head", "num_key_value_heads"),
    *("n_positions", "max_position_embeddings"),
)
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers")
# classes that do not predict the next token (the endings that transformers gives them)
_OTHER_HEAD = re.compile(r"For(MaskedLM|\w*Classification|QuestionAnswering|MultipleChoice|PreTraining|CTC|Next\w+)$")
# encoders that transformers has a causal class for too: MODEL_FOR_MASKED_LM_MAPPING_NAMES and …CAUSAL… have them both,
# and of these only reformer and xlm are decoders by themselves
_ENCODERS = frozenset({
    *("bert", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert", "roberta"),
    *("roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod"),
})  # fmt: skip
_OTHER_MODEL = "Take a decoder-only language model (GPT-2, Llama, Qwen, SmolLM2 and the like)."
_CONVERT = "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"


def check_folder(folder: Path) -> None:
    """See that what a folder holds of a model can be adapted; a tokenizer alone, or with a config.json, will do.

    Raises:
        InputError: as of :func:`read_config` and :func:`model_files`.
    """
    names = [file.name for file in folder.iterdir()]
    weights = any(name.endswith((".safetensors", *_PICKLES)) or name == INDEX for name in names)
    ggufs = any(name.endswith(".gguf") for name in names)
    if weights or (ggufs and "tokenizer.json" not in names):
        model_files(folder)
    elif CONFIG in names:
        read_config(folder)


def model_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that transformers loads from a model's folder, once they were found to fit its config.json.

    Raises:
        InputError: as of :func:`read_config`; no weights, or in another format; a file that is missing or damaged;
            sizes in config.json that no tensor has.
    """
    config = read_config(folder)
    files = _weight_files(folder)
    _check_sizes_of_weights(config, files, folder / CONFIG)
    return files


def read_config(folder: Path) -> dict[str, Any]:
    """A model's config.json.

    Raises:
        InputError: there is none; it is no JSON; it is of a quantized model, of one that is no decoder-only language
            model, or has sizes that are none.
    """
    file = folder / CONFIG
    if not file.is_file():
        if (folder / "adapter_config.json").is_file():
            raise InputError(
                "a model was asked for, found an adapter alone (adapter_config.json)",
                where=folder,
                remedy="Merge it into its model first: PeftModel.merge_and_unload(), then save_pretrained(NEW_FOLDER).",
            )
        _refuse_ggufs(folder)
        raise InputError(
            f"no model there: {CONFIG} is missing", where=folder, remedy="Materialize it, or give a model's folder."
        )
    try:
        config: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"this is no JSON ({short_message(error)})", where=file, remedy="Fetch it anew.") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        found = f"model_type {config.get('model_type')!r}" if isinstance(config, dict) else f"a {type(config).__name__}"
        raise InputError(
            f"a model's configuration with its model_type was asked for, found {found}",
            where=file,
            remedy="Give a folder that save_pretrained wrote.",
        )
    _refuse_quantized(config, file)
    _refuse_other_kinds(config, file)
    _check_sizes(config, file)
    return config


def rows_of(config: Mapping[str, Any]) -> int | None:
    """V, the embedding rows that a configuration speaks of; None where it does not."""
    rows = _text_part(config).get("vocab_size")
    return rows if isinstance(rows, int) else None


def _weight_files(folder: Path) -> tuple[Path, ...]:
    for name in (SINGLE, INDEX):
        if (folder / name).is_symlink() and not (folder / name).exists():
            raise InputError(
                f"a link to {(folder / name).readlink()}, which is not there",
                where=folder / name,
                remedy="Fetch the file anew, or mend the link.",
            )
    if (folder / SINGLE).is_file():
        return (folder / SINGLE,)
    if (folder / INDEX).is_file():
        return _shards(folder / INDEX)
    names = sorted(file.name for file in folder.iterdir())
    others = [name for name in names if name.endswith(".safetensors")]
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if others:
        raise InputError(
            f"neither {SINGLE} nor {INDEX} is there, found {', '.join(others[:3])}",
            where=folder,
            remedy="Fetch the index too; or load the model with transformers and save it with save_pretrained.",
        )
    if not pickles:
        _refuse_ggufs(folder)
    raise InputError(
        f"the model's weights are not in safetensors format, found {', '.join(pickles[:3]) or 'none'}",
        where=folder,
        remedy=f"Pickles can run code and are never read. Convert them once where you trust them: {_CONVERT}."
        if pickles
        else "Give a folder with weights.",
    )


def _refuse_ggufs(folder: Path) -> None:
    for file in sorted(folder.glob("*.gguf"))[:1]:
        raise InputError(
            f"the model's weights are not in safetensors format, found {file.name}",
            where=folder,
            remedy="GGUF is for llama.cpp: take the model as transformers has it, or dequantize the file once: "
            f"AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file={file.name!r}).save_pretrained(NEW_FOLDER).",
        )


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """Dtype, shape and offsets by key of a safetensors file, and where offsets count from.

    The format: eight bytes of length, little-endian, so many bytes of JSON, the tensors one after the other
    (https://huggingface.co/docs/safetensors).

    Raises:
        InputError: it is cut short or otherwise damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with file.open("rb"):  # safetensors takes one that may not be read for one that is not there
            pass
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})", where=file, remedy="Give this user the right to it."
        ) from error
    try:
        with safe_open(file, framework="numpy"):  # checks that header and size of the file belong together
            pass
    except (SafetensorError, OSError) as error:
        raise InputError(f"damaged: {short_message(error)}", where=file, remedy="Fetch it anew.") from error
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(size))
    header.pop("__metadata__", None)
    return header, 8 + size


def _refuse_quantized(config: dict[str, Any], file: Path) -> None:
    for name in ("quantization_config", "compression_config"):
        if config.get(name):
            found = config[name].get("quant_method", "") if isinstance(config[name], dict) else config[name]
            raise InputError(
                f"the model is quantized ({name}: {found or 'of no named method'}), weights as they were trained are "
                "wanted",
                where=file,
                remedy="Take the model it was made from; or dequantize it once: "
                "AutoModelForCausalLM.from_pretrained(FOLDER).dequantize().save_pretrained(NEW_FOLDER).",
            )


def _refuse_other_kinds(config: dict[str, Any], file: Path) -> None:
    kind, classes = config["model_type"], config.get("architectures")
    named = [str(name) for name in classes] if isinstance(classes, list) else []
    if config.get("is_encoder_decoder") is True:
        raise InputError(
            f"a decoder-only language model was asked for, found {kind}, an encoder with a decoder",
            where=file,
            remedy=_OTHER_MODEL,
        )
    if named and all(_OTHER_HEAD.search(name) for name in named):
        raise InputError(
            f"a causal language model was asked for, found {', '.join(named)}", where=file, remedy=_OTHER_MODEL
        )
    if kind in _ENCODERS and config.get("is_decoder") is not True:
        raise InputError(
            f"a decoder-only language model was asked for, found {kind}, an encoder", where=file, remedy=_OTHER_MODEL
        )


def _check_sizes(config: dict[str, Any], file: Path) -> None:
    part = _text_part(config)
    for name in _SIZES:
        value = part.get(name)
        if value is None or isinstance(value, list):  # some models have one for every layer
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(
                f"{name} is {value!r}, a whole number above 0 is wanted", where=file, remedy="Fetch it anew."
            )


def _check_sizes_of_weights(config: dict[str, Any], files: Iterable[Path], where: Path) -> None:
    """Sizes that the tensors bear out, before a class is built by them."""
    shapes = [entry["shape"] for file in files for entry in read_header(file)[0].values()]
    remedy = "Give weights and config.json of the same model."
    rows, found = rows_of(config), {shape[0] for shape in shapes if len(shape) == 2}
    if rows is not None and rows not in found:
        most = max(found, default=0)
        raise InputError(
            f"vocab_size is {rows:,}, and no matrix of the weights has so many rows (at most {most:,})",
            where=where,
            remedy=remedy,
        )
    for name in _LAYERS:
        layers = _text_part(config).get(name)
        if isinstance(layers, int) and layers > len(shapes):
            raise InputError(
                f"{name} is {layers:,}, and the weights are {len(shapes):,} tensors in all", where=where, remedy=remedy
            )


def _text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where a model that sees images too keeps what is about text."""
    part = config.get("text_config")
    return part if isinstance(part, dict) else config


def _shards(index: Path) -> tuple[Path, ...]:
    """The files an index lists, sorted by name."""
    try:
        held = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        names = sorted(set(held.values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise InputError("this is no index of safetensors files", where=index, remedy="Fetch it anew.") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise InputError(
                f"the index names a file outside its folder: {name!r}",
                where=index,
                remedy="Shards lie beside their index: fetch the model anew from where you trust it.",
            )
        if not (index.parent / name).is_file():
            raise InputError(f"the index names {name}, which is not there", where=index, remedy="Fetch it anew.")
    there = {name: read_header(index.parent / name)[0] for name in names}
    lost = next(((key, name) for key, name in sorted(held.items()) if key not in there[name]), None)
    if lost:
        raise InputError(
            f"the index has {lost[0]} in {lost[1]}, which does not hold it", where=index, remedy="Fetch both anew."
        )
    return tuple(index.parent / name for name in names)
