"""The selection as table, rules and log."""

import re

import numpy as np
import polars as pl
import pytest
from tokenizers import Tokenizer

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE
from ivr_dagster.core.tokens.byte_level import text_of
from ivr_dagster.core.tokens.counts import PretokenCounts, token_frequencies
from ivr_dagster.core.vocabulary.candidates import Candidate, Selection
from ivr_dagster.core.vocabulary.remap import RemapRules
from ivr_dagster.core.vocabulary.selection import candidates_table, rules_from_table, selection_log_text


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
            "sacrificed_id": row["sacrificed_id"],
            "sacrificed_token": given_up,
            "sacrificed_text": text_of(given_up),
            "sacrificed_frequency": frequencies[row["sacrificed_id"]],
        }


def test_the_rules_say_what_the_table_says(table: pl.DataFrame, rules: RemapRules) -> None:
    assert not rules.edited
    assert [(r.id, r.sacrificed_token, r.new_token, " ".join(r.constituents)) for r in rules] == list(
        zip(*(table[name] for name in ("sacrificed_id", "sacrificed_token", "new_token", "constituents")), strict=True)
    )
    assert [tuple(r.frequencies[key] for key in ("sacrificed", "new", "saving")) for r in rules] == list(
        zip(*(table[name] for name in ("sacrificed_frequency", "frequency", "saving")), strict=True)
    )


def test_no_candidates_are_an_empty_table_of_the_same_columns_and_no_rules(
    table: pl.DataFrame, gpt2_bpe: ByteLevelBPE
) -> None:
    empty = candidates_table(Selection([], 10, 10), gpt2_bpe, np.zeros(gpt2_bpe.size, dtype=np.int64))
    assert empty.schema == table.schema
    assert len(rules_from_table(empty)) == 0
    assert "0 new tokens save 0 of 10 tokens" in selection_log_text(empty, 10)


def test_the_log_adds_up_to_the_table(selection: Selection, table: pl.DataFrame) -> None:
    text = selection_log_text(table, selection.tokens_before)
    saved = selection.tokens_before - selection.tokens_after
    assert f"300 new tokens save {saved:,} of {selection.tokens_before:,} tokens" in text
    rows = re.findall(r"^\| ([\d,]+) \| ([\d,]+) \| [\d.]+% \| ([\d,]+) \|$", text, re.MULTILINE)
    savings = table["saving"].to_list()
    assert [tuple(int(cell.replace(",", "")) for cell in row) for row in rows] == [
        (n, sum(savings[:n]), sum(savings[n - 100 : n])) for n in (100, 200, 300)
    ]
    assert repr(table["new_text"][0]) in text
    assert "Given up although the domain uses them" not in text


@pytest.mark.parametrize("string", ["|", "a|b"])
def test_the_log_names_what_the_domain_loses_and_keeps_its_tables_whole(gpt2_bpe: ByteLevelBPE, string: str) -> None:
    frequencies = np.full(gpt2_bpe.size, 3, dtype=np.int64)
    constituents = tuple(gpt2_bpe.ids[character] for character in string)
    table = candidates_table(Selection([Candidate(string, constituents, 9, 9)], 90, 81), gpt2_bpe, frequencies)
    text = selection_log_text(table, 90)
    assert "0 of the sacrificed tokens never occur in the train split; 1 do, 3 times in all" in text
    assert "## Given up although the domain uses them" in text
    assert repr(table["sacrificed_text"][0]) in text
    for line in text.splitlines():
        if line.startswith("| `"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 5
