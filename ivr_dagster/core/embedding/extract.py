"""Embedding tensors out of a causal LM and back into it.

`wte` [V, d] is the input embedding; `lm_head` [V, d] is there only where the output projection is a matrix of its
own; `lm_head_bias` [V] where that has one. V is the model's, which may be padded beyond the tokenizer's.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Embeddings = dict[str, "torch.Tensor"]


def extract_embeddings(model: "PreTrainedModel") -> Embeddings:
    """The embedding tensors of `model` in its own dtype, on the CPU, as copies."""
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
    """Write `tensors` over the embeddings of `model`, in place; what was tied stays tied."""
    import torch

    head: Any = model.get_output_embeddings()
    inputs: Any = model.get_input_embeddings()
    with torch.no_grad():
        inputs.weight.copy_(tensors["wte"])
        if "lm_head" in tensors:
            head.weight.copy_(tensors["lm_head"])
        if "lm_head_bias" in tensors:
            head.bias.copy_(tensors["lm_head_bias"])
