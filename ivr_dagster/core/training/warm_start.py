"""Going on from a model fine-tuned before, when the vocabulary is nearly the one it was fine-tuned with.

A rebuild keeps most of the remap rules. What the model learned of ids that mean what they meant is then still good;
rows of ids that mean something else now are the initialized model's.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from ivr_dagster.core.embedding.new_rows import embedding_parameters
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.tokenizer.bpe import strings_by_id
from ivr_dagster.core.tokenizer.folder import TokenizerFolder


@dataclass(frozen=True)
class WarmStart:
    """What a warm start would take over.

    Attributes:
        changed: ids whose string is another one than when the model was fine-tuned, ascending.
        new: how many new tokens there are now.
        obstacle: why the model cannot be gone on from, empty where it can.
    """

    changed: tuple[int, ...]
    new: int
    obstacle: str = ""


# of the new tokens, the share that may be others than before
MOST_CHANGED = 0.25


def look_at(trained: Path, tokenizer: Path, new: int) -> WarmStart:
    """Compare the vocabulary of a fine-tuned model's folder with the one to train with; no weights are read.

    Args:
        trained: the final model of the run before, with its tokenizer.
        tokenizer: the folder of the tokenizer to train with.
        new: how many new tokens it has.
    """
    if not (trained / "config.json").is_file():
        return WarmStart((), new, "no model was fine-tuned here before")
    before, now = (strings_by_id(TokenizerFolder(folder).backend()) for folder in (trained, tokenizer))
    if len(before) != len(now):
        return WarmStart((), new, f"its vocabulary has {len(before):,} tokens, the new one {len(now):,}")
    changed = tuple(i for i, (old, string) in enumerate(zip(before, now, strict=True)) if old != string)
    if len(changed) > MOST_CHANGED * new:
        return WarmStart(changed, new, f"{len(changed):,} of its ids stand for other strings now")
    return WarmStart(changed, new)


def write_warm_start(trained: Path, initialized: Path, changed: tuple[int, ...], target: Path) -> str:
    """Write the fine-tuned model with the initialized rows of the `changed` ids, and the tokenizer of now.

    Args:
        trained: the fine-tuned model's folder.
        initialized: the initialized model's.
        changed: ids whose rows are the initialized model's.
        target: an empty folder.

    Returns:
        Why it cannot be done, empty where it was: another architecture, or other sizes.
    """
    import torch

    old, new = ModelFolder(trained).load(), ModelFolder(initialized).load()
    ours, theirs = dict(new.named_parameters()), dict(old.named_parameters())
    if {name: value.shape for name, value in ours.items()} != {name: value.shape for name, value in theirs.items()}:
        return "it is of another architecture or size"
    ids = torch.tensor(changed, dtype=torch.long)
    with torch.no_grad():
        for fine_tuned, initial in zip(embedding_parameters(old), embedding_parameters(new), strict=True):
            fine_tuned[ids] = initial[ids].to(fine_tuned.dtype)
    old.save_pretrained(target)
    for file in initialized.iterdir():
        weights = file.suffix == ".safetensors" or file.name.endswith(".index.json")
        if file.is_file() and not weights and not file.name.startswith(".") and not (target / file.name).exists():
            shutil.copyfile(file, target / file.name)
    return ""
