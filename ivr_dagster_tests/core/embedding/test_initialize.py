"""Initialization strategies, checked against values computed by hand."""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ivr_dagster.core.embedding import initialize
from ivr_dagster.core.embedding.initialize import STRATEGIES, KeptRows, initialize_embeddings
from ivr_dagster.core.embedding.reorder import reorder_embeddings
from ivr_dagster.errors import InputError
from ivr_dagster.settings.loading import FIELDS

BASE = {
    "wte": torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 10.0], [-1.0, 0.0], [7.0, 4.0]]),
    "lm_head": torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0], [8.0, 9.0]]),
    "lm_head_bias": torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]),
}
# id 1 goes to a token made of 0 and 4, id 3 to one made of 1, 1 and 2
CONSTITUENTS = {1: [0, 4], 3: [1, 1, 2]}
REORDERED = reorder_embeddings(BASE, [0, -1, 2, -1, 4])


def rows_of(strategy: str, **settings: int) -> dict[str, list[object]]:
    filled = initialize_embeddings(REORDERED, BASE, CONSTITUENTS, strategy=strategy, **settings)
    for name, rows in filled.items():
        assert torch.equal(rows[[0, 2, 4]], BASE[name][[0, 2, 4]])
        assert rows.dtype == BASE[name].dtype
    return {name: rows[[1, 3]].tolist() for name, rows in filled.items()}


def test_constituents_are_averaged_over_base_rows_including_sacrificed_ids() -> None:
    found = rows_of("constituents")
    assert found["wte"] == [[4.0, 3.0], pytest.approx([11 / 3, 22 / 3])]
    assert found["lm_head"] == [[4.0, 5.0], pytest.approx([8 / 3, 11 / 3])]
    assert found["lm_head_bias"] == [3.0, pytest.approx(7 / 3)]


@pytest.mark.parametrize(
    ("strategy", "two", "three"),
    [
        ("constituents_first", [2 / 3, 1 / 3], [3 / 6, 2 / 6, 1 / 6]),
        ("constituents_last", [1 / 3, 2 / 3], [1 / 6, 2 / 6, 3 / 6]),
        ("first_last", [1 / 2, 1 / 2], [1 / 2, 0, 1 / 2]),
        ("constituents", [1 / 2, 1 / 2], [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_constituents_are_weighted_by_place(strategy: str, two: list[float], three: list[float]) -> None:
    filled = initialize_embeddings(REORDERED, BASE, {1: [0, 4], 3: [1, 2, 4]}, strategy=strategy)
    for name, rows in filled.items():
        torch.testing.assert_close(rows[1], sum(w * BASE[name][n] for w, n in zip(two, [0, 4], strict=True)))
        torch.testing.assert_close(rows[3], sum(w * BASE[name][n] for w, n in zip(three, [1, 2, 4], strict=True)))


@pytest.mark.parametrize("strategy", ["constituents", "constituents_first", "constituents_last", "first_last"])
def test_a_single_constituent_is_copied_bit_for_bit(strategy: str) -> None:
    filled = initialize_embeddings(REORDERED, BASE, {1: [4], 3: [2]}, strategy=strategy)
    assert all(torch.equal(rows[[1, 3]], BASE[name][[4, 2]]) for name, rows in filled.items())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_padding_is_kept_and_excluded_from_statistics(strategy: str) -> None:
    padding = {name: torch.full((3, *rows.shape[1:]), 1e6) for name, rows in BASE.items()}
    base = {name: torch.cat([rows, padding[name]]) for name, rows in BASE.items()}
    reordered = {name: torch.cat([rows, padding[name]]) for name, rows in REORDERED.items()}
    constituents = CONSTITUENTS | {3: []}
    filled = initialize_embeddings(reordered, base, constituents, strategy=strategy, vocabulary_size=5)
    expected = initialize_embeddings(REORDERED, BASE, constituents, strategy=strategy)
    for name, rows in filled.items():
        assert torch.equal(rows[:5], expected[name])
        assert torch.equal(rows[5:], padding[name])


@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 7), st.randoms(use_true_random=False))
def test_chunked_statistics_equal_those_of_all_rows(count: int, columns: int, chunk: int, random: Any) -> None:
    rows = torch.tensor([[random.uniform(-9, 9) for _ in range(columns)] for _ in range(count)]).bfloat16()
    ids = torch.tensor([n for n in range(count) if n == 0 or random.random() < 0.5])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(initialize, "CHUNK", chunk)
        kept = KeptRows(rows, ids)
        oracle = np.float64(rows.double().numpy())[ids.numpy()]
        np.testing.assert_allclose(kept.mean, oracle.mean(axis=0), rtol=1e-6, atol=1e-7)
        std = oracle.std(axis=0, ddof=1) if len(ids) > 1 else np.zeros(columns)
        np.testing.assert_allclose(kept.std, std, rtol=1e-5, atol=1e-6)


def test_a_token_without_constituents_gets_the_mean_of_kept_rows() -> None:
    filled = initialize_embeddings(REORDERED, BASE, CONSTITUENTS | {3: []}, strategy="constituents")
    for name, rows in filled.items():
        assert torch.equal(rows[1], BASE[name][[0, 4]].mean(dim=0))
        torch.testing.assert_close(rows[3], BASE[name][[0, 2, 4]].mean(dim=0))


def test_mean_and_zeros_fill_every_new_row_alike() -> None:
    means = {"wte": [13 / 3, 16 / 3], "lm_head": [4.0, 5.0], "lm_head_bias": 3.0}
    assert rows_of("mean") == {name: [pytest.approx(mean)] * 2 for name, mean in means.items()}
    assert rows_of("zeros") == {"wte": [[0, 0]] * 2, "lm_head": [[0, 0]] * 2, "lm_head_bias": [0, 0]}


def test_random_rows_depend_on_the_seed_and_differ() -> None:
    assert rows_of("random", seed=1) == rows_of("random", seed=1)
    assert rows_of("random", seed=1)["wte"] != rows_of("random", seed=2)["wte"]
    assert rows_of("random", seed=1)["wte"][0] != rows_of("random", seed=1)["wte"][1]


def test_random_rows_have_the_column_statistics_of_kept_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    location, scale = torch.tensor([0.0, 5.0, -3.0]), torch.tensor([1.0, 0.1, 4.0])
    base = {"wte": location + scale * torch.randn(20_000, 3, generator=generator)}
    new = {n: [0] for n in range(10_000)}
    filled = initialize_embeddings(base, base, new, strategy="random")["wte"][:10_000]
    torch.testing.assert_close(filled.mean(dim=0), location, atol=0.15, rtol=0)
    torch.testing.assert_close(filled.std(dim=0), scale, atol=0, rtol=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    rows = torch.randn(300, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    filled = initialize_embeddings({"wte": rows}, {"wte": rows}, {7: list(range(300))})["wte"]
    assert filled.dtype == dtype
    assert torch.equal(filled[7], rows.float().mean(dim=0).to(dtype))
    filled = initialize_embeddings({"wte": rows}, {"wte": rows}, {0: [1]}, strategy="random", seed=5)["wte"]
    noise = torch.randn(1, 4, generator=torch.Generator().manual_seed(5))
    assert torch.equal(filled[:1], (rows[1:].float().mean(dim=0) + rows[1:].float().std(dim=0) * noise).to(dtype))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_inputs_are_not_modified_and_no_new_tokens_change_nothing(strategy: str) -> None:
    before = {name: rows.clone() for name, rows in REORDERED.items()}
    initialize_embeddings(REORDERED, BASE, CONSTITUENTS, strategy=strategy)
    unchanged = initialize_embeddings(REORDERED, BASE, {}, strategy=strategy)
    assert all(
        torch.equal(REORDERED[name], rows) and torch.equal(unchanged[name], rows) for name, rows in before.items()
    )


def test_an_unknown_strategy_is_rejected_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown initialization strategy 'median'") as error:
        initialize_embeddings(BASE, BASE, {}, strategy="median")
    assert error.value.where == "init_strategy"
    assert ", ".join(STRATEGIES) in str(error.value)


def test_settings_offer_all_strategies() -> None:
    assert get_args(FIELDS["init_strategy"].annotation) == tuple(STRATEGIES)
