"""Records of .jsonl and .json files: the line on which each one starts, and its text."""

import json
import re
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import NoneType
from typing import Any

from ivr_dagster.core.corpus.long_lines import JsonLine, LongString
from ivr_dagster.errors import InputError, short_repr

# Characters of a .json file. Parsing it as a whole takes about five times as much memory.
MAX_JSON_FILE = 1 << 28

_MAX_KEY = 200
_KEYS_SHOWN = 12
_MISSING = object()
_BETWEEN_ELEMENTS = re.compile(r"[ \t\r\n,]*")
_JSON_TYPES: dict[type, str] = {
    dict: "an object",
    list: "an array",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    NoneType: "null",
}


def json_lines(chunks: Iterable[str], path: Path) -> Iterator[tuple[int, str | JsonLine]]:
    """Yields the non-blank lines with their line numbers.

    Raises:
        InputError: a line is too long.
    """
    number, line = 1, JsonLine()
    for chunk in chunks:
        # str.splitlines would also split at U+2028 and other separators that JSON strings may contain
        first, *others = chunk.split("\n")
        _feed(line, first, f"{path}:{number}")
        if not others:
            continue
        *complete, last = others
        for text in (line if line.is_long else line.text(), *complete):
            if not _is_blank(text):
                yield number, text
            number += 1
        line = JsonLine()
        _feed(line, last, f"{path}:{number}")
    rest = line if line.is_long else line.text()
    if not _is_blank(rest):
        yield number, rest


def _feed(line: JsonLine, part: str, where: str) -> None:
    try:
        line.feed(part)
    except ValueError as error:
        remedy = "A .jsonl file has one object per line: put line breaks between the objects"
        raise InputError(f"the line is too long ({error})", where=where, remedy=remedy) from error


def _is_blank(line: str | JsonLine) -> bool:
    return isinstance(line, str) and (not line or line.isspace())


def parse_line(line: str | JsonLine, where: str) -> tuple[object, dict[str, LongString]]:
    """The value of a line, and its long strings by placeholder.

    Raises:
        InputError: invalid JSON.
    """
    try:
        return (json.loads(line), {}) if isinstance(line, str) else line.parse()
    except (ValueError, RecursionError) as error:
        remedy = "A .jsonl file has one object per line; an object or array over several lines belongs in a .json file"
        raise InputError(f"invalid JSON ({error})", where=where, remedy=remedy) from error


def json_elements(chunks: Iterable[str], path: Path) -> Iterator[tuple[int, Any]]:
    """The elements of the array in a .json file, or its single value, each with the line number on which it starts.

    Raises:
        InputError: the file is too large to be parsed as a whole, or is invalid JSON.
    """
    parts, size = list[str](), 0
    for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        if size > MAX_JSON_FILE:
            raise InputError(
                f"a .json file is parsed as a whole, and this one has more than {MAX_JSON_FILE:,} characters",
                where=path,
                remedy="Convert it to a .jsonl file with one object per line (jq -c '.[]' FILE.json > FILE.jsonl)",
            )
    text = "".join(parts)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        found = f"invalid JSON ({error})" if text.strip() else "the file is empty, which is not valid JSON"
        remedy = "A .json file has one object or one array; one object per line belongs in a .jsonl file"
        raise InputError(found, where=f"{path}:{line}", remedy=remedy) from error
    return _with_line_numbers(text, value) if isinstance(value, list) else iter([(1, value)])


def _with_line_numbers(text: str, elements: list[Any]) -> Iterator[tuple[int, Any]]:
    decoder = json.JSONDecoder()
    line, counted, position = 1, 0, text.index("[") + 1
    for value in elements:
        # json.loads does not report positions: decode each element again where the previous one ended
        if gap := _BETWEEN_ELEMENTS.match(text, position):
            position = gap.end()
        line += text.count("\n", counted, position)
        yield line, value
        counted, position = position, decoder.raw_decode(text, position)[1]


def find_text(record: object, text_key: str, where: str) -> str:
    """The text of a record: the record itself if it is a string, else the value of its text key.

    Args:
        record: a JSON value.
        text_key: "meta.body" is the key "body" of the object "meta", unless the record has the key "meta.body" itself.
        where: location of the record, for error messages.

    Raises:
        InputError: the record is neither a string nor an object with a string at the text key.
    """
    if isinstance(record, str):
        return record
    if not isinstance(record, dict):
        raise InputError(
            f"expected an object or a string, found {_JSON_TYPES[type(record)]}",
            where=where,
            remedy="Write each document as an object with its text under --text-key, or as a string",
        )
    value: object = record
    for key in [text_key] if text_key in record else text_key.split("."):
        value = value.get(key, _MISSING) if isinstance(value, dict) else _MISSING
    if isinstance(value, str):
        return value
    found = "is missing" if value is _MISSING else f"holds {_JSON_TYPES[type(value)]}"
    keys = list(islice(_keys_with_text(record), _KEYS_SHOWN + 1))
    listed = ", ".join(map(short_repr, keys[:_KEYS_SHOWN])) + (", …" if len(keys) > _KEYS_SHOWN else "")
    raise InputError(
        f"the key {short_repr(text_key)} {found}; the keys with text are {listed or '(none)'}",
        where=where,
        remedy="Set the key that holds the text with --text-key, or skip such records (--on-bad-input skip)",
    )


def _keys_with_text(record: dict[str, object]) -> Iterator[str]:
    """Dotted keys of all string values, breadth first."""
    pending = deque([("", record)])
    while pending:
        prefix, each = pending.popleft()
        for key, value in each.items():
            if isinstance(value, dict) and len(prefix) + len(key) < _MAX_KEY:
                pending.append((f"{prefix}{key}.", value))
            elif isinstance(value, str):
                yield prefix + key
