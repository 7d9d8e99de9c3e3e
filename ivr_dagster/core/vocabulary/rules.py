"""Remap rules: which id goes from which sacrificed token to which new token.

The rules as data, their YAML form (which people may edit), and their validation against the base vocabulary.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE
from ivr_dagster.core.tokenizer.folder import REMAP_RULES, TokenizerFolder
from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE, is_byte_level
from ivr_dagster.core.vocabulary.sacrifice import protected_ids
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
        sacrificed_token: the base token that gives it up (byte-level string).
        new_token: the string that takes it (byte-level).
        constituents: the base tokens whose concatenation the new token is, in order; none for a byte that the base has
            no token for.
        frequencies: occurrences on the train split: `sacrificed` under the base tokenizer, `new` once all new tokens
            are in use, `saving` in tokens when it was chosen. For people; nothing is computed from them.
        line: where it begins in the file that it was read from, from 1; None where it was computed.
    """

    id: int
    sacrificed_token: str
    new_token: str
    constituents: tuple[str, ...]
    frequencies: dict[str, int] = field(default_factory=dict)
    line: int | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class RemapRules:
    """All rules, and whether a person has changed them since they were computed."""

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
        """A hash of ids and strings, in hexadecimal; frequencies, which are for people, are left out."""
        content = [[rule.id, rule.sacrificed_token, rule.new_token, list(rule.constituents)] for rule in self.rules]
        return content_hash(json.dumps(content))


HEADER = """\
# Remap rules: each id below changes its string from sacrificed_token to new_token.
# Strings are in the byte-level alphabet (a space is Ġ). You may edit, add or delete rules: an edited file is checked
# and honoured as it stands; materialize remapped_tokenizer after it. To get the computed rules back, delete the file
# and run `ivr remap`.
"""

# text and rules: the process that computes rules goes on with them, and parsing takes a second
_last_written: dict[str, RemapRules] = {}
_SEAL = "written: "
_MEND = "Mend these rules, or delete the file and run `ivr remap`."
_GREATEST_ID = 2**31 - 1
_CONSTRUCTION_ERRORS: tuple[type[Exception], ...] = (yaml.YAMLError, *CONSTRUCTION_ERRORS)
# what YAML takes for a string without quotes: a word that is none of those it reads as something else
_PLAIN = re.compile(r"(?!(?i:y|yes|n|no|on|off|true|false|null)$)[^\W\d_]\w*")


def rules_as_yaml(rules: RemapRules, header: str = HEADER) -> str:
    """The rules as YAML with a header that says how they may be edited.

    `computed` is their digest: rules that no longer match it were edited by hand. `written` is the text's own: while
    it stands, nobody has to parse thousands of rules to know that they were not.
    """
    lines = [f"{header}computed: {rules.digest()}\n", "rules:\n" if rules.rules else "rules: []\n"]
    for rule in rules:
        lines.append(f"- id: {rule.id}\n  sacrificed_token: {_scalar(rule.sacrificed_token)}\n")
        lines.append(f"  new_token: {_scalar(rule.new_token)}\n")
        lines.append("  constituents:\n" if rule.constituents else "  constituents: []\n")
        lines += [f"  - {_scalar(part)}\n" for part in rule.constituents]
        lines.append("  frequencies:\n" if rule.frequencies else "  frequencies: {}\n")
        lines += [f"    {_scalar(key)}: {count}\n" for key, count in rule.frequencies.items()]
    head, *body = lines
    text = f"{head}{_SEAL}{content_hash(''.join(lines))}\n{''.join(body)}"
    _last_written.clear()
    _last_written[text] = replace(rules, edited=False)
    return text


def _scalar(string: str) -> str:
    if _PLAIN.fullmatch(string):
        return string
    if is_byte_level(string):
        return json.dumps(string, ensure_ascii=False)
    return str(yaml.safe_dump(string, default_style='"', allow_unicode=True, width=1 << 30)).strip()


def is_as_written(text: str) -> bool:
    """Whether a text is, to the letter, what :func:`rules_as_yaml` made."""
    head, seal, rest = text.partition("\n" + _SEAL)
    digest, _, body = rest.partition("\n")
    return bool(seal) and digest == content_hash(f"{head}\n{body}")


def is_edited(path: Path) -> bool:
    """Whether a person has changed the rules of a file since they were computed.

    Raises:
        InputError: as of :func:`read_rules`.
    """
    return not is_as_written(_read_text(path)) and read_rules(path).edited


def read_rules(path: Path) -> RemapRules:
    """The rules of a file; text that this process wrote last is not parsed again.

    Raises:
        InputError: it cannot be read, is not UTF-8, or as of :func:`rules_from_yaml`.
    """
    text = _read_text(path)
    return _last_written[text] if text in _last_written else rules_from_yaml(text, path)


def applied_rules(tokenizer: TokenizerFolder) -> RemapRules:
    """The rules that a remapped tokenizer was made by, without frequencies.

    Raises:
        InputError: the tokenizer has none, or as of :func:`read_rules`.
    """
    if not tokenizer.rules_file.is_file():
        raise InputError(
            "the remapped tokenizer comes without its remap rules",
            where=tokenizer.rules_file,
            remedy="Name them with --remap-rules-path, or run `ivr remap`.",
        )
    return read_rules(tokenizer.rules_file)


def write_applied_rules(rules: RemapRules, folder: Path) -> None:
    """Write the rules beside a tokenizer. Frequencies are omitted, so that equal rules make equal files."""
    plain = RemapRules(tuple(replace(rule, frequencies={}) for rule in rules))
    text = rules_as_yaml(plain, header="# The remap rules that this tokenizer was made by.\n")
    (folder / REMAP_RULES).write_text(text, encoding="utf-8")


def _read_text(path: Path) -> str:
    return read_text_file(path, "the remap rules", _MEND)


@lru_cache(maxsize=2)  # several assets and checks of a run read the same file
def rules_from_yaml(text: str, where: Path | str = "remap_rules.yaml") -> RemapRules:
    """Rules out of their YAML form; their shape is checked here, their sense by :func:`check_rules`.

    Raises:
        InputError: no YAML, an alias, a key twice, or a rule without id, sacrificed_token, new_token or constituents
            of the right type. All faults of a kind are told together.
    """
    # 12,000 rules take a second or two with libyaml, five times as long with ruamel.yaml
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        reader = loader(text)
        root: Any = reader.get_single_node()  # nodes know their lines
    except (yaml.YAMLError, RecursionError) as error:
        raise yaml_syntax_error(error, text, where, "the remap rules", _MEND) from error
    refused = find_aliases_and_duplicates(root) if root is not None else ()
    if faults := [_fault(where, line, fault) for line, fault in sorted(refused)]:
        raise combine_errors(faults)
    nodes = {key.value: value for key, value in root.value} if root is not None and root.id == "mapping" else {}
    if "rules" not in nodes or nodes["rules"].id != "sequence":
        raise InputError("a list under the key `rules` was expected", where=where, remedy=_MEND)
    rules, faults = [], []
    for node in nodes["rules"].value:
        line = node.start_mark.line + 1
        try:
            row = reader.construct_document(node)
        except _CONSTRUCTION_ERRORS as error:
            faults.append(_fault(where, line, f"the rule has an invalid value ({yaml_problem(error)})"))
            continue
        if fault := _shape_fault(row):
            faults.append(_fault(where, line, fault))
            continue
        frequencies = {str(key): int(value) for key, value in (row.get("frequencies") or {}).items()}
        parts = tuple(row["constituents"])
        rules.append(RemapRule(row["id"], row["sacrificed_token"], row["new_token"], parts, frequencies, line))
    if faults:
        raise combine_errors(faults)
    found = RemapRules(tuple(rules))
    computed = nodes["computed"].value if "computed" in nodes else None
    return replace(found, edited=computed != found.digest())


def _fault(where: Path | str, line: int | None, message: str) -> InputError:
    return InputError(message, where=f"{where}:{line}" if line else where, remedy=_MEND)


def _shape_fault(row: Any) -> str | None:
    if not isinstance(row, dict):
        return f"a rule is a mapping, found {short_repr(row)}"
    given = row.get("id")
    if not isinstance(given, int) or isinstance(given, bool):
        return f"`id` must be a whole number, found {short_repr(given)}"
    if not 0 <= given <= _GREATEST_ID:
        return f"`id` must be from 0 to {_GREATEST_ID:,}, found {short_repr(given)}"
    for key in ("sacrificed_token", "new_token"):
        if not isinstance(row.get(key), str) or not row[key]:
            return f"rule for id {given}: `{key}` must be a string (quote it), found {short_repr(row.get(key))}"
    parts = row.get("constituents")
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        return f"rule for id {given}: `constituents` must be a list of strings, found {short_repr(parts)}"
    frequencies = row.get("frequencies") or {}
    if not isinstance(frequencies, dict) or not all(isinstance(value, int) for value in frequencies.values()):
        return f"rule for id {given}: `frequencies` must hold whole numbers, found {short_repr(frequencies)}"
    return None


def check_rules(rules: RemapRules, bpe: ByteLevelBPE, where: Path | str = "remap_rules.yaml") -> None:
    """Whether the rules fit the base vocabulary; all faults are reported together, each with its line.

    Raises:
        InputError: an id twice, unknown or protected; a sacrificed token that is not the id's; a new token that
            exists already, is given twice or is not in the byte-level alphabet; constituents that are no tokens of the
            base or do not make up the new token.
    """
    protected = protected_ids(bpe)
    missing = CHARACTER_TO_BYTE.keys() - bpe.ids.keys()  # bytes without a token have no constituents
    ids: dict[int, RemapRule] = {}
    strings: dict[str, RemapRule] = {}
    faults: list[InputError] = []
    for rule in rules:
        new, told = short_repr(rule.new_token), []
        if rule.id in ids:
            told.append(f"id {rule.id} is given away twice{_first(ids[rule.id])}")
        elif not 0 <= rule.id < bpe.size:
            told.append(f"id {rule.id} is not in the vocabulary of {bpe.size:,}")
        elif rule.id in protected:
            told.append(f"id {rule.id} ({bpe.strings[rule.id]!r}) is protected: bytes, special tokens and digits stay")
        elif bpe.strings[rule.id] != rule.sacrificed_token:
            told.append(f"id {rule.id} is {bpe.strings[rule.id]!r}, not {short_repr(rule.sacrificed_token)}")
        if rule.new_token in strings:
            told.append(f"new token {new} is given twice{_first(strings[rule.new_token])}")
        elif rule.new_token in bpe.ids:
            told.append(f"new token {new} exists already with id {bpe.ids[rule.new_token]}")
        elif not is_byte_level(rule.new_token):
            told.append(f"new token {new} is not in the byte-level alphabet (a space is Ġ)")
        unknown = [part for part in rule.constituents if part not in bpe.ids]
        if unknown:
            told.append(f"new token {new}: constituent {short_repr(unknown[0])} is no token of the base")
        elif "".join(rule.constituents) != rule.new_token and (rule.constituents or rule.new_token not in missing):
            told.append(f"new token {new}: constituents make up {short_repr(''.join(rule.constituents))}")
        faults += [_fault(where, rule.line, fault) for fault in told]
        ids.setdefault(rule.id, rule)
        strings.setdefault(rule.new_token, rule)
    if faults:
        raise combine_errors(faults)


def _first(rule: RemapRule) -> str:
    return f", first in line {rule.line}" if rule.line else ""
