"""From a corpus file to its documents, one at a time."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ivr_dagster.core.corpus.decoding import CHUNK_BYTES, read_text, text_decoder
from ivr_dagster.core.corpus.files import file_format, relative_name
from ivr_dagster.core.corpus.json_records import find_text, json_elements, json_lines, parse_line
from ivr_dagster.core.corpus.long_lines import LongString
from ivr_dagster.core.corpus.text_pieces import cut_text
from ivr_dagster.errors import MAX_ERRORS, InputError, combine_errors
from ivr_dagster.settings.groups import CorpusSettings

# UTF-8 bytes. A text in JSON is a document and stays whole up to the size of a row group of the cleaned corpus: every
# reader would hold several times as much of a longer one.
MAX_UNCUT_JSON_BYTES = 8 << 20
# UTF-8 bytes of the longest Arrow string.
MAX_TEXT_BYTES = 2**31 - 1

# Called with each file or record that is skipped, and the reason.
OnSkip = Callable[[Literal["file", "record"], InputError], None]


@dataclass(frozen=True, slots=True)
class Document:
    """A document before cleaning.

    Attributes:
        text: may contain lone surrogates, control characters and any line ends.
        source: where it starts: "path/relative/to/the/root:line".
    """

    text: str
    source: str


def read_documents(
    path: Path, root: Path, settings: CorpusSettings, *, on_skip: OnSkip | None = None
) -> Iterator[Document]:
    """Yields the documents of one corpus file.

    A .jsonl file has an object, or a string that is the text itself, on every line that is not blank. A .json file
    has an array of these, or a single one. A .txt file is one document up to `text_split_bytes`; a longer one, and a
    text in JSON of more than `MAX_UNCUT_JSON_BYTES`, is cut as `text_pieces.cut_text` describes.

    Args:
        path: one of `files.corpus_files(root)`.
        root: sources are relative to it.
        settings: `text_key` (see `json_records.find_text`), `encoding` and `encoding_errors` (see
            `decoding.read_text`), `text_split_bytes` (UTF-8 bytes; 0 keeps every text whole, in memory too).
        on_skip: called with every record or file that cannot be read, which is then skipped. The file is read twice.
            Without it, errors are raised.

    Raises:
        InputError: the file cannot be read, decompressed, decoded or parsed; records without text (reported together);
            a text longer than `MAX_TEXT_BYTES`; an unknown encoding.
    """
    split_bytes = settings.text_split_bytes
    text_decoder(path, settings.encoding, settings.encoding_errors)
    if on_skip:
        try:
            _check_file(path, settings)
        except InputError as error:
            on_skip("file", error)
            return
    # File names may contain bytes that are not UTF-8, which Parquet strings cannot hold.
    name = relative_name(path, root).encode("utf-8", "backslashreplace").decode()
    chunks = read_text(path, settings.encoding, settings.encoding_errors)
    if file_format(path.name) == ".txt":
        texts: Iterable[tuple[int, str]] = (
            cut_text(chunks, split_bytes) if split_bytes else [(1, _join(chunks, f"{path}:1"))]
        )
    else:
        texts = _json_texts(chunks, path, settings, on_skip)
    yield from (Document(text, f"{name}:{line}") for line, text in texts)


def _check_file(path: Path, settings: CorpusSettings) -> None:
    """Reads a file without parsing its records, to raise the errors that concern it as a whole."""
    chunks = read_text(path, settings.encoding, settings.encoding_errors)
    kind = file_format(path.name)
    if kind == ".txt" and not settings.text_split_bytes:
        _join(chunks, f"{path}:1")
    for _ in json_lines(chunks, path) if kind == ".jsonl" else chunks:
        pass


def _json_texts(
    chunks: Iterable[str], path: Path, settings: CorpusSettings, on_skip: OnSkip | None
) -> Iterator[tuple[int, str]]:
    """Texts of a .jsonl or .json file, in pieces if they are very long, each with the line of its record."""
    parse: Callable[[Any, str], tuple[object, dict[str, LongString]]]
    try:
        if file_format(path.name) == ".jsonl":
            records, parse = json_lines(chunks, path), parse_line
        else:
            records, parse = json_elements(chunks, path), lambda value, _: (value, {})
    except InputError as error:  # raised for .json files only: lines are read below
        if not on_skip:
            raise
        on_skip("file", error)
        return
    errors: list[InputError] = []
    try:
        for line, record in records:
            where = f"{path}:{line}"
            try:
                value, strings = parse(record, where)
                texts = _pieces(find_text(value, settings.text_key, where), strings, settings.text_split_bytes, where)
            except InputError as error:
                if on_skip:
                    on_skip("record", error)
                    continue
                errors.append(error)
                if len(errors) > MAX_ERRORS:
                    break
            if not errors:
                yield from ((line, text) for text in texts)
    except InputError as error:  # the rest of the file cannot be read
        raise combine_errors([*errors, error]) from error
    if errors:
        raise combine_errors(errors)


def _pieces(text: str, strings: dict[str, LongString], split_bytes: int, where: str) -> Iterable[str]:
    """A text of a JSON record, or the long string that it is the placeholder of, in pieces if it is very long."""
    if text in strings:
        size, chunks = strings[text].size, strings[text].drain()
    else:
        size = _utf8_bytes(text)
        chunks = (text[start : start + CHUNK_BYTES] for start in range(0, len(text), CHUNK_BYTES))
    if size > MAX_TEXT_BYTES and not split_bytes:
        raise _too_long(where)
    if size <= MAX_UNCUT_JSON_BYTES or not split_bytes:
        return ["".join(chunks)]
    return (piece for _, piece in cut_text(chunks, split_bytes))


def _join(chunks: Iterable[str], where: str) -> str:
    parts, size = list[str](), 0
    for chunk in chunks:
        parts.append(chunk)
        size += _utf8_bytes(chunk)
        if size > MAX_TEXT_BYTES:
            raise _too_long(where)
    return "".join(parts)


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _too_long(where: str) -> InputError:
    return InputError(
        f"the text has more than {MAX_TEXT_BYTES:,} bytes, the maximum for one document",
        where=where,
        remedy="Cut long texts into documents with --text-split-bytes, or divide this one",
    )
