"""Which tokens give up their id: those that the domain uses least, and among equals those with the latest merge."""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE
from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE, texts_of
from ivr_dagster.errors import InputError


def protected_ids(bpe: ByteLevelBPE, in_use: Iterable[int] = ()) -> frozenset[int]:
    """Ids that never change their string.

    Bytes keep every text encodable, added tokens control the model, digits matter in every domain, and `in_use` are
    the constituents of new tokens, which remain necessary where a new token does not fit.
    """
    return _always_protected(bpe).union(in_use)


@lru_cache(maxsize=4)
def _always_protected(bpe: ByteLevelBPE) -> frozenset[int]:
    return frozenset(
        token_id
        for token_id, (string, text) in enumerate(zip(bpe.strings, texts_of(bpe.strings), strict=True))
        if string in CHARACTER_TO_BYTE or token_id in bpe.added_ids or text.strip().isnumeric()
    )


def choose_sacrifices(bpe: ByteLevelBPE, frequencies: np.ndarray, protected: frozenset[int], count: int) -> list[int]:
    """`count` ids to reassign: least frequent in the domain first, then latest merge, then highest id.

    A late merge was rare in the text that the base was built from. Early merges are common fragments (" wor", "ould")
    that future text of the domain may need.

    Args:
        bpe: the base vocabulary, V ids.
        frequencies: occurrences on the train split, int64 [V].
        protected: ids to keep.
        count: number of ids.

    Raises:
        InputError: fewer than `count` ids are available.
    """
    free = np.array([i for i in range(bpe.size) if i not in protected], dtype=np.int64)
    check_enough_ids(count, len(free), bpe.size)
    order = np.lexsort((-free, -bpe.ranks[free], frequencies[free]))
    chosen: list[int] = free[order[:count]].tolist()
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
