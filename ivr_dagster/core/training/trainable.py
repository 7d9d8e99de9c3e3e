"""Which parameters fine-tuning trains: the setting `trainable`.

The embeddings always train in full, because new tokens start with rows that must be learned. The rest of the model
trains completely (`all`), in its first and last layer (`edges`, as AdaptiVocab, Nakash et al. 2025), by low-rank
updates of its linear layers (`lora`, Hu et al. 2021), or not at all (`embeddings`). Frozen parameters need no
gradients and no optimizer states.

Low-rank updates are merged into the weights after training, so the final model is a plain model.
"""

import importlib.util
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivr_dagster.core.embedding.new_rows import embedding_parameters
from ivr_dagster.errors import InputError

if TYPE_CHECKING:
    from ivr_dagster.core.training.sft_arguments import SftArguments

ALL, EMBEDDINGS, EDGES, LORA = TRAINABLE = ("all", "embeddings", "edges", "lora")


def lora_obstacle() -> str | None:
    """Why LoRA is not available, or None."""
    if importlib.util.find_spec("peft") is None:
        return "which needs the package peft: pip install 'ivr-dagster[lora]'"
    return None


def select_trainable(model: Any, arguments: "SftArguments") -> None:
    """Freeze what `arguments.trainable` does not train, in place; `lora` adds the factors of its updates.

    Raises:
        InputError: `edges`, but the layers of the model were not found.
    """
    if arguments.trainable == ALL:
        return
    trained = {id(each) for each in embedding_parameters(model)}
    if arguments.trainable == EDGES:
        layers = _layers(model)
        trained |= {id(each) for layer in (layers[0], layers[-1]) for each in layer.parameters()}
    if arguments.trainable == LORA:
        before = {id(each) for each in model.parameters()}
        _add_lora(model, arguments.lora_rank)
        trained |= {id(each) for each in model.parameters()} - before
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)


def load_lora(model: Any, folder: Path) -> None:
    """Load a checkpoint's weights into a model that :func:`select_trainable` gave LoRA's factors, in place."""
    from safetensors.torch import load_file

    for file in sorted(folder.glob("model*.safetensors")):
        model.load_state_dict(load_file(file), strict=False)  # a tied head is stored once


def merge_lora(model: Any) -> None:
    """Add the low-rank updates to the weights and remove their factors, in place; does nothing without any."""
    if importlib.util.find_spec("peft") is None:
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, layer.get_base_layer())


def _add_lora(model: Any, rank: int) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set")  # peft corrects it for GPT-2 itself
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        inject_adapter_in_model(config, model)


def _layers(model: Any) -> Any:
    """The list of the model's layers."""
    import torch

    depth = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth:
            return module
    raise InputError(
        f"trainable: edges was requested, but {type(model).__name__} has no list of its {depth} layers",
        where="the training settings",
        remedy=f"Set trainable to one of {', '.join(each for each in TRAINABLE if each != EDGES)}",
    )
