"""GPT-2 adapted to Python's help topics, within and across pre-tokens, in both forms; small bases of other kinds."""

import json
from collections.abc import Callable

import polars as pl
import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE, read_bpe
from ivr_dagster.core.tokenizer.unigram import Distillation, distill
from ivr_dagster.core.tokens.counts import PretokenCounts, token_frequencies
from ivr_dagster.core.vocabulary.candidate import Selection
from ivr_dagster.core.vocabulary.candidates import choose_candidates
from ivr_dagster.core.vocabulary.remap import remap_tokenizer
from ivr_dagster.core.vocabulary.rules import RemapRules
from ivr_dagster.core.vocabulary.selection import _reachable
from ivr_dagster.core.vocabulary.table import candidates_table, rules_from_table
from ivr_dagster.settings import SelectionSettings
from ivr_dagster_tests.core.tokenizer.conftest import bpe_of as bpe_of

BUDGET = 300
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


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
def reachable(selection: Selection, gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE) -> Selection:
    """The candidates without a few that one of the forms would cut."""
    return _reachable(gpt2, gpt2_bpe, selection)


@pytest.fixture(scope="session")
def table(reachable: Selection, gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE, topics_counts: PretokenCounts) -> pl.DataFrame:
    """The candidates with the ids that they receive."""
    return candidates_table(reachable, gpt2_bpe, token_frequencies(topics_counts, gpt2))


@pytest.fixture(scope="session")
def rules(table: pl.DataFrame) -> RemapRules:
    """The rules in the table."""
    return rules_from_table(table)


@pytest.fixture(scope="session")
def remapped_bpe(gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE, rules: RemapRules) -> Tokenizer:
    """The rules applied to the BPE."""
    return remap_tokenizer(gpt2, gpt2_bpe, rules)


@pytest.fixture(scope="session")
def distillation(remapped_bpe: Tokenizer, topics_counts: PretokenCounts) -> Distillation:
    """The remapped BPE distilled, with exceptions for the topics."""
    return distill(remapped_bpe, read_bpe(remapped_bpe), topics_counts, exceptions=10_000)


@pytest.fixture(scope="session", params=["bpe", "unigram"])
def form(request: pytest.FixtureRequest) -> str:
    """Both forms of a remapped tokenizer."""
    return str(request.param)


@pytest.fixture(scope="session")
def remapped(form: str, remapped_bpe: Tokenizer, distillation: Distillation) -> Tokenizer:
    """The remapped tokenizer in one of its forms."""
    return remapped_bpe if form == "bpe" else distillation.tokenizer


@pytest.fixture(scope="session")
def llama_like(train_bpe: Callable[..., Tokenizer], topics: list[str]) -> Tokenizer:
    """A BPE as converted from ranks alone: every split of a token is a merge, and pre-tokens stay whole.

    `qxzv` has no merge, so only a whole pre-token becomes it.
    """
    pattern = pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated")
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained = train_bpe(topics[:20], 500, pre_tokenizer=pre_tokenizers.Sequence([pattern, whole]))
    specification = json.loads(trained.to_str())
    ids = specification["model"]["vocab"]
    splits = [(s[:n], s[n:]) for s in ids for n in range(1, len(s)) if s[:n] in ids and s[n:] in ids]
    splits.sort(key=lambda pair: (ids[pair[0] + pair[1]], ids[pair[0]], ids[pair[1]]))
    end = specification["added_tokens"][0]
    ids["qxzv"], end["id"] = end["id"], end["id"] + 1
    specification["model"] |= {"merges": splits, "ignore_merges": True}
    tokenizer: Tokenizer = Tokenizer.from_str(json.dumps(specification))
    return tokenizer


@pytest.fixture(scope="session", params=["GPT-2", "Llama 3"])
def small_base(request: pytest.FixtureRequest, tiny_bpe: Tokenizer, llama_like: Tokenizer) -> Tokenizer:
    """A small base of each kind."""
    return tiny_bpe if request.param == "GPT-2" else llama_like


@pytest.fixture(scope="module")
def bpe(tiny_bpe: Tokenizer) -> ByteLevelBPE:
    """256 bytes, 300 merged tokens and `<|endoftext|>`."""
    return read_bpe(tiny_bpe)
