"""The remapped tokenizer: the base tokenizer's ids with the remap rules applied, as a Unigram."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from ivr_dagster.core.tokenizer.agreement import is_reachable
from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE
from ivr_dagster.core.tokenizer.cuts import cut_pattern, find_exceptions, run_cuts, segmenter
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokenizer.scores import scores_with_new
from ivr_dagster.core.tokenizer.segments import Segments, encode_each, segments_of_types
from ivr_dagster.core.tokenizer.unigram import unigram_tokenizer
from ivr_dagster.core.tokenizer.write import write_tokenizer
from ivr_dagster.core.tokens.byte_level import string_of
from ivr_dagster.core.tokens.counts import PretokenCounts
from ivr_dagster.core.vocabulary.phrases import pattern_with
from ivr_dagster.core.vocabulary.rules import RemapRules, write_applied_rules


def remapped_strings(base_strings: Iterable[str], rules: RemapRules) -> list[str]:
    """The token of every id after the rules, V entries, from those before."""
    strings = list(base_strings)
    for token_id, new_token in rules.new_tokens().items():
        strings[token_id] = new_token
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
    base_ids: Segments | None = None,
) -> Remapping:
    """Apply the rules to the base tokenizer's vocabulary and build a Unigram tokenizer.

    New tokens that cross pre-tokens become part of the pre-tokenizer's pattern.

    Args:
        base: the base tokenizer.
        bpe: its vocabulary.
        rules: the remap rules.
        counts: pre-token counts on which types that no rule affects are to be segmented as by the base.
        exceptions: maximum number of such types that get explicit cuts; 0 for none.
        base_ids: the base's ids of the counted types, if known.
    """
    strings = remapped_strings(bpe.strings, rules)
    new = list(rules.new_tokens().values())
    runs = run_cuts(base, bpe.model_strings, new)
    scores = scores_with_new(bpe, strings)
    build = partial(unigram_tokenizer, base, strings, scores, pattern=pattern_with(base, new))
    plain = build(cuts=cut_pattern(runs, {}))
    if counts is None or not exceptions:
        return Remapping(plain)
    unaffected = unaffected_types(base, plain, rules, counts, base_ids=base_ids)
    failing = [string_of(counts.types[n]) for n, same in unaffected if not same]
    found = find_exceptions(base, plain, runs, failing, exceptions)
    found = _without_new_tokens(plain, runs, found, set(new))
    return Remapping(build(cuts=cut_pattern(runs, found)) if found else plain, found)


def unaffected_types(
    base: Tokenizer,
    remapped: Tokenizer,
    rules: RemapRules,
    counts: PretokenCounts,
    *,
    base_ids: Segments | None = None,
) -> list[tuple[int, bool]]:
    """Indices in `counts.types` of types without sacrificed or new tokens, and whether both give them the same ids.

    The model knows the base's segmentation from pre-training; any other is a needless loss.
    """
    changed = np.zeros(base.get_vocab_size(), dtype=bool)
    changed[list(rules.new_tokens())] = True
    before, after = base_ids or segments_of_types(base, counts.types), encode_each(remapped, counts.types)
    affected = before.containing(changed) | after.containing(changed)
    same = ~before.differing(after)
    return [(n, bool(same[n])) for n in np.flatnonzero(~affected).tolist()]


def _without_new_tokens(
    plain: Tokenizer, runs: str | None, exceptions: Mapping[str, str], new: set[str]
) -> dict[str, str]:
    """Exceptions that cut no string with new tokens, directly or through the exception of their rest."""
    segment = segmenter(plain, runs)
    kept = {string: piece for string, piece in exceptions.items() if new.isdisjoint(segment(string))}
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
    new = rules.new_tokens()
    found = is_reachable(tokenizer, [*new.values()], [*new])
    return [string for string, reachable in zip(new.values(), found, strict=True) if not reachable]
