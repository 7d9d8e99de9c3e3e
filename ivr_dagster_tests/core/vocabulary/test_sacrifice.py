"""Which ids are reassigned, and which never."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
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


def test_protected_ids_are_bytes_added_tokens_digits_and_constituents(small: ByteLevelBPE) -> None:
    free = {AB, ABC, BC, A1, ZZ}
    assert set(range(small.size)) - protected_ids(small) == free
    assert set(range(small.size)) - protected_ids(small, [AB, ZZ]) == free - {AB, ZZ}


def test_protected_ids_of_gpt2_include_bytes_digits_and_end_of_text(gpt2_bpe: ByteLevelBPE) -> None:
    protected = {gpt2_bpe.strings[i] for i in protected_ids(gpt2_bpe)}
    assert protected >= CHARACTER_TO_BYTE.keys() | {"<|endoftext|>", "Ġ2017", "000", "Ġ7", string_of("½")}
    assert not protected & {"Ġthe", "th", "2nd", "Ġ1st"}


def test_sacrifices_are_ordered_by_frequency_then_merge_rank_then_id(small: ByteLevelBPE) -> None:
    frequencies = np.zeros(small.size, dtype=np.int64)
    frequencies[[AB, A1]] = 5, 1
    assert choose_sacrifices(small, frequencies, protected_ids(small), 5) == [ZZ, BC, ABC, A1, AB]
    assert choose_sacrifices(small, frequencies, protected_ids(small), 2) == [ZZ, BC]
    same_rank = ByteLevelBPE((*STRINGS, "yy", "xx"), small.merges, small.added_ids)
    nothing = np.zeros(same_rank.size, dtype=np.int64)
    last = len(STRINGS) + 1
    assert choose_sacrifices(same_rank, nothing, protected_ids(same_rank), 3) == [last, last - 1, ZZ]


@given(st.data())
def test_no_kept_id_is_more_expendable_than_a_sacrificed_one(tiny_bpe: Tokenizer, data: st.DataObject) -> None:
    bpe = read_bpe(tiny_bpe)
    frequencies = np.random.default_rng(data.draw(st.integers(0, 1000))).integers(0, 3, bpe.size)
    protected = protected_ids(bpe, data.draw(st.sets(st.integers(0, bpe.size - 1))))
    count = data.draw(st.integers(0, bpe.size - len(protected)))
    chosen = choose_sacrifices(bpe, frequencies, protected, count)
    assert len(set(chosen)) == count
    assert not protected & set(chosen)

    def expendable(token_id: int) -> tuple[int, int, int]:
        return -int(frequencies[token_id]), int(bpe.ranks[token_id]), token_id

    left = set(range(bpe.size)) - protected - set(chosen)
    assert [expendable(i) for i in chosen] == sorted(map(expendable, chosen), reverse=True)
    assert all(expendable(i) > expendable(j) for i in chosen[-1:] for j in left)


def test_too_many_new_tokens_are_refused(small: ByteLevelBPE) -> None:
    frequencies = np.zeros(small.size, dtype=np.int64)
    with pytest.raises(InputError) as error:
        choose_sacrifices(small, frequencies, protected_ids(small), 6)
    assert error.value.message == f"6 new tokens requested, but only 5 of {small.size} ids can be reassigned"
    assert error.value.where == "max_candidates"


def test_real_sacrifices_are_unused_and_no_constituents(
    selection: Selection, table: pl.DataFrame, gpt2_bpe: ByteLevelBPE
) -> None:
    chosen = set(table["sacrificed_id"])
    assert len(chosen) == len(selection.candidates)
    parts = {i for candidate in selection.candidates for i in candidate.constituents}
    assert not chosen & (parts | protected_ids(gpt2_bpe))
    assert table["sacrificed_frequency"].sum() == 0
    # half a megabyte of English uses a small part of GPT-2's vocabulary: the latest of 50,000 merges go
    assert min(gpt2_bpe.ranks[i] for i in chosen) > 49_000
