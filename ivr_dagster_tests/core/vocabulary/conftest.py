"""GPT-2 adapted to Python's help topics: selections, rules and tokenizers, within and across pre-tokens."""

import polars as pl
import pytest
from tokenizers import Tokenizer

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE
from ivr_dagster.core.tokens.counts import PretokenCounts, token_frequencies
from ivr_dagster.core.vocabulary.candidate import Selection
from ivr_dagster.core.vocabulary.candidates import choose_candidates
from ivr_dagster.core.vocabulary.remap import Remapping, remap_tokenizer
from ivr_dagster.core.vocabulary.rules import RemapRules
from ivr_dagster.core.vocabulary.selection import candidates_table, rules_from_table

BUDGET = 300


@pytest.fixture(scope="session", params=["within", "across"])
def merge_scope(request: pytest.FixtureRequest) -> str:
    """Both scopes, one after the other."""
    return str(request.param)


@pytest.fixture(scope="session")
def selection(
    merge_scope: str, gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE, topics: list[str], topics_counts: PretokenCounts
) -> Selection:
    """300 candidates."""
    return choose_candidates(gpt2, gpt2_bpe, topics_counts, topics, budget=BUDGET, across=merge_scope == "across")


@pytest.fixture(scope="session")
def table(selection: Selection, gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE, topics_counts: PretokenCounts) -> pl.DataFrame:
    """The candidates with the ids they are to get."""
    return candidates_table(selection, gpt2_bpe, token_frequencies(topics_counts, gpt2))


@pytest.fixture(scope="session")
def rules(table: pl.DataFrame) -> RemapRules:
    """The rules that follow."""
    return rules_from_table(table)


@pytest.fixture(scope="session")
def remapping(gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE, rules: RemapRules, topics_counts: PretokenCounts) -> Remapping:
    """What follows, with exceptions for what the topics hold."""
    return remap_tokenizer(gpt2, gpt2_bpe, rules, topics_counts, exceptions=10_000)


@pytest.fixture(scope="session")
def remapped(remapping: Remapping) -> Tokenizer:
    """The tokenizer that follows."""
    return remapping.tokenizer
