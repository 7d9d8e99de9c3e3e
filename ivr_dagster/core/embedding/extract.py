"""Reads embedding tensors from a causal LM's folder and writes them into a copy of it, without loading the model.

`wte` [V, d] is the input embedding, `lm_head` [V, d] the output projection unless tied, `lm_head_bias` [V] its bias if
any. V is the model's number of rows, which may exceed the tokenizer's number of ids (padding).

The model class, built on the meta device from config.json, says which stored tensors these are. So adapting a model
takes the memory of its embeddings only.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivr_dagster.core.model.files import CONFIG, INDEX, read_header, weight_files
from ivr_dagster.errors import InputError, short_message

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Embeddings = dict[str, "torch.Tensor"]

_COPIED = (CONFIG, "generation_config.json", INDEX)
_FLOATING = ("F64", "F32", "F16", "BF16")
_OTHER_MODEL = "Materialize original_embeddings of this model first."


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file, by its key."""

    file: Path
    key: str

    def read(self) -> "torch.Tensor":
        """The tensor as a view of the memory-mapped file."""
        from safetensors import safe_open

        with safe_open(self.file, framework="pt") as stored:
            tensor: torch.Tensor = stored.get_tensor(self.key)
        return tensor


@dataclass(frozen=True)
class EmbeddingLayout:
    """Where the embedding tensors of a model folder are stored.

    Attributes:
        files: the safetensors files that transformers loads.
        stored: `wte`, `lm_head`, `lm_head_bias` → its place; two places for a tied matrix saved under both names.
        parameters: number of the model's parameters, tied ones counted once.
    """

    files: tuple[Path, ...]
    stored: Mapping[str, tuple[StoredTensor, ...]]
    parameters: int


def read_layout(folder: Path) -> EmbeddingLayout:
    """Find the embedding tensors of the model in `folder` without reading weights.

    The output embedding is tied if transformers would tie it: class and config say so, and the files hold only one
    matrix, or two that are bitwise equal.

    Raises:
        InputError: no model, remote code required, weights missing, damaged or not in safetensors format, embeddings
            missing, quantized, or of another shape than the config says.
    """
    files = weight_files(folder)
    file_of = {key: file for file in files for key in read_header(file)[0]}
    model = _build_on_meta(folder)
    modules = {module: name for name, module in model.named_modules()}
    inputs: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    parameters = {"wte": f"{modules[inputs]}.weight"}
    if head is not None:
        parameters["lm_head"] = f"{modules[head]}.weight"
        if getattr(head, "bias", None) is not None:
            parameters["lm_head_bias"] = f"{modules[head]}.bias"
    found = {name: _find_stored(key, model.base_model_prefix, file_of) for name, key in parameters.items()}
    stored: dict[str, tuple[StoredTensor, ...]] = {name: (each,) for name, each in found.items() if each is not None}
    is_tied = head is not None and head.weight is inputs.weight
    missing = parameters.keys() - stored.keys()
    if is_tied and len(missing & {"wte", "lm_head"}) == 1:  # stored once is enough
        missing -= {"wte", "lm_head"}
    if missing:
        raise InputError(
            f"the model has a tensor {parameters[min(missing)]}, but its safetensors files do not",
            where=folder,
            remedy="Save the model again with save_pretrained.",
        )
    if is_tied:
        matrices = stored.get("wte", ()) + stored.get("lm_head", ())
        if len(matrices) == 1 or _bitwise_equal(*(place.read() for place in matrices)):
            stored.pop("lm_head", None)
            stored["wte"] = matrices
    shape = list(inputs.weight.shape)
    for name, places in stored.items():
        for place in places:
            _check_header(place, shape[:1] if name == "lm_head_bias" else shape)
    return EmbeddingLayout(files, stored, sum(parameter.numel() for parameter in model.parameters()))


def read_embeddings(folder: Path) -> Embeddings:
    """The embedding tensors of the model in `folder`, in the stored dtype, as copies.

    The files are memory-mapped, so the peak memory is twice the size of these tensors, of which the operating system
    can reclaim the mapped half.

    Raises:
        InputError: see :func:`read_layout`; or a row is not finite.
    """
    places = {name: places[0] for name, places in read_layout(folder).stored.items()}
    tensors = {name: place.read().clone() for name, place in places.items()}
    for name, rows in tensors.items():
        _check_finite(rows, places[name])
    return tensors


def write_model(
    base: Path, tensors: Embeddings, folder: Path, *, progress: Callable[[int, int], None] | None = None
) -> EmbeddingLayout:
    """Write the model in `base` with other embeddings into the existing `folder`; returns the base's layout.

    Copies the files and overwrites the embedding tensors in the copy. Every other tensor, the configuration and the
    file names stay byte for byte the same, and tied embeddings stay tied. Writes no tokenizer.

    Args:
        base: a model folder, see :func:`read_layout`.
        tensors: embeddings with the base's names, shapes and dtypes.
        folder: where to write.
        progress: called after each file with the bytes copied so far and in total.

    Raises:
        InputError: see :func:`read_layout`; or `tensors` differ from the base's in names, shapes or dtypes.
    """
    layout = read_layout(base)
    if tensors.keys() != layout.stored.keys():
        raise InputError(
            f"got the embeddings {', '.join(sorted(tensors))}, the model has {', '.join(sorted(layout.stored))}",
            where=base,
            remedy=_OTHER_MODEL,
        )
    copied, total = 0, sum(file.stat().st_size for file in layout.files)
    for file in layout.files:
        shutil.copyfile(file, folder / file.name)
        copied += file.stat().st_size
        if progress:
            progress(copied, total)
    for name in _COPIED:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    for name, places in layout.stored.items():
        for place in places:
            _overwrite(StoredTensor(folder / place.file.name, place.key), tensors[name])
    return layout


def extract_embeddings(model: "PreTrainedModel") -> Embeddings:
    """The embedding tensors of a loaded `model` in its dtype, as copies on the CPU."""
    inputs: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    tensors = {"wte": inputs.weight}
    if head is not None and head.weight.data_ptr() != inputs.weight.data_ptr():
        tensors["lm_head"] = head.weight
    if getattr(head, "bias", None) is not None:
        tensors["lm_head_bias"] = head.bias
    return {name: rows.detach().cpu().clone() for name, rows in tensors.items()}


def replace_embeddings(model: "PreTrainedModel", tensors: Embeddings) -> None:
    """Overwrite the embeddings of a loaded `model` in place; tied embeddings stay tied."""
    import torch

    inputs: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    with torch.no_grad():
        inputs.weight.copy_(tensors["wte"])
        if "lm_head" in tensors:
            head.weight.copy_(tensors["lm_head"])
        if "lm_head_bias" in tensors:
            head.bias.copy_(tensors["lm_head_bias"])


def _build_on_meta(folder: Path) -> "PreTrainedModel":
    """The model on the meta device: names and shapes, no memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # model classes raise anything
        raise InputError(
            f"transformers knows no such causal language model ({short_message(error)})",
            where=folder / CONFIG,
            remedy="Use a model whose class is part of transformers; remote code is never run.",
        ) from error
    return model


def _find_stored(parameter: str, prefix: str, file_of: Mapping[str, Path]) -> StoredTensor | None:
    """Where a parameter is stored; files may lack the base model's prefix, or have one that the class lacks."""
    for key in (parameter, parameter.removeprefix(f"{prefix}."), f"{prefix}.{parameter}"):
        if key in file_of:
            return StoredTensor(file_of[key], key)
    return None


def _check_header(place: StoredTensor, shape: list[int]) -> None:
    entry = read_header(place.file)[0][place.key]
    if entry["shape"] != shape or entry["dtype"] not in _FLOATING:
        raise InputError(
            f"{place.key} is {entry['dtype']} {entry['shape']}, expected floating point {shape}",
            where=place.file,
            remedy="Use a model whose weights match its config.json and whose embeddings are not quantized.",
        )


def _check_finite(rows: "torch.Tensor", place: StoredTensor) -> None:
    """Reject NaN and infinity: one such row makes every probability NaN."""
    if all(bound.isfinite() for bound in rows.aminmax()):
        return
    bad = (~rows.isfinite().view(len(rows), -1).all(dim=1)).nonzero().flatten().tolist()
    values = rows[bad[0]].flatten()
    raise InputError(
        f"{place.key} holds {values[~values.isfinite()][0].item()} in row {bad[0]}"
        + (f"; {len(bad) - 1:,} more rows are not finite" if len(bad) > 1 else ""),
        where=place.file,
        remedy="Download the model again, or use another checkpoint of it.",
    )


def _bitwise_equal(one: "torch.Tensor", other: "torch.Tensor") -> bool:
    import torch

    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def _overwrite(place: StoredTensor, rows: "torch.Tensor") -> None:
    import torch

    current = place.read()
    if (current.dtype, current.shape) != (rows.dtype, rows.shape):
        raise InputError(
            f"{place.key} is {current.dtype} {list(current.shape)}, got {rows.dtype} {list(rows.shape)}",
            where=place.file,
            remedy=_OTHER_MODEL,
        )
    del current  # ends the memory mapping
    content: Any = rows.contiguous().view(torch.uint8).numpy()
    header, start = read_header(place.file)
    with place.file.open("r+b") as stream:
        stream.seek(start + header[place.key]["data_offsets"][0])
        stream.write(memoryview(content).cast("B"))
