"""New tokens inside pre-tokens, by continued BPE over pre-token counts.

The most frequent neighbouring pair is joined, counts are updated where it stood, and so on; what a token saves is
counted where it stands at the end, so that savings add up.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np

from ivr_dagster.core.vocabulary.candidate import Candidate, Guards, Selection


def select_within(
    sequences: Sequence[Sequence[int]],
    counts: np.ndarray,
    strings: Sequence[str],
    *,
    budget: int,
    guards: Guards = Guards(),  # noqa: B008 (frozen)
    kept: Sequence[Candidate] = (),
    kept_sequences: Sequence[Sequence[int]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Selection:
    """Up to `budget` candidates by continued BPE, beside those that are there already.

    A joined string that ends up saving less than `guards.min_frequency`, since longer ones took its places, gives its
    id back and the budget is filled up with the next. Joining stops early where no pair occurs that often.

    Args:
        sequences: base ids of each pre-token type.
        counts: occurrences of each type, int64.
        strings: the base vocabulary by id, V entries; no candidate equals one of these.
        budget: how many new candidates at most.
        guards: what a candidate must be; shorter strings than allowed are joined on the way to longer ones.
        kept: candidates to start from; those that still save enough come back with what they save by themselves.
        kept_sequences: ids of each type once the kept ones are in use, V + n for the n-th.
        progress: called with (candidates so far, budget).
    """
    names: list[str] = [*strings, *(candidate.string for candidate in kept)]
    first_new = len(names)
    known = set(names)
    constituents: dict[int, tuple[int, ...]] = {
        len(strings) + n: candidate.constituents for n, candidate in enumerate(kept)
    }
    long = [n for n, ids in enumerate(sequences) if len(ids) > 1]
    originals = [list(sequences[n]) for n in long]
    started = [list(kept_sequences[n]) for n in long] if kept_sequences is not None else originals
    words = started.copy()
    weights = [int(counts[n]) for n in long]
    tokens_before = sum(int(c) * len(ids) for ids, c in zip(sequences, counts, strict=True))

    pair_counts: Counter[tuple[int, int]] = Counter()
    places: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    frequency: Counter[int] = Counter()
    for n, word in enumerate(words):
        for pair, repeats in _pairs(word).items():
            pair_counts[pair] += repeats * weights[n]
            places[pair].add(n)
        for token in word:
            if token in constituents:
                frequency[token] += weights[n]
    standing = frequency.copy()  # of what was kept
    # ties fall to the lower ids, so that the order never depends on hashing
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)

    made: dict[str, int] = {}
    live = 0

    def worth_an_id(token: int) -> bool:
        saving = frequency[token] * (len(constituents[token]) - 1)
        return saving >= guards.min_frequency and guards.may_be(names[token])

    while heap and live < budget:
        negative, pair = heapq.heappop(heap)
        count = pair_counts.get(pair, 0)
        if count != -negative:
            if count > 0:
                heapq.heappush(heap, (-count, pair))
            continue
        if count < guards.min_frequency:
            break
        left, right = pair
        string = names[left] + names[right]
        if string in known or not guards.may_join(string):
            del pair_counts[pair]  # the vocabulary has it and does not use it here
            continue
        new = made.get(string)
        if new is None:
            new = made[string] = len(names)
            names.append(string)
            constituents[new] = constituents.get(left, (left,)) + constituents.get(right, (right,))
        changed: Counter[tuple[int, int]] = Counter()
        touched = {token for token in (left, right, new) if token >= first_new}
        live -= sum(map(worth_an_id, touched))
        for n in places.pop(pair):
            old, word = words[n], _join(words[n], left, right, new)
            if len(word) == len(old):
                continue
            words[n] = word
            joined = (len(old) - len(word)) * weights[n]
            frequency[new] += joined
            for token in (left, right):
                if token in constituents:
                    frequency[token] -= joined
            old_pairs, new_pairs = _pairs(old), _pairs(word)
            for other, repeats in old_pairs.items():
                changed[other] -= repeats * weights[n]
            for other, repeats in new_pairs.items():
                changed[other] += repeats * weights[n]
                if other not in old_pairs:
                    places[other].add(n)
        pair_counts.pop(pair, None)
        for other, difference in changed.items():
            if other == pair or not difference:
                continue
            pair_counts[other] += difference
            if difference > 0:
                heapq.heappush(heap, (-pair_counts[other], other))
        live += sum(map(worth_an_id, touched))
        if progress is not None and live % 100 == 0:
            progress(live, budget)

    # what is new saves over what was kept, not over the base
    saved = _savings(originals, started, weights, names) if kept else Counter()
    further = _savings(started, words, weights, names)
    saved.update({token: saving for token, saving in further.items() if token >= first_new})
    frequency.update({token: standing[token] - frequency[token] for token in standing})
    candidates = [Candidate(names[new], constituents[new], saved[new], frequency[new]) for new in constituents]
    chosen = sorted(
        (c for c in candidates if c.saving >= guards.min_frequency and guards.may_be(c.string)),
        key=lambda c: -c.saving,
    )[: budget + len(kept)]
    return Selection(chosen, tokens_before)


def _savings(originals: list[list[int]], words: list[list[int]], weights: list[int], names: list[str]) -> Counter[int]:
    """What each token of `words` saves over the base tokens of `originals` that end in its place."""
    saved: Counter[int] = Counter()
    for original, word, weight in zip(originals, words, weights, strict=True):
        ends = accumulate(len(names[token]) for token in original)
        end, covered = next(ends, None), 0
        for token in word:
            covered += len(names[token])
            saved[token] -= weight
            while end is not None and end <= covered:
                saved[token] += weight
                end = next(ends, None)
    return saved


def _pairs(word: list[int]) -> Counter[tuple[int, int]]:
    """Neighbouring pairs of a word without overlap: `a a a` holds (a, a) once."""
    found: Counter[tuple[int, int]] = Counter()
    position = 0
    previous: tuple[int, int] | None = None
    while position < len(word) - 1:
        pair = (word[position], word[position + 1])
        if pair == previous and pair[0] == pair[1]:
            previous = None  # the middle of a run counts once
        else:
            found[pair] += 1
            previous = pair
        position += 1
    return found


def _join(word: list[int], left: int, right: int, new: int) -> list[int]:
    joined: list[int] = []
    position, last = 0, len(word) - 1
    while position <= last:
        if position < last and word[position] == left and word[position + 1] == right:
            joined.append(new)
            position += 2
        else:
            joined.append(word[position])
            position += 1
    return joined
