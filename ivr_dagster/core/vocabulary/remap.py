"""The remapped tokenizer: the base tokenizer's ids with the remap rules applied, as a Unigram."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from ivr_dagster.core.tokenizer.agreement import encode_to_themselves
from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE
from ivr_dagster.core.tokenizer.cuts import cut_behind_runs, cut_pattern, find_exceptions, run_cuts
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokenizer.scores import scores_with_new
from ivr_dagster.core.tokenizer.segments import Segments, encode_each, segments_of_types
from ivr_dagster.core.tokenizer.unigram import unigram_tokenizer
from ivr_dagster.core.tokenizer.write import write_tokenizer
from ivr_dagster.core.tokens.byte_level import string_of
from ivr_dagster.core.tokens.counts import PretokenCounts
from ivr_dagster.core.vocabulary.phrases import pattern_with
from ivr_dagster.core.vocabulary.rules import RemapRules, write_applied_rules


def remapped_strings(bpe: ByteLevelBPE, rules: RemapRules) -> list[str]:
    """The token of every id after the rules, V entries."""
    strings = list(bpe.strings)
    for rule in rules:
        strings[rule.id] = rule.new_token
    return strings


@dataclass(frozen=True)
class Remapping:
    """The remapped tokenizer and the exceptions in it: first piece by whole pre-token (byte-level strings)."""

    tokenizer: Tokenizer
    exceptions: Mapping[str, str] = field(default_factory=dict)


def remap_tokenizer(
    base: Tokenizer,
    bpe: ByteLevelBPE,
    rules: RemapRules,
    counts: PretokenCounts | None = None,
    *,
    exceptions: int = 0,
    of_base: Segments | None = None,
) -> Remapping:
    """The base tokenizer's ids with the rules applied, as a Unigram tokenizer.

    New tokens that reach over pre-tokens become part of the pre-tokenizer's pattern.

    Args:
        base: the base tokenizer.
        bpe: its vocabulary.
        rules: what changes.
        counts: pre-token counts on which what no rule touches is to be segmented as the base does.
        exceptions: how many pre-token types at most get cuts of their own for that; 0 for none.
        of_base: the base's ids of the counted types, where they are known.
    """
    strings = remapped_strings(bpe, rules)
    new = [rule.new_token for rule in rules]
    pattern = pattern_with(base, new)
    runs = run_cuts(base, bpe.model_strings, new)
    build = partial(unigram_tokenizer, base, strings, scores_with_new(bpe, strings), pattern=pattern)
    plain = build(cuts=cut_pattern(runs, {}))
    if counts is None or not exceptions:
        return Remapping(plain)
    untouched = untouched_types(base, plain, rules, counts, of_base=of_base)
    failing = [string_of(counts.types[n]) for n, same in untouched if not same]
    found = find_exceptions(base, plain, runs, failing, exceptions)
    found = _without_new_tokens(plain, runs, found, set(new))
    return Remapping(build(cuts=cut_pattern(runs, found)) if found else plain, found)


def untouched_types(
    base: Tokenizer,
    remapped: Tokenizer,
    rules: RemapRules,
    counts: PretokenCounts,
    *,
    of_base: Segments | None = None,
) -> list[tuple[int, bool]]:
    """Places in `counts.types` of those without a sacrificed or a new token, and whether both give them the same ids.

    The model knows their segmentation from pre-training; any other is a needless loss.
    """
    changed = np.zeros(base.get_vocab_size(), dtype=bool)
    changed[[rule.id for rule in rules]] = True
    before, after = of_base or segments_of_types(base, counts.types), encode_each(remapped, counts.types)
    touched = before.holding(changed) | after.holding(changed)
    same = ~before.differing(after)
    return [(n, bool(same[n])) for n in np.flatnonzero(~touched).tolist()]


def _without_new_tokens(
    plain: Tokenizer, runs: str | None, exceptions: Mapping[str, str], new: set[str]
) -> dict[str, str]:
    """Exceptions left when no string that new tokens stand in may be cut, nor one that needs such a string cut."""
    cut = cut_behind_runs(plain, runs)
    kept = {string: piece for string, piece in exceptions.items() if new.isdisjoint(cut(string))}
    while True:
        rests = {string: string[len(piece) :] for string, piece in kept.items()}
        lost = [string for string, rest in rests.items() if rest in exceptions and rest not in kept]
        if not lost:
            return kept
        for string in lost:
            del kept[string]


def write_remapped_tokenizer(
    tokenizer: Tokenizer, rules: RemapRules, base: Path, like: TokenizerFolder, folder: Path
) -> None:
    """Write a remapped tokenizer with its context: the base tokenizer and the rules.

    Args:
        tokenizer: the remapped tokenizer.
        rules: the rules it was made by.
        base: the base tokenizer's `tokenizer.json`.
        like: a tokenizer whose special tokens, chat template and other settings are kept.
        folder: where to write.
    """
    write_tokenizer(tokenizer, like.path, folder, base=base)
    write_applied_rules(rules, folder)


def unreachable_tokens(tokenizer: Tokenizer, rules: RemapRules) -> list[str]:
    """New tokens whose own text the tokenizer does not encode as that one token."""
    new = [rule.new_token for rule in rules]
    found = encode_to_themselves(tokenizer, new, [rule.id for rule in rules])
    return [string for string, itself in zip(new, found, strict=True) if not itself]
