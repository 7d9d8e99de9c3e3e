"""Continued BPE against a naive recount of all pairs in every round, with and without kept candidates."""

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, groupby, pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivr_dagster.core.tokens.byte_level import text_of
from ivr_dagster.core.vocabulary.candidate import Candidate, CandidateFilter
from ivr_dagster.core.vocabulary.within import select_within
from ivr_dagster.settings import SelectionSettings

LETTERS = ["a", "b", "c"]
# "ab" and "ca" are base tokens that it does not use everywhere
KNOWN = [*LETTERS, "ab", "ca"]
# some of every kind that requirements distinguish; the last two are the bytes of "é"
KINDS = ["a", "b", "Ġ", "1", ".", "Ã", "©"]
Corpus = tuple[list[list[int]], np.ndarray]
ANY = SelectionSettings(min_frequency=1)
LIMITS = st.builds(SelectionSettings, min_token_len=st.integers(2, 4), min_frequency=st.integers(1, 6))


@st.composite
def corpora(draw: st.DrawFn, ids: int = 3) -> Corpus:
    """Up to eight types as ids below `ids`, with counts."""
    sequences = draw(st.lists(st.lists(st.integers(0, ids - 1), max_size=12), max_size=8))
    counts = draw(st.lists(st.integers(1, 9), min_size=len(sequences), max_size=len(sequences)))
    return sequences, np.array(counts, dtype=np.int64)


def tokens_of(sequences: Sequence[Sequence[int]], counts: np.ndarray) -> int:
    return sum(len(ids) * n for ids, n in zip(sequences, counts.tolist(), strict=True))


def occurrences(words: list[list[str]], counts: np.ndarray) -> Counter[tuple[str, str]]:
    """Merges that each pair of neighbors allows: in a run of n equal strings every second one."""
    found: Counter[tuple[str, str]] = Counter()
    for word, count in zip(words, counts.tolist(), strict=True):
        runs = [(string, len(list(run))) for string, run in groupby(word)]
        for string, length in runs:
            found[string, string] += length // 2 * count
        for (left, _), (right, _) in pairwise(runs):
            found[left, right] += count
    return +found


def merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    """The word with every occurrence of the pair merged, from the left."""
    if len(word) < 2:
        return word
    if (word[0], word[1]) == pair:
        return [word[0] + word[1], *merged(word[2:], pair)]
    return [word[0], *merged(word[1:], pair)]


def select_by_recounting(
    words: list[list[str]], counts: np.ndarray, known: list[str], budget: int, settings: SelectionSettings
) -> dict[str, tuple[int, int]]:
    """Saving and frequency of each candidate, in the order of merging; words are of single characters."""
    requirements = CandidateFilter(settings)
    rank = {string: n for n, string in enumerate(known)}
    while True:
        current: Counter[str] = Counter()
        for word, count in zip(words, counts.tolist(), strict=True):
            for string in word:
                current[string] += count
        found = {
            string: (current[string] * (len(string) - 1), current[string])
            for string in rank
            if string not in known
            and requirements.accepts(string)
            and current[string] * (len(string) - 1) >= settings.min_frequency
        }
        pairs = {
            pair: count
            for pair, count in occurrences(words, counts).items()
            if count >= settings.min_frequency
            and pair[0] + pair[1] not in known
            and requirements.accepts_part(pair[0] + pair[1])
        }
        if len(found) >= budget or not pairs:
            return found
        best = min(pairs, key=lambda pair: (-pairs[pair], rank[pair[0]], rank[pair[1]]))
        rank.setdefault(best[0] + best[1], len(rank))
        words = [merged(word, best) for word in words]


@pytest.mark.parametrize(
    ("known", "settings"),
    [
        (KNOWN, LIMITS),
        (KNOWN, st.builds(SelectionSettings, max_token_len=st.integers(2, 5), min_frequency=st.integers(1, 3))),
        (KINDS, st.builds(SelectionSettings, letters_only=st.booleans(), join_digits=st.booleans())),
    ],
    ids=["minimum length and saving", "maximum length", "kinds of characters"],
)
@given(st.data(), st.integers(1, 8))
def test_candidates_equal_those_of_a_naive_recount(
    known: list[str], settings: st.SearchStrategy[SelectionSettings], data: st.DataObject, budget: int
) -> None:
    sequences, counts = data.draw(corpora(sum(len(string) == 1 for string in known)))
    drawn = data.draw(settings)
    found = select_within(sequences, counts, known, budget=budget, settings=drawn).candidates
    expected = select_by_recounting([[known[i] for i in ids] for ids in sequences], counts, known, budget, drawn)
    order = sorted(expected, key=lambda string: -expected[string][0])  # equal savings in the order of merging
    assert [(c.string, c.saving, c.frequency) for c in found] == [(s, *expected[s]) for s in order]


def test_runs_are_merged_without_overlap() -> None:
    found = select_within([[0] * 7], np.array([1]), LETTERS, budget=1, settings=ANY)
    assert [(c.string, c.saving, c.frequency) for c in found.candidates] == [("aa", 3, 3)]


@given(corpora(ids=5), st.integers(1, 8), LIMITS)
def test_candidates_meet_the_limits_and_savings_add_up(
    corpus: Corpus, budget: int, settings: SelectionSettings
) -> None:
    sequences, counts = corpus
    selection = select_within(sequences, counts, KNOWN, budget=budget, settings=settings)
    found = selection.candidates
    assert len(found) <= budget
    assert len({c.string for c in found}) == len(found)
    for candidate in found:
        assert candidate.string not in KNOWN
        assert len(candidate.string) >= settings.min_token_len
        assert candidate.saving >= settings.min_frequency
        assert candidate.frequency > 0
        assert "".join(KNOWN[i] for i in candidate.constituents) == candidate.string
    assert [c.saving for c in found] == sorted((c.saving for c in found), reverse=True)
    assert selection.tokens_before == tokens_of(sequences, counts)
    assert selection.tokens_before - selection.tokens_after == sum(c.saving for c in found)


def test_letter_of_several_bytes_is_merged_with_letters_only() -> None:
    found = select_within(
        [[5, 6, 0], [5, 6, 4]], np.array([3, 9]), KINDS, budget=9, settings=SelectionSettings(letters_only=True)
    )
    assert [text_of(c.string) for c in found.candidates] == ["é", "éa"]


def test_string_that_longer_ones_replace_returns_its_id() -> None:
    # "ab" is merged first and is always part of "abc"; its id goes to "cc"
    found = select_within([[0, 1, 2], [2, 2]], np.array([5, 3]), LETTERS, budget=2).candidates
    assert found == [Candidate("abc", (0, 1, 2), 10, 5), Candidate("cc", (2, 2), 3, 3)]


def test_strings_too_short_for_an_id_are_merged_into_longer_ones() -> None:
    settings = SelectionSettings(min_token_len=3)
    selection = select_within([[0, 1, 2], [0, 1]], np.array([5, 100]), LETTERS, budget=5, settings=settings)
    assert [(c.string, c.saving) for c in selection.candidates] == [("abc", 10)]
    assert (selection.tokens_before, selection.tokens_after) == (215, 205)


@given(corpora(), st.randoms(use_true_random=False))
def test_order_of_types_does_not_matter(corpus: Corpus, random: Random) -> None:
    sequences, counts = corpus
    shuffled = list(range(len(sequences)))
    random.shuffle(shuffled)
    assert select_within(sequences, counts, KNOWN, budget=5) == select_within(
        [sequences[n] for n in shuffled], counts[shuffled], KNOWN, budget=5
    )


def test_progress_reports_the_used_budget() -> None:
    letters = [chr(0x4E00 + n) for n in range(400)]
    pairs = [[n, n + 1] for n in range(0, 400, 2)]
    heard: list[tuple[int, int]] = []
    select_within(
        pairs, np.full(200, 5), letters, budget=150, progress=lambda done, budget: heard.append((done, budget))
    )
    assert heard == [(100, 150)]


# constituents by string, as ids of KNOWN
MADE_OF = {"abc": (3, 2), "bc": (1, 2), "aa": (0, 0), "cab": (4, 1), "bca": (1, 4), "bb": (1, 1)}
FEW = st.lists(st.sampled_from(sorted(MADE_OF)), unique=True, max_size=3)


def kept_candidates(strings: list[str]) -> list[Candidate]:
    return [Candidate(string, MADE_OF[string], 0, 0) for string in strings]


def merge_kept(ids: list[int], kept: list[str]) -> list[int]:
    """Base tokens merged, from the left, into the longest kept string."""
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
def test_kept_candidates_save_in_comparison_with_the_base(corpus: Corpus, kept: list[str]) -> None:
    sequences, counts = corpus
    started = [merge_kept(ids, kept) for ids in sequences]
    selection = select_within(
        sequences, counts, KNOWN, budget=0, settings=ANY, kept=kept_candidates(kept), kept_sequences=started
    )
    assert selection.tokens_before == tokens_of(sequences, counts)
    assert selection.tokens_after == tokens_of(started, counts)
    current = Counter[int]()
    for ids, count in zip(started, counts.tolist(), strict=True):
        for token in ids:
            current[token] += count
    for candidate in selection.candidates:
        assert candidate.constituents == MADE_OF[candidate.string]
        assert candidate.frequency == current[len(KNOWN) + kept.index(candidate.string)]
    # only candidates that save nothing are missing
    assert {c.string for c in selection.candidates} == {s for n, s in enumerate(kept) if current[len(KNOWN) + n]}


@given(st.data(), corpora(ids=5), FEW)
def test_kept_candidate_saves_the_base_tokens_that_end_in_its_span_minus_one(
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
        while position < len(text):  # any segmentation, including across the base's
            fitting = [n for n, name in enumerate(names) if text.startswith(name, position)]
            token = data.draw(st.sampled_from(fitting))
            after.append(token)
            covered = range(position + 1, position + len(names[token]) + 1)
            expected[names[token]] += (len(ends.intersection(covered)) - 1) * count
            position = covered[-1]
        started.append(after)
    selection = select_within(
        sequences, counts, KNOWN, budget=0, settings=ANY, kept=kept_candidates(kept), kept_sequences=started
    )
    assert {c.string: c.saving for c in selection.candidates} == {s: expected[s] for s in kept if expected[s] > 0}
    # base tokens that new ones split count for none of them
    assert sum(expected.values()) == tokens_of(sequences, counts) - tokens_of(started, counts)


@given(corpora(ids=5), FEW, st.integers(0, 5))
def test_new_candidates_equal_those_for_a_base_with_the_kept_ones(corpus: Corpus, kept: list[str], budget: int) -> None:
    sequences, counts = corpus
    started = [merge_kept(ids, kept) for ids in sequences]
    beside = select_within(
        sequences, counts, KNOWN, budget=budget, settings=ANY, kept=kept_candidates(kept), kept_sequences=started
    ).candidates
    on_top = select_within(started, counts, [*KNOWN, *kept], budget=budget, settings=ANY).candidates
    alone = select_within(
        sequences, counts, KNOWN, budget=0, settings=ANY, kept=kept_candidates(kept), kept_sequences=started
    ).candidates
    new = {c.string: c for c in beside if c.string not in kept}
    assert len(new) <= budget
    assert {s: (c.saving, c.frequency) for s, c in new.items()} == {c.string: (c.saving, c.frequency) for c in on_top}
    assert {c.string: c for c in beside if c.string in kept} == {c.string: c for c in alone}
    for candidate in new.values():  # constituents are base tokens
        assert "".join(KNOWN[i] for i in candidate.constituents) == candidate.string


def test_kept_candidate_that_saves_too_little_is_dropped() -> None:
    kept = [Candidate("abc", (0, 1, 2), 0, 0), Candidate("cc", (2, 2), 0, 0)]
    found = select_within(
        [[0, 1, 2], [2, 2]],
        np.array([2, 3]),
        LETTERS,
        budget=0,
        settings=SelectionSettings(min_frequency=4),
        kept=kept,
        kept_sequences=[[3], [4]],
    )
    assert found.candidates == [Candidate("abc", (0, 1, 2), 4, 2)]
    assert (found.tokens_before, found.tokens_after) == (12, 8)
