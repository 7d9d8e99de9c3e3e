"""Continued BPE against a naive recount of all pairs in every round, and against the BPE of `tokenizers`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models

from ivr_dagster.core.tokens.byte_level import text_of
from ivr_dagster.core.vocabulary import within
from ivr_dagster.core.vocabulary.candidate import Candidate, CandidateFilter
from ivr_dagster.core.vocabulary.within import count_merges, select_within
from ivr_dagster.settings import SelectionSettings

Merge = tuple[str, str]
LETTERS = ["a", "b", "c"]
# a base with two merges
KNOWN = [*LETTERS, "ab", "ca"]
BASE_MERGES = [("a", "b"), ("c", "a")]
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


def occurrences(words: list[list[str]], counts: np.ndarray) -> Counter[Merge]:
    """Merges that each pair of neighbors allows: in a run of n equal strings every second one."""
    found: Counter[Merge] = Counter()
    for word, count in zip(words, counts.tolist(), strict=True):
        runs = [(string, len(list(run))) for string, run in groupby(word)]
        for string, length in runs:
            found[string, string] += length // 2 * count
        for (left, _), (right, _) in pairwise(runs):
            found[left, right] += count
    return +found


def merged(word: list[str], pair: Merge) -> list[str]:
    """The word with every occurrence of the pair merged, from the left."""
    if len(word) < 2:
        return word
    if (word[0], word[1]) == pair:
        return [word[0] + word[1], *merged(word[2:], pair)]
    return [word[0], *merged(word[1:], pair)]


@dataclass
class NaiveBPE:
    """BPE that recounts all pairs of all words for every merge.

    Attributes:
        words: every word as strings.
        counts: occurrences of each word.
        known: strings that exist.
        merges: the pair that each new string was made of, in order.
        savings: how often it was merged.
    """

    words: list[list[str]]
    counts: np.ndarray
    known: list[str]
    merges: dict[str, Merge] = field(default_factory=dict)
    savings: dict[str, int] = field(default_factory=dict)

    def merge(self, pair: Merge) -> None:
        string = pair[0] + pair[1]
        self.merges[string], self.savings[string] = pair, occurrences(self.words, self.counts)[pair]
        self.words = [merged(word, pair) for word in self.words]

    def with_parts(self, strings: set[str]) -> set[str]:
        """The strings and the new ones that they are made of."""
        found = strings & self.merges.keys()
        while more := {half for string in found for half in self.merges[string]} & self.merges.keys() - found:
            found |= more
        return found

    def run(self, budget: int, requirements: CandidateFilter) -> "NaiveBPE":
        rank = {string: n for n, string in enumerate(self.known)}
        while len(self.with_parts({s for s in self.merges if requirements.accepts(s)})) < budget:
            pairs = {
                pair: count
                for pair, count in occurrences(self.words, self.counts).items()
                if count >= requirements.settings.min_frequency
                and pair[0] + pair[1] not in rank
                and requirements.accepts_part(pair[0] + pair[1])
            }
            if not pairs:
                break
            best = min(pairs, key=lambda pair: (-pairs[pair], rank[pair[0]], rank[pair[1]]))
            rank[best[0] + best[1]] = len(rank)
            self.merge(best)
        return self

    def frequency(self, string: str) -> int:
        return sum(word.count(string) * n for word, n in zip(self.words, self.counts.tolist(), strict=True))

    def candidates(self, accepted: set[str]) -> list[tuple[str, Merge, int, int]]:
        """String, halves, saving and frequency of the accepted strings and of their parts."""
        kept = self.with_parts(accepted)
        return [(s, self.merges[s], self.savings[s], self.frequency(s)) for s in self.merges if s in kept]


def parts_of(candidates: Sequence[Candidate]) -> list[tuple[str, tuple[str, ...], int, int]]:
    return [(c.string, c.halves, c.saving, c.frequency) for c in candidates]


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
    requirements = CandidateFilter(data.draw(settings))
    found = select_within(sequences, counts, known, budget=budget, settings=requirements.settings)
    naive = NaiveBPE([[known[i] for i in ids] for ids in sequences], counts, known).run(budget, requirements)
    assert parts_of(found) == naive.candidates({s for s in naive.merges if requirements.accepts(s)})
    for candidate in found:
        assert "".join(candidate.halves) == candidate.string
        assert "".join(known[i] for i in candidate.constituents) == candidate.string


def bpe_of(strings: Sequence[str], merges: Sequence[Merge]) -> models.BPE:
    return models.BPE({string: n for n, string in enumerate(strings)}, [*merges])


def encode_all(model: models.BPE, corpus: Corpus) -> list[list[int]]:
    texts = ["".join(LETTERS[i] for i in ids) for ids in corpus[0]]
    return [[token.id for token in model.tokenize(text)] if text else [] for text in texts]


def tokens_of(sequences: Sequence[Sequence[int]], counts: np.ndarray) -> int:
    return sum(len(ids) * n for ids, n in zip(sequences, counts.tolist(), strict=True))


@given(corpora(), st.integers(1, 8), st.integers(1, 6))
def test_savings_add_up_to_those_of_a_bpe_with_the_merges(corpus: Corpus, budget: int, least: int) -> None:
    before = encode_all(bpe_of(KNOWN, BASE_MERGES), corpus)
    found = select_within(
        before, corpus[1], KNOWN, budget=budget, settings=SelectionSettings(min_token_len=2, min_frequency=least)
    )
    strings = [*KNOWN, *(candidate.string for candidate in found)]
    merges = [*BASE_MERGES, *((c.halves[0], c.halves[1]) for c in found)]
    after = encode_all(bpe_of(strings, merges), corpus)
    assert tokens_of(before, corpus[1]) - tokens_of(after, corpus[1]) == sum(c.saving for c in found)
    assert all(candidate.saving >= least for candidate in found)
    for token, candidate in enumerate(found, start=len(KNOWN)):
        used = sum(ids.count(token) * n for ids, n in zip(after, corpus[1].tolist(), strict=True))
        assert candidate.frequency == used


@given(st.data())
def test_merges_are_counted_inside_longer_tokens(data: st.DataObject) -> None:
    made: list[tuple[int, int]] = []
    for new in range(3, 3 + data.draw(st.integers(0, 6))):
        any_earlier = st.integers(0, new - 1)
        made.append((data.draw(any_earlier), data.draw(any_earlier)))
    halves = dict(enumerate(made, start=3))
    frequencies = {token: data.draw(st.integers(0, 9)) for token in halves}

    def merges_in(token: int, merge: int) -> int:
        return (token == merge) + sum(merges_in(half, merge) for half in halves.get(token, ()))

    expected = {merge: sum(n * merges_in(token, merge) for token, n in frequencies.items()) for merge in halves}
    assert count_merges(frequencies, halves) == expected


def test_runs_are_merged_without_overlap() -> None:
    found = select_within([[0] * 7], np.array([1]), LETTERS, budget=1, settings=ANY)
    assert found == [Candidate("aa", ("a", "a"), (0, 0), 3, 3)]


def test_letter_of_several_bytes_is_merged_with_letters_only() -> None:
    found = select_within(
        [[5, 6, 0], [5, 6, 4]], np.array([3, 9]), KINDS, budget=9, settings=SelectionSettings(letters_only=True)
    )
    assert [text_of(c.string) for c in found] == ["é", "éa"]


def test_string_that_longer_ones_replace_is_kept_as_their_half() -> None:
    found = select_within([[0, 1, 2], [2, 2]], np.array([5, 3]), LETTERS, budget=3)
    assert found == [
        Candidate("ab", ("a", "b"), (0, 1), 5, 0),
        Candidate("abc", ("ab", "c"), (0, 1, 2), 5, 5),
        Candidate("cc", ("c", "c"), (2, 2), 3, 3),
    ]


def test_half_of_an_accepted_string_need_not_meet_the_requirements() -> None:
    settings = SelectionSettings(min_token_len=3)
    found = select_within([[0, 1, 2], [0, 1], [2, 2]], np.array([5, 100, 9]), LETTERS, budget=5, settings=settings)
    assert parts_of(found) == [("ab", ("a", "b"), 105, 100), ("abc", ("ab", "c"), 5, 5)]  # but not "cc"


def test_unmerged_ids_are_never_part_of_a_candidate() -> None:
    sequences, counts = [[0, 1, 2, 0, 1], [2, 2]], np.array([5, 5])
    found = select_within(sequences, counts, LETTERS, budget=9, unmerged=frozenset({2}))
    assert parts_of(found) == [("ab", ("a", "b"), 10, 10)]


@given(st.integers(1, 9), st.integers(1, 4))
def test_long_words_are_cut(length: int, longest: int) -> None:
    word, counts = [n % 3 for n in range(length)], np.array([4])
    cut = [word[start : start + longest] for start in range(0, length, longest)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(within, "LONGEST_WORD", longest)
        found = select_within([word], counts, LETTERS, budget=9)
    assert found == select_within(cut, np.repeat(counts, len(cut)), LETTERS, budget=9)
    assert all(len(candidate.string) <= longest for candidate in found)


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


@given(corpora(), corpora(), st.integers(0, 4), st.integers(0, 5), LIMITS)
@settings(max_examples=150)
def test_kept_candidates_come_first_with_their_present_saving(
    earlier: Corpus, corpus: Corpus, number: int, budget: int, limits: SelectionSettings
) -> None:
    requirements = CandidateFilter(limits)
    kept = select_within(earlier[0], earlier[1], LETTERS, budget=number, settings=ANY)
    sequences, counts = corpus
    naive = NaiveBPE([[LETTERS[i] for i in ids] for ids in sequences], counts, LETTERS)
    for candidate in kept:
        naive.merge((candidate.halves[0], candidate.halves[1]))
    names = [*LETTERS, *(candidate.string for candidate in kept)]
    started = [[names.index(string) for string in word] for word in naive.words]
    savings, strings = dict(naive.savings), set(naive.merges)

    found = select_within(started, counts, LETTERS, budget=budget, settings=limits, kept=kept)
    # new candidates as if the kept ones were in the base
    on_top = select_within(started, counts, names, budget=budget, settings=limits)
    new = [c for c in found if c.string not in strings]
    assert parts_of(new) == parts_of(on_top)
    # the kept ones that are still worth it, and the ones that others need
    worth = {s for s in strings if savings[s] >= limits.min_frequency and requirements.accepts(s)}
    stay = naive.with_parts(worth | {half for c in new for half in c.halves})
    assert [c.string for c in found] == [*(c.string for c in kept if c.string in stay), *(c.string for c in new)]
    for candidate, before in zip(found, [c for c in kept if c.string in stay], strict=False):
        assert candidate.saving == savings[candidate.string]
        assert (candidate.halves, candidate.constituents) == (before.halves, before.constituents)
    for candidate in new:  # constituents are base tokens
        assert "".join(LETTERS[i] for i in candidate.constituents) == candidate.string
