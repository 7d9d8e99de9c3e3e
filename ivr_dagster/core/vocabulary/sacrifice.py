"""Which tokens give up their id: those the domain uses least, the rarest by merge rank among equals."""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE
from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE, texts_of
from ivr_dagster.errors import InputError


def protected_ids(bpe: ByteLevelBPE, in_use: Iterable[int] = ()) -> frozenset[int]:
    """Ids that never change their string.

    Bytes keep every text encodable, added tokens are the model's control signals, digits carry numbers whatever
    the domain, and `in_use` are the constituents that new tokens leave behind where they do not fit.
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
    """`count` ids to give away: least frequent in the domain first, then latest merge, then highest id.

    A late merge means that the pair was rare in what the base was built from. The lowest unused ids, on the
    contrary, are common fragments (" wor", "ould") that other text of the domain may need tomorrow.

    Args:
        bpe: the base vocabulary, V ids.
        frequencies: occurrences on the train split, int64 [V].
        protected: ids left alone.
        count: how many are wanted.

    Raises:
        InputError: fewer than `count` ids may be given away.
    """
    free = np.array([i for i in range(bpe.size) if i not in protected], dtype=np.int64)
    if count > len(free):
        raise InputError(
            f"{count:,} new tokens were asked for, only {len(free):,} of {bpe.size:,} ids may be given away",
            where="max_candidates",
            remedy=f"Set --max-candidates to {len(free)} or less.",
        )
    order = np.lexsort((-free, -bpe.ranks[free], frequencies[free]))
    chosen: list[int] = free[order[:count]].tolist()
    return chosen
