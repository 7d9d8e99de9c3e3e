"""The byte-level alphabet compared with the pre-tokenizer and decoder of tokenizers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, pre_tokenizers

from ivr_dagster.core.tokens.byte_level import (
    BYTE_TO_CHARACTER,
    CHARACTER_TO_BYTE,
    bytes_of,
    is_byte_level,
    string_of,
    strings_of,
    text_of,
    texts_of,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def test_alphabet_equals_that_of_tokenizers() -> None:
    assert set(CHARACTER_TO_BYTE) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(BYTE_TO_CHARACTER) == list(range(256))
    assert all(CHARACTER_TO_BYTE[character] == byte for byte, character in BYTE_TO_CHARACTER.items())


@given(TEXT)
def test_string_of_text_equals_that_of_tokenizers(text: str) -> None:
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    assert string_of(text) == "".join(piece for piece, _ in whole.pre_tokenize_str(text))


@given(TEXT)
def test_text_round_trips_through_its_string(text: str) -> None:
    string = string_of(text)
    assert len(string) == len(text.encode())
    assert is_byte_level(string)
    assert bytes_of(string) == text.encode()
    assert text_of(string) == text


@given(st.binary())
def test_text_of_any_bytes_equals_that_of_the_decoder(content: bytes) -> None:
    string = "".join(BYTE_TO_CHARACTER[byte] for byte in content)
    assert bytes_of(string) == content
    assert text_of(string) == decoders.ByteLevel().decode([string])


@pytest.mark.parametrize("length", [1, 2])
def test_incomplete_character_becomes_the_replacement_character(length: int) -> None:
    assert text_of(string_of("한")[:length]) == "\ufffd"
    assert text_of("a" + string_of("한")[:length]) == "a\ufffd"


def test_string_outside_the_alphabet_is_its_own_text_and_has_no_bytes() -> None:
    assert not is_byte_level("<｜end｜>")
    assert text_of("<｜end｜>") == "<｜end｜>"
    with pytest.raises(KeyError, match="｜"):
        bytes_of("<｜end｜>")


@given(st.lists(TEXT))
def test_strings_of_many_texts_equal_those_of_each(texts: list[str]) -> None:
    assert strings_of(texts) == [string_of(text) for text in texts]


@given(st.lists(st.text() | st.text(st.sampled_from(sorted(CHARACTER_TO_BYTE)))))
def test_texts_of_many_strings_equal_those_of_each(strings: list[str]) -> None:
    assert texts_of(strings) == [text_of(string) for string in strings]
