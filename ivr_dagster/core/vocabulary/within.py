"""New tokens inside pre-tokens, by continued BPE over pre-token counts.

The most frequent neighbouring pair is joined, counts are updated where it stood, and so on; what a token saves is
counted where it stands at the end, so that savings add up.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import chain

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
    originals = [sequences[n] for n in long]
    started = [kept_sequences[n] for n in long] if kept_sequences is not None else originals
    words = started.copy()
    weights = np.asarray(counts, dtype=np.int64)[long]
    weight_of: list[int] = weights.tolist()
    sizes = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
    tokens_before = int(np.dot(sizes, counts))

    pair_counts, places = _count_pairs(started, weights, guards.min_frequency)
    frequency: Counter[int] = Counter()
    for word, weight in zip(words, weight_of, strict=True) if kept else ():
        for token in word:
            if token in constituents:
                frequency[token] += weight
    standing = frequency.copy()  # of what was kept
    # ties fall to the lower ids, so that the order never depends on hashing
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)

    made: dict[str, int] = {}
    allowed: dict[int, bool] = {}
    live = 0

    def worth_an_id(token: int) -> bool:
        if frequency[token] * (len(constituents[token]) - 1) < guards.min_frequency:
            return False
        if token not in allowed:
            allowed[token] = guards.may_be(names[token])
        return allowed[token]

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
        touched = {token for token in (left, right, new) if token >= first_new}
        live -= sum(map(worth_an_id, touched))
        changed: defaultdict[tuple[int, int], int] = defaultdict(int)
        joined = 0
        for n in places.pop(pair):
            old, weight = words[n], weight_of[n]
            word = _join(old, left, right, new)
            if len(word) == len(old):
                continue
            words[n] = word
            joined += (len(old) - len(word)) * weight
            at = word.index(new)
            before, after = word[at - 1] if at else None, word[at + 1] if at + 1 < len(word) else None
            if len(old) - len(word) > 1 or left == right or before in (left, new) or after in (right, new):
                for other, repeats in _pairs(old).items():
                    changed[other] -= repeats * weight
                for other, repeats in _pairs(word).items():
                    changed[other] += repeats * weight
                    if new in other:
                        places[other].add(n)
                continue
            # joined once and with no equal neighbours: only the pairs to both sides are others now
            if before is not None:
                changed[before, left] -= weight
                changed[before, new] += weight
                places[before, new].add(n)
            if after is not None:
                changed[right, after] -= weight
                changed[new, after] += weight
                places[new, after].add(n)
        frequency[new] += joined
        for token in (left, right):
            if token in constituents:
                frequency[token] -= joined
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


def _count_pairs(
    words: list[Sequence[int]], weights: np.ndarray, least: int
) -> tuple[Counter[tuple[int, int]], defaultdict[tuple[int, int], set[int]]]:
    """Counts of the pairs that occur at least so often, none of a run without the next (see :func:`_pairs`); places.

    Joining never brings two tokens together that were there before it, so no rarer pair will ever be frequent.
    """
    owners = np.repeat(np.arange(len(words)), list(map(len, words)))
    ids = np.fromiter(chain.from_iterable(words), dtype=np.int64, count=len(owners))
    at = np.flatnonzero(owners[:-1] == owners[1:])
    alike = ids[at] == ids[at + 1]
    goes_on = alike[1:] & alike[:-1] & (np.diff(at) == 1)
    since = np.arange(len(at))
    since[1:][goes_on] = 0
    at = at[(np.arange(len(at)) - np.maximum.accumulate(since)) % 2 == 0]
    keys = ids[at] * (int(ids.max(initial=0)) + 1) + ids[at + 1]
    order = np.argsort(keys, kind="stable")
    at = at[order]
    starts = np.flatnonzero(np.diff(keys[order], prepend=-1))
    counts = np.add.reduceat(weights[owners[at]], starts) if len(at) else np.empty(0, np.int64)
    ends = np.append(starts[1:], len(at))
    frequent = counts >= least
    pair_counts: Counter[tuple[int, int]] = Counter()
    places: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    holders = owners[at].tolist()
    first, second = ids[at[starts]][frequent].tolist(), ids[at[starts] + 1][frequent].tolist()
    rows = zip(
        first, second, counts[frequent].tolist(), starts[frequent].tolist(), ends[frequent].tolist(), strict=True
    )
    for left, right, count, start, end in rows:
        pair_counts[left, right] = count
        places[left, right] = set(holders[start:end])
    return pair_counts, places


def _savings(
    originals: list[Sequence[int]], words: list[Sequence[int]], weights: np.ndarray, names: list[str]
) -> Counter[int]:
    """What each token of `words` saves over the base tokens of `originals` that end in its place."""
    lengths = np.fromiter(map(len, names), dtype=np.int64, count=len(names))
    base = np.fromiter(chain.from_iterable(originals), dtype=np.int64)
    tokens = np.fromiter(chain.from_iterable(words), dtype=np.int64)
    # every word is as long as its original: one ruler serves all
    ended = np.searchsorted(np.cumsum(lengths[base]), np.cumsum(lengths[tokens]), side="right")
    repeated = np.repeat(weights, list(map(len, words)))
    saved = np.bincount(tokens, weights=(np.diff(ended, prepend=0) - 1) * repeated, minlength=len(names))
    found = np.flatnonzero(np.bincount(tokens, minlength=len(names))).tolist()
    return Counter({token: int(saved[token]) for token in found})


def _pairs(word: Sequence[int]) -> Counter[tuple[int, int]]:
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


def _join(word: Sequence[int], left: int, right: int, new: int) -> list[int]:
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
