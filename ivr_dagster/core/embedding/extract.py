"""Embedding tensors out of a causal LM's folder and back into a copy of it; the model itself is never loaded.

`wte` [V, d] is the input embedding; `lm_head` [V, d] is there only where the output projection is a matrix of its
own; `lm_head_bias` [V] where that has one. V is the model's, which may be padded beyond the tokenizer's.

Which tensors of the files these are is asked of the model class, built on the meta device from config.json: it has
names and shapes and no memory. So a model is adapted in the memory of its embedding.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivr_dagster.core.model.files import CONFIG, INDEX, model_files, read_header
from ivr_dagster.errors import InputError, short_message

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Embeddings = dict[str, "torch.Tensor"]

# what a model's folder holds beside weights and tokenizer
CONFIG_FILES = (CONFIG, "generation_config.json")
_FLOATING = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class TensorPlace:
    """A tensor in a model's folder: the safetensors file and its key there."""

    file: Path
    key: str


@dataclass(frozen=True)
class EmbeddingLayout:
    """Where the embedding tensors of a model's folder are.

    Attributes:
        files: the safetensors files that transformers loads.
        places: for each tensor (`wte`, `lm_head`, `lm_head_bias`) where it stands; twice for a tied matrix that was
            saved under both names.
        parameters: how many the whole model has, tied ones once.
    """

    files: tuple[Path, ...]
    places: Mapping[str, tuple[TensorPlace, ...]]
    parameters: int


def read_layout(folder: Path) -> EmbeddingLayout:
    """Find the embedding tensors of the model in `folder`; no weights are read.

    Output embeddings are tied where transformers would tie them: the class and its config say so, and the files hold
    one matrix only, or two that are bitwise equal.

    Raises:
        InputError: no model there, code of its own, weights in another format than safetensors, a file that is
            missing or damaged, embeddings that are missing, quantized, or of another shape than the config says.
    """
    files, held = _checkpoint(folder)
    model = _skeleton(folder)
    inputs: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    wanted = {"wte": _name_of(model, inputs) + ".weight"}
    if head is not None:
        wanted["lm_head"] = _name_of(model, head) + ".weight"
        if getattr(head, "bias", None) is not None:
            wanted["lm_head_bias"] = _name_of(model, head) + ".bias"
    found = {name: _stored_under(parameter, model.base_model_prefix, held) for name, parameter in wanted.items()}
    tied = head is not None and head.weight is inputs.weight
    missing = [name for name, place in found.items() if place is None]
    if tied and ("wte" not in missing or "lm_head" not in missing):
        missing = [name for name in missing if name == "lm_head_bias"]
    if missing:
        raise InputError(
            f"the model has a tensor {wanted[missing[0]]}, its safetensors files have none",
            where=folder,
            remedy="Save the model anew with transformers' save_pretrained.",
        )
    places: dict[str, tuple[TensorPlace, ...]] = {name: (place,) for name, place in found.items() if place is not None}
    if tied:
        matrices = places.get("wte", ()) + places.pop("lm_head", ())
        if len(matrices) == 2 and not _same_bits(*matrices):
            places |= {"wte": matrices[:1], "lm_head": matrices[1:]}
        else:
            places["wte"] = matrices
    shape = list(inputs.weight.shape)
    for name, stored in places.items():
        for place in stored:
            _check_tensor(place, shape[:1] if name == "lm_head_bias" else shape)
    return EmbeddingLayout(files, places, sum(parameter.numel() for parameter in model.parameters()))


def read_embeddings(folder: Path) -> Embeddings:
    """The embedding tensors of the model in `folder`, in the dtype they are stored in, as copies.

    The files are memory-mapped and only these tensors touched: the peak is twice their size, of which the mapped half
    can be given back by the system at any time.

    Raises:
        InputError: as of :func:`read_layout`; or a row holds what is no finite number.
    """
    places = {name: stored[0] for name, stored in read_layout(folder).places.items()}
    tensors = {name: _read_tensor(place).clone() for name, place in places.items()}
    for name, rows in tensors.items():
        _check_finite(rows, places[name])
    return tensors


def write_model(
    base: Path, tensors: Embeddings, folder: Path, *, progress: Callable[[int, int], None] | None = None
) -> EmbeddingLayout:
    """Write the model in `base` with other embeddings into `folder`, which exists; its layout is the base's.

    Files are copied by the system and the embedding tensors overwritten where they stand in the copy: every other
    tensor, the configuration and the names stay byte for byte as they are, what was tied stays tied, and memory is
    taken by `tensors` alone. The tokenizer is left to the caller.

    Args:
        base: a folder as of :func:`read_layout`.
        tensors: as of :func:`read_embeddings`, same names, shapes and dtypes.
        folder: where to write.
        progress: told how many bytes of how many are copied, after each file.

    Raises:
        InputError: as of :func:`read_layout`; or `tensors` are not of this model's names, shapes or dtypes.
    """
    layout = read_layout(base)
    if tensors.keys() != layout.places.keys():
        raise InputError(
            f"the embeddings are {', '.join(sorted(tensors))}, the model's {', '.join(sorted(layout.places))}",
            where=base,
            remedy="Materialize original_embeddings of this model first.",
        )
    sizes = [file.stat().st_size for file in layout.files]
    copied = 0
    for file, size in zip(layout.files, sizes, strict=True):
        shutil.copyfile(file, folder / file.name)
        copied += size
        if progress:
            progress(copied, sum(sizes))
    for name in (*CONFIG_FILES, INDEX):
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    for name, places in layout.places.items():
        for place in places:
            _overwrite(TensorPlace(folder / place.file.name, place.key), tensors[name])
    return layout


def extract_embeddings(model: "PreTrainedModel") -> Embeddings:
    """The embedding tensors of a loaded `model` in its own dtype, on the CPU, as copies."""
    inputs: Any = model.get_input_embeddings()
    wte = inputs.weight
    tensors = {"wte": wte.detach().cpu().clone()}
    head: Any = model.get_output_embeddings()
    if head is not None:
        if head.weight is not wte and head.weight.data_ptr() != wte.data_ptr():
            tensors["lm_head"] = head.weight.detach().cpu().clone()
        if getattr(head, "bias", None) is not None:
            tensors["lm_head_bias"] = head.bias.detach().cpu().clone()
    return tensors


def replace_embeddings(model: "PreTrainedModel", tensors: Embeddings) -> None:
    """Write `tensors` over the embeddings of a loaded `model`, in place; what was tied stays tied."""
    import torch

    head: Any = model.get_output_embeddings()
    inputs: Any = model.get_input_embeddings()
    with torch.no_grad():
        inputs.weight.copy_(tensors["wte"])
        if "lm_head" in tensors:
            head.weight.copy_(tensors["lm_head"])
        if "lm_head_bias" in tensors:
            head.bias.copy_(tensors["lm_head_bias"])


def _skeleton(folder: Path) -> "PreTrainedModel":
    """The model's class with names and shapes, on the meta device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # a class may fail in any way on a configuration that makes no sense
        raise InputError(
            f"no causal language model that transformers knows ({short_message(error)})",
            where=folder / CONFIG,
            remedy="Give a model whose class is part of transformers; code that comes with a model is never run.",
        ) from error
    return model


def _name_of(model: "PreTrainedModel", wanted: Any) -> str:
    names: dict[int, str] = {id(module): name for name, module in model.named_modules()}
    return names[id(wanted)]


def _checkpoint(folder: Path) -> tuple[tuple[Path, ...], dict[str, Path]]:
    """The files that transformers loads, and the file of every key in them."""
    files = model_files(folder)
    return files, {key: file for file in files for key in read_header(file)[0]}


def _stored_under(parameter: str, prefix: str, held: Mapping[str, Path]) -> TensorPlace | None:
    """Where a parameter is stored: files have the base model's prefix or not (GPT-2's on the hub do not)."""
    for key in (parameter, parameter.removeprefix(f"{prefix}."), f"{prefix}.{parameter}"):
        if key in held:
            return TensorPlace(held[key], key)
    return None


def _check_tensor(place: TensorPlace, shape: list[int]) -> None:
    entry = read_header(place.file)[0][place.key]
    if entry["shape"] != shape or entry["dtype"] not in _FLOATING:
        raise InputError(
            f"{place.key} is {entry['dtype']} {entry['shape']}, expected a floating point {shape}",
            where=place.file,
            remedy="Give a model whose weights fit its config.json and whose embeddings are not quantized.",
        )


def _check_finite(rows: "torch.Tensor", place: TensorPlace) -> None:
    """A row that is no number would make one of every probability, whichever token it belongs to."""
    if all(bound.isfinite() for bound in rows.aminmax()):
        return
    faulty = (~rows.isfinite().view(len(rows), -1).all(dim=1)).nonzero().flatten().tolist()
    values = rows[faulty[0]].flatten()
    raise InputError(
        f"{place.key} holds {values[~values.isfinite()][0].item()} in row {faulty[0]}"
        + (f" and no finite numbers in {len(faulty) - 1:,} more" if len(faulty) > 1 else ""),
        where=place.file,
        remedy="Fetch the model anew, or take another checkpoint of it.",
    )


def _read_tensor(place: TensorPlace) -> "torch.Tensor":
    """The tensor as a view of the memory-mapped file."""
    from safetensors import safe_open

    with safe_open(place.file, framework="pt") as stored:
        tensor: torch.Tensor = stored.get_tensor(place.key)
    return tensor


def _same_bits(one: TensorPlace, other: TensorPlace) -> bool:
    import torch

    first, second = _read_tensor(one), _read_tensor(other)
    return first.dtype == second.dtype and torch.equal(first.view(torch.uint8), second.view(torch.uint8))


def _overwrite(place: TensorPlace, rows: "torch.Tensor") -> None:
    import torch

    there = _read_tensor(place)
    if (there.dtype, there.shape) != (rows.dtype, rows.shape):
        raise InputError(
            f"{place.key} is {there.dtype} {list(there.shape)}, the new one {rows.dtype} {list(rows.shape)}",
            where=place.file,
            remedy="Materialize original_embeddings of this model first.",
        )
    del there
    content: Any = rows.contiguous().view(torch.uint8).numpy()
    header, start = read_header(place.file)
    with place.file.open("r+b") as stream:
        stream.seek(start + header[place.key]["data_offsets"][0])
        stream.write(memoryview(content).cast("B"))
