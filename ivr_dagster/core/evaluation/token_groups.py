"""Losses by what became of a token's id: kept tokens, whose rows the base model brought, and new ones.

A new token stands for more bytes than a kept one and is therefore harder to guess: its bits per token are higher where
all is well. Its bits per byte tell whether the model has learnt it.
"""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ivr_dagster.core.evaluation.bits_per_byte import BitsPerByte


@dataclass(frozen=True)
class TokenGroup:
    """Tokens of one kind in the scored text.

    Attributes:
        tokens: occurrences.
        share: of all tokens of the text.
        bytes: bytes they stand for.
        bits_per_token: mean negative log-likelihood of an occurrence, in bits.
        bits_per_byte: their negative log-likelihood in bits over their bytes; 0 where they stand for none.
    """

    tokens: int
    share: float
    bytes: int
    bits_per_token: float
    bits_per_byte: float


def token_groups(
    scored: BitsPerByte, new_ids: Collection[int], token_bytes: NDArray[np.int64]
) -> dict[str, TokenGroup]:
    """The groups `kept` and `new`; one that does not occur in the text is left out.

    Args:
        scored: with losses by id.
        new_ids: ids of new tokens.
        token_bytes: int64 `[≥ ids]`, bytes of every token, as of `bits_per_byte.byte_lengths`.
    """
    is_new = np.zeros(len(scored.token_counts), dtype=bool)
    is_new[[token for token in new_ids if token < len(is_new)]] = True
    rows = min(len(token_bytes), len(is_new))
    groups = {}
    for name, chosen in (("kept", ~is_new[:rows]), ("new", is_new[:rows])):
        counts, nats = scored.token_counts[:rows][chosen], scored.token_nats[:rows][chosen]
        tokens, size, bits = (
            int(counts.sum()),
            int(counts @ token_bytes[:rows][chosen]),
            float(nats.sum() / math.log(2)),
        )
        if tokens:
            groups[name] = TokenGroup(tokens, tokens / scored.tokens, size, bits / tokens, bits / size if size else 0.0)
    return groups


def share_of(ids: Iterable[int], new_ids: Collection[int]) -> float:
    """Share of new tokens among ids, 0 where there are none."""
    known, listed = frozenset(new_ids), list(ids)
    return sum(token in known for token in listed) / len(listed) if listed else 0.0
