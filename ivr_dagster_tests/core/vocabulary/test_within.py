"""Continued BPE against recounting every pair in every round, from the base's tokens and from those kept."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate, groupby, pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivr_dagster.core.tokens.byte_level import text_of
from ivr_dagster.core.vocabulary.candidate import Candidate, Guards
from ivr_dagster.core.vocabulary.within import select_within

LETTERS = ["a", "b", "c"]
# "ab" and "ca" are tokens of the base that it does not use in some places
KNOWN = [*LETTERS, "ab", "ca"]
# some of every kind that guards tell apart; the two last are the bytes of "é"
KINDS = ["a", "b", "Ġ", "1", ".", "Ã", "©"]
Corpus = tuple[list[list[int]], np.ndarray]
GUARDS = st.builds(Guards, min_bytes=st.integers(2, 4), min_frequency=st.integers(1, 6))


@st.composite
def corpora(draw: st.DrawFn, ids: int = 3) -> Corpus:
    """Up to eight types as ids below `ids`, with counts."""
    sequences = draw(st.lists(st.lists(st.integers(0, ids - 1), max_size=12), max_size=8))
    counts = draw(st.lists(st.integers(1, 9), min_size=len(sequences), max_size=len(sequences)))
    return sequences, np.array(counts, dtype=np.int64)


def tokens_of(sequences: Sequence[Sequence[int]], counts: np.ndarray) -> int:
    return sum(len(ids) * n for ids, n in zip(sequences, counts.tolist(), strict=True))


def occurrences(words: list[list[str]], counts: np.ndarray) -> Counter[tuple[str, str]]:
    """Joins that each pair of neighbours allows: in a run of n equal strings every second one."""
    found: Counter[tuple[str, str]] = Counter()
    for word, count in zip(words, counts.tolist(), strict=True):
        runs = [(string, len(list(run))) for string, run in groupby(word)]
        for string, length in runs:
            found[string, string] += length // 2 * count
        for (left, _), (right, _) in pairwise(runs):
            found[left, right] += count
    return +found


def joined(word: list[str], pair: tuple[str, str]) -> list[str]:
    """The word with every occurrence of the pair joined, from the left."""
    if len(word) < 2:
        return word
    if (word[0], word[1]) == pair:
        return [word[0] + word[1], *joined(word[2:], pair)]
    return [word[0], *joined(word[1:], pair)]


def select_by_recounting(
    words: list[list[str]], counts: np.ndarray, known: list[str], budget: int, guards: Guards
) -> dict[str, tuple[int, int]]:
    """Saving and frequency of each candidate, in the order of joining; words are of single characters."""
    rank = {string: n for n, string in enumerate(known)}
    while True:
        standing: Counter[str] = Counter()
        for word, count in zip(words, counts.tolist(), strict=True):
            for string in word:
                standing[string] += count
        found = {
            string: (standing[string] * (len(string) - 1), standing[string])
            for string in rank
            if string not in known
            and guards.may_be(string)
            and standing[string] * (len(string) - 1) >= guards.min_frequency
        }
        pairs = {
            pair: count
            for pair, count in occurrences(words, counts).items()
            if count >= guards.min_frequency and pair[0] + pair[1] not in known and guards.may_join(pair[0] + pair[1])
        }
        if len(found) >= budget or not pairs:
            return found
        best = min(pairs, key=lambda pair: (-pairs[pair], rank[pair[0]], rank[pair[1]]))
        rank.setdefault(best[0] + best[1], len(rank))
        words = [joined(word, best) for word in words]


@pytest.mark.parametrize(
    ("known", "guards"),
    [
        (KNOWN, GUARDS),
        (KNOWN, st.builds(Guards, max_bytes=st.integers(2, 5), min_frequency=st.integers(1, 3))),
        (KINDS, st.builds(Guards, letters_only=st.booleans(), join_digits=st.booleans())),
    ],
    ids=["least length and saving", "greatest length", "kinds of characters"],
)
@given(st.data(), st.integers(1, 8))
def test_the_candidates_are_those_of_recounting_every_pair_in_every_round(
    known: list[str], guards: st.SearchStrategy[Guards], data: st.DataObject, budget: int
) -> None:
    sequences, counts = data.draw(corpora(sum(len(string) == 1 for string in known)))
    drawn = data.draw(guards)
    found = select_within(sequences, counts, known, budget=budget, guards=drawn).candidates
    expected = select_by_recounting([[known[i] for i in ids] for ids in sequences], counts, known, budget, drawn)
    order = sorted(expected, key=lambda string: -expected[string][0])  # equal savings in the order of joining
    assert [(c.string, c.saving, c.frequency) for c in found] == [(s, *expected[s]) for s in order]


def test_runs_are_joined_without_overlap() -> None:
    found = select_within([[0] * 7], np.array([1]), LETTERS, budget=1, guards=Guards(min_frequency=1))
    assert [(c.string, c.saving, c.frequency) for c in found.candidates] == [("aa", 3, 3)]


@given(corpora(ids=5), st.integers(1, 8), GUARDS)
def test_what_is_asked_of_candidates_is_obeyed_and_savings_add_up(corpus: Corpus, budget: int, guards: Guards) -> None:
    sequences, counts = corpus
    selection = select_within(sequences, counts, KNOWN, budget=budget, guards=guards)
    found = selection.candidates
    assert len(found) <= budget
    assert len({c.string for c in found}) == len(found)
    for candidate in found:
        assert candidate.string not in KNOWN
        assert len(candidate.string) >= guards.min_bytes
        assert candidate.saving >= guards.min_frequency
        assert candidate.frequency > 0
        assert "".join(KNOWN[i] for i in candidate.constituents) == candidate.string
    assert [c.saving for c in found] == sorted((c.saving for c in found), reverse=True)
    assert selection.tokens_before == tokens_of(sequences, counts)
    assert selection.tokens_before - selection.tokens_after == sum(c.saving for c in found)


@pytest.mark.parametrize(
    ("guards", "obeyed"),
    [
        (Guards(max_bytes=3), lambda string: len(string) <= 3),
        (Guards(join_digits=False), lambda string: "1" not in string),
        (Guards(letters_only=True), lambda string: not set("1.") & set(string) and "ĠĠ" not in string + "Ġ"),
    ],
    ids=["max_bytes", "join_digits", "letters_only"],
)
@given(corpora(ids=7))
def test_no_candidate_breaks_a_guard(guards: Guards, obeyed: Callable[[str], bool], corpus: Corpus) -> None:
    strings = [c.string for c in select_within(*corpus, KINDS, budget=50, guards=guards).candidates]
    assert [string for string in strings if not obeyed(string) or not guards.may_join(string)] == []


def test_a_letter_of_several_bytes_is_joined_where_only_letters_are() -> None:
    found = select_within([[5, 6, 0], [5, 6, 4]], np.array([3, 9]), KINDS, budget=9, guards=Guards(letters_only=True))
    assert [text_of(c.string) for c in found.candidates] == ["é", "éa"]


def test_a_string_that_longer_ones_take_all_places_of_gives_its_id_back() -> None:
    # "ab" is joined first and always goes on to "abc"; its id goes to "cc"
    found = select_within([[0, 1, 2], [2, 2]], np.array([5, 3]), LETTERS, budget=2).candidates
    assert found == [Candidate("abc", (0, 1, 2), 10, 5), Candidate("cc", (2, 2), 3, 3)]


def test_strings_too_short_for_an_id_are_joined_on_the_way_and_promise_nothing() -> None:
    guards = Guards(min_bytes=3)
    selection = select_within([[0, 1, 2], [0, 1]], np.array([5, 100]), LETTERS, budget=5, guards=guards)
    assert [(c.string, c.saving) for c in selection.candidates] == [("abc", 10)]
    assert (selection.tokens_before, selection.tokens_after) == (215, 205)


@given(corpora(), st.randoms(use_true_random=False))
def test_the_order_of_types_is_all_one(corpus: Corpus, random: Random) -> None:
    sequences, counts = corpus
    shuffled = list(range(len(sequences)))
    random.shuffle(shuffled)
    assert select_within(sequences, counts, KNOWN, budget=5) == select_within(
        [sequences[n] for n in shuffled], counts[shuffled], KNOWN, budget=5
    )


def test_progress_tells_how_much_of_the_budget_is_used() -> None:
    letters = [chr(0x4E00 + n) for n in range(400)]
    pairs = [[n, n + 1] for n in range(0, 400, 2)]
    heard: list[tuple[int, int]] = []
    select_within(
        pairs, np.full(200, 5), letters, budget=150, progress=lambda done, budget: heard.append((done, budget))
    )
    assert heard == [(100, 150)]


# by string, the ids of KNOWN that it is made of
MADE_OF = {"abc": (3, 2), "bc": (1, 2), "aa": (0, 0), "cab": (4, 1), "bca": (1, 4), "bb": (1, 1)}
FEW = st.lists(st.sampled_from(sorted(MADE_OF)), unique=True, max_size=3)
ANY = Guards(min_frequency=1)


def kept_candidates(strings: list[str]) -> list[Candidate]:
    return [Candidate(string, MADE_OF[string], 0, 0) for string in strings]


def joined_to_kept(ids: list[int], kept: list[str]) -> list[int]:
    """Base tokens joined, from the left, to the longest kept string that they make up."""
    after: list[int] = []
    while ids:
        sizes = [n for n in range(len(ids), 1, -1) if "".join(KNOWN[i] for i in ids[:n]) in kept]
        if sizes:
            after.append(len(KNOWN) + kept.index("".join(KNOWN[i] for i in ids[: sizes[0]])))
        else:
            after.append(ids[0])
        ids = ids[sizes[0] if sizes else 1 :]
    return after


@given(corpora(ids=5), FEW)
def test_kept_candidates_save_by_themselves_what_they_take_off_the_base(corpus: Corpus, kept: list[str]) -> None:
    sequences, counts = corpus
    started = [joined_to_kept(ids, kept) for ids in sequences]
    selection = select_within(
        sequences, counts, KNOWN, budget=0, guards=ANY, kept=kept_candidates(kept), kept_sequences=started
    )
    assert selection.tokens_before == tokens_of(sequences, counts)
    assert selection.tokens_after == tokens_of(started, counts)
    standing = Counter[int]()
    for ids, count in zip(started, counts.tolist(), strict=True):
        for token in ids:
            standing[token] += count
    for candidate in selection.candidates:
        assert candidate.constituents == MADE_OF[candidate.string]
        assert candidate.frequency == standing[len(KNOWN) + kept.index(candidate.string)]
    # none but those that save nothing are missing
    assert {c.string for c in selection.candidates} == {s for n, s in enumerate(kept) if standing[len(KNOWN) + n]}


@given(st.data(), corpora(ids=5), FEW)
def test_a_kept_candidate_saves_the_base_tokens_that_end_in_its_places_but_one(
    data: st.DataObject, corpus: Corpus, kept: list[str]
) -> None:
    sequences, counts = corpus
    names = [*KNOWN, *kept]
    started: list[list[int]] = []
    expected = Counter[str]()
    for ids, count in zip(sequences, counts.tolist(), strict=True):
        text, after = "".join(KNOWN[i] for i in ids), list[int]()
        ends = set(accumulate(len(KNOWN[i]) for i in ids))
        if len(ids) < 2:
            started.append(ids)
            continue
        position = 0
        while position < len(text):  # any segmentation, also across the base's
            fitting = [n for n, name in enumerate(names) if text.startswith(name, position)]
            token = data.draw(st.sampled_from(fitting))
            after.append(token)
            covered = range(position + 1, position + len(names[token]) + 1)
            expected[names[token]] += (len(ends.intersection(covered)) - 1) * count
            position = covered[-1]
        started.append(after)
    selection = select_within(
        sequences, counts, KNOWN, budget=0, guards=ANY, kept=kept_candidates(kept), kept_sequences=started
    )
    assert {c.string: c.saving for c in selection.candidates} == {s: expected[s] for s in kept if expected[s] > 0}
    # base tokens that the new ones tear apart count for none of them
    assert sum(expected.values()) == tokens_of(sequences, counts) - tokens_of(started, counts)


@given(corpora(ids=5), FEW, st.integers(0, 5))
def test_new_candidates_are_those_of_a_base_that_has_the_kept_ones_and_save_what_they_save_on_top(
    corpus: Corpus, kept: list[str], budget: int
) -> None:
    sequences, counts = corpus
    started = [joined_to_kept(ids, kept) for ids in sequences]
    beside = select_within(
        sequences, counts, KNOWN, budget=budget, guards=ANY, kept=kept_candidates(kept), kept_sequences=started
    ).candidates
    on_top = select_within(started, counts, [*KNOWN, *kept], budget=budget, guards=ANY).candidates
    alone = select_within(
        sequences, counts, KNOWN, budget=0, guards=ANY, kept=kept_candidates(kept), kept_sequences=started
    ).candidates
    new = {c.string: c for c in beside if c.string not in kept}
    assert len(new) <= budget
    assert {s: (c.saving, c.frequency) for s, c in new.items()} == {c.string: (c.saving, c.frequency) for c in on_top}
    assert {c.string: c for c in beside if c.string in kept} == {c.string: c for c in alone}
    for candidate in new.values():  # of the base's tokens, whatever they were joined from
        assert "".join(KNOWN[i] for i in candidate.constituents) == candidate.string


def test_a_kept_candidate_that_no_longer_saves_enough_is_gone() -> None:
    kept = [Candidate("abc", (0, 1, 2), 0, 0), Candidate("cc", (2, 2), 0, 0)]
    found = select_within(
        [[0, 1, 2], [2, 2]],
        np.array([2, 3]),
        LETTERS,
        budget=0,
        guards=Guards(min_frequency=4),
        kept=kept,
        kept_sequences=[[3], [4]],
    )
    assert found.candidates == [Candidate("abc", (0, 1, 2), 4, 2)]
    assert (found.tokens_before, found.tokens_after) == (12, 8)
