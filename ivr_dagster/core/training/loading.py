"""Loads the model of a run, and checks that model, tokenizer and blocks fit each other."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.training.blocks import COLUMN, used_ids
from ivr_dagster.errors import InputError

if TYPE_CHECKING:
    import torch
    from datasets import Dataset


def load_model(folder: Path) -> "tuple[Any, torch.dtype]":
    """A causal LM in float32, and the dtype of its stored weights."""
    model: Any = ModelFolder(folder).load()
    # transformers derives the loss from the class name and fails for GPT2LMHeadModel: Trainer would then divide the
    # loss by one label too many per block
    model.loss_type = "ForCausalLM"
    # tied weights are stored once; otherwise Trainer warns about missing ones when it resumes
    model._keys_to_ignore_on_save = set(model.all_tied_weights_keys)
    stored = model.dtype
    return model.float(), stored


def check_fit(model: Any, tokenizer: Any, dataset: "Dataset", model_dir: Path, blocks: Path) -> None:
    """Check that a model has a context and rows enough.

    Raises:
        InputError: the blocks are longer than the context, or the model lacks rows for the tokenizer or the blocks.
    """
    block_size = len(dataset[0][COLUMN])
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and block_size > context:
        raise InputError(
            f"the blocks have {block_size:,} tokens, the model's context {context:,}",
            where=model_dir,
            remedy=f"Set --block-size {context} or less",
        )
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise InputError(
            f"the tokenizer has {len(tokenizer):,} tokens, the model {rows:,} embedding rows",
            where=model_dir,
            remedy="Use the model and the tokenizer of the same run",
        )
    largest = int(used_ids(dataset)[-1])
    if largest >= rows:
        raise InputError(
            f"the blocks contain the id {largest:,}, the model has {rows:,} embedding rows",
            where=blocks,
            remedy="Use the model and the blocks of the same run",
        )
