"""The initialized model and its tokenizer with only the best of the new tokens, to find out whether fewer do better.

Without a rule an id keeps the base's string and row, so nothing is initialized again.
"""

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from ivr_dagster.core.embedding.extract import read_embeddings, write_model
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokens.counts import count_pretokens
from ivr_dagster.core.tokens.sequences import reference_encoder
from ivr_dagster.core.vocabulary.remap import remap_tokenizer, write_remapped_tokenizer
from ivr_dagster.core.vocabulary.rules import RemapRule, RemapRules


def best_rules(rules: RemapRules, tokenizer: TokenizerFolder, texts: list[str]) -> Iterator[RemapRule]:
    """The rules by the tokens that they save in the texts, the best first; bytes without a base token come before all.

    Args:
        rules: all rules.
        tokenizer: the remapped tokenizer.
        texts: the texts of a trial.
    """
    backend = tokenizer.backend()
    counts = np.zeros(backend.get_vocab_size(with_added_tokens=True), dtype=np.int64)
    for ids in reference_encoder(backend)(texts):
        counts += np.bincount(ids, minlength=len(counts))

    def rank(rule: RemapRule) -> tuple[bool, int, int]:
        return bool(rule.constituents), -int(counts[rule.id]) * (len(rule.constituents) - 1), rule.id

    yield from sorted(rules, key=rank)


def write_model_with_base_rows(ids: Collection[int], base_model: ModelFolder, model: ModelFolder, folder: Path) -> None:
    """Write a model into an empty folder, with the base model's rows at some ids."""
    import torch

    base, tensors = read_embeddings(base_model.path), read_embeddings(model.path)
    index = torch.tensor(sorted(ids), dtype=torch.long)
    for name, rows in tensors.items():
        rows[index] = base[name][index].to(rows.dtype)
    write_model(model.path, tensors, folder)


def write_tokenizer_with_rules(
    rules: RemapRules, tokenizer: TokenizerFolder, folder: Path, texts: list[str], *, exceptions: int
) -> None:
    """Write the base tokenizer of `tokenizer`, remapped by some of its rules."""
    backend = tokenizer.base_backend()
    counts = count_pretokens(texts, backend)
    remapping = remap_tokenizer(backend, tokenizer.base_bpe(), rules, counts, exceptions=exceptions)
    write_remapped_tokenizer(remapping.tokenizer, rules, tokenizer.base_file, tokenizer, folder)
