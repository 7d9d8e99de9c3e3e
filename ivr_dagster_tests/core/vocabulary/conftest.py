"""GPT-2 adapted to Python's help topics, within and across pre-tokens, in both forms; small bases of other kinds."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

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


@dataclass(frozen=True, eq=False)
class Adaptation:
    """GPT-2 with 300 candidates of a merge scope; each step is computed once."""

    merge_scope: str
    gpt2: Tokenizer
    gpt2_bpe: ByteLevelBPE
    topics: list[str]
    counts: PretokenCounts

    @cached_property
    def selection(self) -> Selection:
        settings = SelectionSettings.model_validate({"merge_scope": self.merge_scope})
        return choose_candidates(self.gpt2, self.gpt2_bpe, self.counts, self.topics, settings, budget=BUDGET)

    @cached_property
    def reachable(self) -> Selection:
        return _reachable(self.gpt2, self.gpt2_bpe, self.selection)

    @cached_property
    def table(self) -> pl.DataFrame:
        return candidates_table(self.reachable, self.gpt2_bpe, token_frequencies(self.counts, self.gpt2))

    @cached_property
    def rules(self) -> RemapRules:
        return rules_from_table(self.table)

    @cached_property
    def bpe(self) -> Tokenizer:
        return remap_tokenizer(self.gpt2, self.gpt2_bpe, self.rules)

    @cached_property
    def distillation(self) -> Distillation:
        return distill(self.bpe, read_bpe(self.bpe), self.counts, exceptions=10_000)


@pytest.fixture(scope="session")
def adaptations(
    gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE, topics: list[str], topics_counts: PretokenCounts
) -> dict[str, Adaptation]:
    """Both adaptations, not computed yet: pytest builds a fixture with parameters again whenever they change."""
    return {scope: Adaptation(scope, gpt2, gpt2_bpe, topics, topics_counts) for scope in ("within", "across")}


@pytest.fixture(scope="session")
def selection(adaptations: dict[str, Adaptation], merge_scope: str) -> Selection:
    """300 candidates."""
    return adaptations[merge_scope].selection


@pytest.fixture(scope="session")
def reachable(adaptations: dict[str, Adaptation], merge_scope: str) -> Selection:
    """The candidates without a few that one of the forms would cut."""
    return adaptations[merge_scope].reachable


@pytest.fixture(scope="session")
def table(adaptations: dict[str, Adaptation], merge_scope: str) -> pl.DataFrame:
    """The candidates with the ids that they receive."""
    return adaptations[merge_scope].table


@pytest.fixture(scope="session")
def rules(adaptations: dict[str, Adaptation], merge_scope: str) -> RemapRules:
    """The rules in the table."""
    return adaptations[merge_scope].rules


@pytest.fixture(scope="session")
def remapped_bpe(adaptations: dict[str, Adaptation], merge_scope: str) -> Tokenizer:
    """The rules applied to the BPE."""
    return adaptations[merge_scope].bpe


@pytest.fixture(scope="session")
def distillation(adaptations: dict[str, Adaptation], merge_scope: str) -> Distillation:
    """The remapped BPE distilled, with exceptions for the topics."""
    return adaptations[merge_scope].distillation


@pytest.fixture(scope="session", params=["bpe", "unigram"])
def remapped(request: pytest.FixtureRequest, adaptations: dict[str, Adaptation], merge_scope: str) -> Tokenizer:
    """The remapped tokenizer in each of its forms."""
    adaptation = adaptations[merge_scope]
    return adaptation.bpe if request.param == "bpe" else adaptation.distillation.tokenizer


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
