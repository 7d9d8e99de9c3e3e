"""Warm start: train on from the previously fine-tuned model if the vocabulary has hardly changed.

A rebuild keeps most remap rules. Rows of ids that changed their string are those of the initialized model; all other
weights are the fine-tuned ones.
"""

import json
import shutil
from pathlib import Path

from ivr_dagster.core.embedding.new_rows import embedding_parameters
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.tokenizer.bpe import strings_by_id
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.training.folders import TrainedModel
from ivr_dagster.storage.atomic import atomic_write, remove

# share of the new tokens that may have changed
MAX_CHANGED = 0.25


class WarmStartImpossible(Exception):
    """Why a fine-tuned model cannot be trained on."""


def choose_start(
    trained: TrainedModel,
    initialized: ModelFolder,
    tokenizer: TokenizerFolder,
    new: int,
    *,
    warm: bool,
    inputs: str,
    origin: str,
) -> tuple[ModelFolder, str]:
    """The model to start from, and why it is not the fine-tuned one (empty if it is).

    A resumed or repeated run starts from the same model as the first time.

    Args:
        trained: the training folder; it receives the decision, and the model of a warm start.
        initialized: the initialized model.
        tokenizer: the tokenizer to train with.
        new: number of new tokens.
        warm: whether a warm start is requested.
        inputs: a hash of the inputs of the run.
        origin: a hash of what both runs must share: the base model, and how the corpus is split. Text that is held
            out now must not have been trained on.
    """
    folder, file = trained.path / "warm_start", trained.path / "started.json"
    previous = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if warm and previous.get("ingredients") == inputs:
        return (ModelFolder(folder), "") if previous["warm"] else (initialized, "the run started without one")
    try:
        if not warm:
            raise WarmStartImpossible("not requested")
        changed = changed_ids(trained.final_model.path, tokenizer, new)
        if previous.get("made_of") != origin:
            raise WarmStartImpossible("the base model or the division of the corpus has changed")
        with atomic_write(folder) as staged:
            staged.mkdir()
            write_warm_start(trained.final_model.path, initialized.path, changed, staged)
        obstacle = ""
    except WarmStartImpossible as error:
        obstacle = str(error)
        remove(folder)
    with atomic_write(file) as staged:
        content = {"ingredients": inputs, "made_of": origin, "warm": not obstacle}
        staged.write_text(json.dumps(content) + "\n", encoding="utf-8")
    return (initialized, obstacle) if obstacle else (ModelFolder(folder), "")


def changed_ids(trained: Path, tokenizer: TokenizerFolder, new: int) -> list[int]:
    """Ids that changed their string since a model was fine-tuned, ascending; reads no weights.

    Args:
        trained: folder of the fine-tuned model and its tokenizer.
        tokenizer: the tokenizer to train with.
        new: number of new tokens.

    Raises:
        WarmStartImpossible: there is no such model, or the vocabularies differ too much.
    """
    if not (trained / "config.json").is_file():
        raise WarmStartImpossible("there is no fine-tuned model")
    before, now = strings_by_id(TokenizerFolder(trained).backend()), strings_by_id(tokenizer.backend())
    if len(before) != len(now):
        raise WarmStartImpossible(f"its vocabulary has {len(before):,} tokens, the current one {len(now):,}")
    changed = [i for i, (old, string) in enumerate(zip(before, now, strict=True)) if old != string]
    if len(changed) > MAX_CHANGED * new:
        raise WarmStartImpossible(f"{len(changed):,} of its ids changed their string")
    return changed


def write_warm_start(trained: Path, initialized: Path, changed: list[int], target: Path) -> None:
    """Write the fine-tuned model with the initialized rows of the `changed` ids, and the current tokenizer.

    Args:
        trained: folder of the fine-tuned model.
        initialized: folder of the initialized model.
        changed: ids whose rows are those of the initialized model.
        target: an empty folder.

    Raises:
        WarmStartImpossible: the models have different parameters.
    """
    import torch

    old, new = ModelFolder(trained).load(), ModelFolder(initialized).load()
    shapes = [{name: value.shape for name, value in model.named_parameters()} for model in (old, new)]
    if shapes[0] != shapes[1]:
        raise WarmStartImpossible("it has another architecture or size")
    ids = torch.tensor(changed, dtype=torch.long)
    with torch.no_grad():
        for fine_tuned, initial in zip(embedding_parameters(old), embedding_parameters(new), strict=True):
            fine_tuned[ids] = initial[ids].to(fine_tuned.dtype)
    old.save_pretrained(target)
    for file in initialized.iterdir():
        is_weights = file.suffix == ".safetensors" or file.name.endswith(".index.json")
        if file.is_file() and not is_weights and not file.name.startswith(".") and not (target / file.name).exists():
            shutil.copyfile(file, target / file.name)
