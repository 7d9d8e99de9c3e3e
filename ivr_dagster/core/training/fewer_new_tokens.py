"""The adapted model with only the first of its new tokens: what there is to tell whether fewer would do better.

In place, every id without a rule keeps the base's string and row, so fewer rules are the base's strings and rows again
at the ids of the others. Nothing is initialized anew.
"""

from collections.abc import Collection
from pathlib import Path

from ivr_dagster.core.embedding.extract import read_embeddings, write_model
from ivr_dagster.core.tokenizer.folder import TOKENIZER, TokenizerFolder
from ivr_dagster.core.tokens.counts import PretokenCounts
from ivr_dagster.core.vocabulary.remap import remap_tokenizer, write_remapped_tokenizer
from ivr_dagster.core.vocabulary.rules import RemapRules


def write_tokenizer_with(
    rules: RemapRules,
    original: TokenizerFolder,
    remapped: TokenizerFolder,
    folder: Path,
    counts: PretokenCounts,
    *,
    exceptions: int,
) -> None:
    """Write the tokenizer that follows from `rules` into `folder`.

    Args:
        rules: some of the rules in force.
        original: the base tokenizer.
        remapped: the tokenizer of all rules, whose special tokens and the like are taken over.
        folder: where to write.
        counts, exceptions: as of :func:`~ivr_dagster.core.vocabulary.remap.remap_tokenizer`.
    """
    base = original.backend()
    remapping = remap_tokenizer(base, original.bpe(), rules, counts, exceptions=exceptions)
    write_remapped_tokenizer(remapping.tokenizer, rules, original.path / TOKENIZER, remapped, folder)


def write_model_without(dropped: Collection[int], base_model: Path, initialized: Path, folder: Path) -> None:
    """Write the initialized model with the base's rows at the ids that are not given away after all.

    Args:
        dropped: these ids.
        base_model: the base model's folder.
        initialized: the initialized model's folder.
        folder: where to write; it exists. The tokenizer is left to the caller.
    """
    import torch

    base, tensors = read_embeddings(base_model), read_embeddings(initialized)
    ids = torch.tensor(sorted(dropped), dtype=torch.long)
    for name, rows in tensors.items():
        rows[ids] = base[name][ids].to(rows.dtype)
    write_model(initialized, tensors, folder)
