"""Which text trials of a search read, and which numbers of new tokens it may try."""

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from ivr_dagster.assets.tuning import _rules_by_number, _texts
from ivr_dagster.core.vocabulary.rules import RemapRules
from ivr_dagster.core.vocabulary.table import rules_from_table
from ivr_dagster.errors import InputError
from ivr_dagster.resources.settings import ProjectSettings
from ivr_dagster_tests.small_pipeline import project_settings

CORPUS: dict[str, str] = {f"{number:02}": f"{number:02}" * 50 for number in range(40)}  # 100 bytes each


def corpus(documents: dict[str, str]) -> Any:
    def each(split: str) -> Iterator[tuple[str, str]]:
        assert split == "train"
        return iter(documents.items())

    return SimpleNamespace(documents=each, path=Path("cleaned"))


def settings(**given: Any) -> ProjectSettings:
    return project_settings(Path("artifacts"), **given)


def test_trials_read_so_many_bytes_and_are_validated_on_a_fifth_as_much_of_other_documents() -> None:
    train, validation = _texts(settings(tune_bytes=1_000), corpus(CORPUS))
    assert train == [CORPUS[f"{number:02}"] for number in range(10)]
    assert validation == [CORPUS["38"], CORPUS["39"]]


def test_with_less_text_than_is_asked_for_all_of_it_is_used() -> None:
    train, validation = _texts(settings(tune_bytes=1_000_000), corpus(CORPUS))
    assert (len(train), len(validation)) == (32, 8)
    assert not set(train) & set(validation)


def test_documents_that_are_not_trained_on_are_not_tuned_on() -> None:
    train, validation = _texts(settings(max_texts=5), corpus(CORPUS))
    assert {*train, *validation} == {CORPUS[f"{number:02}"] for number in range(5)}


@pytest.mark.parametrize("tune_bytes", [1, 1_000])
def test_a_single_document_is_too_little(tune_bytes: int) -> None:
    with pytest.raises(InputError, match=r"cleaned: a trial needs documents.*has 1\b"):
        _texts(settings(tune_bytes=tune_bytes), corpus({"00": "a text"}))


TABLE = pl.DataFrame(
    {
        "rank": [1, 2, 3, 4],
        "new_token": ["best", "good", "fair", "last"],
        "constituents": ["be st", "go od", "fa ir", "la st"],
        "sacrificed_id": [9, 3, 7, 1],
        "sacrificed_token": ["w", "x", "y", "z"],
        "sacrificed_frequency": [0] * 4,
        "frequency": [9] * 4,
        "saving": [9] * 4,
    }
)


def numbers(rules: RemapRules, **given: Any) -> dict[int, RemapRules]:
    context: Any = SimpleNamespace(load_asset_value=lambda key: TABLE, log=logging.getLogger("tuning"))
    return _rules_by_number(context, settings(**given), rules)


def test_the_best_half_and_quarter_of_the_new_tokens_are_tried_where_that_is_wanted() -> None:
    rules = rules_from_table(TABLE)
    assert numbers(rules) == {4: rules}
    tried = numbers(rules, tune_new_tokens=True)
    assert list(tried) == [4, 2, 1]
    assert {rule.new_token for rule in tried[2]} == {"best", "good"}
    assert [rule.new_token for rule in tried[1]] == ["best"]


@pytest.mark.parametrize("brought", [{}, {"train_model_name": "a model of mine"}])
def test_rules_or_a_model_not_of_our_making_are_taken_as_they_are(
    brought: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    rules = rules_from_table(TABLE if brought else TABLE.head(3))
    assert list(numbers(rules, tune_new_tokens=True, **brought)) == [len(rules)]
    assert "not of our making" in caplog.text
