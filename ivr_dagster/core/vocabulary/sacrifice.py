"""Which tokens give up their id: those that the domain uses least, and only if no kept or new token is made of them.

A token that is no half of another token is a leaf of the merge tree. Without a leaf and its merges, BPE segments every
text in which the leaf does not occur exactly as before. Tokens are therefore peeled from the outside: once all tokens
made of it are sacrificed, a token is a leaf itself.
"""

import heapq
from collections import defaultdict
from collections.abc import Collection, Iterable
from functools import lru_cache

import numpy as np

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE
from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE, texts_of
from ivr_dagster.errors import InputError


def protected_ids(bpe: ByteLevelBPE, in_use: Iterable[int] = ()) -> frozenset[int]:
    """Ids that never change their string.

    Bytes keep every text encodable, added tokens control the model, digits matter in every domain, and `in_use` are
    the constituents of new tokens, which remain necessary where a new token does not fit. All of these need the tokens
    that they are made of.
    """
    protected = set(always_protected(bpe)).union(in_use)
    for left, right, token in reversed(_all_merges_by_length(bpe)):
        if token in protected:
            protected.update((left, right))
    return frozenset(protected)


@lru_cache(maxsize=4)
def always_protected(bpe: ByteLevelBPE) -> frozenset[int]:
    """Ids of bytes, added tokens and digits."""
    return frozenset(
        token_id
        for token_id, (string, text) in enumerate(zip(bpe.strings, texts_of(bpe.strings), strict=True))
        if string in CHARACTER_TO_BYTE or token_id in bpe.added_ids or text.strip().isnumeric()
    )


@lru_cache(maxsize=4)
def _all_merges_by_length(bpe: ByteLevelBPE) -> tuple[tuple[int, int, int], ...]:
    """(left id, right id, resulting id) of all merges, so that the merges of both halves precede the token's."""
    return tuple(sorted(bpe.merges, key=lambda merge: len(bpe.strings[merge[2]])))


def choose_sacrifices(
    bpe: ByteLevelBPE,
    frequencies: np.ndarray,
    protected: frozenset[int],
    count: int,
    *,
    preferred: Collection[int] = (),
) -> list[int]:
    """`count` ids to reassign: least frequent in the domain first, then latest merge, then highest id.

    A late merge was rare in the text that the base was built from. Early merges are common fragments (" wor", "ould")
    that future text of the domain may need.

    Args:
        bpe: the base vocabulary, V ids.
        frequencies: occurrences on the train split, int64 [V].
        protected: ids to keep, with the tokens that they are made of.
        count: number of ids.
        preferred: ids to choose first, with the tokens made of them.

    Raises:
        InputError: fewer than `count` ids are available.
    """
    check_enough_ids(count, bpe.size - len(protected), bpe.size)
    uses = [0] * bpe.size  # merges of tokens that are still there
    merges_of: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    first = set(preferred)
    for left, right, token in _all_merges_by_length(bpe):
        merges_of[token].append((left, right))
        for half in {left, right}:
            uses[half] += 1
        if not first.isdisjoint((left, right)):
            first.add(token)
    ranks = bpe.ranks

    def entry(token: int) -> tuple[bool, int, int, int]:
        return token not in first, int(frequencies[token]), -int(ranks[token]), -token

    leaves = [entry(token) for token, number in enumerate(uses) if number == 0 and token not in protected]
    heapq.heapify(leaves)
    chosen: list[int] = []
    while len(chosen) < count:
        token = -heapq.heappop(leaves)[-1]
        chosen.append(token)
        for half in (half for pair in merges_of[token] for half in set(pair)):
            uses[half] -= 1
            if uses[half] == 0 and half not in protected:
                heapq.heappush(leaves, entry(half))
    return chosen


def check_enough_ids(count: int, free: int, size: int) -> None:
    """Check that `count` new tokens fit into `free` ids.

    Raises:
        InputError: they do not.
    """
    if count > free:
        raise InputError(
            f"{count:,} new tokens requested, but only {free:,} of {size:,} ids can be reassigned",
            where="max_candidates",
            remedy=f"Set --max-candidates well below {free}.",
        )
