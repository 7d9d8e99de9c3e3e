"""The texts of a search's trials, and the numbers of new tokens to try."""

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from ivr_dagster.assets import tuning
from ivr_dagster.assets.tuning import _rules_by_number, _texts
from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.training.folders import TrainedModel, TuningFolder
from ivr_dagster.core.vocabulary.rules import RemapRule, RemapRules
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


def test_trials_read_tune_bytes_and_are_validated_on_a_fifth_as_much() -> None:
    train, validation = _texts(settings(tune_bytes=1_000), corpus(CORPUS))
    assert train == [CORPUS[f"{number:02}"] for number in range(10)]
    assert validation == [CORPUS["38"], CORPUS["39"]]


def test_less_text_than_tune_bytes_is_used_completely() -> None:
    train, validation = _texts(settings(tune_bytes=1_000_000), corpus(CORPUS))
    assert (len(train), len(validation)) == (32, 8)
    assert not set(train) & set(validation)


def test_trials_read_at_most_max_texts() -> None:
    train, validation = _texts(settings(max_texts=5), corpus(CORPUS))
    assert {*train, *validation} == {CORPUS[f"{number:02}"] for number in range(5)}


@pytest.mark.parametrize("tune_bytes", [1, 1_000])
def test_single_document_is_rejected(tune_bytes: int) -> None:
    with pytest.raises(InputError, match=r"cleaned: a trial needs documents.*has 1\b"):
        _texts(settings(tune_bytes=tune_bytes), corpus({"00": "a text"}))


RULES = RemapRules(tuple(RemapRule(i, f"old{i}", f"new{i}", ("ne", f"w{i}")) for i in (1, 3, 7, 9)))


def rules_by_number(monkeypatch: pytest.MonkeyPatch, **given: Any) -> dict[int, RemapRules]:
    monkeypatch.setattr(
        "ivr_dagster.core.training.fewer_new_tokens.best_rules",
        lambda rules, _, __, number: RemapRules(rules.rules[-number:]),
    )
    context: Any = SimpleNamespace(log=logging.getLogger("tuning"))
    tokenizer: Any = None
    return _rules_by_number(context, settings(**given), RULES, tokenizer, [])


def test_best_half_and_quarter_of_the_new_tokens_are_tried_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rules_by_number(monkeypatch) == {4: RULES}
    tried = rules_by_number(monkeypatch, tune_new_tokens=True)
    assert {number: [rule.id for rule in rules] for number, rules in tried.items()} == {
        4: [1, 3, 7, 9],
        2: [7, 9],
        1: [9],
    }


def test_external_model_is_tried_with_all_its_new_tokens_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert list(rules_by_number(monkeypatch, tune_new_tokens=True, train_model_name="my-model")) == [4]
    assert "external" in caplog.text


@pytest.mark.parametrize("beside", [None, "initialized_model", "sft_checkpoint"])
def test_a_run_that_also_trains_does_not_search(
    beside: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stub(name: str, value: Any) -> dg.AssetsDefinition:
        return dg.asset(name=name)(lambda: value)

    others = [
        stub("cleaned_corpus", CleanedCorpus(tmp_path)),
        stub("initialized_model", ModelFolder(tmp_path)),
        stub("sft_checkpoint", TrainedModel(tmp_path)),
    ]
    monkeypatch.setattr(tuning, "_study", lambda *_: dg.MaterializeResult(value=TuningFolder(tmp_path)))
    values = dg.FilesystemIOManager(base_dir=str(tmp_path))
    resources = {"settings": None, "accelerator": None, "base": None, "tuning_io": values, "io_manager": values}
    with dg.DagsterInstance.ephemeral() as instance:
        given: dict[str, Any] = {"instance": instance, "resources": resources}
        dg.materialize(others, **given)
        selected = ["tuning_study", *([beside] if beside else [])]
        result = dg.materialize([*others, tuning.tuning_study], selection=selected, **given)
    assert bool(result.asset_materializations_for_node("tuning_study")) == (beside != "sft_checkpoint")
