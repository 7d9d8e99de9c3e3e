"""Literal strings as one pattern, against a naive search, in Oniguruma and `regex`."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import regex
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from ivr_dagster.core.tokenizer.trie import MAX_ALTERNATIVES, alternatives, character_class, escaped, trie_pattern
from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE

SPECIAL = r"[]\^-&~|. *+?(){}#"
ALPHABET = f"{SPECIAL}abé$,:!<>="
AFTER: dict[str, Callable[[str], bool]] = {
    "": lambda rest: True,
    "$": lambda rest: rest == "",
    "(?=a)": lambda rest: rest.startswith("a"),
    r"(?!\[)": lambda rest: not rest.startswith("["),
}


def entries(alphabet: str) -> st.SearchStrategy[dict[str, str]]:
    return st.dictionaries(st.text(alphabet, min_size=1, max_size=4), st.sampled_from([*AFTER]), min_size=1)


def matches(entries: dict[str, str], text: str) -> Iterator[tuple[int, int]]:
    """From left to right, the longest entry that is followed by what must follow."""
    at = 0
    while at < len(text):
        fitting = (s for s, after in entries.items() if text.startswith(s, at) and AFTER[after](text[at + len(s) :]))
        longest = max(fitting, key=len, default="")
        if longest:
            yield at, at + len(longest)
        at += len(longest) or 1


def isolated(spans: list[tuple[int, int]], text: str) -> list[str]:
    """The text cut before and after each span."""
    places = sorted({0, len(text), *(place for span in spans for place in span)})
    return [text[start:end] for start, end in pairwise(places)]


def split(pattern: str, text: str) -> list[str]:
    return [piece for piece, _ in pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str(text)]


def check(entries: dict[str, str], text: str) -> None:
    pattern = trie_pattern(entries)
    expected = list(matches(entries, text))
    assert [match.span() for match in regex.finditer(pattern, text)] == expected
    assert split(pattern, text) == isolated(expected, text)


@given(st.data())
def test_pattern_matches_exactly_the_longest_entries(data: st.DataObject) -> None:
    alphabet = data.draw(st.sampled_from(["ab", "a[b", ALPHABET]))
    strings = data.draw(entries(alphabet))
    part = st.sampled_from(sorted(strings)) | st.text(alphabet, max_size=3)
    check(strings, "".join(data.draw(st.lists(part, max_size=12))))


@given(st.lists(st.sampled_from(ALPHABET), max_size=20).map("".join), st.integers(0, 4))
@example(ALPHABET, 1)
def test_many_first_characters_are_grouped(text: str, length: int) -> None:
    assert len(ALPHABET) > 2 * MAX_ALTERNATIVES
    strings = {first + text[:length]: "" for first in ALPHABET} | {"a" + second: "(?=a)" for second in ALPHABET}
    assert "(?=[" in trie_pattern(strings)
    check(strings, text + "".join(strings))


def test_groups_of_groups_distinguish_all_bytes() -> None:
    strings = {character + character: "" for character in CHARACTER_TO_BYTE}
    pattern = trie_pattern(strings)
    for character in CHARACTER_TO_BYTE:
        assert split(pattern, f"x{2 * character}y") == ["x", 2 * character, "y"] or character in "xy"
        assert regex.fullmatch(pattern, 2 * character)
        assert not regex.search(pattern, character)


def test_escaped_character_matches_only_itself() -> None:
    characters = {*SPECIAL, *CHARACTER_TO_BYTE}
    for character in characters:
        others = "".join(sorted(characters - {character}))
        pattern = escaped(character)
        assert regex.fullmatch(pattern, character)
        assert not regex.search(pattern, others)
        assert split(pattern, f"{others}{character}{others}") == [others, character, others]


def test_class_matches_only_its_characters() -> None:
    for characters in (SPECIAL, "]^-[\\", "^", "-a", "&|~"):
        others = "".join(sorted({*SPECIAL, *CHARACTER_TO_BYTE} - set(characters)))
        pattern = character_class(characters)
        assert all(regex.fullmatch(pattern, character) for character in characters)
        assert not regex.search(pattern, others)
        assert split(pattern, others + characters) == [others, *characters]


@pytest.mark.parametrize("character", ["-", ".", "\\", "{", "5", "\n"])
def test_runs_are_counted(character: str) -> None:
    for length in (1, 3, 4, 5, 6, 7, 40):
        pattern = escaped(f"a{length * character}a")
        assert len(pattern) <= 2 + max(2 * 4, 6)
        assert split(pattern, f"xa{length * character}ax") == ["x", f"a{length * character}a", "x"]
        assert not regex.search(pattern, f"a{(length + 1) * character}a")
        assert not regex.search(pattern, f"a{(length - 1) * character}a")


def test_empty_string_alone_is_its_look_ahead() -> None:
    assert trie_pattern({"": "(?=a)"}) == "(?=a)"
    assert trie_pattern({"ab": "(?=a)"}) == "ab(?=a)"


def test_first_alternative_that_matches_wins() -> None:
    assert alternatives(["a+"]) == "a+"
    assert split(alternatives(["aa", "a+", "b"]), "aaab") == ["aa", "a", "b"]
