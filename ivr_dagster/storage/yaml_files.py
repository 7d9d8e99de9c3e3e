"""Reading YAML that a person wrote: plain values by key, the line of each key, and a refusal of what is no plain value.

What belongs here: what all our YAML files have in common. An alias repeats a value, and a few lines of aliases of
aliases are a billion values; of a key that is given twice, readers take one without a word.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import yaml

from ivr_dagster.errors import InputError, combine_errors, short_repr
from ivr_dagster.storage.regular_files import open_regular

# our own settings files have some 5 KB; a quarter of a megabyte is a second or two of reading
MOST_BYTES = 1 << 18
# 64-bit integers are what databases, arrays and columns hold; random generators of numpy take 32 bits
MOST_NUMBER, MOST_SEED = 2**63 - 1, 2**32 - 1
# what int(), float(), date() and so on raise inside of the constructors, and values nested too deeply
CONSTRUCTION_ERRORS: tuple[type[Exception], ...] = (
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    TypeError,
    RecursionError,
)

_STRING, _NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"


def read_text_file(path: Path, what: str, remedy: str, *, most_bytes: int | None = None) -> str:
    """The text of a UTF-8 file, its byte order mark dropped.

    Args:
        path: a file that a person named.
        what: what the file is, for messages.
        remedy: for messages.
        most_bytes: what is longer is refused.

    Raises:
        InputError: it cannot be read, is no regular file (a pipe would be waited for without end), is too long, is not
            UTF-8.
    """
    try:
        with open_regular(path) as file:
            stored = file.read(-1 if most_bytes is None else most_bytes + 1)
    except OSError as error:
        raise InputError(f"{what} cannot be read ({error.strerror})", where=shown_path(path), remedy=remedy) from error
    if most_bytes is not None and len(stored) > most_bytes:
        raise InputError(f"{what} cannot be read (it has more than {most_bytes:,} bytes)", where=path, remedy=remedy)
    try:
        return stored.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = stored.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{what} cannot be read (byte {stored[error.start]:#04x} at offset {error.start} is not UTF-8)",
            where=f"{path}:{line}",
            remedy="Save the file as UTF-8",
        ) from error


def read_settings_yaml(
    path: Path, what: str, remedy: str, *, version: Literal["1.1", "1.2"] = "1.2"
) -> tuple[dict[str, Any], dict[str, int]]:
    """The values of a YAML file that holds one mapping, and the line, from 1, that each key stands on.

    Args:
        path: the file.
        what: what the file is, for messages.
        remedy: for messages.
        version: of YAML. In 1.2 `5e-5` is a number and `no` a word, in 1.1 they are a word and false.

    Raises:
        InputError: it cannot be read, is no YAML, holds something else than a mapping by strings, an alias, a key
            twice, a value that there is not (a 13th month). All faults of a kind are told together.
    """
    text = read_text_file(path, what, remedy, most_bytes=MOST_BYTES)
    try:
        root, construct = _composed_1_1(text) if version == "1.1" else _composed_1_2(text)
    except _composing_errors() as error:
        raise no_yaml(error, text, path, what, remedy) from error
    if root is None or root.tag == _NULL:
        return {}, {}
    if root.id != "mapping":
        found = "a list" if root.id == "sequence" else short_repr(root.value)
        raise InputError(f"a mapping of settings was expected, found {found}", where=path, remedy=remedy)
    faults = [InputError(fault, where=f"{path}:{line}", remedy=remedy) for line, fault in sorted(tricks(root))]
    constructing_errors = CONSTRUCTION_ERRORS + _composing_errors()
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key, node in root.value if not faults else ():
        line = key.start_mark.line + 1
        if key.id != "scalar" or key.tag != _STRING:
            found = short_repr(key.value) if key.id == "scalar" else f"a {key.id}"
            fault = f"the name of a setting was expected, found {found}"
            faults.append(InputError(fault, where=f"{path}:{line}", remedy=remedy))
            continue
        try:
            values[key.value] = construct(node)
        except constructing_errors as error:
            why = (
                short_repr(node.value)
                if node.id == "scalar"
                else " ".join(str(getattr(error, "problem", None) or error).split())
            )
            fault = f"{short_repr(key.value)} has a value that cannot be read: {why}"
            faults.append(InputError(fault, where=f"{path}:{line}", remedy=remedy))
        lines[key.value] = line
    if faults:
        raise combine_errors(faults)
    return values, lines


def tricks(root: Any) -> Iterator[tuple[int, str]]:
    """Aliases and keys given twice below a node of PyYAML or ruamel.yaml, with the line, from 1, of each."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            name = f"&{node.anchor}" if getattr(node, "anchor", None) else "an anchor"
            yield node.start_mark.line + 1, f"what stands at {name} is used again by an alias: write it out"
            continue
        seen.add(id(node))
        if node.id == "mapping":
            lines: dict[tuple[str, str], int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if key.id != "scalar":
                    pass  # refused or not by whoever knows the keys
                elif before := lines.get((key.tag, key.value)):
                    yield line, f"the key {short_repr(key.value)} is given twice, first in line {before}"
                else:
                    lines[key.tag, key.value] = line
                waiting += (value, key)
        elif node.id == "sequence":
            waiting += reversed(node.value)


def no_yaml(error: Exception, text: str, where: Path | str, what: str, remedy: str) -> InputError:
    """What a YAML library found wrong with a text, with its line."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line = mark.line + 1 if mark else None
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
    if isinstance(error, RecursionError):
        problem = "it is nested too deeply"
    if isinstance(found := getattr(error, "character", None), str | int):  # of a ReaderError, which has no mark
        code = ord(found) if isinstance(found, str) else found
        line = text.count("\n", 0, error.position) + 1  # type: ignore[attr-defined]
        problem = f"it holds the character U+{code:04X}, which may not stand there"
    return InputError(
        f"{what} cannot be read as YAML ({' '.join(str(problem).split())})",
        where=f"{where}:{line}" if line else where,
        remedy=remedy,
    )


def _composed_1_1(text: str) -> tuple[Any, Callable[[Any], Any]]:
    loader = yaml.SafeLoader(text)
    return loader.get_single_node(), loader.construct_document


def _composed_1_2(text: str) -> tuple[Any, Callable[[Any], Any]]:
    from ruamel.yaml import YAML

    reader = YAML(typ="safe", pure=True)
    return reader.compose(text), reader.constructor.construct_document


def _composing_errors() -> tuple[type[Exception], ...]:
    from ruamel.yaml.error import YAMLError

    return yaml.YAMLError, YAMLError, RecursionError


def shown_path(path: Path) -> str:
    """A path for a message, whatever is in it."""
    return str(path).encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
