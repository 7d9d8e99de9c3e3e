"""The byte-level alphabet: a token's *string* (`Ġthe`, one character a byte) and its *text* (decoded bytes).

The bijection between the 256 byte values and 256 printable characters is GPT-2's (`bytes_to_unicode`,
Radford et al. 2019); every byte-level BPE of transformers uses it.
"""


def _alphabet() -> dict[int, str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = (byte for byte in range(256) if byte not in set(printable))
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(moved)}


BYTE_TO_CHARACTER: dict[int, str] = _alphabet()
CHARACTER_TO_BYTE: dict[str, int] = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}
_TO_STRING = [BYTE_TO_CHARACTER[byte] for byte in range(256)]


def string_of(text: str) -> str:
    """The byte-level string of a text: one character of the alphabet for each of its UTF-8 bytes."""
    return "".join([_TO_STRING[byte] for byte in text.encode("utf-8")])


def bytes_of(string: str) -> bytes:
    """The bytes a byte-level string stands for.

    Raises:
        KeyError: a character is not of the byte-level alphabet (an added token, say).
    """
    return bytes([CHARACTER_TO_BYTE[character] for character in string])


def is_byte_level(string: str) -> bool:
    """Whether every character of the string is of the byte-level alphabet."""
    return all(character in CHARACTER_TO_BYTE for character in string)


def text_of(string: str) -> str:
    """The text of a token's string, for people to read: U+FFFD where its bytes are no whole UTF-8 characters.

    A string outside the byte-level alphabet (`<｜end｜>`) is its own text.
    """
    return bytes_of(string).decode("utf-8", "replace") if is_byte_level(string) else string


def whole_text(string: str) -> str | None:
    """The text of a byte-level string, None where its bytes are no whole UTF-8 characters."""
    try:
        return bytes_of(string).decode("utf-8")
    except UnicodeDecodeError:
        return None
