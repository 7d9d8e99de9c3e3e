"""Phrases: counted without overlap, and produced only where their last pre-token ends."""

import re
from collections import Counter
from itertools import accumulate

import pytest
import regex
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, pre_tokenizers

from ivr_dagster.core.tokens.byte_level import string_of
from ivr_dagster.core.tokens.pretokens import DIGITS_THEN_GPT2_PATTERN, GPT2_PATTERN
from ivr_dagster.core.vocabulary.phrases import (
    LONGEST_PHRASE,
    Phrase,
    lookahead_after,
    pattern_with,
    phrase_pattern,
    select_phrases,
)

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {"GPT-2": GPT2_PATTERN, "SmolLM2": DIGITS_THEN_GPT2_PATTERN, "Llama 3": LLAMA3_PATTERN}
SPLIT = regex.compile(GPT2_PATTERN).findall


def select(texts: list[str], budget: int = 1000, min_saving: int = 1, **settings: object) -> list[Phrase]:
    arguments = {"length_of": lambda piece: 1, "is_allowed": lambda text: True} | settings
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
def test_counts_without_overlap_equal_those_of_re(texts: list[list[str]], wanted: set[str]) -> None:
    documents = [" " + " ".join(words) for words in texts] * 3
    found = select(documents, is_allowed=wanted.__contains__)
    alternatives = "|".join(rf"{phrase}\b" for phrase in sorted(wanted, key=len, reverse=True))
    expected: dict[str, int] = {}
    for document in documents:
        for match in re.finditer(alternatives, document) if wanted else ():
            expected[match.group()] = expected.get(match.group(), 0) + 1
    assert {phrase.text: phrase.frequency for phrase in found} == expected


def test_phrase_saves_the_tokens_of_its_pretokens_minus_one() -> None:
    lengths = {" the": 1, " antidisestablishmentarian": 6, " creed": 2}
    texts = [" the antidisestablishmentarian creed and the antidisestablishmentarian"] * 3
    found = select(texts, length_of=lambda piece: lengths.get(piece, 1))
    assert by_text(found) == {
        " the antidisestablishmentarian creed and": (3, 27),
        " the antidisestablishmentarian": (3, 18),
    }
    assert found[0].pretokens == (" the", " antidisestablishmentarian", " creed", " and")


@pytest.mark.parametrize("least", [1, 2, 3, 4])
def test_least_documents_excludes_rarer_phrases(least: int) -> None:
    texts = [" of the sea" * 9, *[" of the"] * 2]
    phrases = by_text(select(texts, least_documents=least))
    assert (" of the" in phrases) == (least <= 3)
    assert (" the sea" in phrases or " of the sea" in phrases) == (least == 1)


def test_least_documents_is_three_by_default() -> None:
    assert select([" of the" * 9] * 2) == []
    assert by_text(select([" of the"] * 3)) == {" of the": (3, 3)}


def test_phrase_does_not_cross_documents() -> None:
    assert select([" of", " the"] * 5) == []
    assert select([" of", "", " the"] * 5, least_documents=1) == []
    assert select([], least_documents=1) == []


def test_phrase_has_at_most_four_pretokens() -> None:
    found = select([" a b c d e f g h"] * 3)
    assert max(len(phrase.pretokens) for phrase in found) == LONGEST_PHRASE == 4


def test_phrases_are_ordered_by_saving_and_limited() -> None:
    texts = [" of the" * 5 + "." + " in a" * 3 + "!" + " at an"] * 3
    phrases = [" of the", " in a", " at an"]
    assert by_text(select(texts, is_allowed=phrases.__contains__)) == {
        " of the": (15, 15),
        " in a": (9, 9),
        " at an": (3, 3),
    }
    assert [p.text for p in select(texts, is_allowed=phrases.__contains__, budget=1)] == [" of the"]
    assert [p.text for p in select(texts, is_allowed=phrases.__contains__, min_saving=4)] == [" of the", " in a"]


def test_kept_phrases_are_added_to_the_budget() -> None:
    texts = [" of the" * 5 + "." + " in a" * 3 + "!" + " at an"] * 3
    assert by_text(select(texts, budget=1, is_allowed=" of the".__eq__, kept=[" at an"])) == {
        " of the": (15, 15),
        " at an": (3, 3),
    }
    assert by_text(select(texts, budget=0, kept=[" at an", " in a"])) == {" in a": (9, 9), " at an": (3, 3)}


def test_kept_phrase_that_saves_too_little_is_dropped() -> None:
    texts = [" of the" * 5, " at an!"] * 3
    kept = [" of the", " at an", " nowhere here"]
    assert by_text(select(texts, budget=0, min_saving=4, kept=kept)) == {" of the": (15, 15)}


def test_end_of_sentence_and_blank_line_are_a_phrase() -> None:
    found = by_text(select(["one.\n\ntwo", "one.\n\n"] * 3, is_allowed=".\n\n".__eq__))
    # before a word the last line break is a separate pre-token
    assert found == {".\n\n": (6, 9)}


WORD = st.sampled_from(["of", "the", "them", "1", "23"])
SEPARATOR = st.sampled_from([" ", "\n", ". ", ".\n\n"])
SENTENCES = st.lists(st.tuples(WORD, SEPARATOR).map("".join), max_size=12).map(lambda words: "".join([*words, "end"]))


@given(st.lists(SENTENCES, min_size=1, max_size=3))
def test_phrase_is_produced_as_often_as_counted(texts: list[str]) -> None:
    found = select(texts, least_documents=1)
    produced = Counter(piece for text in texts for piece in split([phrase.text for phrase in found], text))
    assert {p.text: p.frequency for p in found} == {p.text: produced[p.text] for p in found}


def split(phrases: list[str], text: str, base: str = GPT2_PATTERN) -> list[str]:
    """The pieces that tokenizers yields with the pattern."""
    pre_tokenizer = pre_tokenizers.Split(Regex(phrase_pattern(phrases, base)), "isolated")
    return [text[start:end] for _, (start, end) in pre_tokenizer.pre_tokenize_str(text)]


def test_phrase_ends_where_a_pretoken_ends() -> None:
    assert split([" of the"], "one of the men of them") == ["one", " of the", " men", " of", " them"]
    assert split([" of the"], " of the, of the\nof the") == [" of the", ",", " of the", "\n", "of", " the"]
    assert split([" of the"], " of the\u0301") == [" of", " the", "\u0301"]
    assert split([" in 19"], " in 1999 in 19.") == [" in", " 1999", " in 19", "."]
    assert split([" a ("], " a (b a ((") == [" a (", "b", " a", " (("]


def test_trailing_whitespace_ends_as_in_the_base() -> None:
    assert split([".\n\n"], "a.\n\nb.\n\n c.\n\n") == ["a", ".\n\n", "b", ".\n\n", " c", ".\n\n"]
    assert split([".\n\n"], "a.\n\n\nb.\n\n  c") == ["a", ".\n\n", "\n", "b", ".", "\n\n ", " c"]
    assert split([". "], "a. b.  c. ") == ["a", ".", " b", ". ", " c", ". "]
    assert split([".\n\n"], "a.\n\nb.\n\n c.\n\n\n", LLAMA3_PATTERN) == ["a", ".\n\n", "b", ".\n\n", " c", ".\n\n\n"]
    assert split(["a\n"], "a\nb a\n b a\n\nb", LLAMA3_PATTERN) == ["a\n", "b", " a", "\n", " b", " a", "\n\n", "b"]


def test_longest_phrase_wins() -> None:
    phrases = [" of", " of the", " of the year"]
    assert split([" of the", " of the year"], " of the year of the years") == [" of the year", " of the", " years"]
    assert split([*phrases, " of the year ("], " of the year (") == [" of the year ("]


def test_phrases_without_a_look_ahead_are_left_out() -> None:
    assert lookahead_after(" of ", DIGITS_THEN_GPT2_PATTERN) is None
    assert lookahead_after(" of the", DIGITS_THEN_GPT2_PATTERN) is not None
    assert phrase_pattern([], GPT2_PATTERN) == GPT2_PATTERN
    assert phrase_pattern([" of "], DIGITS_THEN_GPT2_PATTERN) == DIGITS_THEN_GPT2_PATTERN
    assert split([" of ", " of the"], " of  the of the", DIGITS_THEN_GPT2_PATTERN) == [" of", " ", " the", " of the"]


def test_pattern_contains_only_tokens_that_cross_pretokens(tiny_bpe: Tokenizer) -> None:
    assert pattern_with(tiny_bpe, ["ĠofĠthe", "Ġmen", string_of("한")[:2], ".ĊĊ"]) == phrase_pattern(
        [" of the", ".\n\n"], GPT2_PATTERN
    )
    assert pattern_with(tiny_bpe, ["Ġmen", string_of(" 한")[:2]]) is None
    assert pattern_with(tiny_bpe, []) is None


def test_pattern_needs_a_pre_tokenizer_with_a_single_pattern(tiny_bpe: Tokenizer) -> None:
    digits = pre_tokenizers.Split(Regex(r"\p{N}{1,2}"), "isolated")
    base = Tokenizer.from_str(tiny_bpe.to_str())
    base.pre_tokenizer = pre_tokenizers.Sequence([digits, base.pre_tokenizer])
    assert pattern_with(base, ["ĠofĠthe"]) is None


SIMPLE = ["of", " the", " them", ".", " ", "  ", "\n", "\n\n", "1", " 23"]
PIECES = ["of", " the", " them", " (", ")", ".*", "[a", "\\d", "|", "^", "$", "{2}", "#", " 1", "23", "'s", "don't"]
PIECES += ["\n", "\r\n", "  ", " ", "é", "한국", "-", "&&", "~~", "🙂", "\x00", "?", "+", "½"]
# trailing marks and apostrophes and rarer whitespace are in LOST below
ELSE = st.text(st.characters(categories=["L", "N", "S", "P"], exclude_characters="'"), max_size=2)
PIECE = st.sampled_from(PIECES) | ELSE


@st.composite
def texts_with_phrases(draw: st.DrawFn, base: str, pieces: st.SearchStrategy[str]) -> tuple[str, list[str]]:
    """A text and n-grams of its pre-tokens, of another text's and of any pieces."""
    text, other = (draw(st.lists(pieces, max_size=10).map("".join)) for _ in range(2))
    phrases = draw(st.lists(st.lists(pieces, min_size=2, max_size=4).map("".join), max_size=2))
    for pretokens in (regex.findall(base, text), regex.findall(base, other)):
        for start in draw(st.lists(st.integers(0, max(0, len(pretokens) - 2)), max_size=4)):
            phrases.append("".join(pretokens[start : start + draw(st.integers(2, 4))]))
    return text, [phrase for phrase in phrases if phrase and phrase[-1] != "'"]


def ends_of(pieces: list[str]) -> set[int]:
    return set(accumulate(map(len, pieces)))


@pytest.mark.parametrize("base", PATTERNS.values(), ids=PATTERNS)
@given(st.data())
def test_any_text_is_cut_only_where_base_pretokens_end(base: str, data: st.DataObject) -> None:
    text, phrases = data.draw(texts_with_phrases(base, PIECE) | texts_with_phrases(base, st.sampled_from(SIMPLE)))
    found = split(phrases, text, base)
    assert "".join(found) == text
    assert ends_of(found) <= ends_of(split([], text, base))


@given(texts_with_phrases(GPT2_PATTERN, st.sampled_from(SIMPLE)))
@example((" of the" * 3 + "m", [" of the", " of the of the"]))
def test_longest_phrase_that_ends_with_a_base_pretoken_is_cut(
    case: tuple[str, list[str]],
) -> None:
    text, phrases = case
    ends = ends_of(SPLIT(text))
    expected: list[str] = []
    position = 0
    while position < len(text):
        fitting = [p for p in phrases if text.startswith(p, position) and position + len(p) in ends]
        base_piece = text[position : min(end for end in ends if end > position)]
        expected.append(max([*fitting, base_piece], key=len))
        position += len(expected[-1])
    assert split(phrases, text) == expected


LOST = [
    ("GPT-2", "b'", "b's"),  # "'s" is a pre-token
    ("GPT-2", "e\u0301", "e\u0301."),  # to GPT-2 a mark is a symbol, and symbols continue
    ("Llama 3", "e\u0301", "e\u0301."),
    ("Llama 3", "a\t", "a\tb"),  # any one character except a line break belongs to the following word
    ("Llama 3", "a\t", "a\t\t\tb"),
    ("Llama 3", "a\u3000", "a\u3000b"),
    ("GPT-2", "a\x1c", "a\x1c."),  # whitespace in Python only
]


@pytest.mark.parametrize(("base", "phrase", "text"), LOST)
def test_phrase_is_not_produced_if_its_last_pretoken_continues(base: str, phrase: str, text: str) -> None:
    pattern = PATTERNS[base]
    assert len(regex.findall(pattern, phrase)) == 2
    assert ends_of(split([phrase], text, pattern)) <= ends_of(split([], text, pattern))


@given(texts_with_phrases(GPT2_PATTERN, PIECE))
def test_phrase_reaches_the_model_as_one_byte_level_string(case: tuple[str, list[str]]) -> None:
    text, phrases = case
    pattern = pre_tokenizers.Split(Regex(phrase_pattern(phrases, GPT2_PATTERN)), "isolated")
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = [piece for piece, _ in pre_tokenizers.Sequence([pattern, whole]).pre_tokenize_str(text)]
    assert pieces == [string_of(piece) for piece in split(phrases, text)]
