"""Reading raw corpora: which files of a folder belong to it, and the documents in them, one at a time."""

import codecs
import gzip
import hashlib
import io
import json
import os
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import NoneType
from typing import Literal

from ivr_dagster.core.corpus.long_lines import LongLine, LongString
from ivr_dagster.core.corpus.text_pieces import LEAST_SPLIT_BYTES, cut_text
from ivr_dagster.errors import MOST_TOLD, InputError, combine_errors, short_repr
from ivr_dagster.storage.arrow_columns import MOST_BYTES
from ivr_dagster.storage.regular_files import kind_of, open_regular

SUFFIXES = (".txt", ".jsonl", ".json")
TEXT_SPLIT_BYTES = 16_384
# UTF-8 bytes. A text in JSON is somebody's document and stays whole, up to the size of a row group of the cleaned
# corpus: of what is longer every reader would hold many times as much
MOST_WHOLE_BYTES = 8 << 20
# characters of a .json file: to be read whole it takes some five times as much memory
MOST_JSON = 1 << 28
# Deflate packs zeros a thousand times, prose and code three to ten times, the most repetitive log a hundred times. What
# is unpacked up to a quarter of a gigabyte is borne in any case
MOST_GZIP_RATIO, GZIP_BORNE_BYTES = 200, 1 << 28

# what is left out where bad input is to be skipped, and why
OnSkip = Callable[[Literal["file", "record"], InputError], None]

_CHUNK_BYTES = 1 << 20
# characters; a longer line is taken in by LongLine
_LONG_LINE = 1 << 24
_LONGEST_KEY = 200
_CULPRIT_BYTES = 8
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
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

    Left out are hidden files and folders, and names that end in .tmp (half-written files). A folder that links lead to
    is read once, by the first of its names.

    Raises:
        InputError: no such file; a folder that cannot be read; a link that leads out of `root` or nowhere; a pipe,
            device or socket with a name of a corpus file. All of them are told together.
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
        with open_regular(path) as file:
            digest = hashlib.blake2b()
            while block := file.read(_CHUNK_BYTES):  # of many small files file_digest fills a buffer each
                digest.update(block)
            return digest.digest()
    except OSError as error:
        raise _unreadable(path, error) from error


def read_documents(
    path: Path,
    root: Path,
    *,
    text_key: str = "text",
    encoding: str = "utf-8",
    encoding_errors: str = "strict",
    text_split_bytes: int = TEXT_SPLIT_BYTES,
    on_read: Callable[[int], None] | None = None,
    on_skip: OnSkip | None = None,
) -> Iterator[Document]:
    """Yields the documents of one corpus file.

    A .jsonl file holds an object, or a string that is the text itself, on every line that is not blank. A .json
    file holds an array of these, or a single one; it is read whole, so large corpora belong in .jsonl. A .txt file
    is one document up to `text_split_bytes`; a longer one is cut as text_pieces.cut_text describes, and so is a text
    in JSON of more than `MOST_WHOLE_BYTES`.

    Args:
        path: one of corpus_files(root).
        root: what the documents' sources are relative to.
        text_key: the key of the text in an object; "meta.body" is the key body of the object meta, unless there
            is a key with that very dot in it.
        encoding: of the file, any text encoding that Python knows. A byte order mark is dropped.
        encoding_errors: "strict", or "replace" to have U+FFFD in the place of bytes that are not of the encoding.
        text_split_bytes: UTF-8 bytes, at least 256; 0 keeps every text whole, in memory too.
        on_read: called with the number of bytes just read from the file, as stored (compressed, where it is).
        on_skip: called with what is at fault, which is then left out: a record, or the whole file where it cannot be
            decoded or decompressed (it is read twice for that). If not given, a fault is an error.

    Raises:
        InputError: the file cannot be read or decompressed, holds bytes that are not of the encoding, is not the
            JSON it claims to be, or lacks the text key (such records of a file are told together); a text that no
            Arrow string holds; the encoding is unknown; text_split_bytes is too small.
    """
    if text_split_bytes != 0 and text_split_bytes < LEAST_SPLIT_BYTES:
        raise InputError(
            f"text files cannot be cut at {text_split_bytes} bytes",
            remedy=f"Set text_split_bytes to at least {LEAST_SPLIT_BYTES}, or to 0 for no cuts",
        )
    _decoder(path, encoding, encoding_errors)
    if on_skip:
        try:
            for _ in _taken_apart(path, _read_text(path, encoding, encoding_errors, lambda _: None), text_split_bytes):
                pass
        except InputError as error:
            on_skip("file", error)
            return
    # a file name may hold bytes that are no UTF-8, which no Parquet string can
    name = _relative(path, root).encode("utf-8", "backslashreplace").decode()
    chunks = _read_text(path, encoding, encoding_errors, on_read or (lambda _: None))
    if _kind(path.name) == ".txt":
        pieces = cut_text(chunks, text_split_bytes) if text_split_bytes else [(1, _whole(chunks, f"{path}:1"))]
        yield from (Document(text, f"{name}:{line}") for line, text in pieces)
        return
    faults: list[InputError] = []
    records = _lines(chunks, path) if _kind(path.name) == ".jsonl" else _elements(chunks, path, on_skip)
    try:
        for line, record in records:
            try:
                texts = _texts_of(record, text_key, f"{path}:{line}", text_split_bytes)
            except InputError as error:
                if on_skip:
                    on_skip("record", error)
                    continue
                faults.append(error)
                if len(faults) > MOST_TOLD:
                    break
            if not faults:
                yield from (Document(text, f"{name}:{line}") for text in texts)
    except InputError as error:  # the file is at fault further on
        raise combine_errors([*faults, error]) from error
    if faults:
        raise combine_errors(faults)


def _taken_apart(path: Path, chunks: Iterable[str], text_split_bytes: int) -> Iterable[object]:
    """What comes of the file before anything is parsed: what can be wrong with all of it is wrong then."""
    if _kind(path.name) == ".jsonl":
        return _lines(chunks, path)
    return chunks if text_split_bytes or _kind(path.name) == ".json" else [_whole(chunks, f"{path}:1")]


def _kind(name: str) -> str | None:
    """The suffix in SUFFIXES that says how a file of this name is read, if any."""
    stem = name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if stem.endswith(suffix)), None)


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _visible_files(root: Path) -> list[Path]:
    """In no particular order."""
    real_root = os.path.realpath(root)
    found: list[Path] = []
    faults: list[InputError] = []
    # as links may lead to folders that have links, there may be far more names of folders than folders
    known: set[tuple[int, int]] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in known:
                continue
            known.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            faults.append(_unreadable(folder, error))
            continue
        folders = []
        for entry in entries:
            if entry.name.startswith(".") or entry.name.endswith(".tmp"):
                continue
            path = folder / entry.name
            try:
                # the folder's own listing tells of all but links: nothing is asked of the disk for each file
                seen: os.DirEntry[str] | Path = path if entry.is_symlink() else entry
                if seen is path and (path.is_dir() or _kind(entry.name)):
                    _check_link(path, real_root)
                if seen.is_dir():
                    folders.append(path)
                elif seen.is_file():
                    found.append(path)
                elif _kind(entry.name):
                    raise InputError(
                        f"it is {kind_of(path.stat().st_mode)}, not a file",
                        where=path,
                        remedy="Remove or rename it, or put a file in its place",
                    )
            except OSError as error:
                faults.append(_unreadable(path, error))
            except InputError as error:
                faults.append(error)
        waiting += reversed(folders)
    if faults:
        raise combine_errors(faults)
    return found


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


def _decoder(path: Path, encoding: str, errors: str) -> codecs.IncrementalDecoder:
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=encoding)  # refuses what is no text encoding (hex, rot13) too
        # the signature is dropped later on, so that the offsets in error messages count it
        name = codecs.lookup(encoding).name.removesuffix("-sig")
        return codecs.getincrementaldecoder(name)(errors)
    except (LookupError, ValueError) as error:  # a ValueError for a NUL or what is no text in the name
        raise InputError(
            f"unknown encoding {short_repr(encoding)}",
            where=path,
            remedy="Name one that Python knows with --encoding",
        ) from error


def _read_text(path: Path, encoding: str, errors: str, on_read: Callable[[int], None]) -> Iterator[str]:
    """The decoded file in chunks, line ends as they are."""
    decoder = _decoder(path, encoding, errors)
    consumed = 0
    beginning = b""
    started = False
    for chunk in _read_bytes(path, on_read):
        beginning = beginning or chunk[:4]
        consumed += len(chunk)
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeError as error:
            found = f"the file is not {encoding} ({error})"
            if isinstance(error, UnicodeDecodeError):  # UTF-16 without a byte order mark is a plain UnicodeError
                # the decoder saw this chunk and what it kept of the last one
                offset = consumed - len(error.object) + error.start
                culprit = error.object[error.start : error.end][:_CULPRIT_BYTES].hex(" ")
                found = f"the bytes {culprit} at offset {offset} are not {encoding} ({error.reason})"
            raise InputError(found, where=path, remedy=_encoding_remedy(beginning, encoding)) from error
        if not started and text:
            started = True
            text = text.removeprefix("\ufeff")
        yield text


def _encoding_remedy(beginning: bytes, encoding: str) -> str:
    for mark, name in _MARKS:
        if beginning.startswith(mark) and encoding.lower().replace("_", "-")[: len(name)] != name:
            return f"It begins with the byte order mark of {name}: name that with --encoding"
    return (
        "Name the file's encoding with --encoding (cp949, euc-kr, latin-1, …), or have such bytes replaced "
        "(--encoding-errors replace) or such files left out (--on-bad-input skip)"
    )


def _read_bytes(path: Path, on_read: Callable[[int], None]) -> Iterator[bytes]:
    """The file's content, decompressed, in chunks; the last one is empty."""
    try:
        with open_regular(path) as raw:
            packed = path.name.lower().endswith(".gz")
            stream = gzip.GzipFile(fileobj=raw) if packed else raw
            most = max(GZIP_BORNE_BYTES, MOST_GZIP_RATIO * os.fstat(raw.fileno()).st_size)
            unpacked = done = 0
            chunk = b"more"
            while chunk:
                chunk = stream.read(_CHUNK_BYTES)
                unpacked += len(chunk)
                if packed and unpacked > most:
                    raise InputError(
                        f"the gzip file unpacks to more than {most:,} bytes, over {MOST_GZIP_RATIO} times its size",
                        where=path,
                        remedy="If it is what it should be, unpack it (gunzip) and leave the unpacked file there",
                    )
                on_read(raw.tell() - done)
                done = raw.tell()
                yield chunk
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(
            f"the gzip file is damaged or cut short ({error})",
            where=path,
            remedy="Fetch or compress it again, or have such files left out (--on-bad-input skip)",
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error


@dataclass(frozen=True, slots=True)
class _Element:
    """A value of a .json file, which is parsed already."""

    value: object


class _Line:
    """A line as it is taken in."""

    def __init__(self, path: Path, number: int) -> None:
        self._path, self._number = path, number
        self._parts: list[str] = []
        self._size = 0
        self._long: LongLine | None = None

    def feed(self, part: str) -> None:
        self._size += len(part)
        if self._size > MOST_BYTES:
            raise _too_long(f"{self._path}:{self._number}")
        self._parts.append(part)
        if self._size > _LONG_LINE:
            self._long = self._long or LongLine()
            try:
                for each in self._parts:
                    self._long.feed(each)
            except ValueError as error:
                remedy = "A .jsonl file holds one object a line: put line ends between them"
                raise InputError(
                    f"the line is too long ({error})", where=f"{self._path}:{self._number}", remedy=remedy
                ) from error
            self._parts = []

    def taken(self) -> str | LongLine:
        return self._long or "".join(self._parts)


def _lines(chunks: Iterable[str], path: Path) -> Iterator[tuple[int, str | LongLine]]:
    """The lines that are not blank, with their numbers."""
    number, line = 1, _Line(path, 1)
    for chunk in chunks:
        # str.splitlines would also split at U+2028 and its kind, which JSON strings may hold
        first, *others = chunk.split("\n")
        line.feed(first)
        if not others:
            continue
        *whole, begun = others
        if not _is_blank(taken := line.taken()):
            yield number, taken
        for text in whole:
            number += 1
            if not _is_blank(text):
                yield number, text
        number += 1
        line = _Line(path, number)
        line.feed(begun)
    if not _is_blank(taken := line.taken()):
        yield number, taken


def _is_blank(line: str | LongLine) -> bool:
    return isinstance(line, str) and (not line or line.isspace())


def _elements(chunks: Iterable[str], path: Path, on_skip: OnSkip | None) -> Iterator[tuple[int, _Element]]:
    """The elements of an array, or the one value of a .json file, with the lines on which they start."""
    parts, size = list[str](), 0
    for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        if size > MOST_JSON:
            error = InputError(
                f"a .json file is read whole, and this one has more than {MOST_JSON:,} characters",
                where=path,
                remedy="Write one object a line into a .jsonl file (jq -c '.[]' FILE.json > FILE.jsonl)",
            )
            break
    else:
        text = "".join(parts)
        parts.clear()
        try:
            for line, value in _json_values(text, path):
                yield line, _Element(value)
            return
        except InputError as fault:
            error = fault
    if on_skip is None:
        raise error
    on_skip("file", error)


def _texts_of(record: str | LongLine | _Element, text_key: str, where: str, text_split_bytes: int) -> Iterable[str]:
    """The text of a record, in pieces where it is very long. Nothing of it is faulty once this has returned."""
    value, strings = _parsed(record, where)
    text = _text_of(value, text_key, where)
    if text in strings:
        size, chunks = strings[text].size, strings[text].drained()
    else:
        size = _utf8_bytes(text)
        chunks = (text[begin : begin + _CHUNK_BYTES] for begin in range(0, len(text), _CHUNK_BYTES))
    if size > MOST_BYTES and not text_split_bytes:
        raise _too_long(where)
    if size <= MOST_WHOLE_BYTES or not text_split_bytes:
        return ["".join(chunks)]
    return (piece for _, piece in cut_text(chunks, text_split_bytes))


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _whole(chunks: Iterable[str], where: str) -> str:
    parts, size = list[str](), 0
    for chunk in chunks:
        parts.append(chunk)
        size += _utf8_bytes(chunk)
        if size > MOST_BYTES:
            raise _too_long(where)
    return "".join(parts)


def _too_long(where: str) -> InputError:
    return InputError(
        f"the text has more than {MOST_BYTES:,} bytes, which is the most that one document can have",
        where=where,
        remedy="Have long texts cut into documents with --text-split-bytes, or cut this one up",
    )


def _parsed(record: str | LongLine | _Element, where: str) -> tuple[object, dict[str, LongString]]:
    try:
        if isinstance(record, str):
            return json.loads(record), {}
        return record.value() if isinstance(record, LongLine) else (record.value, {})
    except (ValueError, RecursionError) as error:
        remedy = "A .jsonl file holds one object a line; an object or array over several lines goes in a .json file"
        raise InputError(f"invalid JSON ({error})", where=where, remedy=remedy) from error


def _json_values(text: str, path: Path) -> Iterator[tuple[int, object]]:
    """The elements of an array, or the one value of the file, each with the line on which it starts."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        found = f"invalid JSON ({error})" if text.strip() else "the file is empty, which is no JSON"
        remedy = "A .json file holds one object or one array; one object a line goes in a .jsonl file"
        raise InputError(found, where=f"{path}:{line}", remedy=remedy) from error
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
    keys = list(islice(_keys(record), _KEYS_SHOWN + 1))
    listed = ", ".join(map(short_repr, keys[:_KEYS_SHOWN])) + (", …" if len(keys) > _KEYS_SHOWN else "")
    raise InputError(
        f"the key {short_repr(text_key)} {found}; the keys with text are {listed or '(none)'}",
        where=where,
        remedy="Name the key that holds the text with --text-key, or have such records left out (--on-bad-input skip)",
    )


def _keys(record: dict[str, object]) -> Iterator[str]:
    """The dotted keys that hold a string, the outer ones first."""
    waiting = deque([("", record)])
    while waiting:
        prefix, each = waiting.popleft()
        for key, value in each.items():
            if isinstance(value, dict) and len(prefix) + len(key) < _LONGEST_KEY:
                waiting.append((f"{prefix}{key}.", value))
            elif isinstance(value, str):
                yield prefix + key
