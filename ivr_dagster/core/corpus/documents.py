"""Reading raw corpora: which files of a folder belong to it, and the documents in them, one at a time."""

import codecs
import gzip
import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType

from ivr_dagster.core.corpus.text_pieces import LEAST_SPLIT_BYTES, cut_text
from ivr_dagster.core.errors import InputError

SUFFIXES = (".txt", ".jsonl", ".json")
TEXT_SPLIT_BYTES = 16_384

_CHUNK_BYTES = 1 << 20
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


@dataclass(frozen=True, slots=True)
class Document:
    """A document as it was found, not yet cleaned.

    Attributes:
        text: may hold lone surrogates, control characters, line ends of any kind.
        source: where it starts, "path/relative/to/the/root:line".
    """

    text: str
    source: str


def corpus_files(root: Path) -> list[Path]:
    """The files of the corpus at any depth below `root`, sorted by relative path: .txt, .jsonl, .json, each also .gz.

    Left out are hidden files and folders, names that end in .tmp (half-written files) and, of links to a folder,
    those that lead back to a folder around them.

    Raises:
        InputError: no such file; a folder that cannot be read; a link that leads out of `root` or nowhere.
    """
    files = [path for path in _visible_files(root) if _kind(path.name)]
    if not files:
        raise InputError(
            "the folder holds no corpus file, at any depth",
            where=root,
            remedy=f"Put files there that end in {', '.join(SUFFIXES)} or in one of these and .gz, "
            "or name another folder with --raw-corpora-dir",
        )
    return sorted(files, key=lambda path: _relative(path, root))


def ignored_files(root: Path) -> list[Path]:
    """The visible files below `root` that are no corpus files, in no particular order. Raises as corpus_files does."""
    return [path for path in _visible_files(root) if not _kind(path.name)]


def hash_content(path: Path) -> bytes:
    """BLAKE2b of a file's bytes.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except OSError as error:
        raise _unreadable(path, error) from error


def read_documents(
    path: Path,
    root: Path,
    *,
    text_key: str = "text",
    encoding: str = "utf-8",
    text_split_bytes: int = TEXT_SPLIT_BYTES,
    on_read: Callable[[int], None] | None = None,
) -> Iterator[Document]:
    """Yields the documents of one corpus file.

    A .jsonl file holds an object, or a string that is the text itself, on every line that is not blank. A .json
    file holds an array of these, or a single one; it is read whole, so large corpora belong in .jsonl. A .txt file
    is one document up to `text_split_bytes`; a longer one is cut as text_pieces.cut_text describes.

    Args:
        path: one of corpus_files(root).
        root: what the documents' sources are relative to.
        text_key: the key of the text in an object; "meta.body" is the key body of the object meta, unless there
            is a key with that very dot in it.
        encoding: of the file, any text encoding that Python knows. A byte order mark is dropped.
        text_split_bytes: UTF-8 bytes, at least 256; 0 keeps every .txt file whole, in memory too.
        on_read: called with the number of bytes just read from the file, as stored (compressed, where it is).

    Raises:
        InputError: the file cannot be read or decompressed, holds bytes that are not of the encoding, is not the
            JSON it claims to be, or lacks the text key; the encoding is unknown; text_split_bytes is too small.
    """
    if text_split_bytes != 0 and text_split_bytes < LEAST_SPLIT_BYTES:
        raise InputError(
            f"text files cannot be cut at {text_split_bytes} bytes",
            remedy=f"Set text_split_bytes to at least {LEAST_SPLIT_BYTES}, or to 0 for no cuts",
        )
    # a file name may hold bytes that are no UTF-8, which no Parquet string can
    name = _relative(path, root).encode("utf-8", "backslashreplace").decode()
    chunks = _read_text(path, encoding, on_read or (lambda _: None))
    match _kind(path.name):
        case ".txt" if text_split_bytes:
            for line, text in cut_text(chunks, text_split_bytes):
                yield Document(text, f"{name}:{line}")
        case ".txt":
            yield Document("".join(chunks), f"{name}:1")
        case ".jsonl":
            for line, text in enumerate(_lines(chunks), start=1):
                if text.strip():
                    where = f"{path}:{line}"
                    yield Document(_text_of(_parse_line(text, where), text_key, where), f"{name}:{line}")
        case _:
            for line, value in _json_values("".join(chunks), path):
                yield Document(_text_of(value, text_key, f"{path}:{line}"), f"{name}:{line}")


def _kind(name: str) -> str | None:
    """The suffix in SUFFIXES that says how a file of this name is read, if any."""
    stem = name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if stem.endswith(suffix)), None)


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _visible_files(root: Path) -> Iterator[Path]:
    real_root = os.path.realpath(root)

    def walk(folder: Path, around: tuple[str, ...]) -> Iterator[Path]:
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise _unreadable(folder, error) from error
        for entry in entries:
            if entry.name.startswith(".") or entry.name.endswith(".tmp"):
                continue
            path = folder / entry.name
            if entry.is_symlink() and (path.is_dir() or _kind(entry.name)):
                _check_link(path, real_root)
            if path.is_dir():
                real = os.path.realpath(path)
                if real not in around:
                    yield from walk(path, (*around, real))
            elif path.is_file():
                yield path

    return walk(root, (real_root,))


def _check_link(path: Path, real_root: str) -> None:
    target = os.path.realpath(path)
    if not Path(target).is_relative_to(real_root):
        raise InputError(
            f"the link leads out of the corpus folder, to {target}",
            where=path,
            remedy="Copy what it points to into the folder, or remove the link",
        )
    if not path.exists():
        raise InputError(f"the link leads nowhere ({target})", where=path, remedy="Mend or remove the link")


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot be read ({error.strerror or error})",
        where=path,
        remedy="Name a folder that exists and may be read with --raw-corpora-dir",
    )


def _read_text(path: Path, encoding: str, on_read: Callable[[int], None]) -> Iterator[str]:
    """The decoded file in chunks, line ends as they are."""
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=encoding)  # refuses what is no text encoding (hex, rot13) too
        # the signature is dropped below, so that the offsets in error messages count it
        decoder = codecs.getincrementaldecoder(codecs.lookup(encoding).name.removesuffix("-sig"))()
    except LookupError as error:
        raise InputError(
            f"unknown text encoding {encoding!r}", where=path, remedy="Name one that Python knows with --encoding"
        ) from error
    consumed = 0
    started = False
    for chunk in _read_bytes(path, on_read):
        consumed += len(chunk)
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeError as error:
            found = f"the file is not {encoding} ({error})"
            if isinstance(error, UnicodeDecodeError):  # UTF-16 without a byte order mark is a plain UnicodeError
                # the decoder saw this chunk and what it kept of the last one
                offset = consumed - len(error.object) + error.start
                culprit = error.object[error.start : error.end].hex(" ")
                found = f"the bytes {culprit} at offset {offset} are not {encoding} ({error.reason})"
            raise InputError(
                found,
                where=path,
                remedy="Name the file's encoding with --encoding (cp949, euc-kr, latin-1, …)",
            ) from error
        if not started and text:
            started = True
            text = text.removeprefix("\ufeff")
        yield text


def _read_bytes(path: Path, on_read: Callable[[int], None]) -> Iterator[bytes]:
    """The file's content, decompressed, in chunks; the last one is empty."""
    try:
        with path.open("rb") as raw:
            stream = gzip.GzipFile(fileobj=raw) if path.name.lower().endswith(".gz") else raw
            done = 0
            chunk = b"more"
            while chunk:
                chunk = stream.read(_CHUNK_BYTES)
                on_read(raw.tell() - done)
                done = raw.tell()
                yield chunk
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(
            f"the gzip file is damaged or cut short ({error})", where=path, remedy="Fetch or compress it again"
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _lines(chunks: Iterator[str]) -> Iterator[str]:
    # str.splitlines would also split at U+2028 and its kind, which JSON strings may hold
    rest = ""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split("\n")
        yield from lines
    yield rest


def _parse_line(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        remedy = "A .jsonl file holds one object a line; an object or array over several lines goes in a .json file"
        raise InputError(f"invalid JSON ({error})", where=where, remedy=remedy) from error


def _json_values(text: str, path: Path) -> Iterator[tuple[int, object]]:
    """The elements of an array, or the one value of the file, each with the line on which it starts."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        remedy = "A .json file holds one object or one array; one object a line goes in a .jsonl file"
        raise InputError(f"invalid JSON ({error})", where=f"{path}:{line}", remedy=remedy) from error
    if not isinstance(whole, list):
        yield 1, whole
        return
    decoder = json.JSONDecoder()
    line, counted, position = 1, 0, text.index("[") + 1
    for value in whole:
        # json.loads does not tell where an element stood: decode it again from where the last one ended
        if gap := _BETWEEN_ELEMENTS.match(text, position):
            position = gap.end()
        line += text.count("\n", counted, position)
        yield line, value
        counted, position = position, decoder.raw_decode(text, position)[1]


def _text_of(record: object, text_key: str, where: str) -> str:
    """The text of one JSON value."""
    if isinstance(record, str):
        return record
    if not isinstance(record, dict):
        raise InputError(
            f"expected an object or a string, found {_JSON_TYPES[type(record)]}",
            where=where,
            remedy="Give every document as an object with its text under --text-key, or as a string",
        )
    value: object = record
    for key in [text_key] if text_key in record else text_key.split("."):
        value = value.get(key, _MISSING) if isinstance(value, dict) else _MISSING
    if isinstance(value, str):
        return value
    found = "is missing" if value is _MISSING else f"holds {_JSON_TYPES[type(value)]}"
    keys = list(_keys(record))
    listed = ", ".join(repr(key) for key in keys[:_KEYS_SHOWN]) + (", …" if len(keys) > _KEYS_SHOWN else "")
    raise InputError(
        f"the key {text_key!r} {found}; the keys with text are {listed or '(none)'}",
        where=where,
        remedy="Name the key that holds the text with --text-key",
    )


def _keys(record: dict[str, object], prefix: str = "") -> Iterator[str]:
    """The dotted keys that hold a string."""
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")
        elif isinstance(value, str):
            yield prefix + key
