"""Rows by their new ids, bit for bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ivr_dagster.core.embedding.reorder import check_new_ids, kept_rows_equal, reorder_embeddings, row_sources
from ivr_dagster.errors import InputError

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def bits(rows: torch.Tensor) -> list[list[int]]:
    return rows.contiguous().view(torch.uint8).reshape(len(rows), -1).tolist()


def random_bits(rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Any bit pattern at all: NaNs with payloads, subnormals, infinities."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.empty(0, dtype=dtype).element_size()
    return torch.randint(0, 256, (rows, columns * size), dtype=torch.uint8, generator=generator).view(dtype)


def test_sources_say_which_base_id_had_each_string() -> None:
    assert row_sources({"a": 0, "b": 1, "c": 2}, ["c", "new", "a"]) == [2, -1, 0]


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.permutations(range(6)), st.sets(st.integers(0, 5)), st.integers(0, 3), st.integers(0, 100))
def test_kept_rows_move_bit_for_bit_new_rows_are_zero_and_padding_stays(
    dtype: torch.dtype, order: list[int], new: set[int], padding: int, seed: int
) -> None:
    rows = random_bits(6 + padding, 3, dtype, seed)
    sources = [-1 if n in new else order[n] for n in range(6)]
    base = {"wte": rows, "lm_head_bias": rows[:, 0].contiguous()}
    reordered = reorder_embeddings(base, sources)
    for name, tensor in reordered.items():
        assert tensor.dtype == dtype
        expected = bits(base[name])
        zero = [0] * len(expected[0])
        assert bits(tensor) == [zero if source < 0 else expected[source] for source in sources] + expected[6:]
    assert kept_rows_equal(base, reordered, sources)


def test_new_ids_of_tokenizer_and_rules_must_be_the_same() -> None:
    check_new_ids([0, -1, 2, -1], {1: [0], 3: [2]})
    with pytest.raises(InputError, match="disagree on 1 ids: 3 is new in the remapped tokenizer, and no rule"):
        check_new_ids([0, -1, 2, -1], {1: [0]})
    with pytest.raises(InputError, match="disagree on 2 ids: 1 is new in the rules alone"):
        check_new_ids([0, 1, 2, -1], {1: [0]})


def test_the_base_itself_is_left_alone() -> None:
    rows = torch.arange(6.0).reshape(3, 2)
    reorder_embeddings({"wte": rows}, [-1, 0, -1])
    assert rows.tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("name", ["wte", "lm_head"])
def test_fewer_rows_than_ids_are_refused_with_both_numbers(name: str) -> None:
    with pytest.raises(InputError) as error:
        reorder_embeddings({"wte": torch.zeros(1_200, 1), name: torch.zeros(1_000, 1)}, list(range(1_200)))
    assert error.value.message == f"the tokenizer has 1,200 ids, the model's {name} only 1,000 rows"
    assert error.value.where == "model_name"


NAN = torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)
OTHER_NAN = torch.tensor([0x7FC00002], dtype=torch.int32).view(torch.float32)


@pytest.mark.parametrize(
    ("value", "other", "same"),
    [
        (1.0, 1.0, True),
        (1.0, 1.0000001, False),
        (0.0, -0.0, False),
        (-0.0, -0.0, True),
        (float(NAN), float(NAN), True),
        (1.0, float("nan"), False),
    ],
)
def test_kept_rows_are_compared_by_their_bits(value: float, other: float, same: bool) -> None:
    base = {"wte": torch.tensor([[0.5], [value], [2.0]])}
    assert kept_rows_equal(base, {"wte": torch.tensor([[7.0], [other], [2.0]])}, [-1, 1]) == same


def test_a_nan_with_another_payload_is_another_row() -> None:
    base = {"wte": torch.stack([NAN, OTHER_NAN])}
    assert kept_rows_equal(base, {"wte": torch.stack([NAN, OTHER_NAN])}, [0, 1])
    assert not kept_rows_equal(base, {"wte": torch.stack([NAN, NAN])}, [0, 1])


def test_padding_dtype_and_missing_tensors_count() -> None:
    base = {"wte": torch.ones(3, 2), "lm_head": torch.ones(3, 2)}
    assert kept_rows_equal(base, {name: rows.clone() for name, rows in base.items()}, [-1, 1])
    padded = torch.tensor([[1.0, 1], [1, 1], [1, 0]])
    assert not kept_rows_equal(base, base | {"wte": padded}, [-1, 1])
    assert not kept_rows_equal(base, base | {"lm_head": padded}, [-1, 1])
    assert not kept_rows_equal(base, base | {"wte": base["wte"].double()}, [-1, 1])
    assert not kept_rows_equal(base, {"wte": base["wte"]}, [-1, 1])
