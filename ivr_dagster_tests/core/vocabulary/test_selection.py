"""The selection as plan, table, rules and log."""

import re
from collections.abc import Callable
from itertools import accumulate, pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from tokenizers import Tokenizer, pre_tokenizers

from ivr_dagster.core.tokenizer.agreement import count_tokens
from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE, read_bpe
from ivr_dagster.core.tokens.byte_level import bytes_of, string_of, text_of
from ivr_dagster.core.tokens.counts import PretokenCounts, count_pretokens, token_frequencies
from ivr_dagster.core.vocabulary.candidate import Candidate, Guards, Selection
from ivr_dagster.core.vocabulary.candidates import choose_candidates
from ivr_dagster.core.vocabulary.remap import RemapRule, RemapRules, check_rules, remap_tokenizer, unreachable_tokens
from ivr_dagster.core.vocabulary.sacrifice import protected_ids
from ivr_dagster.core.vocabulary.selection import (
    HARDLY_WORTH,
    STEP,
    Plan,
    candidates_table,
    pays_up_to,
    plan_selection,
    rules_from_table,
    saving_curve,
    selection_log_text,
    verdict,
)


def test_every_candidate_has_a_row_with_its_text_its_parts_and_the_id_it_gets(
    selection: Selection,
    table: pl.DataFrame,
    gpt2: Tokenizer,
    gpt2_bpe: ByteLevelBPE,
    topics_counts: PretokenCounts,
) -> None:
    frequencies = token_frequencies(topics_counts, gpt2)
    assert len(table) == len(selection.candidates)
    for n, (row, candidate) in enumerate(zip(table.iter_rows(named=True), selection.candidates, strict=True), start=1):
        given_up = gpt2_bpe.strings[row["sacrificed_id"]]
        assert row == {
            "rank": n,
            "new_token": candidate.string,
            "new_text": text_of(candidate.string),
            "constituents": " ".join(gpt2_bpe.strings[i] for i in candidate.constituents),
            "saving": candidate.saving,
            "frequency": candidate.frequency,
            "heldout_saving": 0.0,
            "sacrificed_id": row["sacrificed_id"],
            "sacrificed_token": given_up,
            "sacrificed_text": text_of(given_up),
            "sacrificed_frequency": frequencies[row["sacrificed_id"]],
            "status": "new",
        }


def test_the_rules_say_what_the_table_says_by_id(table: pl.DataFrame, rules: RemapRules) -> None:
    by_id = table.sort("sacrificed_id")
    assert not rules.edited
    assert [(r.id, r.sacrificed_token, r.new_token, " ".join(r.constituents)) for r in rules] == list(
        zip(*(by_id[name] for name in ("sacrificed_id", "sacrificed_token", "new_token", "constituents")), strict=True)
    )
    assert [tuple(r.frequencies[key] for key in ("sacrificed", "new", "saving")) for r in rules] == list(
        zip(*(by_id[name] for name in ("sacrificed_frequency", "frequency", "saving")), strict=True)
    )


@given(st.integers(0, 1000))
def test_the_rules_are_the_same_whatever_the_order_of_rows(table: pl.DataFrame, rules: RemapRules, seed: int) -> None:
    shuffled = rules_from_table(table.sample(fraction=1, shuffle=True, seed=seed))
    assert shuffled == rules
    assert shuffled.digest() == rules.digest()


def test_no_candidates_are_an_empty_table_of_the_same_columns_and_no_rules(
    table: pl.DataFrame, gpt2_bpe: ByteLevelBPE
) -> None:
    empty = candidates_table(Selection([], 10, 10), gpt2_bpe, np.zeros(gpt2_bpe.size, dtype=np.int64))
    assert empty.schema == table.schema
    assert len(rules_from_table(empty)) == 0
    assert saving_curve(empty) == []
    assert "0 of 10 tokens" in selection_log_text(empty, 10)


SHARES = st.lists(st.floats(0, 0.01), max_size=450).map(np.array)


@given(SHARES, st.floats(1e-6, 0.5))
def test_ids_are_given_up_to_the_hundred_that_adds_too_little(shares: np.ndarray, least: float) -> None:
    count = pays_up_to(shares, least)
    hundreds = [shares[n : n + STEP] for n in range(0, len(shares), STEP)]
    # the last, shorter one is to add its part of it
    pays = [float(hundred.sum()) >= least * len(hundred) / STEP for hundred in hundreds]
    taken = pays.index(False) if False in pays else len(pays)
    assert count == sum(map(len, hundreds[:taken]))


def test_a_hundred_pays_by_its_sum_and_one_that_does_not_ends_it() -> None:
    good, poor, best_last = np.full(100, 0.002), np.full(100, 0.0005), np.linspace(0, 0.004, 100)
    assert pays_up_to(np.concatenate([good, best_last, poor, good]), 0.1) == 200
    assert pays_up_to(np.concatenate([good, poor[:50]]), 0.05) == 150
    assert pays_up_to(np.concatenate([good, poor[:50]]), 0.051) == 100
    assert pays_up_to(poor, 0.1) == 0
    assert pays_up_to(np.array([]), 0.1) == 0


def test_the_verdict_warns_where_little_is_saved() -> None:
    assert verdict(HARDLY_WORTH - 0.001, 4000) == verdict(HARDLY_WORTH - 0.001, 4000).replace("Worth it", "")
    assert verdict(HARDLY_WORTH - 0.001, 4000).startswith("Hardly worth it: 4,000 new tokens save 9.9% of held-out")
    assert "--merge-scope across" in verdict(0.0, 0)
    assert verdict(HARDLY_WORTH, 4000) == "4,000 new tokens save 10.0% of held-out tokens."


def selection_of(bpe: ByteLevelBPE, *made: tuple[str, ...]) -> Selection:
    """Candidates by their constituents."""
    candidates = [Candidate("".join(parts), tuple(bpe.ids[part] for part in parts), 9, 9) for parts in made]
    return Selection(candidates, 1000, 1000 - 9 * len(candidates))


@pytest.fixture(scope="module")
def bpe(tiny_bpe: Tokenizer) -> ByteLevelBPE:
    """256 bytes, 300 tokens and `<|endoftext|>`."""
    return read_bpe(tiny_bpe)


def test_a_string_that_had_an_id_keeps_it_unless_it_has_become_a_constituents(bpe: ByteLevelBPE) -> None:
    nothing = np.zeros(bpe.size, dtype=np.int64)
    the, last = bpe.ids["Ġthe"], bpe.size - 2
    before = {"qx": 400, "qz": the, "zq": last, "gone": 410}
    table = candidates_table(
        selection_of(bpe, ("q", "x"), ("Ġthe", "q"), ("q", "z"), ("z", "q")), bpe, nothing, ids_before=before
    )
    assert table.select("new_token", "status").rows() == [
        ("qx", "kept"),
        ("Ġtheq", "new"),
        ("qz", "moved"),
        ("zq", "kept"),
    ]
    ids = dict(table.select("new_token", "sacrificed_id").iter_rows())
    assert (ids["qx"], ids["zq"]) == (400, last)
    assert len(set(ids.values())) == 4
    assert not {ids["Ġtheq"], ids["qz"]} & {400, last, the, 410} or 410 in ids.values()
    assert ids["Ġtheq"] == last - 1  # the next to give away, in order
    check_rules(rules_from_table(table), bpe)


def test_an_id_that_may_not_be_given_away_is_not_kept(bpe: ByteLevelBPE) -> None:
    nothing = np.zeros(bpe.size, dtype=np.int64)
    table = candidates_table(selection_of(bpe, ("q", "x")), bpe, nothing, ids_before={"qx": bpe.ids["a"]})
    assert table["status"].to_list() == ["moved"]
    assert table["sacrificed_id"][0] not in protected_ids(bpe)


@pytest.fixture(scope="module")
def planned(train_bpe: Callable[..., Tokenizer], topics: list[str]) -> Callable[..., Plan]:
    """`planned(first, last, ...)`: a plan for topics, for a vocabulary of 1,100; the last twenty are held out."""
    base = train_bpe(topics, 843)
    bpe = read_bpe(base)

    def plan(first: int = 0, last: int = 40, **settings: object) -> Plan:
        texts = topics[first:last]
        counts = count_pretokens(texts, base)
        arguments = {"budget": 120} | settings
        return plan_selection(
            base, bpe, counts, token_frequencies(counts, base), texts, topics[-20:], **arguments  # type: ignore[arg-type]
        )

    plan.base, plan.bpe = base, bpe  # type: ignore[attr-defined]
    return plan


@pytest.fixture(scope="module", params=[False, True], ids=["within", "across"])
def plan(request: pytest.FixtureRequest, planned: Callable[..., Plan]) -> Plan:
    """A plan in either scope."""
    return planned(across=request.param)
