"""The byte-level alphabet: a token's *string* (`Ġthe`, one character per byte) and its *text* (decoded bytes).

The bijection between the 256 byte values and 256 printable characters is GPT-2's (`bytes_to_unicode`,
Radford et al. 2019); every byte-level BPE in transformers uses it.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

import numpy as np


def _alphabet() -> dict[int, str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = (byte for byte in range(256) if byte not in set(printable))
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(moved)}


BYTE_TO_CHARACTER: dict[int, str] = _alphabet()
CHARACTER_TO_BYTE: dict[str, int] = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}
_CHARACTERS = frozenset(CHARACTER_TO_BYTE)
_CODE_OF_BYTE = np.array([ord(BYTE_TO_CHARACTER[byte]) for byte in range(256)], dtype=np.uint16)
_BYTE_OF_CODE = np.full(1 + max(map(ord, CHARACTER_TO_BYTE)), -1, dtype=np.int16)
_BYTE_OF_CODE[_CODE_OF_BYTE] = np.arange(256)


def string_of(text: str) -> str:
    """Byte-level string of a text: one character per UTF-8 byte."""
    return "".join([BYTE_TO_CHARACTER[byte] for byte in text.encode("utf-8")])


def strings_of(texts: Iterable[str]) -> list[str]:
    """Byte-level strings of many texts."""
    encoded = [text.encode("utf-8") for text in texts]
    codes = _CODE_OF_BYTE[np.frombuffer(b"".join(encoded), dtype=np.uint8)]
    joined = codes.astype("<u2").tobytes().decode("utf-16-le")
    return [joined[start:end] for start, end in pairwise(accumulate(map(len, encoded), initial=0))]


def bytes_of(string: str) -> bytes:
    """Bytes of a byte-level string.

    Raises:
        KeyError: a character is outside the byte-level alphabet, for example in an added token.
    """
    return bytes([CHARACTER_TO_BYTE[character] for character in string])


def is_byte_level(string: str) -> bool:
    """Whether every character of the string is in the byte-level alphabet."""
    return _CHARACTERS.issuperset(string)


def text_of(string: str) -> str:
    """Human-readable text of a token's string, with U+FFFD for incomplete UTF-8 characters.

    A string outside the byte-level alphabet (`<｜end｜>`) is returned unchanged.
    """
    return bytes_of(string).decode("utf-8", "replace") if is_byte_level(string) else string


def texts_of(strings: Sequence[str]) -> list[str]:
    """Texts of many strings, see :func:`text_of`."""
    codes = np.frombuffer("".join(strings).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    values = _BYTE_OF_CODE[np.minimum(codes, len(_BYTE_OF_CODE) - 1)]
    values[codes >= len(_BYTE_OF_CODE)] = -1
    ends = list(accumulate(map(len, strings), initial=0))
    outside = np.concatenate([[0], np.cumsum(values < 0)])[ends]
    joined = values.astype(np.uint8).tobytes()
    return [
        string if beyond else joined[start:end].decode("utf-8", "replace")
        for string, (start, end), beyond in zip(strings, pairwise(ends), np.diff(outside).tolist(), strict=True)
    ]


def whole_text(string: str) -> str | None:
    """Text of a byte-level string, or None if it has incomplete UTF-8 characters."""
    try:
        return bytes_of(string).decode("utf-8")
    except UnicodeDecodeError:
        return None
