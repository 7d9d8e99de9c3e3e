"""Lattices: all occurrences of tokens in each of many strings, and the best path through them for given scores.

This is the Viterbi search of a Unigram, over many strings at once and repeatedly with different scores. Tokens are
looked up once, by rolling hashes; each search then takes a few array operations per character. Sums run left to right
and the first of equal ones wins, as in `tokenizers`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ivr_dagster.core.tokenizer.segments import Segments

# polynomial hash modulo 2^64 (Karp and Rabin 1987). Any odd numbers without pattern work for strings shorter than 1,024
# characters, where Thue-Morse strings start to collide; no token is that long
_BASE, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))
# bits of a hash that a filter tests before the search: a table small enough for the processor's cache
_FILTER_BITS = 18


class Vocabulary:
    """Tokens by the hashes of their strings, V entries; of duplicate strings the first is found."""

    def __init__(self, strings: Sequence[str]) -> None:
        hashed = _Hashed(strings)
        whole = hashed.of(hashed.starts, hashed.lengths)
        by_length = np.argsort(hashed.lengths, kind="stable")
        lengths, firsts = np.unique(hashed.lengths[by_length], return_index=True)
        self._by_length: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        for length, ids in zip(lengths.tolist(), np.split(by_length, firsts[1:]), strict=True):
            if length:
                ids = ids[np.argsort(whole[ids], kind="stable")]
                is_present = np.zeros(1 << _FILTER_BITS, dtype=bool)
                is_present[_filter_bits(whole[ids])] = True
                self._by_length[length] = whole[ids], ids.astype(np.int32), is_present

    def lengths(self) -> list[int]:
        """The lengths of its strings in characters, ascending."""
        return list(self._by_length)

    def find(self, length: int, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The hashes, uint64 [n], that belong to strings of this length: their indices and the tokens' ids."""
        known, ids, is_present = self._by_length[length]
        indices = np.flatnonzero(is_present[_filter_bits(hashes)])
        wanted = hashes[indices]
        at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        same = known[at] == wanted
        return indices[same], ids[at[same]]


@dataclass(frozen=True, slots=True)
class Paths:
    """The best path through each of n strings.

    Attributes:
        totals: sums of the tokens' scores, float64 [n], -inf if there is no path.
        tokens: number of tokens, int64 [n], 0 if there is no path.
        segments: their ids, none if there is no path.
    """

    totals: np.ndarray
    tokens: np.ndarray
    segments: Segments


class Lattice:
    """The occurrences of a vocabulary's tokens in each of n strings.

    Nodes are the positions between characters, ordered by level (position) and then by string, the longest string
    first. The nodes of a level, and the edges that end in them, are contiguous.
    """

    def __init__(self, vocabulary: Vocabulary, strings: Sequence[str]) -> None:
        hashed = _Hashed(strings)
        self._order = np.argsort(-hashed.lengths, kind="stable")
        lengths = hashed.lengths[self._order]
        longest = int(lengths[0]) if len(lengths) else 0
        # number of strings that reach each level, and its first node
        self._reaching = len(lengths) - np.searchsorted(lengths[::-1], np.arange(longest + 1))
        self._levels = np.concatenate([[0], np.cumsum(self._reaching)])
        self._last = self._levels[lengths] + np.arange(len(lengths))  # each string's last node
        sizes = self._reaching[1:]
        level = np.repeat(np.arange(longest, dtype=np.int32), sizes)
        rank = (np.arange(len(level)) - np.repeat(np.cumsum(sizes) - sizes, sizes)).astype(np.int32)
        left = lengths.astype(np.int32)[rank] - level
        first = hashed.starts[self._order][rank] + level
        nodes = self._levels.astype(np.int32)
        found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for length in vocabulary.lengths():
            if length > longest:
                break
            fits = left >= length
            level, rank, left, first = level[fits], rank[fits], left[fits], first[fits]
            indices, ids = vocabulary.find(length, hashed.of(first, length))
            at, string = level[indices], rank[indices]
            # of edges with the same end the longest comes first
            found.insert(0, (nodes[at] + string, nodes[at + length] + string, ids))
        starts, ends, ids = map(np.concatenate, zip(*found, strict=True)) if found else (np.empty(0, np.int32),) * 3
        order = np.argsort(ends, kind="stable")
        self._starts, self._ends, self._ids = starts[order], ends[order], ids[order]
        self._first_edges = np.searchsorted(self._ends, self._levels)  # the first that ends in each level
        self._whole = np.flatnonzero(self._starts < len(lengths))
        self._whole = self._whole[self._ends[self._whole] == self._last[self._starts[self._whole]]]

    def __len__(self) -> int:
        return len(self._last)

    def best(self, scores: np.ndarray, *, split: bool = False) -> Paths:
        """The best path through each string.

        Args:
            scores: of the vocabulary's tokens, float64 [V]; -inf for unusable ones.
            split: only paths of two or more tokens.
        """
        gains = scores[self._ids]
        if split:
            gains[self._whole] = -np.inf
        sweep = _Sweep(self)
        for start, end in pairwise(self._first_edges[1:]):
            sweep.advance(start, end, gains[start:end])
        totals, counts = np.empty(len(self)), np.empty(len(self), np.int64)
        totals[self._order] = sweep.best[self._last]
        counts[self._order] = np.where(sweep.best[self._last] > -np.inf, sweep.tokens[self._last], 0)
        return Paths(totals, counts, self._trace_back(counts, sweep.incoming))

    def _trace_back(self, counts: np.ndarray, incoming: np.ndarray) -> Segments:
        starts = np.concatenate([[0], np.cumsum(counts)])
        ids = np.empty(starts[-1], np.int64)
        lengths = counts[self._order]
        active = np.flatnonzero(lengths)
        nodes, at = self._last[active], starts[1:][self._order[active]] - 1
        until = at - lengths[active] + 1
        while len(nodes):
            edges = incoming[nodes]
            ids[at] = self._ids[edges]
            more = at > until
            nodes, at, until = self._starts[edges[more]], at[more] - 1, until[more]
        return Segments(ids, starts)


class _Sweep:
    """The state of a search: for each node the best sum, the tokens on its path and the incoming edge."""

    def __init__(self, lattice: Lattice) -> None:
        self._starts, self._ends = lattice._starts, lattice._ends
        nodes = int(lattice._levels[-1])
        self.best, self.tokens = np.full(nodes, -np.inf), np.zeros(nodes, np.int32)
        self.best[: len(lattice)] = 0.0
        self.incoming = np.full(nodes, -1, np.int32)

    def advance(self, start: int, end: int, gains: np.ndarray) -> None:
        """Follow the edges from `start` to `end`, which all end in one level, with these gains."""
        if start == end:
            return
        ends, origins = self._ends[start:end], self._starts[start:end]
        sums = self.best[origins] + gains
        heads = np.flatnonzero(np.diff(ends, prepend=-1))
        reached = ends[heads]
        self.best[reached] = np.maximum.reduceat(sums, heads)
        is_best = np.flatnonzero(sums == self.best[ends])[::-1]  # the first is assigned last and wins
        self.incoming[ends[is_best]] = start + is_best
        self.tokens[reached] = self.tokens[self._starts[self.incoming[reached]]] + 1


class _Hashed:
    """Concatenated strings with hashes of any part of them."""

    def __init__(self, strings: Sequence[str]) -> None:
        self.lengths = np.fromiter(map(len, strings), np.int64, len(strings))
        self.starts = np.cumsum(self.lengths) - self.lengths
        codes = np.frombuffer("".join(strings).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
        powers = np.full(len(codes), _BASE)
        powers[:1] = 1
        terms = ((codes + np.uint64(1)) * _MIX) * np.multiply.accumulate(powers)
        self._sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
        inverses = np.full(len(codes) + 1, _INVERSE)
        inverses[:1] = 1
        self._inverses = np.multiply.accumulate(inverses)

    def of(self, starts: np.ndarray, lengths: np.ndarray | int) -> np.ndarray:
        """Hashes of the parts with these starts and lengths, uint64 [n]."""
        parts: np.ndarray = (self._sums[starts + lengths] - self._sums[starts]) * self._inverses[starts]
        return parts


def _filter_bits(hashes: np.ndarray) -> np.ndarray:
    bits: np.ndarray = hashes >> np.uint64(64 - _FILTER_BITS)  # the upper bits depend on all characters
    return bits
