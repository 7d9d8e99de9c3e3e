"""The initialized model and its tokenizer with only the best of the new tokens, to find out whether fewer do better.

Without a rule an id keeps the base's string and row, so nothing is initialized again.
"""

import tempfile
from collections.abc import Collection
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


def best_rules(rules: RemapRules, tokenizer: TokenizerFolder, texts: list[str], number: int) -> RemapRules:
    """The rules that save most tokens in the texts, with the rules that they need; bytes without a base token first.

    A rule needs those of its halves, and those whose sacrificed token is made of its own.

    Args:
        rules: all rules.
        tokenizer: the remapped tokenizer.
        texts: the texts of a trial.
        number: how many rules to return at least, if there are that many.
    """
    backend = tokenizer.backend()
    counts = np.zeros(backend.get_vocab_size(with_added_tokens=True), dtype=np.int64)
    for ids in reference_encoder(backend)(texts):
        counts += np.bincount(ids, minlength=len(counts))
    ids_of = {rule.new_token: rule.id for rule in rules}
    halves = {r.id: (ids_of.get(r.halves[0], -1), ids_of.get(r.halves[1], -1)) for r in rules if r.halves}
    saved = count_merges(dict(enumerate(counts.tolist())), halves)
    needs = {rule.id: set(halves.get(rule.id, ())) & {*ids_of.values()} for rule in rules}
    for left, right, token in tokenizer.base_bpe().merges:
        for half in {left, right} & needs.keys():
            needs[half].add(token)

    def rank(rule: RemapRule) -> tuple[bool, int]:
        phrase_saving = int(counts[rule.id]) * (len(rule.constituents) - 1)
        return bool(rule.constituents), -(saved[rule.id] if rule.halves else phrase_saving)

    kept: set[int] = set()
    for rule in sorted(rules, key=rank):
        if len(kept) >= number:
            break
        added = {rule.id} - kept
        while added:
            kept |= added
            added = {needed for each in added for needed in needs[each]} - kept
    return RemapRules(tuple(rule for rule in rules if rule.id in kept))


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
