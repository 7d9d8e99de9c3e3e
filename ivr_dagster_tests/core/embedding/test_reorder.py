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


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.permutations(range(6)), st.sets(st.integers(0, 5)), st.integers(0, 3), st.integers(0, 100))
def test_reorder_moves_kept_rows_bit_for_bit_and_zeroes_new_ones(
    dtype: torch.dtype, order: list[int], new: set[int], padding: int, seed: int
) -> None:
    rows = random_bits(6 + padding, 3, dtype, seed)
    sources = row_sources(
        {f"token {n}": n for n in range(6)}, [f"{'new ' * (n in new)}token {order[n]}" for n in range(6)]
    )
    assert sources == [-1 if n in new else order[n] for n in range(6)]
    base = {"wte": rows, "lm_head_bias": rows[:, 0].contiguous()}
    before = {name: bits(tensor) for name, tensor in base.items()}
    reordered = reorder_embeddings(base, sources)
    for name, tensor in reordered.items():
        assert tensor.dtype == dtype
        expected = before[name]
        zero = [0] * len(expected[0])
        assert bits(tensor) == [zero if source < 0 else expected[source] for source in sources] + expected[6:]
    assert kept_rows_equal(base, reordered, sources)
    assert {name: bits(tensor) for name, tensor in base.items()} == before


def test_check_new_ids_rejects_tokenizer_and_rules_of_different_runs() -> None:
    check_new_ids([0, -1, 2, -1], {1: [0], 3: [2]})
    with pytest.raises(InputError, match="disagree on 1 ids: 3 is new in the remapped tokenizer but has no rule"):
        check_new_ids([0, -1, 2, -1], {1: [0]})
    with pytest.raises(InputError, match="disagree on 2 ids: 1 is new in the remap rules only"):
        check_new_ids([0, 1, 2, -1], {1: [0]})


@pytest.mark.parametrize("name", ["wte", "lm_head"])
def test_reorder_rejects_fewer_rows_than_ids(name: str) -> None:
    with pytest.raises(InputError) as error:
        reorder_embeddings({"wte": torch.zeros(1_200, 1), name: torch.zeros(1_000, 1)}, list(range(1_200)))
    assert error.value.message == f"the tokenizer has 1,200 ids, the model's {name} only 1,000 rows"
    assert error.value.where == "model_name"


NAN, OTHER_NAN = (torch.tensor([bits], dtype=torch.int32).view(torch.float32) for bits in (0x7FC00001, 0x7FC00002))


@pytest.mark.parametrize(
    ("value", "other", "is_equal"),
    [
        (torch.tensor([1.0]), torch.tensor([1.0000001]), False),
        (torch.tensor([0.0]), torch.tensor([-0.0]), False),
        (torch.tensor([-0.0]), torch.tensor([-0.0]), True),
        (NAN, NAN, True),
        (NAN, OTHER_NAN, False),
        (torch.tensor([1.0]), NAN, False),
    ],
)
def test_kept_rows_equal_compares_bits(value: torch.Tensor, other: torch.Tensor, is_equal: bool) -> None:
    base = {"wte": torch.stack([torch.tensor([0.5]), value])}
    assert kept_rows_equal(base, {"wte": torch.stack([torch.tensor([7.0]), other])}, [-1, 1]) == is_equal


def test_kept_rows_equal_compares_padding_dtypes_and_names() -> None:
    base = {"wte": torch.ones(3, 2), "lm_head": torch.ones(3, 2)}
    assert kept_rows_equal(base, {name: rows.clone() for name, rows in base.items()}, [-1, 1])
    padded = torch.tensor([[1.0, 1], [1, 1], [1, 0]])
    for other in (
        base | {"wte": padded},
        base | {"lm_head": padded},
        base | {"wte": base["wte"].double()},
        {"wte": base["wte"]},
    ):
        assert not kept_rows_equal(base, other, [-1, 1])
