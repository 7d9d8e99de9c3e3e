"""Which ids are reassigned, and which never; against the merges themselves."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE, read_bpe
from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE, string_of
from ivr_dagster.core.vocabulary.candidate import Selection
from ivr_dagster.core.vocabulary.sacrifice import choose_sacrifices, protected_ids
from ivr_dagster.errors import InputError

STRINGS = (*CHARACTER_TO_BYTE, "ab", "abc", "bc", "12", "Ġ7", string_of("½") + "2", "a1", "zz", "<end>")
AB, ABC, BC, A1, ZZ = (STRINGS.index(string) for string in ("ab", "abc", "bc", "a1", "zz"))


@pytest.fixture(scope="module")
def small() -> ByteLevelBPE:
    """256 bytes, seven tokens by merge rank, "zz" without a merge, and an added token."""
    ids = {string: n for n, string in enumerate(STRINGS)}
    merges = [("a", "b"), ("ab", "c"), ("b", "c"), ("1", "2"), ("Ġ", "7"), ("a", "1")]
    return ByteLevelBPE(STRINGS, tuple((ids[a], ids[b], ids[a + b]) for a, b in merges), frozenset({ids["<end>"]}))


@pytest.fixture(scope="module")
def small_bpe(small_base: Tokenizer) -> ByteLevelBPE:
    """The vocabulary of a small base."""
    return read_bpe(small_base)


def test_protected_ids_are_bytes_added_tokens_digits_and_what_tokens_in_use_are_made_of(small: ByteLevelBPE) -> None:
    free = {AB, ABC, BC, A1, ZZ}
    assert set(range(small.size)) - protected_ids(small) == free
    assert set(range(small.size)) - protected_ids(small, [AB, ZZ]) == free - {AB, ZZ}
    assert set(range(small.size)) - protected_ids(small, [ABC]) == free - {AB, ABC}


def test_protected_ids_of_gpt2_include_bytes_digits_and_end_of_text(gpt2_bpe: ByteLevelBPE) -> None:
    protected = {gpt2_bpe.strings[i] for i in protected_ids(gpt2_bpe)}
    assert protected >= CHARACTER_TO_BYTE.keys() | {"<|endoftext|>", "Ġ2017", "000", "Ġ7", string_of("½")}
    assert not protected & {"Ġthe", "th", "2nd", "Ġ1st"}


@given(st.data())
@settings(max_examples=30)
def test_parts_of_a_protected_token_are_protected_in_every_merge(small_bpe: ByteLevelBPE, data: st.DataObject) -> None:
    in_use = data.draw(st.sets(st.integers(0, small_bpe.size - 1), max_size=5))
    always, protected = protected_ids(small_bpe), protected_ids(small_bpe, in_use)
    expected = always | in_use
    while more := {half for *halves, made in small_bpe.merges if made in expected for half in halves} - expected:
        expected |= more
    assert protected == expected


def test_sacrifices_are_ordered_by_frequency_then_merge_rank_then_id(small: ByteLevelBPE) -> None:
    frequencies = np.zeros(small.size, dtype=np.int64)
    frequencies[[AB, A1]] = 5, 1
    assert choose_sacrifices(small, frequencies, protected_ids(small), 5) == [ZZ, BC, ABC, A1, AB]
    assert choose_sacrifices(small, frequencies, protected_ids(small), 2) == [ZZ, BC]
    same_rank = ByteLevelBPE((*STRINGS, "yy", "xx"), small.merges, small.added_ids)
    nothing = np.zeros(same_rank.size, dtype=np.int64)
    last = len(STRINGS) + 1
    assert choose_sacrifices(same_rank, nothing, protected_ids(same_rank), 3) == [last, last - 1, ZZ]


def test_token_goes_only_after_what_is_made_of_it(small: ByteLevelBPE) -> None:
    frequencies = np.zeros(small.size, dtype=np.int64)
    frequencies[[ABC, A1]] = 9, 8
    assert choose_sacrifices(small, frequencies, protected_ids(small), 5) == [ZZ, BC, A1, ABC, AB]
    # preferred tokens come first, and for their sake those made of them
    assert choose_sacrifices(small, frequencies, protected_ids(small), 3, preferred=[AB]) == [ABC, AB, ZZ]
    assert choose_sacrifices(small, frequencies, protected_ids(small), 2, preferred=[A1, BC]) == [BC, A1]
    assert choose_sacrifices(small, frequencies, protected_ids(small, [ABC]), 3, preferred=[A1]) == [A1, ZZ, BC]


@given(st.data())
@settings(max_examples=40)
def test_each_sacrifice_is_the_most_expendable_leaf(small_bpe: ByteLevelBPE, data: st.DataObject) -> None:
    bpe = small_bpe
    frequencies = np.random.default_rng(data.draw(st.integers(0, 1000))).integers(0, 3, bpe.size)
    ids = st.integers(0, bpe.size - 1)
    protected = protected_ids(bpe, data.draw(st.sets(ids, max_size=20)))
    preferred = data.draw(st.sets(ids, max_size=5)) - protected
    count = data.draw(st.integers(0, min(30, bpe.size - len(protected))))
    chosen = choose_sacrifices(bpe, frequencies, protected, count, preferred=preferred)
    assert len(set(chosen)) == len(chosen) == count
    assert not protected & set(chosen)

    first = set(preferred)
    while more := {made for *halves, made in bpe.merges if not first.isdisjoint(halves)} - first:
        first |= more

    def expendable(token_id: int) -> tuple[bool, int, int, int]:
        return token_id in first, -int(frequencies[token_id]), int(bpe.ranks[token_id]), token_id

    for n, token in enumerate(chosen):
        gone = set(chosen[:n])
        used = {half for left, right, made in bpe.merges if made not in gone for half in (left, right)}
        assert token == max(set(range(bpe.size)) - used - protected - gone, key=expendable)


def test_all_free_ids_can_be_chosen(small_bpe: ByteLevelBPE) -> None:
    protected = protected_ids(small_bpe)
    frequencies = np.arange(small_bpe.size, dtype=np.int64)
    chosen = choose_sacrifices(small_bpe, frequencies, protected, small_bpe.size - len(protected))
    assert set(chosen) == set(range(small_bpe.size)) - protected
    assert len(chosen) > 200


def test_too_many_new_tokens_are_refused(small: ByteLevelBPE) -> None:
    frequencies = np.zeros(small.size, dtype=np.int64)
    with pytest.raises(InputError) as error:
        choose_sacrifices(small, frequencies, protected_ids(small), 6)
    assert error.value.message == f"6 new tokens requested, but only 5 of {small.size} ids can be reassigned"
    assert error.value.where == "max_candidates"


def test_real_sacrifices_are_unused_leaves_and_no_constituents(
    reachable: Selection, table: pl.DataFrame, gpt2_bpe: ByteLevelBPE
) -> None:
    chosen = set(table["sacrificed_id"])
    assert len(chosen) == len(reachable.candidates)
    parts = {i for candidate in reachable.candidates for i in candidate.constituents}
    assert not chosen & (parts | protected_ids(gpt2_bpe))
    assert not any(chosen & {left, right} for left, right, made in gpt2_bpe.merges if made not in chosen)
    assert table["sacrificed_frequency"].sum() == 0
    # half a megabyte of English uses a small part of GPT-2's vocabulary: the latest of 50,000 merges go
    assert min(gpt2_bpe.ranks[i] for i in chosen) > 49_000
