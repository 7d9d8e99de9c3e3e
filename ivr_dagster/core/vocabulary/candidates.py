"""Candidates: strings inside pre-tokens that would save the most tokens if each had an id.

Continued BPE over pre-token counts: the most frequent neighbouring pair is joined, counts are updated where it
stood, and so on. Each candidate's saving is what it adds to those before it, counted without overlap.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import regex

from ivr_dagster.core.tokens.byte_level import string_of
from ivr_dagster.core.tokens.counts import PretokenCounts


@dataclass(frozen=True, slots=True)
class Candidate:
    """A string that asks for an id.

    Attributes:
        string: the new token in the byte-level alphabet.
        left, right: the two tokens (base or new, by string) that were joined to make it.
        constituents: ids of the base tokens it replaces, in order.
        saving: tokens saved on the train split when it was joined, on top of all candidates before it.
        frequency: how often it stands in the train split once all candidates are joined.
    """

    string: str
    left: str
    right: str
    constituents: tuple[int, ...]
    saving: int
    frequency: int


@dataclass(frozen=True)
class Selection:
    """Candidates in the order they were found, and every join made on the way.

    Attributes:
        candidates: what asks for an id.
        joins: (left, right) strings in order, those included whose result ended up unused or too short for an id.
        tokens_before, tokens_after: tokens of the counted pre-tokens, base and with all candidates.
    """

    candidates: list[Candidate]
    joins: list[tuple[str, str]]
    tokens_before: int
    tokens_after: int


def select_within(
    sequences: Sequence[Sequence[int]],
    counts: np.ndarray,
    strings: Sequence[str],
    *,
    budget: int,
    min_bytes: int = 2,
    min_frequency: int = 2,
    frozen: frozenset[int] = frozenset(),
    progress: Callable[[int, int], None] | None = None,
) -> Selection:
    """Up to `budget` candidates by continued BPE.

    A joined string that ends up standing nowhere, since longer ones took all its places, gives its id back and the
    budget is filled up with the next. Joining stops early where no pair occurs `min_frequency` times.

    Args:
        sequences: base ids of each pre-token type.
        counts: occurrences of each type, int64.
        strings: the base vocabulary by id; no candidate equals one of these.
        budget: how many candidates at most.
        min_bytes: shorter strings are joined on the way to longer ones but get no id.
        min_frequency: the least saving worth an id.
        frozen: ids that are never joined (bytes outside the alphabet, added tokens).
        progress: called with (candidates so far, budget).
    """
    names: list[str] = list(strings)
    known = set(names)
    constituents: dict[int, tuple[int, ...]] = {}
    words = [list(ids) for ids in sequences if len(ids) > 1]
    weights = [int(count) for ids, count in zip(sequences, counts, strict=True) if len(ids) > 1]
    single = sum(int(c) * len(ids) for ids, c in zip(sequences, counts, strict=True) if len(ids) < 2)
    tokens_before = single + sum(w * len(word) for w, word in zip(weights, words, strict=True))

    pair_counts: Counter[tuple[int, int]] = Counter()
    places: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    for n, word in enumerate(words):
        for pair, repeats in _pairs(word).items():
            pair_counts[pair] += repeats * weights[n]
            places[pair].add(n)
    # ties fall to the lower ids, so that the order never depends on hashing
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)

    made: dict[str, int] = {}
    order: list[tuple[int, int, int, int]] = []  # new id, left, right, saving
    joins: list[tuple[str, str]] = []
    frequency: Counter[int] = Counter()
    live = 0
    while heap and live < budget:
        negative, pair = heapq.heappop(heap)
        count = pair_counts.get(pair, 0)
        if count != -negative:
            if count > 0:
                heapq.heappush(heap, (-count, pair))
            continue
        if count < min_frequency:
            break
        left, right = pair
        string = names[left] + names[right]
        if string in known or left in frozen or right in frozen:
            del pair_counts[pair]  # the base has it and does not use it here
            continue
        new = made.get(string)
        if new is None:
            new = made[string] = len(names)
            names.append(string)
            constituents[new] = constituents.get(left, (left,)) + constituents.get(right, (right,))
            order.append((new, left, right, count))
            joins.append((names[left], names[right]))
        changed: Counter[tuple[int, int]] = Counter()
        before = {token: frequency[token] for token in (left, right, new)}
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
        for token, had in before.items():
            if token in constituents and len(names[token]) >= min_bytes:
                live += (frequency[token] > 0) - (had > 0)
        if progress is not None and live % 100 == 0:
            progress(live, budget)

    candidates = [
        Candidate(names[new], names[left], names[right], constituents[new], saving, frequency[new])
        for new, left, right, saving in order
        if frequency[new] > 0 and len(names[new]) >= min_bytes
    ]
    tokens_after = single + sum(w * len(word) for w, word in zip(weights, words, strict=True))
    return Selection(candidates[:budget], joins, tokens_before, tokens_after)


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



def cut_pieces(counts: PretokenCounts, cuts: str | None) -> tuple[list[str], np.ndarray]:
    """Byte-level strings inside which a new token may lie, with their counts (int64), by falling count.

    Pre-token types, cut where the distilled tokenizer cuts them once more: a candidate across such a cut could never
    be produced.
    """
    if cuts is None:
        return [string_of(piece) for piece in counts.types], counts.counts
    pattern = regex.compile(f"({cuts})")
    pieces: Counter[str] = Counter()
    for text, count in zip(counts.types, counts.counts.tolist(), strict=True):
        for piece in pattern.split(string_of(text)):
            if piece:
                pieces[piece] += count
    ordered = sorted(pieces, key=lambda piece: (-pieces[piece], piece))
    return ordered, np.array([pieces[piece] for piece in ordered], dtype=np.int64)
