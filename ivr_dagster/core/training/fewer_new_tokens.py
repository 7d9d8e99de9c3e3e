"""The initialized model and its tokenizer with only the best of the new tokens, to find out whether fewer do better.

Without a rule an id keeps the base's string and row, so nothing is initialized again.
"""

import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from ivr_dagster.core.embedding.extract import read_embeddings, write_model
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokenizer.unigram import distill
from ivr_dagster.core.tokenizer.write import write_copy, write_unigram_form
from ivr_dagster.core.tokens.counts import count_pretokens
from ivr_dagster.core.tokens.sequences import reference_encoder
from ivr_dagster.core.vocabulary.remap import remap_tokenizer
from ivr_dagster.core.vocabulary.rules import RemapRule, RemapRules, write_remapped_bpe
from ivr_dagster.core.vocabulary.within import count_merges


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
    ids_of = {rule.new_token: rule.id for rule in rules}
    halves = {r.id: (ids_of.get(r.halves[0], -1), ids_of.get(r.halves[1], -1)) for r in rules if r.halves}
    saved = count_merges(dict(enumerate(counts.tolist())), halves)

    def rank(rule: RemapRule) -> tuple[bool, int]:
        phrase_saving = int(counts[rule.id]) * (len(rule.constituents) - 1)
        return bool(rule.constituents), -(saved[rule.id] if rule.halves else phrase_saving)

    yield from sorted(rules, key=rank)  # stable: halves come before what is made of them


def write_with_rules(
    rules: RemapRules,
    all_rules: RemapRules,
    base_model: ModelFolder,
    model: ModelFolder,
    tokenizer: TokenizerFolder,
    folder: Path,
    texts: list[str],
    *,
    exceptions: int,
) -> None:
    """Write a model folder with some of the rules, and its tokenizer.

    Args:
        rules: the rules to keep.
        all_rules: the rules of `model`.
        base_model: the base model, whose rows replace those of the other rules' ids.
        model: the initialized model.
        tokenizer: its tokenizer.
        folder: an empty folder.
        texts: texts that the tokenizer is distilled on.
        exceptions: as of :func:`~ivr_dagster.core.tokenizer.unigram.distill`.
    """
    dropped = {rule.id for rule in all_rules} - {rule.id for rule in rules}
    write_model_with_base_rows(dropped, base_model, model, folder)
    write_tokenizer_with_rules(rules, tokenizer, folder, texts, exceptions=exceptions)


def write_model_with_base_rows(ids: Collection[int], base_model: ModelFolder, model: ModelFolder, folder: Path) -> None:
    """Write a model with the base model's rows at some ids."""
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
    base = tokenizer.base_backend()
    with tempfile.TemporaryDirectory() as bpe_folder:
        bpe = TokenizerFolder(Path(bpe_folder))
        remapped = remap_tokenizer(base, tokenizer.base_bpe(), rules)
        write_remapped_bpe(remapped, rules, tokenizer, bpe.path)
        if type(tokenizer.backend().model).__name__ == "BPE":
            write_copy(bpe, folder)
        else:
            counts = count_pretokens(texts, base)
            write_unigram_form(distill(remapped, bpe.bpe(), counts, exceptions=exceptions).tokenizer, bpe, folder)
