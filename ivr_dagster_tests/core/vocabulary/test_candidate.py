"""The requirements for a new token."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivr_dagster.core.tokens.byte_level import string_of
from ivr_dagster.core.vocabulary.candidate import CandidateFilter
from ivr_dagster.settings import SelectionSettings

PART = string_of("한")[:2]  # two of a letter's three bytes
TEXT = st.text(st.sampled_from("ab é한 7½.-\n"), min_size=1, max_size=8)
LETTERS = CandidateFilter(SelectionSettings(letters_only=True))


@given(TEXT)
def test_default_filter_accepts_any_part(text: str) -> None:
    assert CandidateFilter(SelectionSettings()).accepts_part(string_of(text))


@given(TEXT, st.integers(1, 12))
def test_max_token_len_counts_bytes(text: str, most: int) -> None:
    limited = CandidateFilter(SelectionSettings(max_token_len=most))
    assert limited.accepts_part(string_of(text)) == (len(text.encode()) <= most)


@pytest.mark.parametrize(
    "text", ["the", " the", " of the", "of the", "한국어", " naïve", "e\u0301", " ह\u093fन\u094dदी"]
)
def test_letters_only_accepts_letters_with_marks_and_single_spaces(text: str) -> None:
    assert LETTERS.accepts_part(string_of(text))


@pytest.mark.parametrize("text", ["the ", "  the", "of  the", " ", "\tthe", "of\nthe", "it's", "x1", "_", "(the", "½"])
def test_letters_only_refuses_anything_else(text: str) -> None:
    assert not LETTERS.accepts_part(string_of(text))


def test_letters_only_accepts_part_of_a_character_only_as_a_part() -> None:
    assert LETTERS.accepts_part(PART) and LETTERS.accepts_part("Ġ" + PART)
    assert not LETTERS.accepts_part("." + PART)
    assert not LETTERS.accepts(PART)


@given(TEXT)
def test_join_digits_off_refuses_digits_of_any_script(text: str) -> None:
    without = CandidateFilter(SelectionSettings(join_digits=False))
    assert without.accepts_part(string_of(text)) == (not any(character.isnumeric() for character in text))
    assert not without.accepts_part(string_of(text + "٣"))


@given(TEXT, TEXT, st.integers(1, 12), st.booleans())
def test_refused_part_stays_refused_in_longer_strings(text: str, more: str, most: int, join_digits: bool) -> None:
    each = CandidateFilter(SelectionSettings(max_token_len=most, join_digits=join_digits))
    if not each.accepts_part(string_of(text)):
        assert not each.accepts_part(string_of(text + more))
        assert not each.accepts_part(string_of(more + text))


def test_requirements_are_combined() -> None:
    each = CandidateFilter(SelectionSettings(min_token_len=3, max_token_len=4, letters_only=True, join_digits=False))
    strings = ["Ġabc", "ab", "Ġabcd", "abc.", "abc1", "1"]
    assert [string for string in strings if each.accepts_part(string)] == ["Ġabc", "ab"]
    assert [string for string in strings if each.accepts(string)] == ["Ġabc"]
