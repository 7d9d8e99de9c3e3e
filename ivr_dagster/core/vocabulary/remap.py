"""The remapped tokenizer: the base's BPE without the sacrificed tokens and with the new ones, at the ids of the rules.

Sacrificed tokens are leaves of the merge tree, and the merges of new tokens come last. A text without sacrificed and
new tokens is therefore segmented exactly as before.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, pre_tokenizers

from ivr_dagster.core.tokenizer.agreement import is_reachable
from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE
from ivr_dagster.core.tokenizer.scores import unreachable_ids
from ivr_dagster.core.tokenizer.segments import encode_each, segments_of_types
from ivr_dagster.core.tokens.byte_level import whole_text
from ivr_dagster.core.tokens.counts import PretokenCounts
from ivr_dagster.core.tokens.pretokens import read_pretokenization
from ivr_dagster.core.vocabulary.phrases import pattern_with
from ivr_dagster.core.vocabulary.rules import RemapRule, RemapRules
from ivr_dagster.core.vocabulary.sacrifice import always_protected
from ivr_dagster.errors import InputError

Merge = tuple[str, str]


def remapped_strings(base_strings: Iterable[str], rules: RemapRules) -> list[str]:
    """The token of every id after the rules, V entries, from those before."""
    strings = list(base_strings)
    for token_id, new_token in rules.new_tokens().items():
        strings[token_id] = new_token
    return strings


def remap_tokenizer(base: Tokenizer, bpe: ByteLevelBPE, rules: RemapRules) -> Tokenizer:
    """Apply complete rules to a BPE; everything around the model stays as it is.

    Phrases become part of the pre-tokenizer's pattern, and a pre-token that is in the vocabulary stays whole
    (`ignore_merges`).

    Args:
        base: the base tokenizer.
        bpe: its vocabulary.
        rules: the remap rules, see :func:`complete_rules`.

    Raises:
        InputError: with phrases, tokens that the base never produces would occur.
    """
    pattern = pattern_with(base, rules.new_tokens().values())
    revived = unreachable_ids(bpe).difference(rules.new_tokens()) if pattern and not bpe.ignores_merges else ()
    if revived:
        raise InputError(
            f"phrases require ignore_merges, but with it the tokenizer would produce {len(revived):,} tokens that the "
            f"base never produces, such as {bpe.strings[min(revived)]!r}",
            where="merge_scope",
            remedy="Set --merge-scope within.",
        )
    new_tokens = {rule.new_token: rule.id for rule in rules}
    merges = [(rule.halves[0], rule.halves[1]) for rule in rules if rule.halves]
    return bpe_with(base, new_tokens, merges, sacrificed={rule.sacrificed_token for rule in rules}, pattern=pattern)


def bpe_with(
    base: Tokenizer,
    new_tokens: Mapping[str, int],
    merges: Iterable[Merge],
    *,
    sacrificed: Collection[str] = (),
    pattern: str | None = None,
) -> Tokenizer:
    """A BPE tokenizer with other tokens.

    Args:
        base: a byte-level BPE tokenizer.
        new_tokens: id by string of the new tokens.
        merges: their merges, which come after all others.
        sacrificed: strings that are removed with their merges.
        pattern: replaces the pattern of the pre-tokenizer, and makes the model keep whole pre-tokens of its vocabulary.
    """
    specification = json.loads(base.to_str())
    model = specification["model"]
    model["vocab"] = {s: i for s, i in model["vocab"].items() if s not in sacrificed} | dict(new_tokens)
    kept = [merge for merge in model["merges"] if merge[0] + merge[1] not in sacrificed]
    model["merges"] = kept + [list(merge) for merge in merges]
    model["ignore_merges"] = bool(pattern or model.get("ignore_merges"))
    tokenizer: Tokenizer = Tokenizer.from_str(json.dumps(specification))
    if pattern:
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level]
        )
    return tokenizer


def complete_rules(
    rules: RemapRules, base: Tokenizer, bpe: ByteLevelBPE, where: Path | str = "remap_rules.yaml"
) -> tuple[RemapRules, list[RemapRule]]:
    """Find the halves of new tokens whose rules do not name them.

    BPE segments the new token with the vocabulary so far. If it finds two tokens, these are the halves. If it finds
    more, tokens are missing on the way; they are added at ids whose tokens were merged last in the base.

    Args:
        rules: rules that :func:`~ivr_dagster.core.vocabulary.rules.check_rules` accepts.
        base: the base tokenizer.
        bpe: its vocabulary.
        where: the file of the rules, for errors.

    Returns:
        All rules in merge order, and the added ones.

    Raises:
        InputError: no id is left for a missing token.
    """
    split = read_pretokenization(base).splitter(base)

    def is_merged(rule: RemapRule) -> bool:
        text = whole_text(rule.new_token)
        return len(rule.new_token) > 1 and (text is None or len(split(text)) == 1)

    open_rules = [rule for rule in rules if not rule.halves and is_merged(rule)]
    if not open_rules:
        return rules, []
    completion = _Completion(rules, open_rules, bpe)
    needed = {half for rule in rules for half in rule.halves}
    last = {rule.new_token for rule in open_rules} - needed
    for rule in rules:
        if rule.halves or not is_merged(rule):
            completion.append(rule)
        elif rule.new_token in needed:  # at its place, since later rules are made of it
            completion.add(rule, where)
    for rule in sorted(open_rules, key=lambda rule: len(rule.new_token)):
        if rule.new_token in last:
            completion.add(rule, where)
    return replace(rules, rules=tuple(completion.found)), completion.added


class _Completion:
    """BPE with the rules' merges so far, and the ids that are free for missing tokens."""

    def __init__(self, rules: RemapRules, open_rules: Sequence[RemapRule], bpe: ByteLevelBPE) -> None:
        self._bpe = bpe
        sacrificed, wanted = {rule.id for rule in rules}, {rule.new_token for rule in rules}
        merges = [(bpe.strings[a], bpe.strings[b]) for a, b, token in bpe.merges if token not in sacrificed]
        self._ranks = {merge: rank for rank, merge in reversed([*enumerate(merges)])}
        self._taken = {*bpe.ids, *wanted}
        used = {half for merge in merges for half in merge}
        used |= {part for rule in rules for part in (*rule.halves, *rule.constituents)}
        used |= {part for rule in open_rules for part in self._segment(rule.new_token)}
        always = always_protected(bpe)
        leaves = (i for i, s in enumerate(bpe.strings) if i not in sacrificed and i not in always and s not in used)
        self._free = sorted(leaves, key=lambda i: (bpe.ranks[i], i))
        self._constituents = {rule.new_token: rule.constituents for rule in rules}
        self.found: list[RemapRule] = []
        self.added: list[RemapRule] = []

    def add(self, rule: RemapRule, where: Path | str) -> None:
        """Find the halves of a rule's new token, and the tokens that are missing for it."""
        while len(parts := self._segment(rule.new_token)) > 2:
            pairs = (pair for pair in pairwise(parts) if "".join(pair) not in self._taken)
            pair = next(pairs, None)
            if pair is None or not self._free:
                raise InputError(
                    f"new token {rule.new_token!r} is not the concatenation of two tokens, but of {' + '.join(parts)}"
                    + ("" if pair is None else f", and no id is left for {''.join(pair)!r}"),
                    where=f"{where}:{rule.line}" if rule.line else where,
                    remedy="Delete this rule"
                    + (
                        "."
                        if pair is None
                        else f" or another one; it needs {''.join(pair)!r} = {pair[0]!r} + {pair[1]!r}."
                    ),
                )
            free = self._free.pop()
            constituents = tuple(part for half in pair for part in self._constituents.get(half, (half,)))
            self.append(RemapRule(free, self._bpe.strings[free], "".join(pair), constituents, halves=pair))
            self.added.append(self.found[-1])
        self.append(replace(rule, halves=tuple(parts)))

    def append(self, rule: RemapRule) -> None:
        """Take over a rule, which is merged after all others."""
        self.found.append(rule)
        self._taken.add(rule.new_token)
        self._constituents[rule.new_token] = rule.constituents
        if rule.halves:
            self._ranks[rule.halves[0], rule.halves[1]] = len(self._bpe.merges) + len(self.found)

    def _segment(self, string: str) -> list[str]:
        parts = list(string)
        while len(parts) > 1:
            rank, at = min((self._ranks.get(pair, np.inf), n) for n, pair in enumerate(pairwise(parts)))
            if rank == np.inf:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return parts


def unaffected_types(
    base: Tokenizer,
    remapped: Tokenizer,
    rules: RemapRules,
    counts: PretokenCounts,
) -> list[tuple[int, bool]]:
    """Indices in `counts.types` of types without sacrificed or new tokens, and whether both give them the same ids.

    The model knows the base's segmentation from pre-training; any other is a needless loss.
    """
    changed = np.zeros(base.get_vocab_size(), dtype=bool)
    changed[list(rules.new_tokens())] = True
    before, after = segments_of_types(base, counts.types), encode_each(remapped, counts.types)
    affected = before.containing(changed) | after.containing(changed)
    same = ~before.differing(after)
    return [(n, bool(same[n])) for n in np.flatnonzero(~affected).tolist()]


def unreachable_tokens(tokenizer: Tokenizer, rules: RemapRules) -> list[str]:
    """New tokens whose own text the tokenizer does not encode as that one token."""
    new = rules.new_tokens()
    found = is_reachable(tokenizer, [*new.values()], [*new])
    return [string for string, reachable in zip(new.values(), found, strict=True) if not reachable]
