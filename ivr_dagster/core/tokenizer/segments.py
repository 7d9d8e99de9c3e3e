"""Ids of many strings at once, in flat arrays.

What belongs here: having `tokenizers` encode a hundred thousand short strings, each as if it stood alone, without an
object for each of them; and finding those that need it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import polars as pl
from tokenizers import AddedToken, Tokenizer

from ivr_dagster.core.tokens.sequences import ids_of_types

# strings that are encoded as one text: enough to forget what a text costs, few enough to busy all cores
JOINED = 256
_FIRST_SEPARATOR = 0xE000  # of the private-use characters


@dataclass(frozen=True, eq=False)
class Segments:
    """The ids of n strings.

    Attributes:
        ids: all ids, one string after the other, int64 [tokens].
        starts: where each string's ids begin, and where the last one's end, int64 [n + 1].
    """

    ids: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, n: int) -> list[int]:
        """The ids of string n."""
        ids: list[int] = self.ids[self.starts[n] : self.starts[n + 1]].tolist()
        return ids

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each string, int64 [n]."""
        return np.diff(self.starts)

    @cached_property
    def owners(self) -> np.ndarray:
        """The string that each id is of, int64 [tokens]."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def lists(self) -> list[list[int]]:
        """The ids of every string."""
        ids, starts = self.ids.tolist(), self.starts.tolist()
        return [ids[start:end] for start, end in pairwise(starts)]

    def holding(self, token_ids: np.ndarray) -> np.ndarray:
        """Which strings hold an id that `token_ids` (bool [V]) is true of, bool [n]."""
        found = np.zeros(len(self), dtype=bool)
        found[self.owners[token_ids[self.ids]]] = True
        return found

    def differing(self, other: "Segments") -> np.ndarray:
        """Which strings have other ids in `other`, bool [n]."""
        differing: np.ndarray = self.lengths != other.lengths
        alike = ~differing
        mine, others = alike[self.owners], alike[other.owners]
        differing[self.owners[mine][self.ids[mine] != other.ids[others]]] = True
        return differing


def encode_each(tokenizer: Tokenizer, strings: Sequence[str]) -> Segments:
    """Ids of every string under `tokenizer` as a text of its own; special tokens are neither added nor looked for.

    Strings are joined by a character that none of them holds. As an added token it keeps them apart before anything
    else is done to them.
    """
    if not strings:
        return Segments(np.empty(0, np.int64), np.zeros(1, np.int64))
    texts = ["".join(strings[n : n + JOINED]) for n in range(0, len(strings), JOINED)]
    characters = map(chr, range(_FIRST_SEPARATOR, 0x110000))
    separator = next(c for c in characters if not any(c in text for text in texts))
    apart = Tokenizer(tokenizer.model)
    if tokenizer.normalizer is not None:
        apart.normalizer = tokenizer.normalizer
    if tokenizer.pre_tokenizer is not None:
        apart.pre_tokenizer = tokenizer.pre_tokenizer
    apart.add_tokens([AddedToken(separator, normalized=False)])
    joined = [separator.join((*strings[n : n + JOINED], "")) for n in range(0, len(strings), JOINED)]
    encoded = apart.encode_batch_fast(joined, add_special_tokens=False)
    ids = np.concatenate([np.array(encoding.ids, dtype=np.int64) for encoding in encoded])
    ends = np.flatnonzero(ids == apart.token_to_id(separator))
    starts = np.concatenate([[0], ends - np.arange(len(ends))])
    return Segments(np.delete(ids, ends), starts)


def segments_of_types(base: Tokenizer, types: list[str]) -> Segments:
    """Ids of pre-token types under a base tokenizer: what :func:`encode_each` gives, by the fastest encoder there is.

    That one is held against `tokenizers` on the first types, the most frequent, and on a sample of the others.
    """
    found = ids_of_types(base, types)
    return encode_each(base, types) if found is None else Segments(*found)


def places_of_any(parts: Sequence[str], strings: pl.Series) -> np.ndarray:
    """Places in `strings` of those that hold one of `parts`, ascending, int64."""
    if not parts:
        return np.empty(0, np.int64)
    return strings.str.contains_any(list(parts)).arg_true().to_numpy().astype(np.int64)
