import math

import numpy as np
import pytest

from ivr_dagster.core.evaluation.token_groups import new_token_share, token_groups
from ivr_dagster.core.scoring.bits_per_byte import BitsPerByte

# occurrences of (id, nats) in a text; ids 3 and 5 are new, id 6 is a padding row
OCCURRENCES = [(0, 1.0), (3, 4.0), (0, 0.5), (5, 2.0), (3, 3.0), (1, 0.25)]
BYTES = np.array([1, 2, 3, 7, 1, 5])


def scored(occurrences: list[tuple[int, float]]) -> BitsPerByte:
    ids, nats = zip(*occurrences, strict=True)
    return BitsPerByte(
        np.array([BYTES[[*ids]].sum()]), [np.array(ids)], [np.array(nats)], np.zeros(1, dtype=np.int64), 7
    )


def test_groups_average_over_their_occurrences() -> None:
    groups = token_groups(scored(OCCURRENCES), {3, 5}, BYTES)
    for name, new in (("kept", False), ("new", True)):
        mine = [(token, nats / math.log(2)) for token, nats in OCCURRENCES if (token in (3, 5)) is new]
        bits, size = sum(bits for _, bits in mine), sum(int(BYTES[token]) for token, _ in mine)
        assert groups[name].tokens == len(mine)
        assert groups[name].share == len(mine) / 6
        assert groups[name].bytes == size
        assert groups[name].bits_per_token == pytest.approx(bits / len(mine))
        assert groups[name].bits_per_byte == pytest.approx(bits / size)
    assert sum(group.share for group in groups.values()) == 1


def test_a_group_without_occurrences_is_left_out() -> None:
    assert list(token_groups(scored(OCCURRENCES[:1]), {3, 5}, BYTES)) == ["kept"]
    assert list(token_groups(scored(OCCURRENCES[1:2]), {3, 5}, BYTES)) == ["new"]


def test_the_new_token_share_new_tokens_among_ids() -> None:
    assert new_token_share([3, 0, 3, 1], {3, 5}) == 0.5
    assert new_token_share([], {3}) is None
