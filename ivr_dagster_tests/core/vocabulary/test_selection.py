"""The selection as plan, table, rules and log."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from tokenizers import Tokenizer, pre_tokenizers

from ivr_dagster.core.tokenizer.agreement import count_tokens
from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE, read_bpe
from ivr_dagster.core.tokens.byte_level import string_of, text_of
from ivr_dagster.core.tokens.counts import PretokenCounts, count_pretokens, token_frequencies
from ivr_dagster.core.vocabulary.candidate import Candidate, Selection
from ivr_dagster.core.vocabulary.candidates import choose_candidates
from ivr_dagster.core.vocabulary.remap import remap_tokenizer
from ivr_dagster.core.vocabulary.rules import RemapRule, RemapRules, check_rules
from ivr_dagster.core.vocabulary.sacrifice import protected_ids
from ivr_dagster.core.vocabulary.selection import (
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
from ivr_dagster.errors import InputError


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
    empty = candidates_table(Selection([], 10), gpt2_bpe, np.zeros(gpt2_bpe.size, dtype=np.int64))
    assert empty.schema == table.schema
    assert len(rules_from_table(empty)) == 0
    assert saving_curve(empty) == []
    assert "they save 0 tokens" in selection_log_text(empty, FLOOR)


FLOOR = 0.10
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
    assert verdict(FLOOR - 0.001, 4000, FLOOR).startswith("Hardly worth it: 4,000 new tokens save 9.9% of held-out")
    assert "--merge-scope across" in verdict(0.0, 0, FLOOR)
    assert verdict(FLOOR, 4000, FLOOR) == "4,000 new tokens save 10.0% of held-out tokens."


def selection_of(bpe: ByteLevelBPE, *made: tuple[str, ...]) -> Selection:
    """Candidates by their constituents."""
    candidates = [Candidate("".join(parts), tuple(bpe.ids[part] for part in parts), 9, 9) for parts in made]
    return Selection(candidates, 1000)


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
    # the latest merges go first
    assert (ids["Ġtheq"], ids["qz"]) == (last - 1, last - 2)
    check_rules(rules_from_table(table), bpe)


def test_an_id_that_may_not_be_given_away_is_not_kept(bpe: ByteLevelBPE) -> None:
    nothing = np.zeros(bpe.size, dtype=np.int64)
    table = candidates_table(selection_of(bpe, ("q", "x")), bpe, nothing, ids_before={"qx": bpe.ids["a"]})
    assert table["status"].to_list() == ["moved"]
    assert table["sacrificed_id"][0] not in protected_ids(bpe)


@pytest.fixture(scope="module")
def base(train_bpe: Callable[..., Tokenizer], topics: list[str]) -> Tokenizer:
    """A BPE of 600 merges, of the first ten topics."""
    return train_bpe(topics[:10], 600)


@pytest.fixture(scope="module")
def make_plan(base: Tokenizer, topics: list[str]) -> Callable[..., Plan]:
    """`make_plan(texts=topics 10 to 40, budget=150, ...)`: a plan; topics 40 to 60 are held out."""

    def make(texts: Sequence[str] = topics[10:40], budget: int | None = 150, **settings: Any) -> Plan:
        counts = count_pretokens(texts, base)
        frequencies = token_frequencies(counts, base)
        return plan_selection(
            base, read_bpe(base), counts, frequencies, texts, topics[40:60], budget=budget, **settings
        )

    return make


@pytest.fixture(scope="module", params=[False, True], ids=["within", "across"])
def across(request: pytest.FixtureRequest) -> bool:
    """Both scopes."""
    return bool(request.param)


@pytest.fixture(scope="module")
def plan(make_plan: Callable[..., Plan], across: bool) -> Plan:
    """150 new tokens."""
    return make_plan(across=across)


def test_a_plan_holds_the_candidates_the_most_worth_having_first(
    plan: Plan, across: bool, base: Tokenizer, topics: list[str]
) -> None:
    bpe, counts = read_bpe(base), count_pretokens(topics[10:40], base)
    chosen = choose_candidates(base, bpe, counts, topics[10:40], budget=150, across=across)
    assert set(plan.table["new_token"]) == {candidate.string for candidate in chosen.candidates}
    assert plan.train_tokens == chosen.tokens_before
    assert plan.saving_train == pytest.approx(1 - chosen.tokens_after / chosen.tokens_before)
    assert plan.table["rank"].to_list() == list(range(1, 151))
    assert (plan.kept, plan.moved, plan.dropped) == (0, 0, 0)
    check_rules(rules_from_table(plan.table), bpe)


def test_the_held_out_saving_is_the_remapped_tokenizers_what_is_given_up_included(
    plan: Plan, base: Tokenizer, topics: list[str]
) -> None:
    heldout = topics[40:60]
    tokenizer = remap_tokenizer(base, read_bpe(base), rules_from_table(plan.table)).tokenizer
    before, after = count_tokens(base, heldout)[0], count_tokens(tokenizer, heldout)[0]
    assert plan.saving_heldout == pytest.approx(1 - after / before)


def test_a_sacrificed_token_costs_what_the_remapped_tokenizer_makes_of_its_text(plan: Plan, base: Tokenizer) -> None:
    tokenizer = remap_tokenizer(base, read_bpe(base), rules_from_table(plan.table)).tokenizer
    assert plan.table["sacrificed_cost"].dtype == pl.Int64
    texts = {string: text_of(string) for string in plan.table["sacrificed_token"]}
    costs = dict(plan.table.select("sacrificed_token", "sacrificed_cost").iter_rows())
    whole = {string: text for string, text in texts.items() if "\ufffd" not in text}
    assert len(whole) > 100
    assert costs | {s: len(tokenizer.encode(text).ids) for s, text in whole.items()} == costs
    assert min(costs.values()) >= 1


def test_the_curve_never_falls_and_ends_at_the_totals(plan: Plan) -> None:
    curve = saving_curve(plan.table)
    assert [point.new_tokens for point in curve] == [100, 150]
    assert curve[-1].heldout == pytest.approx(plan.saving_heldout)
    assert all(0 <= a.heldout <= b.heldout for a, b in pairwise(curve))
    assert curve[0].last_hundred == pytest.approx(curve[0].heldout)
    assert curve[1].last_hundred == pytest.approx(plan.table["heldout_saving"][50:150].sum())


def test_the_curve_has_round_numbers_of_new_tokens_and_their_all() -> None:
    shares = np.linspace(0.002, 0, 2345)
    curve = saving_curve(pl.DataFrame({"heldout_saving": shares}))
    assert [point.new_tokens for point in curve] == [100, 200, 500, 1000, 2000, 2345]
    sums = [0.0, *accumulate(shares)]
    for point in curve:
        assert point.heldout == pytest.approx(sums[point.new_tokens])
        assert point.last_hundred == pytest.approx(sums[point.new_tokens] - sums[point.new_tokens - 100])


def test_without_a_budget_ids_are_given_as_long_as_they_pay(make_plan: Callable[..., Plan], base: Tokenizer) -> None:
    every = make_plan(budget=None, least_saving=1e-9, across=True)
    free = read_bpe(base).size - len(protected_ids(read_bpe(base)))
    assert len(every.table) == free // 2
    counts = []
    for least in (0.5, 0.08, 0.045):
        some = make_plan(budget=None, least_saving=least, across=True)
        counts.append(len(some.table))
        assert some.table["new_token"].to_list() == every.table["new_token"][: counts[-1]].to_list()
    assert 0 == counts[0] < counts[1] < counts[2] < len(every.table)
    assert all(count % 100 == 0 for count in counts)


def ids_of(plan: Plan) -> dict[str, int]:
    return dict(plan.table.select("new_token", "sacrificed_id").iter_rows())


def test_strings_that_stay_keep_their_ids_and_the_churn_is_counted(
    plan: Plan, across: bool, make_plan: Callable[..., Plan], topics: list[str]
) -> None:
    before = rules_from_table(plan.table)
    again = make_plan(topics[15:45], across=across, before=before)
    old, new = ids_of(plan), ids_of(again)
    status = dict(again.table.select("new_token", "status").iter_rows())
    assert {string for string in new if status[string] == "new"} == new.keys() - old.keys()
    assert all(new[string] == old[string] for string in new if status[string] == "kept")
    assert all(new[string] != old[string] for string in new if status[string] == "moved")
    assert again.kept == sum(value == "kept" for value in status.values()) > 0.85 * len(old)
    assert again.moved == sum(value == "moved" for value in status.values())
    assert again.dropped == len(old.keys() - new.keys())
    assert again.kept + again.moved + again.dropped == len(before)
    assert len(set(new.values())) == len(new) == 150
    afresh = ids_of(make_plan(topics[15:45], across=across))
    assert len(old.items() & new.items()) > len(old.items() & afresh.items())


def test_rules_of_another_base_are_passed_over(make_plan: Callable[..., Plan], plan: Plan, across: bool) -> None:
    before = rules_from_table(plan.table)
    elsewhere = RemapRules(tuple(replace(rule, sacrificed_token=rule.sacrificed_token + "x") for rule in before))
    unknown = RemapRules((replace(before.rules[0], id=60_000), replace(before.rules[1], id=-1)))
    for rules in (elsewhere, unknown):
        again = make_plan(across=across, before=rules)
        assert_frame_equal(again.table, plan.table)
        assert again.kept == 0


def test_an_edited_rule_outside_the_alphabet_is_passed_over_or_refused(
    make_plan: Callable[..., Plan], base: Tokenizer
) -> None:
    rule = RemapRule(500, read_bpe(base).strings[500], "of the", ("of", "Ġthe"))
    try:
        make_plan(budget=10, before=RemapRules((rule,)))
    except InputError as error:
        assert "of the" in str(error)


def test_a_byte_that_the_base_drops_gets_an_id_and_keeps_it(
    train_bpe: Callable[..., Tokenizer], topics: list[str]
) -> None:
    missing = set(string_of("é"))
    base = train_bpe(topics[:10], 300, alphabet=sorted(set(pre_tokenizers.ByteLevel.alphabet()) - missing))
    bpe, texts = read_bpe(base), [*topics[10:20], "the café, a café"]
    counts = count_pretokens(texts, base)

    def plan_with(before: RemapRules | None) -> Plan:
        frequencies = token_frequencies(counts, base)
        return plan_selection(base, bpe, counts, frequencies, texts, topics[20:25], budget=40, before=before)

    rules = rules_from_table(plan_with(None).table)
    check_rules(rules, bpe)
    assert {rule.new_token: rule.constituents for rule in rules if rule.new_token in missing} == dict.fromkeys(
        missing, ()
    )
    again = plan_with(RemapRules(rules.rules[::-1]))
    status = dict(again.table.select("new_token", "status").iter_rows())
    assert {status[byte] for byte in missing} == {"kept"}
    tokenizer = remap_tokenizer(base, bpe, rules_from_table(again.table)).tokenizer
    assert tokenizer.decode(tokenizer.encode("café").ids) == "café"
    assert base.decode(base.encode("café").ids) == "caf"


def test_a_selection_in_force_stays_whole_until_another_saves_noticeably_more(
    plan: Plan, make_plan: Callable[..., Plan], across: bool, topics: list[str]
) -> None:
    other = topics[15:45]
    in_force = {"across": across, "before": rules_from_table(plan.table), "in_force": plan.table}
    stays = make_plan(other, **in_force, least_gain=0.9)
    assert stays.table is plan.table
    assert (stays.kept, stays.moved, stays.dropped) == (150, 0, 0)
    assert stays.saving_heldout == pytest.approx(plan.saving_heldout)  # of the same held-out text
    assert stays.saving_train is None  # it was selected on other text
    goes = make_plan(other, **in_force, least_gain=-0.9)
    assert goes.foregone is None
    assert stays.foregone == pytest.approx(goes.saving_heldout - plan.saving_heldout)


def test_a_selection_of_another_base_is_not_in_force(plan: Plan, make_plan: Callable[..., Plan], across: bool) -> None:
    foreign = plan.table.with_columns(sacrificed_token=pl.lit("not that id's"))
    again = make_plan(across=across, in_force=foreign, least_gain=0.9)
    assert again.foregone is None
    assert again.table["new_token"].to_list() == plan.table["new_token"].to_list()


def test_the_log_says_what_is_saved_what_it_is_worth_and_what_stays(plan: Plan) -> None:
    text = selection_log_text(plan.table, FLOOR)
    assert verdict(plan.saving_heldout, 150, FLOOR) in text
    saved = plan.table["saving"].sum()
    assert f"On the train split they save {saved:,} tokens." in text
    assert "0 stood in the rules before and keep their id, 0 get another one, 150 are new." in text
    rows = re.findall(r"^(\| [\d,]+ \| [\d.]+% \| [\d.]+% \|)$", text, re.MULTILINE)
    assert rows == [
        f"| {point.new_tokens} | {point.heldout * 100:.2f}% | {point.last_hundred * 100:.3f}% |"
        for point in saving_curve(plan.table)
    ]
    assert repr(plan.table["new_text"][0]) in text


def test_the_log_tells_the_churn(plan: Plan) -> None:
    status = pl.Series(["kept"] * 100 + ["moved"] * 20 + ["new"] * 30)
    text = selection_log_text(plan.table.with_columns(status=status), FLOOR)
    assert "100 stood in the rules before and keep their id, 20 get another one, 30 are new." in text


def test_the_log_warns_where_little_is_saved(plan: Plan) -> None:
    table = plan.table.with_columns(heldout_saving=pl.lit(FLOOR / 151))
    assert "Hardly worth it: 150 new tokens save 9.9%" in selection_log_text(table, FLOOR)
    assert "Hardly" not in selection_log_text(table.with_columns(heldout_saving=pl.lit(0.01)), FLOOR)


@pytest.mark.parametrize("string", ["|", "a|b"])
def test_the_log_names_what_the_domain_loses_and_what_that_costs_and_keeps_its_tables_whole(
    gpt2_bpe: ByteLevelBPE, string: str
) -> None:
    frequencies = np.full(gpt2_bpe.size, 3, dtype=np.int64)
    constituents = tuple(gpt2_bpe.ids[character] for character in string)
    table = candidates_table(Selection([Candidate(string, constituents, 9, 9)], 90), gpt2_bpe, frequencies)
    text = selection_log_text(table.with_columns(sacrificed_cost=pl.lit(17)), FLOOR)
    assert "0 of the sacrificed tokens never occur in the train split; 1 do, 3 times in all" in text
    assert "## Given up although the domain uses them" in text
    assert f"| `{table['sacrificed_text'][0]!r}` | 3 | 17 | " in text
    for line in text.splitlines():
        if line.startswith("| `"):
            assert len(re.findall(r"(?<!\\)\|", line)) in {5, 6}


def test_the_log_says_nothing_of_losses_where_there_are_none(table: pl.DataFrame) -> None:
    assert "Given up although the domain uses them" not in selection_log_text(table, FLOOR)
