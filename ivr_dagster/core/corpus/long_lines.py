"""JSON lines with strings of hundreds of megabytes, parsed incrementally and yielded in pieces.

`json.loads` would hold the line and its text in memory, at four bytes per character if there is an emoji. Here, long
strings are kept escaped in UTF-8, and the rest of the line is parsed with a short placeholder for each of them.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

# In characters. Longer lines are scanned for long strings; strings shorter than LONG_STRING are parsed in place.
LONG_LINE, LONG_STRING = 1 << 24, 1 << 16
# In characters: the part of a long line outside its long strings, which is parsed as a whole; and any line.
MAX_OUTSIDE_STRINGS, MAX_LINE = 1 << 26, (1 << 31) - 1

_PLACEHOLDER = "\x00long string {} of this line"
_UTF8 = ("utf-8", "surrogatepass")
_UP_TO_QUOTE = re.compile(r'(?:[^"\\]++|\\.)*+', re.DOTALL)
_ESCAPES = re.compile(r"(?:[^\\]++|\\[^u]|\\u[0-9a-fA-F]{4})*+", re.DOTALL)
_HIGH_SURROGATE = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}")


@dataclass(frozen=True, slots=True)
class LongString:
    """A long string of a line.

    Attributes:
        parts: the escaped content between the quotes, split at arbitrary characters.
        size: UTF-8 bytes of the unescaped text.
    """

    parts: list[bytes]
    size: int

    def drain(self) -> Iterator[str]:
        """Yields the text in pieces and frees each part once it is read."""
        self.parts.reverse()
        return unescape(self.parts.pop() for _ in range(len(self.parts)))


class JsonLine:
    """One line of JSON, assembled from consecutive parts."""

    def __init__(self) -> None:
        self._size = 0
        self._parts: list[str] = []  # the whole line while it is short, then only what is outside its long strings
        self._size_outside = 0
        self._strings: list[list[bytes]] = []
        self._string: list[bytes] = []
        self._string_size = 0
        self._in_string = self._escaped = False

    @property
    def is_long(self) -> bool:
        """Whether the line has more than `LONG_LINE` characters so far."""
        return self._size > LONG_LINE

    def feed(self, part: str) -> None:
        """Appends the next part of the line.

        Raises:
            ValueError: the line is too long.
        """
        was_long = self.is_long
        self._size += len(part)
        if self._size > MAX_LINE:
            raise ValueError(f"it has more than {MAX_LINE:,} characters")
        if not self.is_long:
            self._parts.append(part)
            return
        unscanned = [part] if was_long else [*self._parts, part]
        if not was_long:
            self._parts = []
        for each in unscanned:
            self._scan(each)
        if self._size_outside > MAX_OUTSIDE_STRINGS:
            raise ValueError(f"it has more than {MAX_OUTSIDE_STRINGS:,} characters outside its long strings")

    def text(self) -> str:
        """The line; valid only if it is not long."""
        return "".join(self._parts)

    def parse(self) -> tuple[Any, dict[str, LongString]]:
        """The value of a long line, with a placeholder for each long string, and the long strings by placeholder.

        Raises:
            ValueError: invalid JSON.
            RecursionError: nested too deeply.
        """
        if self._in_string:
            raise ValueError("Unterminated string")
        try:
            value = json.loads("".join(self._parts))
            # Unescaping every string now detects an error before any text is yielded.
            sizes = [sum(len(text.encode(*_UTF8)) for text in unescape(parts)) for parts in self._strings]
        except json.JSONDecodeError as error:  # its position does not refer to the original line
            raise ValueError(error.msg) from error
        strings = map(LongString, self._strings, sizes)
        return value, {_PLACEHOLDER.format(number): string for number, string in enumerate(strings)}

    def _scan(self, part: str) -> None:
        """Separates string content from the rest of the line."""
        outside: list[str] = []
        position = 0
        while position < len(part):
            if not self._in_string:
                quote = part.find('"', position)
                end = quote + 1 if quote >= 0 else len(part)
                outside.append(part[position:end])
                self._in_string = quote >= 0
            else:
                end = self._end_of_string(part, position)
                self._string.append(part[position:end].encode(*_UTF8))
                self._string_size += end - position
                if end < len(part):  # at the closing quote
                    outside += [self._finish_string(), '"']
                    self._in_string = False
                    end += 1
            position = end
        self._parts.append("".join(outside))
        self._size_outside += len(self._parts[-1])

    def _end_of_string(self, part: str, position: int) -> int:
        """Where the string around `position` ends: at its closing quote, or at the end of the part."""
        if self._escaped:  # the previous part ended with a backslash
            position, self._escaped = position + 1, False
        match = _UP_TO_QUOTE.match(part, position)
        end = match.end() if match else position
        if end < len(part) and part[end] == "\\":
            self._escaped = True
            return len(part)
        return end

    def _finish_string(self) -> str:
        """The content of the string that just ended, or the placeholder of a long one."""
        string, size = self._string, self._string_size
        self._string, self._string_size = [], 0
        if size < LONG_STRING:
            return "".join(part.decode(*_UTF8) for part in string)
        self._strings.append(string)
        return json.dumps(_PLACEHOLDER.format(len(self._strings) - 1))[1:-1]


def unescape(parts: Iterable[bytes]) -> Iterator[str]:
    r"""Yields the text of escaped JSON string content, which may be split at arbitrary characters.

    Raises:
        ValueError: an invalid escape or a control character.
    """
    rest = ""
    for part in parts:
        text = rest + part.decode(*_UTF8)
        match = _ESCAPES.match(text)
        end = match.end() if match else 0
        if len(text) - end > len("\\u000"):  # not an escape that continues in the next part
            end = len(text)
        # The second half of a surrogate pair may follow. After an odd number of backslashes, "\ud800" is not an escape.
        high = end - len("\\ud800")
        if high >= 0 and _HIGH_SURROGATE.match(text, high, end):
            before = text[:high]
            if (len(before) - len(before.rstrip("\\"))) % 2 == 0:
                end = high
        rest = text[end:]
        yield json.loads(f'"{text[:end]}"')
    if rest:
        yield json.loads(f'"{rest}"')
