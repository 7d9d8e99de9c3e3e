"""Documents to train and to validate on, general text, and figures of the speed."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ivr_dagster.assets.training import _general_texts
from ivr_dagster.assets.training_figures import speed
from ivr_dagster.core.corpus.cleaned import CleanedCorpus, write_cleaned_corpus
from ivr_dagster.core.training.documents import DocumentSplit, split_train_documents
from ivr_dagster.core.training.progress import describe_progress
from ivr_dagster.resources.settings import ProjectSettings
from ivr_dagster.sample.other_text import heldout_code
from ivr_dagster.settings.groups import TrainingSettings
from ivr_dagster_tests.small_pipeline import project_settings

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> CleanedCorpus:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "raw").mkdir()
    texts = [f"{one}{two} " * 30 for one in LETTERS for two in LETTERS[:10]]
    (folder / "raw" / "all.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    write_cleaned_corpus(folder / "raw", folder / "cleaned")
    return CleanedCorpus(folder / "cleaned")


def settings(folder: Path, **given: Any) -> ProjectSettings:
    return project_settings(folder, **given)


def split(corpus: CleanedCorpus, **given: int) -> DocumentSplit:
    everything = {i for i, _ in corpus.documents("train")}
    return split_train_documents(corpus, everything, TrainingSettings(**given))


def test_validation_takes_at_most_a_twentieth_and_shares_no_document_with_training(corpus: CleanedCorpus) -> None:
    found = split(corpus)
    assert found.train | found.validation == {i for i, _ in corpus.documents("train")}
    assert not found.train & found.validation
    assert 0 < found.validation_bytes <= 0.05 * (found.train_bytes + found.validation_bytes)


def test_validation_does_not_depend_on_train_bytes(corpus: CleanedCorpus) -> None:
    everything, part = split(corpus, validation_bytes=200), split(corpus, validation_bytes=200, train_bytes=5_000)
    assert part.validation == everything.validation and not part.train & part.validation
    assert part.train_bytes <= 5_000


@pytest.mark.parametrize("given", [{"validation_bytes": 0}, {"train_bytes": 300}])
def test_too_little_text_is_not_validated_on(given: dict[str, int], corpus: CleanedCorpus) -> None:
    found = split(corpus, **given)
    assert (found.validation, found.validation_bytes) == (set(), 0)


def test_general_text_has_its_share_and_excludes_the_corpus(corpus: CleanedCorpus, tmp_path: Path) -> None:
    ours = [text for split in ("train", "heldout") for _, text in corpus.documents(split)]
    others = [f"general {number} " * 20 for number in range(50)]
    (tmp_path / "general").mkdir()
    lines = (json.dumps({"text": text}) + "\n" for text in ours + others)
    (tmp_path / "general" / "all.jsonl").write_text("".join(lines))
    asked = settings(tmp_path, general_corpora_dir=str(tmp_path / "general"), general_share=0.2)
    texts = _general_texts(asked, corpus, 8_000)
    assert texts and all(text.startswith("general") for text in texts)
    assert 1_500 < sum(len(text.encode()) for text in texts) <= 2_000
    assert _general_texts(settings(tmp_path), corpus, 8_000) == []


def test_code_that_is_not_measured_is_mixed_into_the_sample(corpus: CleanedCorpus, tmp_path: Path) -> None:
    code = _general_texts(settings(tmp_path, preset="sample", general_share=0.2), corpus, 80_000)
    assert 15_000 < sum(len(text.encode()) for text in code) <= 20_000
    measured = "\n".join(heldout_code())
    assert not any(text in measured for text in code)
    assert _general_texts(settings(tmp_path, preset="sample", general_share=0), corpus, 80_000) == []


def test_text_that_measures_forgetting_is_not_trained_on(corpus: CleanedCorpus, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    lines = (json.dumps({"text": f"general {number} " * 20}) + "\n" for number in range(30))
    (tmp_path / "other" / "all.jsonl").write_text("".join(lines))
    folder = {"general_corpora_dir": str(tmp_path / "other"), "retention_corpora_dir": str(tmp_path / "other")}
    alone = _general_texts(settings(tmp_path, **folder, retention_bytes=0), corpus, 10**6)
    beside = _general_texts(settings(tmp_path, **folder, retention_bytes=1_000), corpus, 10**6)
    assert set(beside) < set(alone) and len(alone) == 30


def test_speed_is_in_log_and_metadata_and_mfu_only_if_known() -> None:
    result: Any = SimpleNamespace(tokens_per_second=1_234.56, flops_per_second=3.7e13, mfu=None)
    entry = {"step": 3, "max_steps": 9, "loss": 2.5, "seconds_left": 60}
    entry |= {"tokens_per_second": 1_234.56, "flops_per_second": 3.7e13}
    figures = {"tokens_per_second": 1_234.6, "flops_per_second": 37_000_000_000_000}
    assert speed(result, None) == figures
    assert "1,235 tokens/s, 37,000.0 GFLOP/s, 60 s left" in describe_progress(entry, None)
    result.mfu = entry["mfu"] = 0.41234
    assert speed(result, 4.0) == figures | {"bytes_per_second": 4_938, "mfu": 0.4123}
    assert "1,235 tokens/s, 4,938 bytes/s, 37,000.0 GFLOP/s, MFU 41.2%" in describe_progress(entry, 4.0)
    result.tokens_per_second = 0.0
    assert speed(result, 4.0) == {}
