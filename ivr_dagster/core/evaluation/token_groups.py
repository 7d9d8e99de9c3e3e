"""Losses of kept tokens and of new tokens.

A new token stands for more bytes than a kept one and is harder to predict, so it needs more bits per token even if the
model has learned it well. Bits per byte show whether it has.
"""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ivr_dagster.core.scoring.bits_per_byte import BitsPerByte


@dataclass(frozen=True)
class TokenGroup:
    """The occurrences of one kind of token in the scored text.

    Attributes:
        tokens: occurrences.
        share: share of all tokens of the text.
        bytes: UTF-8 bytes that they stand for.
        bits_per_token: mean negative log-likelihood in bits.
        bits_per_byte: summed negative log-likelihood in bits / bytes; 0 if there are no bytes.
    """

    tokens: int
    share: float
    bytes: int
    bits_per_token: float
    bits_per_byte: float


def token_groups(score: BitsPerByte, new_ids: Collection[int], token_bytes: NDArray[np.int64]) -> dict[str, TokenGroup]:
    """Group losses into `kept` and `new` tokens; a group without occurrences is omitted.

    Args:
        score: a score with losses per token id.
        new_ids: ids of new tokens.
        token_bytes: int64 `[≥ ids]`, see `bits_per_byte.byte_lengths`.
    """
    rows = min(len(token_bytes), len(score.token_counts))
    is_new = np.isin(np.arange(rows), list(new_ids))
    groups = {}
    for name, chosen in (("kept", ~is_new), ("new", is_new)):
        counts, nats = score.token_counts[:rows][chosen], score.token_nats[:rows][chosen]
        if tokens := int(counts.sum()):
            size, bits = int(counts @ token_bytes[:rows][chosen]), float(nats.sum() / math.log(2))
            groups[name] = TokenGroup(tokens, tokens / score.tokens, size, bits / tokens, bits / size if size else 0.0)
    return groups


def new_token_share(ids: Iterable[int], new_ids: Collection[int]) -> float | None:
    """Share of new tokens among ids, None if there are no ids."""
    new, listed = frozenset(new_ids), list(ids)
    return sum(token in new for token in listed) / len(listed) if listed else None
