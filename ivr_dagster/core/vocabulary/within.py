"""New tokens inside pre-tokens, by continued BPE over pre-token counts.

The most frequent neighboring pair is merged, counts are updated where it occurred, and so on. Every merge saves one
token where it is applied, so savings add up, and every new token is the concatenation of two tokens.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, pairwise

import numpy as np

from ivr_dagster.core.vocabulary.candidate import Candidate, CandidateFilter
from ivr_dagster.settings import SelectionSettings

Pair = tuple[int, int]
# ids; longer pre-tokens (base64, DNA) are cut, since each merge rewrites the words that contain it
LONGEST_WORD = 10_000


def select_within(
    sequences: Sequence[Sequence[int]],
    counts: np.ndarray,
    strings: Sequence[str],
    *,
    budget: int,
    settings: SelectionSettings = SelectionSettings(),  # noqa: B008 (frozen)
    kept: Sequence[Candidate] = (),
    unmerged: frozenset[int] = frozenset(),
    progress: Callable[[int, int], None] | None = None,
) -> list[Candidate]:
    """Up to `budget` candidates by continued BPE, in addition to the kept ones.

    A string that does not meet the requirements becomes a candidate if an accepted one is made of it.

    Args:
        sequences: ids of each pre-token type, V + n for the n-th kept candidate.
        counts: occurrences of each type, int64.
        strings: the base vocabulary by id, V entries; no candidate equals one of these.
        budget: maximum number of new candidates.
        settings: requirements for a candidate.
        kept: new tokens of the previous selection, in merge order; those that still save enough are returned with their
            current saving.
        unmerged: ids that must not become part of a candidate.
        progress: called with (candidates so far, budget).

    Returns:
        The candidates in merge order: the kept ones, then the others by falling saving.
    """
    bpe = _ContinuedBPE(sequences, counts, strings, CandidateFilter(settings), kept, unmerged)
    bpe.run(budget, progress)
    return bpe.candidates()


def count_merges(frequencies: Mapping[int, int], halves: Mapping[int, Pair]) -> Counter[int]:
    """How often each merge is applied: the occurrences of its token, and those inside longer tokens.

    Args:
        frequencies: occurrences of each id.
        halves: (left, right) by id, halves before the tokens made of them.
    """
    applied = Counter({token: frequencies.get(token, 0) for token in halves})
    for token in reversed([*halves]):
        for half in halves[token]:
            if half in halves:
                applied[half] += applied[token]
    return applied


class _ContinuedBPE:
    """The state of the merge loop: words as ids, pair counts with the words that contain them, a heap of pairs."""

    def __init__(
        self,
        sequences: Sequence[Sequence[int]],
        counts: np.ndarray,
        strings: Sequence[str],
        candidate_filter: CandidateFilter,
        kept: Sequence[Candidate],
        unmerged: frozenset[int],
    ) -> None:
        cut = [
            (ids[start : start + LONGEST_WORD], count)
            for ids, count in zip(sequences, counts.tolist(), strict=True)
            for start in range(0, len(ids), LONGEST_WORD)
        ]
        self._words: list[Sequence[int]] = [ids for ids, _ in cut]
        self._weights: list[int] = [count for _, count in cut]
        self._filter, self._unmerged = candidate_filter, unmerged
        self._names = [*strings, *(candidate.string for candidate in kept)]
        ids = {string: token for token, string in enumerate(self._names)} if kept else {}
        self._halves: dict[int, Pair] = {  # in merge order
            ids[c.string]: (ids[c.halves[0]], ids[c.halves[1]]) for c in kept
        }
        self._constituents = {ids[c.string]: c.constituents for c in kept}
        self._known = set(self._names)
        self._min_frequency = candidate_filter.settings.min_frequency
        self._first_new = len(self._names)
        self._counts, self._words_with = _count_pairs(self._words, np.array(self._weights), self._min_frequency)
        # ties go to the lower ids, so that the order never depends on hashing
        self._heap = [(-count, pair) for pair, count in self._counts.items()]
        heapq.heapify(self._heap)

    def run(self, budget: int, progress: Callable[[int, int], None] | None) -> None:
        """Merge pairs until `budget` new candidates are found."""
        found: set[int] = set()
        while len(found) < budget and (pair := self._next_pair()):
            new = self._new_token(*pair)
            if new is None:
                del self._counts[pair]
                continue
            self._merge(pair, new)
            if self._filter.accepts(self._names[new]):
                self._add(new, found)
                if progress is not None and len(found) % 100 == 0:
                    progress(len(found), budget)

    def _add(self, token: int, found: set[int]) -> None:
        """Add a token and the new tokens that it is made of."""
        if token >= self._first_new and token not in found:
            found.add(token)
            for half in self._halves[token]:
                self._add(half, found)

    def candidates(self) -> list[Candidate]:
        """The tokens that save enough and meet the requirements, and the tokens that they are made of."""
        occurrences: Counter[int] = Counter()
        for word, weight in zip(self._words, self._weights, strict=True):
            for token in word:
                if token in self._halves:
                    occurrences[token] += weight
        savings = count_merges(occurrences, self._halves)
        needed: set[int] = set()
        for token in reversed(self._halves):
            is_useful = savings[token] >= self._min_frequency and self._filter.accepts(self._names[token])
            if is_useful or token in needed:
                needed.update((token, *self._halves[token]))
        return [
            Candidate(
                self._names[token],
                (self._names[left], self._names[right]),
                self._constituents[token],
                savings[token],
                occurrences[token],
            )
            for token, (left, right) in self._halves.items()
            if token in needed
        ]

    def _next_pair(self) -> Pair | None:
        """The most frequent pair, None if none is frequent enough."""
        while self._heap:
            negative, pair = heapq.heappop(self._heap)
            count = self._counts.get(pair, 0)
            if count == -negative:
                return pair if count >= self._min_frequency else None
            if count > 0:
                heapq.heappush(self._heap, (-count, pair))
        return None

    def _new_token(self, left: int, right: int) -> int | None:
        """A new id for the merged string; None if it has an id already or may not be merged."""
        string = self._names[left] + self._names[right]
        if (
            string in self._known
            or not self._filter.accepts_part(string)
            or not self._unmerged.isdisjoint((left, right))
        ):
            return None
        self._known.add(string)
        new = len(self._names)
        self._names.append(string)
        self._halves[new] = left, right
        self._constituents[new] = self._constituents.get(left, (left,)) + self._constituents.get(right, (right,))
        return new

    def _merge(self, pair: Pair, new: int) -> None:
        """Replace a pair by `new` in all words and update the counts of the pairs around it."""
        left, right = pair
        words, words_with = self._words, self._words_with
        changed: defaultdict[Pair, int] = defaultdict(int)
        for n in words_with.pop(pair):
            old, weight = words[n], self._weights[n]
            word = words[n] = _merge_pair(old, left, right, new)
            if len(word) == len(old):
                continue
            at = word.index(new)
            before, after = word[at - 1] if at else None, word[at + 1] if at + 1 < len(word) else None
            if len(old) - len(word) > 1 or left == right or before in (left, new) or after in (right, new):
                for other, repeats in _pairs(old).items():
                    changed[other] -= repeats * weight
                for other, repeats in _pairs(word).items():
                    changed[other] += repeats * weight
                    if new in other:
                        words_with[other].add(n)
                continue
            # merged once and without equal neighbors: only the pairs on both sides change
            if before is not None:
                changed[before, left] -= weight
                changed[before, new] += weight
                words_with[before, new].add(n)
            if after is not None:
                changed[right, after] -= weight
                changed[new, after] += weight
                words_with[new, after].add(n)
        self._counts.pop(pair, None)
        for other, difference in changed.items():
            if other == pair or not difference:
                continue
            self._counts[other] += difference
            if difference > 0:
                heapq.heappush(self._heap, (-self._counts[other], other))


def _count_pairs(
    words: list[Sequence[int]], weights: np.ndarray, min_count: int
) -> tuple[Counter[Pair], defaultdict[Pair, set[int]]]:
    """Counts of the pairs that occur at least `min_count` times, and the words that contain them.

    In a run, overlapping pairs count as in :func:`_pairs`. Merging never creates a pair of old tokens, so a rarer pair
    never becomes frequent.
    """
    owners = np.repeat(np.arange(len(words)), list(map(len, words)))
    ids = np.fromiter(chain.from_iterable(words), dtype=np.int64, count=len(owners))
    at = np.flatnonzero(owners[:-1] == owners[1:])
    is_equal = ids[at] == ids[at + 1]
    continues = is_equal[1:] & is_equal[:-1] & (np.diff(at) == 1)
    run_starts = np.arange(len(at))
    run_starts[1:][continues] = 0
    at = at[(np.arange(len(at)) - np.maximum.accumulate(run_starts)) % 2 == 0]
    keys = ids[at] * (int(ids.max(initial=0)) + 1) + ids[at + 1]
    order = np.argsort(keys, kind="stable")
    at = at[order]
    starts = np.flatnonzero(np.diff(keys[order], prepend=-1))
    counts = np.add.reduceat(weights[owners[at]], starts) if len(at) else np.empty(0, np.int64)
    ends = np.append(starts[1:], len(at))
    frequent = counts >= min_count
    pair_counts: Counter[Pair] = Counter()
    words_with: defaultdict[Pair, set[int]] = defaultdict(set)
    holders = owners[at].tolist()
    columns = (ids[at[starts]], ids[at[starts] + 1], counts, starts, ends)
    for left, right, count, start, end in zip(*(column[frequent].tolist() for column in columns), strict=True):
        pair_counts[left, right] = count
        words_with[left, right] = set(holders[start:end])
    return pair_counts, words_with


def _pairs(word: Sequence[int]) -> Counter[Pair]:
    """Neighboring pairs of a word without overlap: `a a a` contains (a, a) once."""
    found: Counter[Pair] = Counter()
    previous: Pair | None = None
    for pair in pairwise(word):
        if pair == previous and pair[0] == pair[1]:
            previous = None  # the middle of a run counts once
        else:
            found[pair] += 1
            previous = pair
    return found


def _merge_pair(word: Sequence[int], left: int, right: int, new: int) -> list[int]:
    merged: list[int] = []
    position, last = 0, len(word) - 1
    while position <= last:
        if position < last and word[position] == left and word[position + 1] == right:
            merged.append(new)
            position += 2
        else:
            merged.append(word[position])
            position += 1
    return merged
