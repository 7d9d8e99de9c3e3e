"""The selection: plan, previous selection, table, log."""

import re
from collections.abc import Callable, Sequence
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
from ivr_dagster.core.vocabulary.log import saving_curve, selection_log_text, verdict
from ivr_dagster.core.vocabulary.remap import remap_tokenizer
from ivr_dagster.core.vocabulary.rules import RemapRules, check_rules
from ivr_dagster.core.vocabulary.sacrifice import protected_ids
from ivr_dagster.core.vocabulary.selection import STEP, Plan, count_worthwhile, plan_selection
from ivr_dagster.core.vocabulary.table import COLUMNS, candidates_table, rules_from_table
from ivr_dagster.settings import SelectionSettings

FLOOR = 0.10


def test_table_has_a_row_for_each_candidate(
    selection: Selection, table: pl.DataFrame, gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE, topics_counts: PretokenCounts
) -> None:
    frequencies = token_frequencies(topics_counts, gpt2)
    assert len(table) == len(selection.candidates)
    for n, (row, candidate) in enumerate(zip(table.iter_rows(named=True), selection.candidates, strict=True), start=1):
        sacrificed = gpt2_bpe.strings[row["sacrificed_id"]]
        assert row == {
            "rank": n,
            "new_token": candidate.string,
            "new_text": text_of(candidate.string),
            "constituents": " ".join(gpt2_bpe.strings[i] for i in candidate.constituents),
            "saving": candidate.saving,
            "frequency": candidate.frequency,
            "heldout_saving": 0.0,
            "sacrificed_id": row["sacrificed_id"],
            "sacrificed_token": sacrificed,
            "sacrificed_text": text_of(sacrificed),
            "sacrificed_frequency": frequencies[row["sacrificed_id"]],
            "status": "new",
            "sacrificed_cost": 0,
        }


@given(st.integers(0, 1000))
def test_rules_equal_the_table_in_any_order(table: pl.DataFrame, rules: RemapRules, seed: int) -> None:
    by_id = table.sort("sacrificed_id")
    assert not rules.edited
    assert [(r.id, r.sacrificed_token, r.new_token, " ".join(r.constituents)) for r in rules] == list(
        zip(*(by_id[name] for name in ("sacrificed_id", "sacrificed_token", "new_token", "constituents")), strict=True)
    )
    assert [tuple(r.frequencies[key] for key in ("sacrificed", "new", "saving")) for r in rules] == list(
        zip(*(by_id[name] for name in ("sacrificed_frequency", "frequency", "saving")), strict=True)
    )
    assert rules_from_table(table.sample(fraction=1, shuffle=True, seed=seed)) == rules


def test_no_candidates_make_an_empty_table_and_no_rules(table: pl.DataFrame, gpt2_bpe: ByteLevelBPE) -> None:
    empty = candidates_table(Selection([], 10), gpt2_bpe, np.zeros(gpt2_bpe.size, dtype=np.int64))
    assert empty.schema == table.schema
    assert empty.columns == list(COLUMNS)
    assert len(rules_from_table(empty)) == 0
    assert saving_curve(empty) == []
    assert "They save 0 tokens" in selection_log_text(empty, FLOOR)


@given(st.lists(st.floats(0, 0.01), max_size=450).map(np.array), st.floats(1e-6, 0.5))
def test_worthwhile_candidates_end_before_the_hundred_that_adds_too_little(shares: np.ndarray, least: float) -> None:
    hundreds = [shares[n : n + STEP] for n in range(0, len(shares), STEP)]
    # the last, shorter one must add its part
    pays = [float(hundred.sum()) >= least * len(hundred) / STEP for hundred in hundreds]
    taken = pays.index(False) if False in pays else len(pays)
    assert count_worthwhile(shares, least) == sum(map(len, hundreds[:taken]))


def selection_of(bpe: ByteLevelBPE, *made: tuple[str, ...]) -> Selection:
    """Candidates by their constituents."""
    candidates = [Candidate("".join(parts), tuple(bpe.ids[part] for part in parts), 9, 9) for parts in made]
    return Selection(candidates, 1000)


def test_previous_ids_are_kept_unless_a_constituent_needs_them(bpe: ByteLevelBPE) -> None:
    nothing = np.zeros(bpe.size, dtype=np.int64)
    the, last = bpe.ids["Ġthe"], bpe.size - 2
    previous = {"qx": 400, "qz": the, "zq": last, "xq": bpe.ids["a"], "gone": 410}
    made = [("q", "x"), ("Ġthe", "q"), ("q", "z"), ("z", "q"), ("x", "q")]
    table = candidates_table(selection_of(bpe, *made), bpe, nothing, previous_ids=previous)
    assert dict(table.select("new_token", "status").iter_rows()) == {
        "qx": "kept",
        "Ġtheq": "new",
        "qz": "moved",
        "zq": "kept",
        "xq": "moved",  # its id is protected
    }
    ids = dict(table.select("new_token", "sacrificed_id").iter_rows())
    # the latest merges go first
    assert ids == {"qx": 400, "zq": last, "Ġtheq": last - 1, "qz": last - 2, "xq": last - 3}
    check_rules(rules_from_table(table), bpe)


@pytest.fixture(scope="module")
def base(train_bpe: Callable[..., Tokenizer], topics: list[str]) -> Tokenizer:
    """A BPE of 600 merges, trained on the first ten topics."""
    return train_bpe(topics[:10], 600)


@pytest.fixture(scope="module")
def make_plan(base: Tokenizer, topics: list[str]) -> Callable[..., Plan]:
    """`make_plan(texts=topics 10 to 40, max_candidates=150, ...)`: a plan; topics 40 to 60 are held out."""

    def make(
        texts: Sequence[str] = topics[10:40],
        previous: pl.DataFrame | None = None,
        same_settings: bool = False,
        max_candidates: int = 150,
        **settings: Any,
    ) -> Plan:
        counts = count_pretokens(texts, base)
        return plan_selection(
            base,
            read_bpe(base),
            counts,
            token_frequencies(counts, base),
            texts,
            topics[40:60],
            SelectionSettings(max_candidates=max_candidates, **settings),
            previous=previous,
            same_settings=same_settings,
        )

    return make


@pytest.fixture(scope="module")
def plan(make_plan: Callable[..., Plan], merge_scope: str) -> Plan:
    """150 new tokens."""
    return make_plan(merge_scope=merge_scope)


def test_plan_contains_the_candidates(plan: Plan, merge_scope: str, base: Tokenizer, topics: list[str]) -> None:
    bpe, counts = read_bpe(base), count_pretokens(topics[10:40], base)
    settings = SelectionSettings.model_validate({"merge_scope": merge_scope})
    chosen = choose_candidates(base, bpe, counts, topics[10:40], settings, budget=150)
    assert set(plan.table["new_token"]) == {candidate.string for candidate in chosen.candidates}
    assert plan.train_tokens == chosen.tokens_before
    assert plan.saving_train == pytest.approx(1 - chosen.tokens_after / chosen.tokens_before)
    assert plan.table["rank"].to_list() == list(range(1, 151))
    assert (plan.kept, plan.moved, plan.dropped) == (0, 0, 0)
    check_rules(rules_from_table(plan.table), bpe)


def test_plan_measures_the_remapped_tokenizer(plan: Plan, base: Tokenizer, topics: list[str]) -> None:
    heldout = topics[40:60]
    tokenizer = remap_tokenizer(base, read_bpe(base), rules_from_table(plan.table)).tokenizer
    before, after = count_tokens(base, heldout)[0], count_tokens(tokenizer, heldout)[0]
    assert plan.saving_heldout == pytest.approx(1 - after / before)
    costs = dict(plan.table.select("sacrificed_token", "sacrificed_cost").iter_rows())
    texts = {string: text_of(string) for string in costs}
    whole = {string: text for string, text in texts.items() if "\ufffd" not in text}
    assert len(whole) > 100
    assert costs | {s: len(tokenizer.encode(text).ids) for s, text in whole.items()} == costs
    assert min(costs.values()) >= 1


def test_curve_has_round_numbers_and_ends_at_the_total(plan: Plan) -> None:
    curve = saving_curve(plan.table)
    assert [point.new_tokens for point in curve] == [100, 150]
    assert curve[-1].heldout == pytest.approx(plan.saving_heldout)
    assert all(0 <= a.heldout <= b.heldout for a, b in pairwise(curve))
    shares = np.linspace(0.002, 0, 2345)
    curve = saving_curve(pl.DataFrame({"heldout_saving": shares}))
    assert [point.new_tokens for point in curve] == [100, 200, 500, 1000, 2000, 2345]
    sums = [0.0, *accumulate(shares)]
    for point in curve:
        assert point.heldout == pytest.approx(sums[point.new_tokens])
        assert point.last_hundred == pytest.approx(sums[point.new_tokens] - sums[point.new_tokens - 100])


def test_auto_selects_while_it_pays(make_plan: Callable[..., Plan], base: Tokenizer) -> None:
    every = make_plan(max_candidates=0, least_saving=1e-9, merge_scope="across")
    free = read_bpe(base).size - len(protected_ids(read_bpe(base)))
    assert len(every.table) == free // 2
    counts = []
    for least in (0.5, 0.08, 0.045):
        some = make_plan(max_candidates=0, least_saving=least, merge_scope="across")
        counts.append(len(some.table))
        assert some.table["new_token"].to_list() == every.table["new_token"][: counts[-1]].to_list()
    assert 0 == counts[0] < counts[1] < counts[2] < len(every.table)
    assert all(count % 100 == 0 for count in counts)


def ids_of(plan: Plan) -> dict[str, int]:
    return dict(plan.table.select("new_token", "sacrificed_id").iter_rows())


def test_sticky_selection_keeps_ids_and_counts_changes(
    plan: Plan, merge_scope: str, make_plan: Callable[..., Plan], topics: list[str]
) -> None:
    again = make_plan(topics[15:45], plan.table, merge_scope=merge_scope)
    old, new = ids_of(plan), ids_of(again)
    status = dict(again.table.select("new_token", "status").iter_rows())
    assert {string for string in new if status[string] == "new"} == new.keys() - old.keys()
    assert all(new[string] == old[string] for string in new if status[string] == "kept")
    assert all(new[string] != old[string] for string in new if status[string] == "moved")
    assert again.kept == sum(value == "kept" for value in status.values()) > 0.85 * len(old)
    assert again.moved == sum(value == "moved" for value in status.values())
    assert again.dropped == len(old.keys() - new.keys())
    assert again.kept + again.moved + again.dropped == len(old)
    assert len(set(new.values())) == len(new) == 150
    fresh = make_plan(topics[15:45], merge_scope=merge_scope)
    assert len(old.items() & new.items()) > len(old.items() & ids_of(fresh).items())
    not_sticky = make_plan(topics[15:45], plan.table, True, merge_scope=merge_scope, sticky=False, least_gain=0.9)
    assert_frame_equal(not_sticky.table, fresh.table)


@pytest.mark.parametrize(
    "change",
    [{"sacrificed_token": pl.lit("not that id's")}, {"sacrificed_id": pl.col("sacrificed_id") - 60_000}],
    ids=["other token", "unknown id"],
)
def test_previous_selection_for_another_base_is_ignored(
    change: dict[str, pl.Expr], make_plan: Callable[..., Plan], plan: Plan, merge_scope: str
) -> None:
    foreign = plan.table.with_columns(**change)
    again = make_plan(previous=foreign, same_settings=True, merge_scope=merge_scope, least_gain=0.9)
    assert_frame_equal(again.table, plan.table)
    assert again.kept == 0 and again.rejected_gain is None


def test_byte_without_a_token_gets_an_id_and_keeps_it(train_bpe: Callable[..., Tokenizer], topics: list[str]) -> None:
    missing = set(string_of("é"))
    base = train_bpe(topics[:10], 300, alphabet=sorted(set(pre_tokenizers.ByteLevel.alphabet()) - missing))
    bpe, texts = read_bpe(base), [*topics[10:20], "the café, a café"]
    counts = count_pretokens(texts, base)
    frequencies, settings = token_frequencies(counts, base), SelectionSettings(max_candidates=40)

    def plan_with(previous: pl.DataFrame | None) -> Plan:
        return plan_selection(base, bpe, counts, frequencies, texts, topics[20:25], settings, previous=previous)

    first = plan_with(None).table
    rules = rules_from_table(first)
    check_rules(rules, bpe)
    assert {rule.new_token: rule.constituents for rule in rules if rule.new_token in missing} == dict.fromkeys(
        missing, ()
    )
    again = plan_with(first)
    status = dict(again.table.select("new_token", "status").iter_rows())
    assert {status[byte] for byte in missing} == {"kept"}
    tokenizer = remap_tokenizer(base, bpe, rules_from_table(again.table)).tokenizer
    assert tokenizer.decode(tokenizer.encode("café").ids) == "café"
    assert base.decode(base.encode("café").ids) == "caf"


def test_previous_selection_stays_whole_until_another_saves_noticeably_more(
    plan: Plan, make_plan: Callable[..., Plan], merge_scope: str, topics: list[str]
) -> None:
    settings = {"merge_scope": merge_scope, "least_gain": 0.9}
    stays = make_plan(topics[15:45], plan.table, True, **settings)
    assert stays.table is plan.table
    assert (stays.kept, stays.moved, stays.dropped) == (150, 0, 0)
    assert stays.saving_heldout == pytest.approx(plan.saving_heldout)  # of the same held-out text
    assert stays.saving_train is None  # it was selected on other text
    replaced = make_plan(topics[15:45], plan.table, same_settings=False, **settings)
    assert replaced.rejected_gain is None
    assert stays.rejected_gain == pytest.approx(replaced.saving_heldout - plan.saving_heldout)


@pytest.mark.parametrize(("share", "hardly"), [(FLOOR / 151, True), (0.01, False)])
def test_log_reports_verdict_changes_and_curve(plan: Plan, share: float, hardly: bool) -> None:
    status = pl.Series(["kept"] * 100 + ["moved"] * 20 + ["new"] * 30)
    table = plan.table.with_columns(status=status, heldout_saving=pl.lit(share))
    text = selection_log_text(table, FLOOR)
    assert verdict(share * 150, 150, FLOOR) in text
    assert ("Hardly worth it: 150 new tokens save" in text) == hardly
    assert f"They save {table['saving'].sum():,} tokens on the train split." in text
    assert "Previous rules: 100 kept with their id, 20 moved to another id. New rules: 30." in text
    rows = re.findall(r"^(\| [\d,]+ \| [\d.]+% \| [\d.]+% \|)$", text, re.MULTILINE)
    assert rows == [
        f"| {point.new_tokens} | {point.heldout * 100:.2f}% | {point.last_hundred * 100:.3f}% |"
        for point in saving_curve(table)
    ]
    assert repr(table["new_text"][0]) in text


@pytest.mark.parametrize("string", ["|", "a|b"])
def test_log_lists_sacrificed_tokens_in_use_and_escapes_pipes(
    gpt2_bpe: ByteLevelBPE, table: pl.DataFrame, string: str
) -> None:
    assert "## Sacrificed although used" not in selection_log_text(table, FLOOR)
    frequencies = np.full(gpt2_bpe.size, 3, dtype=np.int64)
    constituents = tuple(gpt2_bpe.ids[character] for character in string)
    used = candidates_table(Selection([Candidate(string, constituents, 9, 9)], 90), gpt2_bpe, frequencies)
    text = selection_log_text(used.with_columns(sacrificed_cost=pl.lit(17)), FLOOR)
    assert "0 of the sacrificed tokens never occur in the train split; 1 do, 3 times in total" in text
    assert "## Sacrificed although used" in text
    assert f"| `{used['sacrificed_text'][0]!r}` | 3 | 17 | " in text
    for line in text.splitlines():
        if line.startswith("| `"):
            assert len(re.findall(r"(?<!\\)\|", line)) in {5, 6}
