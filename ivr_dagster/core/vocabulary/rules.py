"""Remap rules: which id changes from which sacrificed token to which new token.

The rules as data, their YAML file (which people may edit), and their validation against the base vocabulary.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE
from ivr_dagster.core.tokenizer.folder import REMAP_RULES, TokenizerFolder
from ivr_dagster.core.tokenizer.write import write_tokenizer
from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE, is_byte_level
from ivr_dagster.core.vocabulary.sacrifice import always_protected
from ivr_dagster.errors import InputError, combine_errors, short_repr
from ivr_dagster.storage.content_hash import content_hash
from ivr_dagster.storage.yaml_files import (
    CONSTRUCTION_ERRORS,
    find_aliases_and_duplicates,
    read_text_file,
    yaml_problem,
    yaml_syntax_error,
)


@dataclass(frozen=True)
class RemapRule:
    """One id that changes its string.

    Attributes:
        id: the id.
        sacrificed_token: the base token that loses the id (byte-level string).
        new_token: the string that receives it (byte-level).
        constituents: the base tokens whose concatenation is the new token, in order; empty for a byte that the base
            has no token for.
        frequencies: occurrences on the train split, for people: `sacrificed` under the base tokenizer, `new` with all
            new tokens in use, `saving` in tokens when it was chosen.
        halves: the two tokens whose merge produces it; empty for a phrase, which the pre-tokenizer produces, for a byte
            that the base has no token for, and if the file does not say.
        line: its first line in the file, from 1; None for computed rules.
    """

    id: int
    sacrificed_token: str
    new_token: str
    constituents: tuple[str, ...]
    frequencies: dict[str, int] = field(default_factory=dict)
    halves: tuple[str, ...] = ()
    line: int | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class RemapRules:
    """All rules in merge order, and whether a person has changed them since they were computed."""

    rules: tuple[RemapRule, ...]
    edited: bool = False

    def __iter__(self) -> Iterator[RemapRule]:
        return iter(self.rules)

    def __len__(self) -> int:
        return len(self.rules)

    def new_tokens(self) -> dict[int, str]:
        """The new token's string by id."""
        return {rule.id: rule.new_token for rule in self.rules}

    def digest(self) -> str:
        """A hash of ids and strings, in hexadecimal, without frequencies."""
        content = [
            [rule.id, rule.sacrificed_token, rule.new_token, list(rule.constituents), *rule.halves]
            for rule in self.rules
        ]
        return content_hash(json.dumps(content))


HEADER = """\
# Remap rules: each id below changes its string from sacrificed_token to new_token.
# Strings are in the byte-level alphabet (a space is Ġ). You may edit, add or delete rules: an edited file is checked
# and used unchanged; run `ivr remap` afterwards. To get the computed rules back, delete the file and run `ivr remap`.
# New tokens are merged from their halves in this order. Halves may be omitted: then they are found, and tokens that are
# missing for it are added.
"""
APPLIED_HEADER = "# The remap rules that this tokenizer was made by.\n"

# the rules of the texts written last: parsing 4,000 rules takes seconds, and the process that writes them reads them
_written: dict[str, RemapRules] = {}
_SEAL = "written: "
_REMEDY = "Correct these rules, or delete the file and run `ivr remap`."
_MAX_ID = 2**31 - 1
_CONSTRUCTION_ERRORS: tuple[type[Exception], ...] = (yaml.YAMLError, *CONSTRUCTION_ERRORS)
# words that YAML reads as strings without quotes
_PLAIN = re.compile(r"(?!(?i:y|yes|n|no|on|off|true|false|null)$)[^\W\d_]\w*")


def rules_as_yaml(rules: RemapRules, header: str = HEADER) -> str:
    """The rules as YAML.

    `computed` is their digest: rules that do not match it were edited. `written` is a hash of the text: if it matches,
    the file is unedited and need not be parsed to find out.
    """
    lines = [f"{header}computed: {rules.digest()}\n", "rules:\n" if rules.rules else "rules: []\n"]
    for rule in rules:
        lines.append(f"- id: {rule.id}\n  sacrificed_token: {_scalar(rule.sacrificed_token)}\n")
        lines.append(f"  new_token: {_scalar(rule.new_token)}\n")
        lines.append("  constituents:\n" if rule.constituents else "  constituents: []\n")
        lines += [f"  - {_scalar(part)}\n" for part in rule.constituents]
        if rule.halves:
            lines += ["  halves:\n", *(f"  - {_scalar(half)}\n" for half in rule.halves)]
        lines.append("  frequencies:\n" if rule.frequencies else "  frequencies: {}\n")
        lines += [f"    {_scalar(key)}: {count}\n" for key, count in rule.frequencies.items()]
    head, *body = lines
    text = f"{head}{_SEAL}{content_hash(''.join(lines))}\n{''.join(body)}"
    while len(_written) > 1:
        del _written[next(iter(_written))]
    _written[text] = replace(rules, edited=False)
    return text


def _scalar(string: str) -> str:
    if _PLAIN.fullmatch(string):
        return string
    if is_byte_level(string):
        return json.dumps(string, ensure_ascii=False)
    return str(yaml.safe_dump(string, default_style='"', allow_unicode=True, width=1 << 30)).strip()


def is_as_written(text: str) -> bool:
    """Whether a text is exactly what :func:`rules_as_yaml` returned."""
    head, seal, rest = text.partition("\n" + _SEAL)
    digest, _, body = rest.partition("\n")
    return bool(seal) and digest == content_hash(f"{head}\n{body}")


def edited_rules(path: Path) -> RemapRules | None:
    """The rules of a file that a person has changed, None if there is no file or it is unedited.

    Raises:
        InputError: see :func:`read_rules`.
    """
    if not path.is_file() or is_as_written(_read_text(path)):
        return None
    rules = read_rules(path)
    return rules if rules.edited else None


def read_rules(path: Path) -> RemapRules:
    """The rules of a file.

    Raises:
        InputError: it cannot be read, is not UTF-8, or see :func:`rules_from_yaml`.
    """
    text = _read_text(path)
    return _written[text] if text in _written else rules_from_yaml(text, path)


def applied_rules(tokenizer: TokenizerFolder) -> RemapRules:
    """The rules that a remapped tokenizer was made by, without frequencies.

    Raises:
        InputError: the tokenizer has none, or see :func:`read_rules`.
    """
    if not tokenizer.rules_file.is_file():
        raise InputError(
            "the remapped tokenizer has no remap rules",
            where=tokenizer.rules_file,
            remedy="Name them with --remap-rules-path, or run `ivr remap`.",
        )
    return read_rules(tokenizer.rules_file)


def write_remapped_bpe(tokenizer: Tokenizer, rules: RemapRules, base: TokenizerFolder, folder: Path) -> None:
    """Write a remapped BPE with its context: the base tokenizer, and the rules without frequencies.

    Args:
        tokenizer: the remapped BPE.
        rules: the rules it was made by.
        base: the base tokenizer or one that was made from it; its special tokens, chat template and other settings are
            kept.
        folder: where to write.
    """
    base_file = base.base_file if base.base_file.is_file() else base.file
    write_tokenizer(tokenizer, base.path, folder, base=base_file)
    plain = RemapRules(tuple(replace(rule, frequencies={}) for rule in rules))
    (folder / REMAP_RULES).write_text(rules_as_yaml(plain, APPLIED_HEADER), encoding="utf-8")


def _read_text(path: Path) -> str:
    return read_text_file(path, "the remap rules", _REMEDY)


@lru_cache(maxsize=2)  # several assets and checks of a run read the same file
def rules_from_yaml(text: str, where: Path | str = "remap_rules.yaml") -> RemapRules:
    """Parse rules and check their types; :func:`check_rules` compares them with the vocabulary.

    Raises:
        InputError: invalid YAML, an alias, a duplicate key, or a rule without id, sacrificed_token, new_token or
            constituents of the right type. All errors of a kind are reported together.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        reader = loader(text)
        root: Any = reader.get_single_node()  # nodes know their lines
    except (yaml.YAMLError, RecursionError) as error:
        raise yaml_syntax_error(error, text, where, "the remap rules", _REMEDY) from error
    refused = find_aliases_and_duplicates(root) if root is not None else ()
    if errors := [_error(where, line, message) for line, message in sorted(refused)]:
        raise combine_errors(errors)
    nodes = {key.value: value for key, value in root.value} if root is not None and root.id == "mapping" else {}
    if "rules" not in nodes or nodes["rules"].id != "sequence":
        raise InputError("a list under the key `rules` was expected", where=where, remedy=_REMEDY)
    rules, errors = [], []
    for node in nodes["rules"].value:
        line = node.start_mark.line + 1
        try:
            row = reader.construct_document(node)
            rules.append(_rule_of(row, line))
        except _ShapeError as error:
            errors.append(_error(where, line, str(error)))
        except _CONSTRUCTION_ERRORS as error:
            errors.append(_error(where, line, f"the rule has an invalid value ({yaml_problem(error)})"))
    if errors:
        raise combine_errors(errors)
    found = RemapRules(tuple(rules))
    computed = nodes["computed"].value if "computed" in nodes else None
    return replace(found, edited=computed != found.digest())


class _ShapeError(Exception):
    """A rule of the wrong type."""


def _rule_of(row: Any, line: int) -> RemapRule:
    if not isinstance(row, dict):
        raise _ShapeError(f"expected a rule as a mapping, found {short_repr(row)}")
    token_id = row.get("id")
    if not isinstance(token_id, int) or isinstance(token_id, bool):
        raise _ShapeError(f"`id` must be a whole number, found {short_repr(token_id)}")
    if not 0 <= token_id <= _MAX_ID:
        raise _ShapeError(f"`id` must be from 0 to {_MAX_ID:,}, found {short_repr(token_id)}")
    rule = f"rule for id {token_id}"
    for key in ("sacrificed_token", "new_token"):
        if not isinstance(row.get(key), str) or not row[key]:
            raise _ShapeError(f"{rule}: `{key}` must be a string (quote it), found {short_repr(row.get(key))}")
    parts = row.get("constituents")
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise _ShapeError(f"{rule}: `constituents` must be a list of strings, found {short_repr(parts)}")
    halves = row.get("halves") or []
    if not isinstance(halves, list) or len(halves) not in (0, 2) or not all(isinstance(half, str) for half in halves):
        raise _ShapeError(f"{rule}: `halves` must be a list of two strings, found {short_repr(halves)}")
    counts = row.get("frequencies") or {}
    if not isinstance(counts, dict) or not all(isinstance(value, int) for value in counts.values()):
        raise _ShapeError(f"{rule}: `frequencies` must be whole numbers, found {short_repr(counts)}")
    frequencies = {str(key): int(value) for key, value in counts.items()}
    return RemapRule(
        token_id, row["sacrificed_token"], row["new_token"], tuple(parts), frequencies, tuple(halves), line
    )


def _error(where: Path | str, line: int | None, message: str) -> InputError:
    return InputError(message, where=f"{where}:{line}" if line else where, remedy=_REMEDY)


def check_rules(rules: RemapRules, bpe: ByteLevelBPE, where: Path | str = "remap_rules.yaml") -> None:
    """Check that the rules fit the base vocabulary; all errors are reported together, each with its line.

    Raises:
        InputError: a duplicate, unknown or protected id; a sacrificed token that is not the id's, or that a kept token
            is made of; a new token that exists already, is duplicate or not in the byte-level alphabet; constituents
            that are not base tokens; constituents or halves that do not make up the new token; halves that are not in
            the vocabulary when the token is merged, or added tokens.
    """
    protected = always_protected(bpe)
    missing = CHARACTER_TO_BYTE.keys() - bpe.ids.keys()  # bytes without a token have no constituents
    ids: dict[int, RemapRule] = {}
    strings: dict[str, RemapRule] = {}
    new_tokens, sacrificed = rules.new_tokens().values(), {rule.sacrificed_token: rule.id for rule in rules}
    dependents = _kept_dependents(rules, bpe)
    errors: list[InputError] = []
    for rule in rules:
        new, messages = short_repr(rule.new_token), []
        if rule.id in ids:
            messages.append(f"id {rule.id} is reassigned twice{_first(ids[rule.id])}")
        elif not 0 <= rule.id < bpe.size:
            messages.append(f"id {rule.id} is not in the vocabulary of {bpe.size:,}")
        elif rule.id in protected:
            string = repr(bpe.strings[rule.id])
            messages.append(f"id {rule.id} ({string}) is protected: bytes, special tokens and digits are kept")
        elif bpe.strings[rule.id] != rule.sacrificed_token:
            messages.append(f"id {rule.id} is {bpe.strings[rule.id]!r}, not {short_repr(rule.sacrificed_token)}")
        elif rule.id in dependents:
            other = dependents[rule.id]
            messages.append(
                f"id {rule.id} ({rule.sacrificed_token!r}) is needed by the kept token {bpe.strings[other]!r}: "
                f"reassign id {other} as well, or choose another id"
            )
        if rule.new_token in strings:
            messages.append(f"new token {new} occurs twice{_first(strings[rule.new_token])}")
        elif rule.new_token in bpe.ids:
            messages.append(f"new token {new} already exists with id {bpe.ids[rule.new_token]}")
        elif not is_byte_level(rule.new_token):
            messages.append(f"new token {new} is not in the byte-level alphabet (a space is Ġ)")
        unknown = [part for part in rule.constituents if part not in bpe.ids]
        if unknown:
            messages.append(f"new token {new}: constituent {short_repr(unknown[0])} is not a base token")
        elif "".join(rule.constituents) != rule.new_token and (rule.constituents or rule.new_token not in missing):
            messages.append(f"new token {new}: constituents make up {short_repr(''.join(rule.constituents))}")
        if rule.halves and "".join(rule.halves) != rule.new_token:
            messages.append(f"new token {new}: halves make up {short_repr(''.join(rule.halves))}")
        for half in rule.halves:
            if half in sacrificed:
                messages.append(f"new token {new}: its half {half!r} loses its id {sacrificed[half]}")
            elif bpe.ids.get(half) in bpe.added_ids:
                messages.append(f"new token {new}: its half {half!r} is an added token, which is never merged")
            elif half not in bpe.ids and half not in strings:
                where_to = (
                    "move its rule before this one" if half in new_tokens else "add a rule for it before this one"
                )
                messages.append(f"new token {new}: its half {short_repr(half)} does not exist yet, {where_to}")
        errors += [_error(where, rule.line, message) for message in messages]
        ids.setdefault(rule.id, rule)
        strings.setdefault(rule.new_token, rule)
    if errors:
        raise combine_errors(errors)


def _kept_dependents(rules: RemapRules, bpe: ByteLevelBPE) -> dict[int, int]:
    """By reassigned id, an id that keeps its string and is merged from it."""
    ids = {rule.id for rule in rules}
    return {
        half: token for left, right, token in bpe.merges if token not in ids for half in (left, right) if half in ids
    }


def _first(rule: RemapRule) -> str:
    return f", first in line {rule.line}" if rule.line else ""
