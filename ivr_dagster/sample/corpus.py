"""The sample corpus: about 2 MB of English from every Python installation, written as JSON lines.

`docstrings.jsonl` has a document per module of the standard library with all its docstrings (modules written in C are
imported), `topics.jsonl` one per topic of `help()`. Nothing is packaged or downloaded.
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

# Modules written in C whose import has no side effects (readline, for example, sets up the terminal). Missing ones are
# skipped.
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
    """Folder, number of documents, and UTF-8 bytes of their texts."""

    path: Path
    documents: int
    bytes: int


def write_sample_corpus(folder: Path) -> SampleCorpus:
    """Writes the sample corpus into `folder`. The same Python always writes the same bytes; unchanged files stay.

    Raises:
        InputError: `folder` is a file, or this Python has no source files of its standard library.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            "the folder for the sample corpus is a file", where=folder, remedy="Remove it or choose another folder"
        ) from error
    modules, topics = list(_module_documents()), list(_topic_documents())
    if not modules:
        raise InputError(
            "the sample corpus consists of the standard library's docstrings, but this Python has no source files",
            where=Path(os.__file__).parent,
            remedy="Use a full Python installation or another corpus",
        )
    _write_lines(folder / "docstrings.jsonl", modules)
    _write_lines(folder / "topics.jsonl", topics)
    documents = [*modules, *topics]
    return SampleCorpus(folder, len(documents), sum(len(text.encode()) for _, text in documents))


def sample_documents() -> Iterator[tuple[str, str]]:
    """Yields (name, text) of the documents: modules, then help topics."""
    yield from _module_documents()
    yield from _topic_documents()


def _module_documents() -> Iterator[tuple[str, str]]:
    """Yields (module, its docstrings separated by blank lines), modules written in Python first."""
    seen: set[str] = set()  # _pyio and _io repeat the docstrings of io, and no copy may be held out
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
    # a docstring may contain a lone surrogate, which UTF-8 cannot encode
    return inspect.cleandoc(text).strip().encode("utf-8", "backslashreplace").decode()


def _compiled_docstrings(module: types.ModuleType) -> Iterator[str]:
    """Yields the docstrings of a C module, its functions, and its classes with their members, sorted by name."""
    yield module.__doc__ or ""
    owners = {module.__name__, module.__name__.lstrip("_")}
    for _, value in sorted(vars(module).items()):
        if isinstance(value, types.BuiltinFunctionType):
            yield value.__doc__ or ""
        elif inspect.isclass(value) and value.__module__ in owners:  # not imported from elsewhere
            members = [member for _, member in sorted(vars(value).items())]
            described = [value, *(m for m in members if inspect.isroutine(m) or inspect.isdatadescriptor(m))]
            yield from (text for item in described if isinstance(text := item.__doc__, str))


def _topic_documents() -> Iterator[tuple[str, str]]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # missing in some distributions
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
