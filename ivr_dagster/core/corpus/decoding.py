"""From a file, possibly compressed, to chunks of decoded text."""

import codecs
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from ivr_dagster.core.corpus.files import unreadable_error
from ivr_dagster.errors import InputError, short_repr
from ivr_dagster.storage.regular_files import open_regular

# Deflate compresses zeros a thousandfold, prose and code 3 to 10 times, very repetitive logs a hundred times.
# A quarter of a gigabyte is accepted at any ratio.
MAX_GZIP_RATIO, SAFE_GZIP_BYTES = 200, 1 << 28

CHUNK_BYTES = 1 << 20
_SHOWN_BYTES = 8
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def text_decoder(path: Path, encoding: str, errors: str) -> codecs.IncrementalDecoder:
    """An incremental decoder for a file.

    Raises:
        InputError: Python has no text encoding of this name.
    """
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=encoding)  # also rejects codecs that are not text (hex, rot13)
        # read_text drops the signature itself, so that offsets in error messages include it
        name = codecs.lookup(encoding).name.removesuffix("-sig")
        return codecs.getincrementaldecoder(name)(errors)
    except (LookupError, ValueError) as error:  # ValueError: a NUL or a lone surrogate in the name
        raise InputError(
            f"unknown encoding {short_repr(encoding)}",
            where=path,
            remedy="Use an encoding that Python knows with --encoding",
        ) from error


def read_text(path: Path, encoding: str, errors: str) -> Iterator[str]:
    """Yields the decoded file in chunks, without its byte order mark and with unchanged line ends.

    Args:
        path: a text file, compressed if its name ends in .gz.
        encoding: any text encoding that Python knows.
        errors: "strict", or "replace" to replace undecodable bytes with U+FFFD.

    Raises:
        InputError: the file cannot be read, decompressed or decoded; the encoding is unknown.
    """
    decoder = text_decoder(path, encoding, errors)
    consumed = 0
    beginning = b""
    started = False
    for chunk in _read_bytes(path):
        beginning = beginning or chunk[:4]
        consumed += len(chunk)
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeError as error:
            found = f"the file is not {encoding} ({error})"
            if isinstance(error, UnicodeDecodeError):  # UTF-16 without a byte order mark raises a plain UnicodeError
                # error.object is this chunk and the undecoded rest of the last one
                offset = consumed - len(error.object) + error.start
                shown = error.object[error.start : error.end][:_SHOWN_BYTES].hex(" ")
                found = f"the bytes {shown} at offset {offset} are not {encoding} ({error.reason})"
            raise InputError(found, where=path, remedy=_encoding_remedy(beginning, encoding)) from error
        if not started and text:
            started = True
            text = text.removeprefix("\ufeff")
        yield text


def _encoding_remedy(beginning: bytes, encoding: str) -> str:
    for mark, name in _BYTE_ORDER_MARKS:
        if beginning.startswith(mark) and encoding.lower().replace("_", "-")[: len(name)] != name:
            return f"The file starts with the byte order mark of {name}: set --encoding {name}"
    return (
        "Set the file's encoding with --encoding (cp949, euc-kr, latin-1, …), replace undecodable bytes "
        "(--encoding-errors replace), or skip such files (--on-bad-input skip)"
    )


def _read_bytes(path: Path) -> Iterator[bytes]:
    """The content, decompressed, in chunks; the last one is empty."""
    compressed = path.name.lower().endswith(".gz")
    try:
        with open_regular(path) as raw:
            stream = gzip.GzipFile(fileobj=raw) if compressed else raw
            max_bytes = max(SAFE_GZIP_BYTES, MAX_GZIP_RATIO * os.fstat(raw.fileno()).st_size)
            total = 0
            chunk = b"more"
            while chunk:
                chunk = stream.read(CHUNK_BYTES)
                total += len(chunk)
                if compressed and total > max_bytes:
                    raise InputError(
                        f"the gzip file unpacks to more than {max_bytes:,} bytes, over {MAX_GZIP_RATIO} times its size",
                        where=path,
                        remedy="If this is expected, replace it with the unpacked file (gunzip)",
                    )
                yield chunk
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(
            f"the gzip file is damaged or truncated ({error})",
            where=path,
            remedy="Download or compress it again, or skip such files (--on-bad-input skip)",
        ) from error
    except OSError as error:
        raise unreadable_error(path, error) from error
