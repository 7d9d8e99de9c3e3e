"""What cleaning changes in a document, and what it preserves."""

import unicodedata
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivr_dagster.core.corpus.cleaning import CleaningEffects, Normalization, clean, is_empty

# characters that cleaning changes, mixed with any others, including lone surrogates
TEXTS = st.text(
    st.sampled_from("ab \t\r\n\x00\x0b\x0c\x1f\x7f\x85\x9f\ufeff\ud800\udfffe\u0301가\u1100\u1161ﬁ") | st.characters()
)


@given(TEXTS, st.sampled_from(get_args(Normalization)))
def test_cleaning_is_idempotent(text: str, normalization: Normalization) -> None:
    once, _ = clean(text, normalization=normalization)
    assert clean(once, normalization=normalization) == (once, CleaningEffects(0, 0, False))


@given(TEXTS, st.sampled_from(["NFC", "NFKC"]))
def test_clean_text_is_normalized_encodable_and_without_controls(text: str, normalization: Normalization) -> None:
    assert normalization != "none"
    cleaned, _ = clean(text, normalization=normalization)
    assert cleaned.encode().decode() == cleaned
    assert cleaned == unicodedata.normalize(normalization, cleaned)
    assert not [c for c in cleaned if unicodedata.category(c) == "Cc" and c not in "\t\n"]


@given(TEXTS)
def test_effects_count_the_changed_characters(text: str) -> None:
    _, effects = clean(text, normalization="none")
    dropped = [c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n\r"]
    rest = "".join(c for c in text if c not in dropped)
    marks = len(rest) - len(rest.lstrip("\ufeff"))
    assert effects.control_characters_dropped == len(dropped) + marks
    assert effects.line_endings_changed == rest.replace("\r\n", "\r").count("\r")
    assert not effects.normalized


def test_clean_text_is_unchanged() -> None:
    text = "  Tabs\tand lines\n\n한국어, e\u0301 apart from é \u200b\u2028\ufeff inside \n "
    assert clean(text, normalization="none") == (text, CleaningEffects(0, 0, False))


def test_every_line_end_becomes_lf() -> None:
    assert clean("a\r\nb\rc\r\r\nd\n") == ("a\nb\nc\n\nd\n", CleaningEffects(0, 4, False))


@pytest.mark.parametrize(
    ("normalization", "expected"), [("NFC", "éﬁ각"), ("NFKC", "éfi각"), ("none", "e\u0301ﬁ\u1100\u1161\u11a8")]
)
def test_normalization_gives_the_named_form(normalization: Normalization, expected: str) -> None:
    text, effects = clean("e\u0301ﬁ\u1100\u1161\u11a8", normalization=normalization)
    assert text == expected
    assert effects.normalized == (normalization != "none")


@pytest.mark.parametrize(("text", "empty"), [("", True), (" \t\n\u3000\u2028", True), ("\n.\n", False)])
def test_whitespace_only_is_empty(text: str, empty: bool) -> None:
    assert is_empty(text) is empty
