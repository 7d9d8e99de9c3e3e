"""Phrases: counted without overlap, produced by tokenizers where they end at a pre-token's end and nowhere else."""

import re

import pytest
import regex
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from ivr_dagster.core.tokens.byte_level import string_of
from ivr_dagster.core.tokens.pretokens import DIGITS_THEN_GPT2_PATTERN, GPT2_PATTERN
from ivr_dagster.core.vocabulary.phrases import LONGEST_PHRASE, Phrase, end_kind, phrase_pattern, select_phrases

SPLIT = regex.compile(GPT2_PATTERN).findall


def select(texts: list[str], budget: int = 1000, min_saving: int = 1, **settings: object) -> list[Phrase]:
    arguments = {"length_of": lambda piece: 1, "allowed": lambda text: True} | settings
    return select_phrases(texts, SPLIT, budget=budget, min_saving=min_saving, **arguments)  # type: ignore[arg-type]


def by_text(phrases: list[Phrase]) -> dict[str, tuple[int, int]]:
    return {phrase.text: (phrase.frequency, phrase.saving) for phrase in phrases}


WORDS = st.lists(st.sampled_from(["of", "the", "sea", "men", "and"]), max_size=12)


@given(
    st.lists(WORDS, min_size=1, max_size=4),
    st.sets(
        st.lists(st.sampled_from(["of", "the", "sea", "and"]), min_size=2, max_size=4).map(
            lambda words: " " + " ".join(words)
        ),
        max_size=4,
    ),
)
def test_counts_without_overlap_are_those_of_re(texts: list[list[str]], wanted: set[str]) -> None:
    documents = [" " + " ".join(words) for words in texts] * 2
    found = select(documents, allowed=wanted.__contains__)
    alternatives = "|".join(rf"{phrase}\b" for phrase in sorted(wanted, key=len, reverse=True))
    expected: dict[str, int] = {}
    for document in documents:
        for match in re.finditer(alternatives, document) if wanted else ():
            expected[match.group()] = expected.get(match.group(), 0) + 1
    assert {phrase.text: phrase.frequency for phrase in found} == expected


def test_a_phrase_saves_the_tokens_of_its_pre_tokens_but_one_wherever_it_stands() -> None:
    lengths = {" the": 1, " antidisestablishmentarian": 6, " creed": 2}
    texts = [" the antidisestablishmentarian creed and the antidisestablishmentarian"] * 3
    found = select(texts, length_of=lambda piece: lengths.get(piece, 1))
    assert by_text(found) == {
        " the antidisestablishmentarian creed and": (3, 27),
        " the antidisestablishmentarian": (3, 18),
    }
    assert found[0].pretokens == (" the", " antidisestablishmentarian", " creed", " and")


def test_a_phrase_of_one_document_is_none() -> None:
    assert select([" of the sea" * 9]) == []
    assert " of the" in by_text(select([" of the sea" * 9, " of the"]))


def test_no_phrase_is_longer_than_four_pre_tokens() -> None:
    found = select([" a b c d e f g h"] * 2)
    assert max(len(phrase.pretokens) for phrase in found) == LONGEST_PHRASE == 4


def test_phrases_come_by_falling_saving_within_budget_and_above_the_least_saving() -> None:
    texts = [" of the" * 5 + "." + " in a" * 3 + "!" + " at an"] * 2
    phrases = [" of the", " in a", " at an"]
    assert by_text(select(texts, allowed=phrases.__contains__)) == {
        " of the": (10, 10),
        " in a": (6, 6),
        " at an": (2, 2),
    }
    assert [p.text for p in select(texts, allowed=phrases.__contains__, budget=1)] == [" of the"]
    assert [p.text for p in select(texts, allowed=phrases.__contains__, min_saving=3)] == [" of the", " in a"]


def test_no_phrase_ends_in_white_space() -> None:
    found = select(["of the  \n  of the  \n "] * 3)
    assert found
    assert not any(phrase.text[-1].isspace() for phrase in found)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (" of the", "letter"),
        ("한국어", "letter"),
        ("e\u0301", "letter"),
        (" in 1999", "number"),
        ("x½", "number"),
        (" the (", "symbol"),
        ("a_", "symbol"),
        ("🙂", "symbol"),
        (" of the ", None),
        ("end\n", None),
        ("wide\u3000", None),
    ],
)
def test_what_a_phrase_ends_in_is_known_by_its_last_character(text: str, kind: str | None) -> None:
    assert end_kind(text) == kind


def split(phrases: list[str], text: str, base: str = GPT2_PATTERN) -> list[str]:
    """What tokenizers makes of the pattern."""
    pre_tokenizer = pre_tokenizers.Split(Regex(phrase_pattern(phrases, base)), "isolated")
    return [text[start:end] for _, (start, end) in pre_tokenizer.pre_tokenize_str(text)]


def test_a_phrase_is_produced_at_a_pre_tokens_end_and_not_inside_a_longer_word() -> None:
    assert split([" of the"], "one of the men of them") == ["one", " of the", " men", " of", " them"]
    assert split([" of the"], " of the, of the\nof the") == [" of the", ",", " of the", "\n", "of", " the"]
    assert split([" of the"], " of the\u0301") == [" of", " the", "\u0301"]
    assert split([" in 19"], " in 1999 in 19.") == [" in", " 1999", " in 19", "."]
    assert split([" a ("], " a (b a ((") == [" a (", "b", " a", " (("]


def test_the_longest_phrase_wins() -> None:
    phrases = [" of", " of the", " of the year"]
    assert split([" of the", " of the year"], " of the year of the years") == [" of the year", " of the", " years"]
    assert split([*phrases, " of the year ("], " of the year (") == [" of the year ("]


def test_without_phrases_the_pattern_is_the_bases() -> None:
    assert phrase_pattern([], GPT2_PATTERN) == GPT2_PATTERN
    assert phrase_pattern([" of the "], GPT2_PATTERN) == GPT2_PATTERN


PIECES = [
    "of",
    " the",
    " them",
    " (",
    ")",
    ".*",
    "[a",
    "\\d",
    "|",
    "^",
    "$",
    "{2}",
    "#",
    " 1",
    "23",
    "'s",
    "'",
    "\n",
    "  ",
]
PIECES += ["é", "e\u0301", "한국", "-", "&&", "~~", "🙂", "\x00", "?", "+"]
TEXT = st.lists(st.sampled_from(PIECES) | st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=2)).map(
    "".join
)


@st.composite
def texts_with_phrases(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A text and n-grams of its pre-tokens, of others and of any characters."""
    text = draw(TEXT)
    phrases = draw(st.lists(st.lists(st.sampled_from(PIECES), min_size=2, max_size=4).map("".join), max_size=4))
    pieces = SPLIT(text)
    for start in draw(st.lists(st.integers(0, max(0, len(pieces) - 2)), max_size=6)):
        phrases.append("".join(pieces[start : start + draw(st.integers(2, 4))]))
    return text, [phrase for phrase in phrases if phrase]


@pytest.mark.parametrize("base", [GPT2_PATTERN, DIGITS_THEN_GPT2_PATTERN])
@given(texts_with_phrases())
@example((" of the" * 3 + "m", [" of the", " of the of the"]))
def test_any_text_is_cut_at_the_longest_phrase_that_fits_or_as_the_base_cuts_it(
    base: str, case: tuple[str, list[str]]
) -> None:
    text, phrases = case
    letter, number, symbol = r"[\p{L}\p{M}]", r"\p{N}", r"[^\s\p{L}\p{N}]"
    goes_on = {"letter": letter, "number": number, "symbol": symbol}
    expected: list[str] = []
    position = 0
    while position < len(text):
        fitting = [
            phrase
            for phrase in phrases
            if (kind := end_kind(phrase))
            and text.startswith(phrase, position)
            and not regex.compile(goes_on[kind]).match(text, position + len(phrase))
        ]
        match = regex.compile(base).match(text, position)
        assert match is not None
        piece = max(fitting, key=len, default=match.group())
        expected.append(piece)
        position += len(piece)
    found = split(phrases, text, base)
    assert found == expected
    assert "".join(found) == text


@given(texts_with_phrases())
def test_phrases_reach_the_model_as_one_byte_level_string(case: tuple[str, list[str]]) -> None:
    text, phrases = case
    pattern = pre_tokenizers.Split(Regex(phrase_pattern(phrases, GPT2_PATTERN)), "isolated")
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = [piece for piece, _ in pre_tokenizers.Sequence([pattern, whole]).pre_tokenize_str(text)]
    assert pieces == [string_of(piece) for piece in split(phrases, text)]
