"""Reads YAML files that users write: the value and the line number of each key.

Aliases are rejected because a few lines of nested aliases can expand to billions of values. Duplicate keys are rejected
because YAML libraries silently keep only one of them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ivr_dagster.errors import InputError, combine_errors, short_repr
from ivr_dagster.storage.regular_files import open_regular

# settings files are about 5 KB long; parsing 256 KB takes one to two seconds
MAX_BYTES = 1 << 18
# raised inside YAML constructors by int(), float(), date() and deep nesting
CONSTRUCTION_ERRORS: tuple[type[Exception], ...] = (
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    TypeError,
    RecursionError,
)

_STRING, _NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"


def read_text_file(path: Path, what: str, remedy: str, *, max_bytes: int | None = None) -> str:
    """The text of a UTF-8 file without its byte order mark.

    Args:
        path: the file.
        what: what the file is, for error messages.
        remedy: how to fix it, for error messages.
        max_bytes: maximum size; None for no limit.

    Raises:
        InputError: the file is unreadable, not a regular file, too large or not UTF-8.
    """
    try:
        with open_regular(path) as file:
            stored = file.read(-1 if max_bytes is None else max_bytes + 1)
    except OSError as error:
        where = printable_path(path)
        raise InputError(f"{what} cannot be read ({error.strerror})", where=where, remedy=remedy) from error
    if max_bytes is not None and len(stored) > max_bytes:
        raise InputError(f"{what} cannot be read (it has more than {max_bytes:,} bytes)", where=path, remedy=remedy)
    try:
        return stored.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = stored.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{what} cannot be read (byte {stored[error.start]:#04x} at offset {error.start} is not UTF-8)",
            where=f"{path}:{line}",
            remedy="Save the file as UTF-8",
        ) from error


def read_settings_yaml(path: Path, what: str, remedy: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Read a YAML 1.2 file that contains one mapping: its values, and the 1-based line number of each key.

    Args:
        path: the file.
        what: what the file is, for error messages.
        remedy: how to fix it, for error messages.

    Raises:
        InputError: the file is unreadable, not YAML, not a mapping with string keys, or contains an alias, a duplicate
            key or an invalid value such as month 13. All errors of one kind are reported together.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    text = read_text_file(path, what, remedy, max_bytes=MAX_BYTES)
    reader = YAML(typ="safe", pure=True)
    try:
        root = reader.compose(text)
    except (YAMLError, RecursionError) as error:
        raise yaml_syntax_error(error, text, path, what, remedy) from error
    if root is None or root.tag == _NULL:
        return {}, {}
    if root.id != "mapping":
        found = "a list" if root.id == "sequence" else short_repr(root.value)
        raise InputError(f"expected a mapping of settings, found {found}", where=path, remedy=remedy)

    def fault(line: int, message: str) -> InputError:
        return InputError(message, where=f"{path}:{line}", remedy=remedy)

    faults = [fault(line, message) for line, message in sorted(find_aliases_and_duplicates(root))]
    construction_errors: tuple[type[Exception], ...] = (*CONSTRUCTION_ERRORS, YAMLError)
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key, node in root.value if not faults else ():
        line = key.start_mark.line + 1
        if key.id != "scalar" or key.tag != _STRING:
            found = short_repr(key.value) if key.id == "scalar" else f"a {key.id}"
            faults.append(fault(line, f"expected the name of a setting, found {found}"))
            continue
        try:
            values[key.value] = reader.constructor.construct_document(node)
        except construction_errors as error:
            why = short_repr(node.value) if node.id == "scalar" else yaml_problem(error)
            faults.append(fault(line, f"{short_repr(key.value)} has an invalid value: {why}"))
        lines[key.value] = line
    if faults:
        raise combine_errors(faults)
    return values, lines


def find_aliases_and_duplicates(root: Any) -> Iterator[tuple[int, str]]:
    """Yield the 1-based line and a description of each alias and duplicate key below a PyYAML or ruamel.yaml node."""
    seen: set[int] = set()
    pending = [root]
    while pending:
        node = pending.pop()
        if id(node) in seen:
            name = f"&{node.anchor}" if getattr(node, "anchor", None) else "an anchor"
            yield node.start_mark.line + 1, f"the value at {name} is used again by an alias: repeat the value instead"
            continue
        seen.add(id(node))
        if node.id == "mapping":
            lines: dict[tuple[str, str], int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if key.id == "scalar":
                    if first := lines.get((key.tag, key.value)):
                        yield line, f"duplicate key {short_repr(key.value)}, first in line {first}"
                    lines.setdefault((key.tag, key.value), line)
                pending += (value, key)
        elif node.id == "sequence":
            pending += reversed(node.value)


def yaml_syntax_error(error: Exception, text: str, where: Path | str, what: str, remedy: str) -> InputError:
    """A YAML library's parse error as an InputError that names the line."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line = mark.line + 1 if mark else None
    problem = yaml_problem(error)
    if isinstance(error, RecursionError):
        problem = "it is nested too deeply"
    if isinstance(found := getattr(error, "character", None), str | int):  # a ReaderError has no mark
        code = ord(found) if isinstance(found, str) else found
        line = text.count("\n", 0, error.position) + 1  # type: ignore[attr-defined]
        problem = f"the character U+{code:04X} is not allowed"
    return InputError(
        f"{what} cannot be read as YAML ({problem})", where=f"{where}:{line}" if line else where, remedy=remedy
    )


def yaml_problem(error: Exception) -> str:
    """The problem as the YAML library describes it, on one line."""
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
    return " ".join(str(problem).split())


def printable_path(path: Path) -> str:
    """A path for a message, with unprintable characters escaped."""
    return str(path).encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
