"""Strings encoded together, against each encoded separately."""

from itertools import chain

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers

from ivr_dagster.core.tokenizer.segments import STRINGS_PER_TEXT, Segments, encode_each

PARTS = ["a", " ", "\n", "é", "e\u0301", "한", "\ue000", "\x00", "'", "=", "<|endoftext|>"]
TEXT = st.lists(st.sampled_from(PARTS)).map("".join)


@given(strings=st.lists(TEXT, max_size=8))
def test_each_string_is_encoded_separately(gpt2: Tokenizer, strings: list[str]) -> None:
    found = encode_each(gpt2, strings)
    plain = Tokenizer(gpt2.model)
    plain.pre_tokenizer = gpt2.pre_tokenizer  # without added tokens
    assert found.lists() == [plain.encode(string).ids for string in strings]
    assert [found[n] for n in range(len(found))] == found.lists()
    assert found.lengths.tolist() == [len(ids) for ids in found.lists()]


def test_many_strings_keep_their_order(gpt2: Tokenizer, topics: list[str]) -> None:
    strings = [word for topic in topics[:20] for word in topic.split()][: 3 * STRINGS_PER_TEXT + 1]
    assert encode_each(gpt2, strings).lists() == [e.ids for e in gpt2.encode_batch(strings, add_special_tokens=False)]


def test_normalizer_is_applied(gpt2: Tokenizer) -> None:
    tokenizer = Tokenizer.from_str(gpt2.to_str())
    tokenizer.normalizer = normalizers.NFC()
    assert encode_each(tokenizer, ["e\u0301", "x"]).lists() == [gpt2.encode("é").ids, gpt2.encode("x").ids]


IDS = st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=4, max_size=4)


def segments_of(lists: list[list[int]]) -> Segments:
    return Segments(np.fromiter(chain.from_iterable(lists), np.int64), np.cumsum([0, *map(len, lists)]))


@given(IDS, IDS, st.sets(st.integers(0, 3)))
def test_differing_and_containing_equal_a_comparison_of_lists(
    ones: list[list[int]], others: list[list[int]], wanted: set[int]
) -> None:
    one, other = segments_of(ones), segments_of(others)
    assert one.differing(other).tolist() == [a != b for a, b in zip(ones, others, strict=True)]
    assert one.containing(np.isin(np.arange(4), list(wanted))).tolist() == [bool(wanted & set(ids)) for ids in ones]
