"""GPT-2 adapted to Python's help topics: selections, rules and tokenizers, within and across pre-tokens."""

import polars as pl
import pytest
from tokenizers import Tokenizer

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE, read_bpe
from ivr_dagster.core.tokens.counts import PretokenCounts, token_frequencies
from ivr_dagster.core.vocabulary.candidate import Selection
from ivr_dagster.core.vocabulary.candidates import choose_candidates
from ivr_dagster.core.vocabulary.remap import Remapping, remap_tokenizer
from ivr_dagster.core.vocabulary.rules import RemapRules
from ivr_dagster.core.vocabulary.table import candidates_table, rules_from_table
from ivr_dagster.settings import SelectionSettings

BUDGET = 300


@pytest.fixture(scope="session", params=["within", "across"])
def merge_scope(request: pytest.FixtureRequest) -> str:
    """Both scopes."""
    return str(request.param)


@pytest.fixture(scope="session")
def selection(
    merge_scope: str, gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE, topics: list[str], topics_counts: PretokenCounts
) -> Selection:
    """300 candidates."""
    settings = SelectionSettings.model_validate({"merge_scope": merge_scope})
    return choose_candidates(gpt2, gpt2_bpe, topics_counts, topics, settings, budget=BUDGET)


@pytest.fixture(scope="session")
def table(selection: Selection, gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE, topics_counts: PretokenCounts) -> pl.DataFrame:
    """The candidates with the ids that they receive."""
    return candidates_table(selection, gpt2_bpe, token_frequencies(topics_counts, gpt2))


@pytest.fixture(scope="session")
def rules(table: pl.DataFrame) -> RemapRules:
    """The rules in the table."""
    return rules_from_table(table)


@pytest.fixture(scope="session")
def remapping(gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE, rules: RemapRules, topics_counts: PretokenCounts) -> Remapping:
    """The rules applied, with exceptions for the topics."""
    return remap_tokenizer(gpt2, gpt2_bpe, rules, topics_counts, exceptions=10_000)


@pytest.fixture(scope="session")
def remapped(remapping: Remapping) -> Tokenizer:
    """The remapped tokenizer."""
    return remapping.tokenizer


@pytest.fixture(scope="module")
def bpe(tiny_bpe: Tokenizer) -> ByteLevelBPE:
    """256 bytes, 300 merged tokens and `<|endoftext|>`."""
    return read_bpe(tiny_bpe)
