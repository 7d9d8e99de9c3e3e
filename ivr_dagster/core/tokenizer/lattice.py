"""Lattices: all tokens that lie in each of many strings, and the best path through them under any scores.

What belongs here: the Viterbi search of a Unigram, over many strings at once and again and again with other scores.
Tokens are looked up once, by rolling hashes; each search after that is a few array operations a character. Sums run
left to right and of equal ones the first found is kept, as in `tokenizers`, whose model this is held against.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ivr_dagster.core.tokenizer.segments import Segments

# of a polynomial hash modulo 2^64 (Karp and Rabin 1987): any odd numbers without pattern do, for strings shorter than
# the 1,024 characters from which on Thue and Morse's collide; no token is that long
_BASE, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))
# bits of a hash that a filter looks at before the search: a small table that stays in the processor's cache
_FILTER_BITS = 18


class Vocabulary:
    """Tokens by the hashes of their strings, V entries; where a string comes twice the first is found."""

    def __init__(self, strings: Sequence[str]) -> None:
        hashed = _Hashed(strings)
        whole = hashed.of(hashed.starts, hashed.lengths)
        by_length = np.argsort(hashed.lengths, kind="stable")
        lengths, firsts = np.unique(hashed.lengths[by_length], return_index=True)
        self._by_length: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        for length, ids in zip(lengths.tolist(), np.split(by_length, firsts[1:]), strict=True):
            if length:
                ids = ids[np.argsort(whole[ids], kind="stable")]
                is_there = np.zeros(1 << _FILTER_BITS, dtype=bool)
                is_there[_filtered(whole[ids])] = True
                self._by_length[length] = whole[ids], ids.astype(np.int32), is_there

    def lengths(self) -> list[int]:
        """Lengths that its strings have, ascending, in characters."""
        return list(self._by_length)

    def find(self, length: int, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of the hashes, uint64 [n], are those of strings of this length: their places and the tokens' ids."""
        known, ids, is_there = self._by_length[length]
        places = np.flatnonzero(is_there[_filtered(hashes)])
        wanted = hashes[places]
        at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        same = known[at] == wanted
        return places[same], ids[at[same]]


@dataclass(frozen=True, slots=True)
class Paths:
    """The best path through each of n strings.

    Attributes:
        totals: sums of the tokens' scores, float64 [n], -inf where no tokens make up the string.
        tokens: how many there are, int64 [n], 0 where none make it up.
        segments: their ids, none where there is no path.
    """

    totals: np.ndarray
    tokens: np.ndarray
    segments: Segments


class Lattice:
    """The tokens of a vocabulary that lie in each of n strings.

    Nodes are the places between characters, level by level over all strings, the longest string first: those of a
    level, and the edges that end in them, lie side by side.
    """

    def __init__(self, vocabulary: Vocabulary, strings: Sequence[str]) -> None:
        hashed = _Hashed(strings)
        self._order = np.argsort(-hashed.lengths, kind="stable")
        lengths = hashed.lengths[self._order]
        longest = int(lengths[0]) if len(lengths) else 0
        # strings that reach each level, and the first node of it
        self._reaching = len(lengths) - np.searchsorted(lengths[::-1], np.arange(longest + 1))
        self._levels = np.concatenate([[0], np.cumsum(self._reaching)])
        self._last = self._levels[lengths] + np.arange(len(lengths))  # each string's last node
        begun = self._reaching[1:]
        level = np.repeat(np.arange(longest, dtype=np.int32), begun)
        rank = (np.arange(len(level)) - np.repeat(np.cumsum(begun) - begun, begun)).astype(np.int32)
        left = lengths.astype(np.int32)[rank] - level
        first = hashed.starts[self._order][rank] + level
        nodes = self._levels.astype(np.int32)
        found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for length in vocabulary.lengths():
            if length > longest:
                break
            fits = left >= length
            level, rank, left, first = level[fits], rank[fits], left[fits], first[fits]
            places, ids = vocabulary.find(length, hashed.of(first, length))
            at, string = level[places], rank[places]
            # of edges that end alike the longest is to come first
            found.insert(0, (nodes[at] + string, nodes[at + length] + string, ids))
        starts, ends, ids = map(np.concatenate, zip(*found, strict=True)) if found else (np.empty(0, np.int32),) * 3
        order = np.argsort(ends, kind="stable")
        self._starts, self._ends, self._ids = starts[order], ends[order], ids[order]
        self._first_edges = np.searchsorted(self._ends, self._levels)  # that end in each level
        self._whole = np.flatnonzero(self._starts < len(lengths))
        self._whole = self._whole[self._ends[self._whole] == self._last[self._starts[self._whole]]]

    def __len__(self) -> int:
        return len(self._last)

    def best(self, scores: np.ndarray, *, split: bool = False) -> Paths:
        """The best path through each string.

        Args:
            scores: of the vocabulary's tokens, float64 [V]; -inf for those that are out of use.
            split: into two tokens or more: a string that is a token does not count as such.
        """
        gains = scores[self._ids]
        if split:
            gains[self._whole] = -np.inf
        sweep = _Sweep(self)
        for start, end in pairwise(self._first_edges[1:]):
            sweep.over(start, end, gains[start:end])
        totals, counts = np.empty(len(self)), np.empty(len(self), np.int64)
        totals[self._order] = sweep.best[self._last]
        counts[self._order] = np.where(sweep.best[self._last] > -np.inf, sweep.tokens[self._last], 0)
        return Paths(totals, counts, self._walk_back(counts, sweep.came))

    def scored(
        self, scores: np.ndarray, own: np.ndarray, score: Callable[[np.ndarray, np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """Scores of strings that are tokens themselves, the shorter first: longer ones may be made of them.

        Args:
            scores: of the vocabulary's tokens, float64 [V], in which those of the strings are not known yet.
            own: each string's id, int64 [n].
            score: from the totals and the tokens of the best paths of some strings into two tokens or more, float64 and
                int64 [m], to these strings' scores.

        Returns:
            The scores with those of the strings, float64 [V].
        """
        scores = scores.copy()
        sweep, own = _Sweep(self), own[self._order]
        splits = np.full(len(self._ids), 0.0)
        splits[self._whole] = -np.inf
        for level, (start, end) in enumerate(pairwise(self._first_edges[1:]), start=1):
            # strings that end here are the last of their level, and no token that long ends here in others but these
            longer = int(self._reaching[level + 1]) if level + 1 < len(self._reaching) else 0
            ending = int(np.searchsorted(self._ends[start:end], self._levels[level] + longer)) + start
            sweep.over(ending, end, scores[self._ids[ending:end]] + splits[ending:end])
            due = np.arange(longer, self._reaching[level])
            last = self._levels[level] + due
            scores[own[due]] = score(sweep.best[last], np.where(sweep.best[last] > -np.inf, sweep.tokens[last], 0))
            sweep.over(start, ending, scores[self._ids[start:ending]])
        return scores

    def _walk_back(self, counts: np.ndarray, came: np.ndarray) -> Segments:
        starts = np.concatenate([[0], np.cumsum(counts)])
        ids = np.empty(starts[-1], np.int64)
        of_string = counts[self._order]
        going = np.flatnonzero(of_string)
        nodes, at = self._last[going], starts[1:][self._order[going]] - 1
        until = at - of_string[going] + 1
        while len(nodes):
            edges = came[nodes]
            ids[at] = self._ids[edges]
            further = at > until
            nodes, at, until = self._starts[edges[further]], at[further] - 1, until[further]
        return Segments(ids, starts)


class _Sweep:
    """A search under way: for each node the best sum, the tokens on its path and the edge it came by."""

    def __init__(self, lattice: Lattice) -> None:
        self._starts, self._ends = lattice._starts, lattice._ends
        nodes = int(lattice._levels[-1])
        self.best, self.tokens = np.full(nodes, -np.inf), np.zeros(nodes, np.int32)
        self.best[: len(lattice)] = 0.0
        self.came = np.full(nodes, -1, np.int32)

    def over(self, start: int, end: int, gains: np.ndarray) -> None:
        """Go by the edges from `start` to `end`, all that end in some nodes of one level, with these gains."""
        if start == end:
            return
        ends, origins = self._ends[start:end], self._starts[start:end]
        sums = self.best[origins] + gains
        heads = np.flatnonzero(np.diff(ends, prepend=-1))
        reached = ends[heads]
        self.best[reached] = np.maximum.reduceat(sums, heads)
        is_best = np.flatnonzero(sums == self.best[ends])[::-1]  # the first comes last, and stays
        self.came[ends[is_best]] = start + is_best
        self.tokens[reached] = self.tokens[self._starts[self.came[reached]]] + 1


class _Hashed:
    """Strings one after the other, with hashes of any part of them."""

    def __init__(self, strings: Sequence[str]) -> None:
        self.lengths = np.fromiter(map(len, strings), np.int64, len(strings))
        self.starts = np.cumsum(self.lengths) - self.lengths
        codes = np.frombuffer("".join(strings).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
        powers = np.full(len(codes), _BASE)
        powers[:1] = 1
        terms = ((codes + np.uint64(1)) * _MIX) * np.multiply.accumulate(powers)
        self._sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
        undone = np.full(len(codes) + 1, _INVERSE)
        undone[:1] = 1
        self._undone = np.multiply.accumulate(undone)

    def of(self, starts: np.ndarray, lengths: np.ndarray | int) -> np.ndarray:
        """Hashes of the parts that begin at `starts` and have these lengths, uint64 [n]."""
        parts: np.ndarray = (self._sums[starts + lengths] - self._sums[starts]) * self._undone[starts]
        return parts


def _filtered(hashes: np.ndarray) -> np.ndarray:
    places: np.ndarray = hashes >> np.uint64(64 - _FILTER_BITS)  # the upper bits hold all characters
    return places
