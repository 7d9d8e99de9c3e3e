"""The sample corpus: about 2 MB of English that every Python carries, written as JSON lines.

What belongs here: where the documents come from and how they reach the disk. `docstrings.jsonl` has a document for
each module of the standard library (all its docstrings; modules written in C by importing them), `topics.jsonl` one
for each of `help()`'s topics. Nothing is shipped and nothing is downloaded.
"""

import importlib
import inspect
import json
import os
import types
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ivr_dagster.errors import InputError
from ivr_dagster.sample.stdlib_source import docstrings, documents_library, read_stdlib

# Written in C and without effect when imported; readline, say, would set up the terminal. Missing ones are skipped.
_C_MODULES = """
builtins _abc _ast _asyncio _bisect _blake2 _bz2 _codecs _collections _contextvars _csv _ctypes _curses
_datetime _decimal _elementtree _functools _hashlib _heapq _imp _interpreters _io _json _locale _lsprof _lzma
_md5 _multiprocessing _opcode _operator _pickle _posixshmem _posixsubprocess _queue _random _sha1 _sha2
_sha256 _sha3 _sha512 _signal _socket _sqlite3 _sre _ssl _stat _statistics _string _struct _symtable _thread
_tokenize _tracemalloc _typing _uuid _warnings _weakref _winapi _zoneinfo array atexit audioop binascii cmath
errno faulthandler fcntl gc grp itertools marshal math mmap nt posix pwd pyexpat resource select spwd sys
syslog termios time unicodedata zlib
"""


@dataclass(frozen=True)
class SampleCorpus:
    """What was written: the folder, the number of documents, the UTF-8 bytes of their texts."""

    path: Path
    documents: int
    bytes: int


def write_sample_corpus(folder: Path) -> SampleCorpus:
    """Writes the sample corpus into `folder`; a file that already is what it should be stays untouched.

    The same Python writes the same bytes every time, so an observer of the folder sees no change.

    Raises:
        InputError: `folder` is no folder, or this Python comes without its standard library's source code.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            "the sample corpus was to go into this folder, but it is a file", where=folder, remedy="Name another folder"
        ) from error
    modules, topics = list(_module_documents()), list(_topic_documents())
    if not modules:
        raise InputError(
            "the sample corpus is made of the standard library's docstrings, and this Python has no source files",
            where=Path(os.__file__).parent,
            remedy="Use a full Python installation or a corpus of your own",
        )
    _write_lines(folder / "docstrings.jsonl", modules)
    _write_lines(folder / "topics.jsonl", topics)
    documents = [*modules, *topics]
    return SampleCorpus(folder, len(documents), sum(len(text.encode()) for _, text in documents))


def sample_documents() -> Iterator[tuple[str, str]]:
    """(name, text) of the sample corpus's documents: modules, then help topics."""
    yield from _module_documents()
    yield from _topic_documents()


def _module_documents() -> Iterator[tuple[str, str]]:
    """(module, its docstrings parted by empty lines), modules written in Python first."""
    seen: set[str] = set()  # what io says, _pyio and _io say again: once is enough, and no copy may be held out
    for file in read_stdlib(select=documents_library):
        yield from _document(file.module, docstrings(file.text), seen)
    for name in _C_MODULES.split():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            try:
                module = importlib.import_module(name)
            except ImportError:
                continue
        if getattr(module, "__file__", None) is None or not str(module.__file__).endswith(".py"):
            yield from _document(name, _compiled_docstrings(module), seen)


def _document(name: str, pieces: Iterable[str], seen: set[str]) -> Iterator[tuple[str, str]]:
    fresh = [piece for piece in dict.fromkeys(map(_clean, pieces)) if piece and piece not in seen]
    seen.update(fresh)
    if fresh:
        yield name, "\n\n".join(fresh)


def _clean(text: str) -> str:
    # a docstring may spell half a surrogate pair, which has no UTF-8
    return inspect.cleandoc(text).strip().encode("utf-8", "backslashreplace").decode()


def _compiled_docstrings(module: types.ModuleType) -> Iterator[str]:
    """Docstrings of a C module, its functions, and its classes with their members, by name."""
    yield module.__doc__ or ""
    owners = {module.__name__, module.__name__.lstrip("_")}
    for _, value in sorted(vars(module).items()):
        if isinstance(value, types.BuiltinFunctionType):
            yield value.__doc__ or ""
        elif inspect.isclass(value) and value.__module__ in owners:  # else something else put it there
            members = [member for _, member in sorted(vars(value).items())]
            described = [value, *(m for m in members if inspect.isroutine(m) or inspect.isdatadescriptor(m))]
            yield from (text for item in described if isinstance(text := item.__doc__, str))


def _topic_documents() -> Iterator[tuple[str, str]]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # left out by some distributions
        return
    for name, text in sorted(topics.items()):
        yield name, text.strip()


def _write_lines(path: Path, documents: Iterable[tuple[str, str]]) -> None:
    lines = (json.dumps({"text": text, "name": name}, ensure_ascii=False) + "\n" for name, text in documents)
    content = "".join(lines).encode()
    if path.is_file() and path.read_bytes() == content:
        return
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
