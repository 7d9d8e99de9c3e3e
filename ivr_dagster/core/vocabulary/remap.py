"""Remap rules: which id goes from which sacrificed token to which new token.

What belongs here: the rules as data, their YAML form (which people may edit), their validation against the base
vocabulary, and the remapped tokenizer that follows from them alone.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tokenizers import Tokenizer

from ivr_dagster.core.errors import InputError
from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE
from ivr_dagster.core.tokenizer.unigram import (
    UNREACHABLE,
    best_split,
    repair_scores,
    run_cuts,
    scores_from_merges,
    unigram_tokenizer,
)
from ivr_dagster.core.tokens.byte_level import bytes_of, is_byte_level
from ivr_dagster.core.vocabulary.candidates import Candidate
from ivr_dagster.core.vocabulary.sacrifice import protected_ids

# What a new token scores above its best rival. Smaller than any gain that matters, a new token would be left to what
# late merges leave over; larger, it would tear apart tokens that BPE makes early.
NEW_TOKEN_GAIN = 1e-6


@dataclass(frozen=True)
class RemapRule:
    """One id that changes its string.

    Attributes:
        id: the id.
        sacrificed_token: the base token that gives it up (byte-level string).
        new_token: the string that takes it (byte-level).
        constituents: the base tokens whose concatenation the new token is, in order.
        frequencies: occurrences on the train split: `sacrificed` under the base tokenizer, `new` once all new tokens
            are in use, `saving` in tokens when it was chosen. For people; nothing is computed from them.
    """

    id: int
    sacrificed_token: str
    new_token: str
    constituents: tuple[str, ...]
    frequencies: dict[str, int] = field(default_factory=dict)


def make_rules(
    candidates: Sequence[Candidate], sacrifices: Sequence[int], bpe: ByteLevelBPE, frequencies: np.ndarray
) -> list[RemapRule]:
    """Pair candidates with sacrificed ids, the best candidate with the first id."""
    return [
        RemapRule(
            id=token_id,
            sacrificed_token=bpe.strings[token_id],
            new_token=candidate.string,
            constituents=tuple(bpe.strings[i] for i in candidate.constituents),
            frequencies={
                "sacrificed": int(frequencies[token_id]),
                "new": candidate.frequency,
                "saving": candidate.saving,
            },
        )
        for candidate, token_id in zip(candidates, sacrifices, strict=True)
    ]


HEADER = """\
# Remap rules: each id below changes its string from sacrificed_token to new_token.
# Strings are in the byte-level alphabet (a space is Ġ). You may edit, add or delete rules: an edited file is checked
# and honoured as it stands; materialize remapped_tokenizer after it. To get the computed rules back, delete the file
# and run `ivr remap`.
"""


def rules_as_yaml(rules: Sequence[RemapRule]) -> str:
    """The rules as YAML with a header that says how they may be edited."""
    rows = [asdict(rule) | {"constituents": list(rule.constituents)} for rule in rules]
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    body = yaml.dump({"rules": rows}, Dumper=dumper, allow_unicode=True, sort_keys=False, width=1000)
    return HEADER + body


def rules_from_yaml(text: str, where: Path | str = "remap_rules.yaml") -> list[RemapRule]:
    """Rules out of their YAML form; their shape is checked here, their sense by :func:`check_rules`.

    Raises:
        InputError: no YAML, or a rule without id, sacrificed_token, new_token or constituents of the right type.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        root = yaml.compose(text, Loader=loader)
        content = yaml.load(text, Loader=loader)  # noqa: S506 (a safe loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark else str(where)
        problem = getattr(error, "problem", None) or str(error)
        raise InputError(f"the remap rules are no YAML: {problem}", where=place, remedy="Mend or delete the file.") from error
    if not isinstance(content, dict) or not isinstance(content.get("rules"), list):
        raise InputError("a list under the key `rules` was expected", where=where, remedy="Mend or delete the file.")
    nodes = next(value for key, value in root.value if key.value == "rules").value
    rules, faults = [], []
    for row, node in zip(content["rules"], nodes, strict=True):
        fault = _shape_fault(row)
        if fault:
            faults.append(f"{where}:{node.start_mark.line + 1}: {fault}")
            continue
        frequencies = {str(key): int(value) for key, value in (row.get("frequencies") or {}).items()}
        rules.append(RemapRule(row["id"], row["sacrificed_token"], row["new_token"], tuple(row["constituents"]), frequencies))
    if faults:
        raise InputError("; ".join(faults), remedy="Mend these rules or delete the file.")
    return rules


def _shape_fault(row: Any) -> str | None:
    if not isinstance(row, dict):
        return f"a rule is a mapping, found {row!r}"
    if not isinstance(row.get("id"), int) or isinstance(row.get("id"), bool):
        return f"`id` must be a whole number, found {row.get('id')!r}"
    for key in ("sacrificed_token", "new_token"):
        if not isinstance(row.get(key), str) or not row[key]:
            return f"rule for id {row['id']}: `{key}` must be a string (quote it), found {row.get(key)!r}"
    parts = row.get("constituents")
    if not isinstance(parts, list) or not parts or not all(isinstance(part, str) for part in parts):
        return f"rule for id {row['id']}: `constituents` must be a list of strings, found {parts!r}"
    frequencies = row.get("frequencies") or {}
    if not isinstance(frequencies, dict) or not all(isinstance(value, int) for value in frequencies.values()):
        return f"rule for id {row['id']}: `frequencies` must hold whole numbers, found {frequencies!r}"
    return None


def check_rules(rules: Sequence[RemapRule], bpe: ByteLevelBPE, where: Path | str = "remap_rules.yaml") -> None:
    """Whether the rules fit the base vocabulary; all faults are reported together.

    Raises:
        InputError: an id twice, unknown or protected; a sacrificed token that is not the id's; a new token that
            exists already, is given twice or is not in the byte-level alphabet; constituents that are no tokens of the
            base or do not make up the new token.
    """
    protected = protected_ids(bpe)
    ids: set[int] = set()
    strings: set[str] = set()
    faults: list[str] = []
    for rule in rules:
        if rule.id in ids:
            faults.append(f"id {rule.id} is given away twice")
        elif not 0 <= rule.id < bpe.size:
            faults.append(f"id {rule.id} is not in the vocabulary of {bpe.size:,}")
        elif rule.id in protected:
            faults.append(f"id {rule.id} ({bpe.strings[rule.id]!r}) is protected: bytes, special tokens and digits stay")
        elif bpe.strings[rule.id] != rule.sacrificed_token:
            faults.append(f"id {rule.id} is {bpe.strings[rule.id]!r}, not {rule.sacrificed_token!r}")
        if rule.new_token in strings:
            faults.append(f"new token {rule.new_token!r} is given twice")
        elif rule.new_token in bpe.ids:
            faults.append(f"new token {rule.new_token!r} exists already with id {bpe.ids[rule.new_token]}")
        elif not is_byte_level(rule.new_token):
            faults.append(f"new token {rule.new_token!r} is not in the byte-level alphabet (a space is Ġ)")
        unknown = [part for part in rule.constituents if part not in bpe.ids]
        if unknown:
            faults.append(f"new token {rule.new_token!r}: constituent {unknown[0]!r} is no token of the base")
        elif "".join(rule.constituents) != rule.new_token:
            faults.append(f"new token {rule.new_token!r}: constituents make up {''.join(rule.constituents)!r}")
        ids.add(rule.id)
        strings.add(rule.new_token)
    if faults:
        shown = "; ".join(faults[:10]) + (f"; and {len(faults) - 10} more" if len(faults) > 10 else "")
        raise InputError(shown, where=where, remedy="Mend these rules, or delete the file and run `ivr remap`.")


def remapped_strings(bpe: ByteLevelBPE, rules: Sequence[RemapRule]) -> list[str]:
    """The token of every id after the rules, V entries."""
    strings = list(bpe.strings)
    for rule in rules:
        strings[rule.id] = rule.new_token
    return strings


def remapped_scores(bpe: ByteLevelBPE, rules: Sequence[RemapRule]) -> np.ndarray:
    """Unigram scores of the remapped vocabulary, float64 [V].

    Kept tokens start from the closed form; each new token, the shorter first, scores just above its best other
    segmentation; then every token is made the best segmentation of itself.
    """
    strings, scores = remapped_strings(bpe, rules), scores_from_merges(bpe)
    scores[[rule.id for rule in rules]] = UNREACHABLE
    score_of = {s: float(x) for s, x in zip(strings, scores, strict=True) if x > UNREACHABLE}
    longest = max(map(len, strings))
    for rule in sorted(rules, key=lambda rule: (len(rule.new_token), rule.id)):
        scores[rule.id] = best_split(rule.new_token, score_of, longest) + NEW_TOKEN_GAIN
        score_of[rule.new_token] = float(scores[rule.id])
    order = sorted(range(bpe.size), key=lambda i: (len(strings[i]), i))
    reachable = [i for i in order if math.isfinite(scores[i]) and scores[i] > UNREACHABLE]
    return repair_scores(strings, scores, reachable)[0]


def remapped_tokenizer(base: Tokenizer, bpe: ByteLevelBPE, rules: Sequence[RemapRule]) -> Tokenizer:
    """The base tokenizer's ids with the rules applied, as a Unigram tokenizer."""
    strings = remapped_strings(bpe, rules)
    return unigram_tokenizer(base, strings, remapped_scores(bpe, rules), cuts=run_cuts(bpe.strings))


def unreachable_tokens(tokenizer: Tokenizer, rules: Sequence[RemapRule]) -> list[str]:
    """New tokens whose own string the tokenizer does not encode as that one token.

    Strings that are part of a character have no text; they are put to the model behind the pre-tokenizer, the others
    to the whole tokenizer.
    """
    lost = []
    for rule in rules:
        text = _whole_text(rule.new_token)
        if text is None:
            ids = [token.id for token in tokenizer.model.tokenize(rule.new_token)]
        else:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
        if ids != [rule.id]:
            lost.append(rule.new_token)
    return lost


def _whole_text(string: str) -> str | None:
    try:
        return bytes_of(string).decode("utf-8")
    except UnicodeDecodeError:
        return None
