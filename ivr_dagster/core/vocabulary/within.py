"""New tokens inside pre-tokens, by continued BPE over pre-token counts.

The most frequent neighboring pair is merged, counts are updated where it occurred, and so on. What a token saves is
counted where it occurs at the end, so that savings add up.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import chain, pairwise

import numpy as np

from ivr_dagster.core.vocabulary.candidate import Candidate, CandidateFilter, Selection
from ivr_dagster.settings import SelectionSettings

Pair = tuple[int, int]


def select_within(
    sequences: Sequence[Sequence[int]],
    counts: np.ndarray,
    strings: Sequence[str],
    *,
    budget: int,
    settings: SelectionSettings = SelectionSettings(),  # noqa: B008 (frozen)
    kept: Sequence[Candidate] = (),
    kept_sequences: Sequence[Sequence[int]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Selection:
    """Up to `budget` candidates by continued BPE, in addition to the kept ones.

    A merged string that ends up saving less than `min_frequency`, because longer ones replaced it, returns its id to
    the budget. Merging stops early if no pair is that frequent.

    Args:
        sequences: base ids of each pre-token type.
        counts: occurrences of each type, int64.
        strings: the base vocabulary by id, V entries; no candidate equals one of these.
        budget: maximum number of new candidates.
        settings: requirements for a candidate; shorter strings are merged on the way to longer ones.
        kept: candidates to start from; those that still save enough are returned with their own saving.
        kept_sequences: ids of each type with the kept ones in use, V + n for the n-th.
        progress: called with (candidates so far, budget).
    """
    first_new = len(strings) + len(kept)
    long = [n for n, ids in enumerate(sequences) if len(ids) > 1]
    originals = [sequences[n] for n in long]
    started = [kept_sequences[n] for n in long] if kept_sequences is not None else originals
    weights = np.asarray(counts, dtype=np.int64)[long]
    bpe = _ContinuedBPE(started, weights, strings, CandidateFilter(settings), kept)
    initial = bpe.frequency.copy()
    bpe.run(budget, progress)

    # new tokens save in comparison with the kept ones, not with the base
    saved = _savings(originals, started, weights, bpe.names) if kept else Counter()
    further = _savings(started, bpe.words, weights, bpe.names)
    saved.update({token: saving for token, saving in further.items() if token >= first_new})
    frequency = bpe.frequency
    frequency.update({token: initial[token] - frequency[token] for token in initial})
    candidates = [
        Candidate(bpe.names[new], constituents, saved[new], frequency[new])
        for new, constituents in bpe.constituents.items()
    ]
    accepted = [c for c in candidates if c.saving >= settings.min_frequency and bpe.filter.accepts(c.string)]
    chosen = sorted(accepted, key=lambda c: -c.saving)[: budget + len(kept)]
    sizes = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
    return Selection(chosen, int(np.dot(sizes, counts)))


class _ContinuedBPE:
    """The state of the merge loop: words as ids, pair counts with the words that contain them, a heap of pairs."""

    def __init__(
        self,
        words: list[Sequence[int]],
        weights: np.ndarray,
        strings: Sequence[str],
        candidate_filter: CandidateFilter,
        kept: Sequence[Candidate],
    ) -> None:
        self.words = words.copy()
        self.filter = candidate_filter
        self.names = [*strings, *(candidate.string for candidate in kept)]
        self.constituents = {len(strings) + n: candidate.constituents for n, candidate in enumerate(kept)}
        self._weights: list[int] = weights.tolist()
        self._known, self._first_new = set(self.names), len(self.names)
        self._ids: dict[str, int] = {}  # of merged strings
        self._accepted: dict[int, bool] = {}
        self._min_frequency = candidate_filter.settings.min_frequency
        self._counts, self._words_with = _count_pairs(words, weights, self._min_frequency)
        # ties go to the lower ids, so that the order never depends on hashing
        self._heap = [(-count, pair) for pair, count in self._counts.items()]
        heapq.heapify(self._heap)
        self.frequency: Counter[int] = Counter()
        for word, weight in zip(words, self._weights, strict=True) if kept else ():
            for token in word:
                if token in self.constituents:
                    self.frequency[token] += weight

    def run(self, budget: int, progress: Callable[[int, int], None] | None) -> None:
        """Merge pairs until `budget` new tokens are worth an id."""
        found = 0
        while found < budget and (pair := self._next_pair()):
            left, right = pair
            new = self._id_of(left, right)
            if new is None:
                del self._counts[pair]  # the vocabulary contains the string but does not use it here
                continue
            affected = {token for token in (left, right, new) if token >= self._first_new}
            found -= sum(map(self._is_worth_an_id, affected))
            self._merge(pair, new)
            found += sum(map(self._is_worth_an_id, affected))
            if progress is not None and found % 100 == 0:
                progress(found, budget)

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

    def _id_of(self, left: int, right: int) -> int | None:
        """The id of the merged string, None if it may not be merged."""
        string = self.names[left] + self.names[right]
        if string in self._known or not self.filter.accepts_part(string):
            return None
        if string not in self._ids:
            new = self._ids[string] = len(self.names)
            self.names.append(string)
            self.constituents[new] = self.constituents.get(left, (left,)) + self.constituents.get(right, (right,))
        return self._ids[string]

    def _is_worth_an_id(self, token: int) -> bool:
        if self.frequency[token] * (len(self.constituents[token]) - 1) < self._min_frequency:
            return False
        if token not in self._accepted:
            self._accepted[token] = self.filter.accepts(self.names[token])
        return self._accepted[token]

    def _merge(self, pair: Pair, new: int) -> None:
        """Replace a pair by `new` in all words and update the counts of the pairs around it."""
        left, right = pair
        words, words_with = self.words, self._words_with
        changed: defaultdict[Pair, int] = defaultdict(int)
        merged = 0
        for n in words_with.pop(pair):
            old, weight = words[n], self._weights[n]
            word = words[n] = _merge_pair(old, left, right, new)
            if len(word) == len(old):
                continue
            merged += (len(old) - len(word)) * weight
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
        self.frequency[new] += merged
        for token in pair:
            if token in self.constituents:
                self.frequency[token] -= merged
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


def _savings(
    originals: list[Sequence[int]], words: list[Sequence[int]], weights: np.ndarray, names: list[str]
) -> Counter[int]:
    """What each token of `words` saves over the base tokens of `originals` that end in the same span."""
    lengths = np.fromiter(map(len, names), dtype=np.int64, count=len(names))
    base = np.fromiter(chain.from_iterable(originals), dtype=np.int64)
    tokens = np.fromiter(chain.from_iterable(words), dtype=np.int64)
    # every word is as long as its original, so positions are comparable
    ended = np.searchsorted(np.cumsum(lengths[base]), np.cumsum(lengths[tokens]), side="right")
    repeated = np.repeat(weights, list(map(len, words)))
    saved = np.bincount(tokens, weights=(np.diff(ended, prepend=0) - 1) * repeated, minlength=len(names))
    found = np.flatnonzero(np.bincount(tokens, minlength=len(names))).tolist()
    return Counter({token: int(saved[token]) for token in found})


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
