import math

import numpy as np
import pytest

from ivr_dagster.core.evaluation.bits_per_byte import BitsPerByte
from ivr_dagster.core.evaluation.token_groups import share_of, token_groups

# occurrences of (id, nats) in a text; ids 3 and 5 are new, id 6 is a row of the model without a token
OCCURRENCES = [(0, 1.0), (3, 4.0), (0, 0.5), (5, 2.0), (3, 3.0), (1, 0.25)]
BYTES = np.array([1, 2, 3, 7, 1, 5])


def scored(occurrences: list[tuple[int, float]]) -> BitsPerByte:
    nats, counts = np.zeros(7), np.zeros(7, dtype=np.int64)
    for token, value in occurrences:
        nats[token] += value
        counts[token] += 1
    size = sum(int(BYTES[token]) for token, _ in occurrences)
    bits = np.array([nats.sum() / math.log(2)])
    return BitsPerByte(bits, np.array([size]), np.array([len(occurrences)]), nats, counts)


def test_groups_are_means_over_their_occurrences() -> None:
    groups = token_groups(scored(OCCURRENCES), {3, 5}, BYTES)
    for name, new in (("kept", False), ("new", True)):
        mine = [(token, nats / math.log(2)) for token, nats in OCCURRENCES if (token in (3, 5)) is new]
        bits, size = sum(bits for _, bits in mine), sum(int(BYTES[token]) for token, _ in mine)
        assert groups[name].tokens == len(mine)
        assert groups[name].share == len(mine) / 6
        assert groups[name].bytes == size
        assert groups[name].bits_per_token == pytest.approx(bits / len(mine))
        assert groups[name].bits_per_byte == pytest.approx(bits / size)


def test_groups_together_are_the_whole_text() -> None:
    whole = scored(OCCURRENCES)
    groups = token_groups(whole, [5, 3], BYTES).values()
    assert sum(group.bits_per_byte * group.bytes for group in groups) == pytest.approx(whole.bits)
    assert sum(group.share for group in groups) == 1
    assert sum(group.bytes for group in groups) == whole.bytes


def test_a_group_that_does_not_occur_is_left_out() -> None:
    assert list(token_groups(scored(OCCURRENCES[:1]), {3, 5}, BYTES)) == ["kept"]
    assert list(token_groups(scored(OCCURRENCES[1:2]), {3, 5}, BYTES)) == ["new"]


def test_the_share_of_new_tokens_among_ids() -> None:
    assert share_of([3, 0, 3, 1], {3, 5}) == 0.5
    assert share_of([], {3}) == 0.0
