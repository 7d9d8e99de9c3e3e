"""Cuts a long plain text into documents so that an edit moves only the cuts next to it.

With fixed sizes, a line added at the top would give every document below a new text, a new hash and possibly the other
side of the split. So the content decides where to cut (content-defined chunking).
"""

import re
import zlib
from collections.abc import Iterable, Iterator

from ivr_dagster.settings.groups import MIN_SPLIT_BYTES

_CONTEXT_BYTES = MIN_SPLIT_BYTES // 4

# CRLF is matched as a unit (possessive), or its LF would count as a blank line
_END = rb"(?:\n|\r\n?+)"
_LINE_END = re.compile(_END)
_BLANK = re.compile(_END + rb"(?:[ \t]*+" + _END + rb")+")
_SPACE = re.compile(rb"[ \t]+")
_BLANK_LINES = re.compile(rb"(?:[ \t]*+" + _END + rb")*")


def cut_text(chunks: Iterable[str], max_bytes: int) -> Iterator[tuple[int, str]]:
    """Yields the pieces of a text, of at most `max_bytes` UTF-8 bytes, while the text is read.

    A text of at most `max_bytes` bytes stays whole. Otherwise a piece ends between `max_bytes`/4 and `max_bytes` bytes
    after its start, at the blank line whose preceding 64 bytes have the smallest CRC-32: pieces with other starts
    choose the same line once it is in their window. If the window has no blank line, a line end is chosen the same
    way; if it has none, the last line end before the window (a shorter piece); for a line longer than `max_bytes`, a
    space; without spaces, the last character that fits.

    Only whitespace is lost: the text equals its pieces in order, except for the whitespace before each cut and the
    blank lines (at a space, the spaces) after it. How the text is divided into chunks makes no difference.

    Args:
        chunks: the text.
        max_bytes: at least MIN_SPLIT_BYTES.

    Yields:
        The line on which a piece starts, counted from 1, and the piece.
    """
    source = (chunk.encode("utf-8", "surrogatepass") for chunk in chunks if chunk)
    buffer, position, line, uncut, ended = b"", 0, 1, True, False
    while True:
        if not ended and len(buffer) - position <= max_bytes:
            parts, size = [buffer[position:]], len(buffer) - position
            # wait for the LF after a trailing CR, or the pair would count as two line ends
            while not ended and (size <= max_bytes or parts[-1].endswith(b"\r")):
                parts.append(next(source, b""))
                size += len(parts[-1])
                ended = not parts[-1]
            buffer, position = b"".join(parts), 0
        if not uncut:
            blank = _BLANK_LINES.match(buffer, position)
            if blank and blank.end() > position:
                line += _line_ends(blank[0])
                position = blank.end()
                if not ended:
                    continue
        if ended and len(buffer) - position <= max_bytes:
            break
        end, following = _find_cut(buffer, position, max_bytes)
        if buffer[following - 1 : following + 1] == b"\r\n":  # the window ended inside the pair
            following += 1
        piece = buffer[position:end].rstrip()
        if piece:
            yield line, piece.decode("utf-8", "surrogatepass")
        line += _line_ends(buffer[position:following])
        position, uncut = following, False
    last = buffer[position:]
    if uncut or last.strip():
        yield line, last.decode("utf-8", "surrogatepass")


def _find_cut(buffer: bytes, start: int, max_bytes: int) -> tuple[int, int]:
    """End of the piece that begins at `start`, and start of the next one. More than `max_bytes` bytes must follow."""
    low, high = start + max_bytes // 4, start + max_bytes
    for boundary in (_BLANK, _LINE_END):
        if cut := _choose(boundary, buffer, low, high):
            return cut
    line_end = max(buffer.rfind(b"\n", start, low), buffer.rfind(b"\r", start, low))
    if line_end > start:
        return line_end, line_end + 1
    if cut := _choose(_SPACE, buffer, low, high):
        return cut
    while buffer[high] & 0xC0 == 0x80:  # a continuation byte: the cut would fall inside a character
        high -= 1
    return high, high


def _choose(boundary: re.Pattern[bytes], buffer: bytes, low: int, high: int) -> tuple[int, int] | None:
    """The span of the boundary in [low, high) whose context has the smallest CRC; the first one on ties."""
    best: tuple[int, int] | None = None
    least = 1 << 32
    for match in boundary.finditer(buffer, low, high):
        start = match.start()
        checksum = zlib.crc32(buffer[start - _CONTEXT_BYTES : start])
        if checksum < least:
            least, best = checksum, match.span()
    return best


def _line_ends(data: bytes) -> int:
    return data.count(b"\n") + data.count(b"\r") - data.count(b"\r\n")
