"""A line of JSON with a text of hundreds of megabytes in it, taken in as it arrives and given out in pieces.

A parser would hold line and text, in four bytes a character once there is an emoji in it. So long strings are set
aside in UTF-8, as they stand in the file, and what is left of the line is parsed with a short string in the place of
each.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

# shorter ones stay where they are
LONG_STRING = 1 << 16
# of the rest of the line, which is parsed whole
MOST_BESIDE = 1 << 26
_PLACE = "\x00a long string of this line: {}"

_UTF8 = ("utf-8", "surrogatepass")

_UP_TO_QUOTE = re.compile(r'(?:[^"\\]++|\\.)*+', re.DOTALL)
_ESCAPES = re.compile(r"(?:[^\\]++|\\[^u]|\\u[0-9a-fA-F]{4})*+", re.DOTALL)
_HIGH_SURROGATE = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}")


@dataclass(frozen=True, slots=True)
class LongString:
    """A string that was set aside.

    Attributes:
        parts: what stands between its quotes, in parts that may end behind any character.
        size: bytes of the text that it is, in UTF-8.
    """

    parts: list[bytes]
    size: int

    def drained(self) -> Iterator[str]:
        """The text in pieces, each given up as it is given out."""
        self.parts.reverse()
        return decoded(self.parts.pop() for _ in range(len(self.parts)))


class LongLine:
    """One line, fed in parts.

    Attributes:
        size: characters fed so far.
    """

    def __init__(self) -> None:
        self.size = 0
        self._beside: list[str] = []
        self._beside_size = 0
        self._strings: list[list[bytes]] = []
        self._string: list[bytes] = []
        self._string_size = 0
        self._inside = self._escaped = False

    def feed(self, part: str) -> None:
        """Take in what comes next of the line.

        Raises:
            ValueError: beside its long strings the line is too long.
        """
        self.size += len(part)
        beside: list[str] = []
        position = 0
        while position < len(part):
            if not self._inside:
                quote = part.find('"', position)
                end = quote + 1 if quote >= 0 else len(part)
                beside.append(part[position:end])
                self._inside = quote >= 0
            else:
                end = self._rest_of_string(part, position)
                self._string.append(part[position:end].encode(*_UTF8))
                self._string_size += end - position
                if end < len(part):  # a quote
                    beside.append(self._put_aside())
                    self._inside = False
                    beside.append('"')
                    end += 1
            position = end
        self._beside.append("".join(beside))
        self._beside_size += len(self._beside[-1])
        if self._beside_size > MOST_BESIDE:
            raise ValueError(f"beside strings of {LONG_STRING:,} characters and more it has over {MOST_BESIDE:,}")

    def value(self) -> tuple[Any, dict[str, LongString]]:
        """What the line holds, with a string in the place of each long one, and what these stand for.

        Raises:
            ValueError: it is no JSON.
            RecursionError: it is nested too deeply.
        """
        if self._inside:
            raise ValueError("Unterminated string")
        try:
            found = json.loads("".join(self._beside))
            # decoded once for nothing: what is no JSON further on may not come out in part
            sizes = [sum(len(text.encode(*_UTF8)) for text in decoded(each)) for each in self._strings]
        except json.JSONDecodeError as error:  # its position is not one in the line
            raise ValueError(error.msg) from error
        strings = map(LongString, self._strings, sizes)
        return found, {_PLACE.format(number): string for number, string in enumerate(strings)}

    def _rest_of_string(self, part: str, position: int) -> int:
        """Where the string ends that `position` lies in: at a quote, or with the part."""
        if self._escaped:  # by the last character of the part before
            position, self._escaped = position + 1, False
        match = _UP_TO_QUOTE.match(part, position)
        end = match.end() if match else position
        if end < len(part) and part[end] == "\\":
            self._escaped = True
            return len(part)
        return end

    def _put_aside(self) -> str:
        string, size = self._string, self._string_size
        self._string, self._string_size = [], 0
        if size < LONG_STRING:
            return "".join(part.decode(*_UTF8) for part in string)
        self._strings.append(string)
        return json.dumps(_PLACE.format(len(self._strings) - 1))[1:-1]


def decoded(string: Iterable[bytes]) -> Iterator[str]:
    r"""The text, in pieces, of what stands between two quotes in JSON, in parts.

    Raises:
        ValueError: an escape that there is not, or a control character.
    """
    rest = ""
    for part in string:
        text = rest + part.decode(*_UTF8)
        match = _ESCAPES.match(text)
        end = match.end() if match else 0
        if len(text) - end > len("\\u000"):  # no escape that goes on in the next part
            end = len(text)
        # the second half of a pair may follow; behind an odd number of backslashes it is no escape
        half = end - len("\\ud800")
        if half >= 0 and _HIGH_SURROGATE.match(text, half, end):
            before = text[:half]
            if (len(before) - len(before.rstrip("\\"))) % 2 == 0:
                end = half
        rest = text[end:]
        yield json.loads(f'"{text[:end]}"')
    if rest:
        yield json.loads(f'"{rest}"')
