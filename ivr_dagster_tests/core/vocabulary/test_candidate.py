"""What a new token must be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivr_dagster.core.tokens.byte_level import string_of
from ivr_dagster.core.vocabulary.candidate import Guards

PART = string_of("한")[:2]  # two of a letter's three bytes
TEXT = st.text(st.sampled_from("ab é한 7½.-\n"), min_size=1, max_size=8)


@given(TEXT)
def test_without_guards_anything_may_be_joined(text: str) -> None:
    assert Guards().may_join(string_of(text))


@given(TEXT, st.integers(1, 12))
def test_the_greatest_length_is_in_bytes(text: str, most: int) -> None:
    assert Guards(max_bytes=most).may_join(string_of(text)) == (len(text.encode()) <= most)


@pytest.mark.parametrize(
    "text", ["the", " the", " of the", "of the", "한국어", " naïve", "e\u0301", " ह\u093fन\u094dदी"]
)
def test_letters_with_their_marks_and_single_spaces_before_them_are_letters_only(text: str) -> None:
    assert Guards(letters_only=True).may_join(string_of(text))


@pytest.mark.parametrize("text", ["the ", "  the", "of  the", " ", "\tthe", "of\nthe", "it's", "x1", "_", "(the", "½"])
def test_anything_else_is_not(text: str) -> None:
    assert not Guards(letters_only=True).may_join(string_of(text))


def test_part_of_a_character_may_become_a_letter() -> None:
    assert Guards(letters_only=True).may_join(PART)
    assert Guards(letters_only=True).may_join("Ġ" + PART)
    assert not Guards(letters_only=True).may_join("." + PART)


@given(TEXT)
def test_without_join_digits_no_digit_of_any_script_is_joined(text: str) -> None:
    digits = any(character.isnumeric() for character in text)
    assert Guards(join_digits=False).may_join(string_of(text)) == (not digits)
    assert not Guards(join_digits=False).may_join(string_of(text + "٣"))


@given(TEXT, TEXT, st.integers(1, 12), st.booleans())
def test_what_is_too_long_or_holds_a_digit_stays_refused_however_it_goes_on(
    text: str, more: str, most: int, join_digits: bool
) -> None:
    guards = Guards(max_bytes=most, join_digits=join_digits)
    if not guards.may_join(string_of(text)):
        assert not guards.may_join(string_of(text + more))
        assert not guards.may_join(string_of(more + text))


def test_the_least_length_is_no_matter_of_joining() -> None:
    assert Guards(min_bytes=6).may_join("ab")


def test_guards_are_met_together() -> None:
    guards = Guards(max_bytes=4, letters_only=True, join_digits=False)
    assert [string for string in ("Ġabc", "Ġabcd", "abc.", "abc1", "1") if guards.may_join(string)] == ["Ġabc"]
