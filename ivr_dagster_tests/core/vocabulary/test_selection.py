"""The selection: plan, previous selection, table, log."""

import re
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from tokenizers import Tokenizer, pre_tokenizers

from ivr_dagster.core.tokenizer.agreement import count_tokens
from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE, read_bpe
from ivr_dagster.core.tokenizer.lengths import pretokenize_texts
from ivr_dagster.core.tokenizer.unigram import distill
from ivr_dagster.core.tokens.byte_level import string_of, text_of
from ivr_dagster.core.tokens.counts import PretokenCounts, count_pretokens, token_frequencies
from ivr_dagster.core.tokens.display import table_cell
from ivr_dagster.core.vocabulary.candidate import Candidate, Selection
from ivr_dagster.core.vocabulary.candidates import choose_candidates
from ivr_dagster.core.vocabulary.log import saving_curve, selection_log_text, verdict
from ivr_dagster.core.vocabulary.phrases import pattern_with
from ivr_dagster.core.vocabulary.remap import bpe_with, remap_tokenizer, unreachable_tokens
from ivr_dagster.core.vocabulary.rules import RemapRules, check_rules
from ivr_dagster.core.vocabulary.sacrifice import protected_ids
from ivr_dagster.core.vocabulary.selection import STEP, Plan, count_worthwhile, heldout_shares, plan_selection
from ivr_dagster.core.vocabulary.table import COLUMNS, candidates_table, fits_base, rules_from_table
from ivr_dagster.io_managers.tables import read_candidates
from ivr_dagster.settings import SelectionSettings

FLOOR = 0.10


def test_table_has_a_row_for_each_candidate(
    reachable: Selection, table: pl.DataFrame, gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE, topics_counts: PretokenCounts
) -> None:
    frequencies = token_frequencies(topics_counts, gpt2)
    assert len(table) == len(reachable.candidates)
    for n, (row, candidate) in enumerate(zip(table.iter_rows(named=True), reachable.candidates, strict=True), start=1):
        sacrificed = gpt2_bpe.strings[row["sacrificed_id"]]
        assert row == {
            "rank": n,
            "new_token": candidate.string,
            "new_text": text_of(candidate.string),
            "halves": " ".join(candidate.halves),
            "merge_rank": reachable.merge_ranks[candidate.string],
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
    in_order = table.sort("merge_rank")
    assert not rules.edited
    columns = ("sacrificed_id", "sacrificed_token", "new_token", "constituents", "halves")
    assert [(r.id, r.sacrificed_token, r.new_token, " ".join(r.constituents), " ".join(r.halves)) for r in rules] == [
        *zip(*(in_order[name] for name in columns), strict=True)
    ]
    assert [tuple(r.frequencies[key] for key in ("sacrificed", "new", "saving")) for r in rules] == list(
        zip(*(in_order[name] for name in ("sacrificed_frequency", "frequency", "saving")), strict=True)
    )
    assert rules_from_table(table.sample(fraction=1, shuffle=True, seed=seed)) == rules


def test_table_is_read_back_from_a_file(table: pl.DataFrame, tmp_path: Path) -> None:
    table.write_csv(tmp_path / "table.csv")
    assert_frame_equal(read_candidates(tmp_path / "table.csv"), table)


def test_table_of_an_earlier_version_is_read(table: pl.DataFrame, gpt2_bpe: ByteLevelBPE, tmp_path: Path) -> None:
    table.drop("halves", "merge_rank").write_csv(tmp_path / "table.csv")
    read = read_candidates(tmp_path / "table.csv")
    old = rules_from_table(read)
    assert [rule.new_token for rule in old] == table["new_token"].to_list()
    assert not any(rule.halves for rule in old)
    assert fits_base(read, gpt2_bpe)


def test_no_candidates_make_an_empty_table_and_no_rules(table: pl.DataFrame, gpt2_bpe: ByteLevelBPE) -> None:
    empty = candidates_table(Selection([], {}), gpt2_bpe, np.zeros(gpt2_bpe.size, dtype=np.int64))
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
    candidates = [Candidate("".join(parts), parts, tuple(bpe.ids[part] for part in parts), 9, 9) for parts in made]
    return Selection(candidates, {candidate.string: n for n, candidate in enumerate(candidates)})


def test_previous_ids_are_kept_unless_another_token_needs_them(bpe: ByteLevelBPE) -> None:
    nothing = np.zeros(bpe.size, dtype=np.int64)
    used = {half for left, right, _ in bpe.merges for half in (left, right)}
    leaves = [i for i in range(bpe.size - 2, 300, -1) if i not in used and i not in protected_ids(bpe)]
    the, last, kept = bpe.ids["Ġthe"], leaves[0], leaves[9]
    inner = next(i for i in reversed(range(bpe.size)) if i in used and i not in protected_ids(bpe) and i != the)
    previous = {"qx": kept, "qz": the, "zq": last, "xq": bpe.ids["a"], "gone": 410, "zz": inner}
    made = [("q", "x"), ("Ġthe", "q"), ("q", "z"), ("z", "q"), ("x", "q"), ("z", "z")]
    table = candidates_table(selection_of(bpe, *made), bpe, nothing, previous_ids=previous)
    assert dict(table.select("new_token", "status").iter_rows()) == {
        "qx": "kept",
        "Ġtheq": "new",
        "qz": "moved",
        "zq": "kept",
        "xq": "moved",  # its id is protected
        "zz": "kept",  # the tokens made of it go as well
    }
    ids = dict(table.select("new_token", "sacrificed_id").iter_rows())
    assert (ids["qx"], ids["zq"], ids["zz"]) == (kept, last, inner)
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
        train_bytes: int = 0,
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
            train_bytes=train_bytes,
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
    chosen = choose_candidates(base, bpe, counts, topics[10:40], settings, budget=150).candidates
    strings = plan.table["new_token"].to_list()
    assert strings == [c.string for c in chosen if c.string in set(strings)]
    assert len(strings) >= 148  # a few would be cut
    assert plan.table["saving"].to_list() == [c.saving for c in chosen if c.string in set(strings)]
    remapped = remap_tokenizer(base, bpe, rules_from_table(plan.table))
    before, after = (count_tokens(each, topics[10:40])[0] for each in (base, remapped))
    # across: each phrase's saving is counted alone
    assert plan.saving_train == pytest.approx(1 - after / before, abs=1e-9 if merge_scope == "within" else 0.01)
    assert plan.table["rank"].to_list() == list(range(1, len(strings) + 1))
    assert (plan.kept, plan.moved, plan.dropped) == (0, 0, 0)
    check_rules(rules_from_table(plan.table), bpe)


def test_plan_measures_the_remapped_tokenizer(plan: Plan, base: Tokenizer, topics: list[str]) -> None:
    heldout = topics[40:60]
    tokenizer = remap_tokenizer(base, read_bpe(base), rules_from_table(plan.table))
    before, after = count_tokens(base, heldout)[0], count_tokens(tokenizer, heldout)[0]
    assert plan.saving_heldout == pytest.approx(1 - after / before)
    costs = dict(plan.table.select("sacrificed_token", "sacrificed_cost").iter_rows())
    texts = {string: text_of(string) for string in costs}
    whole = {string: text for string, text in texts.items() if "\ufffd" not in text}
    assert len(whole) > 100
    assert costs | {s: len(tokenizer.encode(text).ids) for s, text in whole.items()} == costs
    assert min(costs.values()) >= 1


def test_every_new_token_of_a_plan_is_reachable_in_both_forms(base: Tokenizer, plan: Plan) -> None:
    rules = rules_from_table(plan.table)
    bpe_form = remap_tokenizer(base, read_bpe(base), rules)
    assert unreachable_tokens(bpe_form, rules) == []
    assert unreachable_tokens(distill(bpe_form, read_bpe(bpe_form)).tokenizer, rules) == []


RUNS = st.lists(st.sampled_from(["====", "-" * 9, "+", "=", " ", "\n    ", "x", "…", "#" * 20]), min_size=1, max_size=5)


@given(st.lists(RUNS.map("".join), min_size=1, max_size=8))
@settings(max_examples=25)
def test_new_tokens_with_runs_are_reachable_in_both_forms(tiny_bpe: Tokenizer, texts: list[str]) -> None:
    bpe, counts = read_bpe(tiny_bpe), count_pretokens(texts * 3, tiny_bpe)
    frequencies = token_frequencies(counts, tiny_bpe)
    plan = plan_selection(
        tiny_bpe, bpe, counts, frequencies, texts * 3, texts, SelectionSettings(max_candidates=30, sticky=False)
    )
    rules = rules_from_table(plan.table)
    check_rules(rules, bpe)
    bpe_form = remap_tokenizer(tiny_bpe, bpe, rules)
    for tokenizer in (bpe_form, distill(bpe_form, read_bpe(bpe_form)).tokenizer):
        assert unreachable_tokens(tokenizer, rules) == []


def saved_by(tokenizer: Tokenizer, base: Tokenizer, texts: Sequence[str]) -> float:
    return 1 - count_tokens(tokenizer, texts)[0] / count_tokens(base, texts)[0]


@pytest.mark.parametrize("merge_scope", ["within", "across"])
def test_heldout_shares_add_up_to_the_measured_saving(
    merge_scope: str, small_base: Tokenizer, topics: list[str]
) -> None:
    bpe, texts, heldout = read_bpe(small_base), topics[20:50], topics[50:60]
    settings = SelectionSettings.model_validate({"merge_scope": merge_scope})
    selection = choose_candidates(small_base, bpe, count_pretokens(texts, small_base), texts, settings, budget=240)
    for some in (selection, selection.first(120)):
        strings = [candidate.string for candidate in some.candidates]
        shares = heldout_shares(small_base, bpe, some, pretokenize_texts(heldout, small_base))
        ids = {string: bpe.size + n for n, string in enumerate(strings)}
        extended = bpe_with(small_base, ids, some.merges(), pattern=pattern_with(small_base, strings))
        assert len(shares) == len(some.candidates)
        # with ignored merges, a pre-token may become a token that its merges do not make
        exact = merge_scope == "within" and not bpe.ignores_merges
        assert shares.sum() == pytest.approx(saved_by(extended, small_base, heldout), rel=1e-9 if exact else 0.02)
        assert (shares >= 0).all()
    assert saved_by(extended, small_base, heldout) > 0.7 * shares.sum()


def test_share_of_a_merge_counts_its_use_inside_longer_tokens(bpe_of: Callable[..., Tokenizer]) -> None:
    base = bpe_of(["zz"], [("z", "z")])
    bpe = read_bpe(base)
    x, y, z = (bpe.ids[character] for character in "xyz")
    words = [Candidate("xy", ("x", "y"), (x, y), 0, 0), Candidate("xyz", ("xy", "z"), (x, y, z), 0, 0)]
    phrase = Candidate("xyĠxy", (), (x, y, bpe.ids["Ġ"], x, y), 0, 0)
    selection = Selection([*words, phrase], {"xy": 0, "xyz": 1, "xyĠxy": 2})
    heldout = ["xyz xyz", "xy xy", "zz"]
    shares = heldout_shares(base, bpe, selection, pretokenize_texts(heldout, base))
    # 7, 5 and 1 tokens; the phrase saves the two that are left with "xy": "xy", "Ġ", "xy"
    assert (shares * 13).round(9).tolist() == [4, 2, 2]
    assert heldout_shares(base, bpe, Selection([], {}), pretokenize_texts(heldout, base)).tolist() == []


def test_curve_has_round_numbers_and_ends_at_the_total(plan: Plan) -> None:
    curve = saving_curve(plan.table)
    assert [point.new_tokens for point in curve] == [100, len(plan.table)]
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
    auto: dict[str, Any] = {"max_candidates": 0, "merge_scope": "across"}
    every = make_plan(**auto, least_saving=1e-9, least_occurrences=0)
    free = read_bpe(base).size - len(protected_ids(read_bpe(base)))
    assert free // 2 - 3 <= len(every.table) <= free // 2  # a few would be cut
    counts = []
    for least in (0.5, 0.08, 0.045):
        some = make_plan(**auto, least_saving=least, least_occurrences=0)
        counts.append(len(some.table))
        assert some.table["new_token"].to_list() == every.table["new_token"][: counts[-1]].to_list()
    assert 0 == counts[0] < counts[1] < counts[2] < len(every.table)
    assert all(count % 100 == 0 for count in counts)
    check_rules(rules_from_table(every.table), read_bpe(base))


def test_auto_selects_what_occurs_often_enough_in_the_text_that_is_trained_on(
    make_plan: Callable[..., Plan], topics: list[str]
) -> None:
    auto: dict[str, Any] = {"max_candidates": 0, "least_saving": 1e-9}
    savings = make_plan(**auto, least_occurrences=0).table["saving"].to_numpy()
    medians = [float(np.median(savings[n : n + STEP])) for n in range(0, len(savings), STEP)]
    assert len(medians) > 2
    assert medians == sorted(medians, reverse=True)
    size = len("".join(topics[10:40]).encode())
    for hundreds, median in enumerate(medians[:-1], start=1):
        least = int(median)
        assert len(make_plan(**auto, least_occurrences=least).table) == hundreds * STEP
        assert len(make_plan(**auto, least_occurrences=least // 2, train_bytes=size // 2).table) == hundreds * STEP
        assert len(make_plan(**auto, least_occurrences=least, train_bytes=2 * size).table) == hundreds * STEP
        assert len(make_plan(**auto, least_occurrences=least + 1).table) == (hundreds - 1) * STEP


def ids_of(plan: Plan) -> dict[str, int]:
    return dict(plan.table.select("new_token", "sacrificed_id").iter_rows())


def test_sticky_selection_keeps_ids_and_counts_changes(
    plan: Plan, merge_scope: str, make_plan: Callable[..., Plan], base: Tokenizer, topics: list[str]
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
    assert len(set(new.values())) == len(new) >= 148
    halves = dict(plan.table.select("new_token", "halves").iter_rows())
    for row in again.table.iter_rows(named=True):
        assert row["halves"] == halves.get(row["new_token"], row["halves"])
    check_rules(rules_from_table(again.table), read_bpe(base))
    merges = [rule.new_token for rule in rules_from_table(plan.table) if rule.halves and rule.new_token in new]
    assert [r.new_token for r in rules_from_table(again.table) if r.halves and r.new_token in set(merges)] == merges
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
    tokenizer = remap_tokenizer(base, bpe, rules_from_table(again.table))
    assert tokenizer.decode(tokenizer.encode("café").ids) == "café"
    assert base.decode(base.encode("café").ids) == "caf"


def test_previous_selection_stays_whole_until_another_saves_noticeably_more(
    plan: Plan, make_plan: Callable[..., Plan], merge_scope: str, topics: list[str]
) -> None:
    settings = {"merge_scope": merge_scope, "least_gain": 0.9}
    stays = make_plan(topics[15:45], plan.table, True, **settings)
    assert stays.table is plan.table
    assert (stays.kept, stays.moved, stays.dropped) == (len(plan.table), 0, 0)
    assert stays.saving_heldout == pytest.approx(plan.saving_heldout)  # of the same held-out text
    assert stays.saving_train is None  # it was selected on other text
    replaced = make_plan(topics[15:45], plan.table, same_settings=False, **settings)
    assert replaced.rejected_gain is None
    assert stays.rejected_gain == pytest.approx(replaced.saving_heldout - plan.saving_heldout)


@pytest.mark.parametrize(("share", "hardly"), [(FLOOR / 151, True), (0.01, False)])
def test_log_reports_verdict_changes_and_curve(plan: Plan, share: float, hardly: bool) -> None:
    status = pl.Series((["kept"] * 100 + ["moved"] * 20 + ["new"] * 30)[: len(plan.table)])
    number = len(plan.table)
    table = plan.table.with_columns(status=status, heldout_saving=pl.lit(share))
    text = selection_log_text(table, FLOOR)
    assert verdict(share * number, number, FLOOR) in text
    assert (f"Hardly worth it: {number} new tokens save" in text) == hardly
    assert f"They save {table['saving'].sum():,} tokens on the train split." in text
    assert f"Previous rules: 100 kept with their id, 20 moved to another id. New rules: {number - 120}." in text
    rows = re.findall(r"^(\| [\d,]+ \| [\d.]+% \| [\d.]+% \|)$", text, re.MULTILINE)
    assert rows == [
        f"| {point.new_tokens} | {point.heldout * 100:.2f}% | {point.last_hundred * 100:.3f}% |"
        for point in saving_curve(table)
    ]
    assert table_cell(table["new_text"][0]) in text


@pytest.mark.parametrize("string", ["|", "a|b"])
def test_log_lists_sacrificed_tokens_in_use_and_escapes_pipes(
    gpt2_bpe: ByteLevelBPE, table: pl.DataFrame, string: str
) -> None:
    assert "## Sacrificed although used" not in selection_log_text(table, FLOOR)
    frequencies = np.full(gpt2_bpe.size, 3, dtype=np.int64)
    constituents = tuple(gpt2_bpe.ids[character] for character in string)
    candidate = Candidate(string, (), constituents, 9, 9)
    used = candidates_table(Selection([candidate], {string: 0}), gpt2_bpe, frequencies)
    text = selection_log_text(used.with_columns(sacrificed_cost=pl.lit(17)), FLOOR)
    assert "0 of the sacrificed tokens never occur in the train split; 1 do, 3 times in total" in text
    assert "## Sacrificed although used" in text
    assert f"| {table_cell(used['sacrificed_text'][0])} | 3 | 17 | " in text
    for line in text.splitlines():
        if line.startswith("| `"):
            assert len(re.findall(r"(?<!\\)\|", line)) in {5, 6}
