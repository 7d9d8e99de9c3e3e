"""Agreement, round trip and token counts on hand-counted examples."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from ivr_dagster.core.tokenizer.agreement import (
    LISTED_DIVERGENCES,
    Divergence,
    Lengths,
    compare_lengths,
    count_tokens,
    differing_types,
    measure_agreement,
    measure_round_trip,
)
from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE
from ivr_dagster.core.tokens.counts import PretokenCounts


def bytes_and(*merges: tuple[str, str], without: str = "") -> Tokenizer:
    characters = sorted(CHARACTER_TO_BYTE.keys() - set(without))
    vocabulary = {string: n for n, string in enumerate([*characters, "ab", "bc"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def counted(**counts: int) -> PretokenCounts:
    return PretokenCounts(list(counts), np.array(list(counts.values()), np.int64), {}, 0, 0)


AB_FIRST, BC_FIRST = bytes_and(("a", "b"), ("b", "c")), bytes_and(("b", "c"), ("a", "b"))


def test_agreement_weighs_types_by_occurrences() -> None:
    agreement = measure_agreement(AB_FIRST, BC_FIRST, counted(ab=6, abc=3, abcabc=1))
    assert (agreement.types, agreement.types_identical) == (3, 1)
    assert (agreement.occurrences, agreement.occurrences_identical) == (10, 6)
    assert agreement.share == pytest.approx(0.6)
    assert agreement.divergences == [
        Divergence("abc", 3, ["ab", "c"], ["a", "bc"]),
        Divergence("abcabc", 1, ["ab", "c", "ab", "c"], ["a", "bc", "a", "bc"]),
    ]
    assert agreement.as_dict() == {
        "agreement": pytest.approx(0.6),
        "types": 3,
        "types_identical": 1,
        "occurrences": 10,
        "occurrences_identical": 6,
        "divergences": [
            {"pretoken": "abc", "count": 3, "base": ["ab", "c"], "other": ["a", "bc"]},
            {"pretoken": "abcabc", "count": 1, "base": ["ab", "c", "ab", "c"], "other": ["a", "bc", "a", "bc"]},
        ],
    }


def test_agreement_is_complete_with_itself_and_on_no_text() -> None:
    assert measure_agreement(AB_FIRST, AB_FIRST, counted(ab=6, abc=3)).share == 1.0
    assert measure_agreement(AB_FIRST, BC_FIRST, counted()).share == 1.0


def test_most_frequent_divergences_are_listed() -> None:
    counts = counted(**{"abc" + "x" * n: 100 - n for n in range(60)})
    listed = measure_agreement(AB_FIRST, BC_FIRST, counts).divergences
    assert [divergence.count for divergence in listed] == [100 - n for n in range(LISTED_DIVERGENCES)]


def test_differing_types_are_ordered_by_frequency() -> None:
    counts = counted(ab=6, abc=3, x=2, abcabc=1)
    assert differing_types(AB_FIRST, BC_FIRST, counts) == [1, 3]
    assert differing_types(AB_FIRST, AB_FIRST, counts) == []
    assert differing_types(AB_FIRST, BC_FIRST, counted()) == []
    many = counted(**{"abc" + "x" * n: 100 - n for n in range(60)})
    assert differing_types(AB_FIRST, BC_FIRST, many) == list(range(60))  # not only those that are listed


def test_failed_round_trip_shows_the_first_text() -> None:
    texts = ["abc", "", "a b\n", "한국어", "x-ray", "xx"]
    whole = measure_round_trip(AB_FIRST, texts)
    assert (whole.texts, whole.exact, whole.failure, whole.is_exact) == (6, 6, None, True)
    lossy = measure_round_trip(bytes_and(without="x"), texts)
    assert (lossy.texts, lossy.exact, lossy.failure, lossy.is_exact) == (6, 4, ("x-ray", "-ray"), False)


def test_tokens_and_bytes_are_counted_over_all_batches() -> None:
    assert count_tokens(AB_FIRST, iter(["abc", "한", ""] * 300)) == (300 * (2 + 3), 300 * (3 + 3))
    assert count_tokens(AB_FIRST, []) == (0, 0)


ONLY_AB, ONLY_BC = bytes_and(("a", "b")), bytes_and(("b", "c"))


def test_lengths_are_summed_and_grown_texts_listed() -> None:
    texts = ["xab", "bc", "abab", "한", "", "abab" + "x" * 100]
    lengths = compare_lengths(ONLY_AB, ONLY_BC, iter(texts))
    assert lengths == Lengths(
        texts=6,
        bytes=3 + 2 + 4 + 3 + 0 + 104,
        base=2 + 2 + 2 + 3 + 0 + 102,
        other=3 + 1 + 4 + 3 + 0 + 104,
        longer=3,
        worst=(("abab", 2, 4), ("xab", 2, 3), ("abab" + "x" * 56, 102, 104)),
    )
    assert lengths.saving == pytest.approx(1 - 115 / 111)
    assert compare_lengths(ONLY_BC, ONLY_AB, texts).saving == pytest.approx(1 - 111 / 115)
    assert "worst" not in json.loads(json.dumps(lengths.as_dict()))  # texts of the corpus stay out of files


def test_worst_texts_of_all_batches_are_listed() -> None:
    texts = ["x" * n + "ab" for n in range(700, 0, -1)]
    lengths = compare_lengths(ONLY_AB, ONLY_BC, texts)
    assert (lengths.texts, lengths.longer) == (700, 700)
    assert lengths.worst == tuple(("x" * n + "ab", n + 1, n + 2) for n in range(1, 11))


def test_saving_is_zero_with_itself_and_on_no_text() -> None:
    same = compare_lengths(ONLY_AB, ONLY_AB, ["ab", "abc"])
    assert (same.base, same.other, same.longer, same.worst, same.saving) == (3, 3, 0, (), 0.0)
    assert compare_lengths(ONLY_AB, ONLY_BC, []) == Lengths(0, 0, 0, 0, 0, ())
    assert compare_lengths(ONLY_AB, ONLY_BC, [""]).saving == 0.0
