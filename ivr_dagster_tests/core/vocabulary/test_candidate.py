"""The requirements for a new token, and the choice of the best candidates."""

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivr_dagster.core.tokens.byte_level import string_of
from ivr_dagster.core.vocabulary.candidate import Candidate, CandidateFilter, Selection, best_candidates
from ivr_dagster.settings import SelectionSettings

PART = string_of("한")[:2]  # two of a letter's three bytes
TEXT = st.text(st.sampled_from("ab é한 7½.-\n"), min_size=1, max_size=8)
LETTERS = CandidateFilter(SelectionSettings(letters_only=True))


@given(TEXT | st.text(st.sampled_from("a- \n"), min_size=8, max_size=12))
def test_default_filter_accepts_any_part_without_two_runs_of_symbols(text: str) -> None:
    runs = len(re.findall(r"-{4,}|\.{4,}| {4,}|\n{4,}", text))
    assert CandidateFilter(SelectionSettings()).accepts_part(string_of(text)) == (runs < 2)


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


@st.composite
def candidate_lists(draw: st.DrawFn) -> list[Candidate]:
    """Up to nine candidates, halves first, with any savings."""
    found: list[Candidate] = []
    for _ in range(draw(st.integers(0, 9))):
        halves = tuple(draw(st.sampled_from(["a", "b", *(c.string for c in found)])) for _ in range(2))
        if "".join(halves) not in {c.string for c in found}:
            found.append(Candidate("".join(halves), halves, (0,), draw(st.integers(1, 9)), 0))
    return found


def is_closed(candidates: Sequence[Candidate]) -> bool:
    """Whether every half is a base token or comes before."""
    known = {"a", "b"}
    for candidate in candidates:
        if not known.issuperset(candidate.halves):
            return False
        known.add(candidate.string)
    return True


def strings_of(candidates: Sequence[Candidate]) -> list[str]:
    return [candidate.string for candidate in candidates]


def applied(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates with the savings that follow from their frequencies, here given as savings."""

    def merges(candidate: Candidate) -> int:
        made_of_it = [other for other in candidates for half in other.halves if half == candidate.string]
        return candidate.saving + sum(map(merges, made_of_it))

    return [Candidate(c.string, c.halves, c.constituents, merges(c), c.saving) for c in candidates]


@given(
    candidate_lists(),
    st.integers(0, 9),
    st.sets(st.integers(0, 8)),
    st.sampled_from([1.0, 2.0, 3.5]),
    st.integers(2, 4),
    st.booleans(),
)
def test_best_candidates_are_closed_and_worth_more_than_the_others(
    candidates: list[Candidate], budget: int, numbers: set[int], factor: float, shortest: int, in_order: bool
) -> None:
    def accepts(string: str) -> bool:
        return len(string) >= shortest

    kept = {candidate.string for n, candidate in enumerate(candidates) if n in numbers}
    best = best_candidates(candidates, budget, kept, factor, accepts=accepts, in_order=in_order)
    found = set(strings_of(best))
    assert len(found) == len(best) <= budget
    assert is_closed(best)
    if in_order:
        assert strings_of(best) == [string for string in strings_of(candidates) if string in found]
    # others are only chosen as halves
    assert all(accepts(c.string) or any(c.string in other.halves for other in best) for c in best)

    def worth(candidate: Candidate) -> float:
        own = candidate.saving * (factor if candidate.string in kept else 1.0) * accepts(candidate.string)
        return max([own, *(worth(other) for other in candidates if candidate.string in other.halves)])

    left = [worth(candidate) for candidate in candidates if candidate.string not in found]
    assert len(best) == min(budget, len(candidates)) or shortest > 2
    assert all(worth(candidate) >= max(left, default=0.0) for candidate in candidates if candidate.string in found)


@given(candidate_lists(), st.integers(0, 9))
def test_best_candidates_are_ordered_by_saving(candidates: list[Candidate], budget: int) -> None:
    best = best_candidates(applied(candidates), budget, strings_of(candidates[:1]), 2.0)
    assert [c.saving for c in best] == sorted((c.saving for c in best), reverse=True)
    assert is_closed(best)


@given(candidate_lists(), st.integers(0, 9))
def test_frequencies_are_those_with_the_chosen_ones_in_use(candidates: list[Candidate], number: int) -> None:
    """Where a longer token is missing, its halves occur instead."""
    counted = applied(candidates)
    assert best_candidates(counted, 9, in_order=True) == counted
    best = best_candidates(counted, number)
    every = Selection(best_candidates(counted, 9), {string: n for n, string in enumerate(strings_of(counted))})
    assert every.first(number).candidates == best
    frequency_of = {c.string: c.frequency for c in counted}
    chosen = set(strings_of(best))

    def occurrences(string: str, inside: str) -> int:
        """How often a chosen string occurs in another one if only the chosen ones are in use."""
        if inside == string:
            return 1
        if inside in chosen or inside not in frequency_of:
            return 0
        halves = next(c.halves for c in counted if c.string == inside)
        return sum(occurrences(string, half) for half in halves)

    for candidate in best:
        expected = sum(n * occurrences(candidate.string, other) for other, n in frequency_of.items())
        assert candidate.frequency == expected


def test_kept_candidate_is_preferred_up_to_the_factor() -> None:
    old, new = Candidate("ab", ("a", "b"), (0, 1), 10, 10), Candidate("ba", ("b", "a"), (1, 0), 19, 19)
    assert best_candidates([old, new], 1, ["ab"], 2.0) == [old]
    assert best_candidates([old, new], 1, ["ab"], 1.8) == [new]
    assert best_candidates([old, new], 1) == [new]
    assert best_candidates([old, new], 2, ["ab"], 2.0) == [new, old]  # the order is that of the savings


@given(candidate_lists(), st.integers(0, 9))
def test_selection_has_its_first_candidates_and_their_merges_in_order(candidates: list[Candidate], number: int) -> None:
    phrase = Candidate("a,a", (), (0, 0), 3, 3)
    order = [*applied(candidates), phrase]
    selection = Selection(best_candidates(order, 10), {candidate.string: n for n, candidate in enumerate(order)})
    some = selection.first(number)
    found = set(strings_of(some.candidates))
    assert strings_of(some.candidates) == strings_of(selection.candidates)[:number]
    assert is_closed(some.candidates)
    assert strings_of(some.in_merge_order()) == [c.string for c in order if c.string in found]
    assert some.merges() == [c.halves for c in candidates if c.string in found]
