"""Which text the report measures retention on, and what it reads of trainings."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ivr_dagster.assets.evaluation import _curves, _retention_text
from ivr_dagster.core.corpus.cleaned import CleanedCorpus, write_cleaned_corpus
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.training.folders import TrainedModel, TrainingBlocks
from ivr_dagster.resources.settings import ProjectSettings
from ivr_dagster.sample import SAMPLE_MODEL, other_text
from ivr_dagster.settings.groups import CorpusSettings
from ivr_dagster_tests.small_pipeline import project_settings

BASE = TokenizerFolder(SAMPLE_MODEL)
DOCUMENTATION = [f"Documentation, page {number}, of what every Python carries." for number in range(20)]


@pytest.fixture
def corpus(tmp_path: Path) -> CleanedCorpus:
    """A corpus of the first ten pages."""
    (tmp_path / "raw").mkdir()
    lines = [json.dumps({"text": text}) for text in DOCUMENTATION[:10]]
    (tmp_path / "raw" / "pages.jsonl").write_text("\n".join(lines), encoding="utf-8")
    write_cleaned_corpus(tmp_path / "raw", tmp_path / "cleaned", CorpusSettings(heldout_fraction=0.5))
    return CleanedCorpus(tmp_path / "cleaned")


@pytest.fixture
def carried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Python carries, in short."""
    pages = list(DOCUMENTATION)
    monkeypatch.setattr(other_text, "english_documentation", lambda: iter(pages))
    monkeypatch.setattr(other_text, "heldout_code", lambda: iter(["import this\n"]))
    return pages


def settings(folder: Path, **changed: Any) -> ProjectSettings:
    return project_settings(folder, **changed)


def test_documentation_that_the_corpus_does_not_hold(tmp_path: Path, corpus: CleanedCorpus, carried: list[str]) -> None:
    text, retention = _retention_text(settings(tmp_path), corpus, BASE, 1024)
    assert text is not None
    assert retention is not None
    assert sorted(text.texts) == sorted(DOCUMENTATION[10:])
    assert (retention.documents, retention.skipped) == (10, "")
    assert retention.bytes == sum(map(len, text.texts))
    assert text.context_bytes == max(map(len, text.texts))  # all of every page


def test_where_the_corpus_holds_all_of_it_the_report_says_so(
    tmp_path: Path, corpus: CleanedCorpus, carried: list[str]
) -> None:
    del carried[10:]
    text, retention = _retention_text(settings(tmp_path), corpus, BASE, 1024)
    assert text is None
    assert retention is not None
    assert "the corpus itself holds" in retention.skipped
    assert "--retention-corpora-dir" in retention.skipped


def test_the_sample_model_is_measured_on_code(tmp_path: Path, corpus: CleanedCorpus, carried: list[str]) -> None:
    text, retention = _retention_text(settings(tmp_path, model_name="sample"), corpus, BASE, 1024)
    assert text is not None
    assert retention is not None
    assert (text.texts, retention.source) == (["import this\n"], other_text.HELDOUT_CODE)


def test_a_persons_folder_goes_before_and_no_bytes_measure_nothing(
    tmp_path: Path, corpus: CleanedCorpus, carried: list[str]
) -> None:
    (tmp_path / "poems").mkdir()
    (tmp_path / "poems" / "one.txt").write_text("Shall I compare thee", encoding="utf-8")
    asked = settings(tmp_path, retention_corpora_dir=str(tmp_path / "poems"), model_name="sample")
    text, retention = _retention_text(asked, corpus, BASE, 1024)
    assert text is not None
    assert retention is not None
    assert (text.texts, retention.source) == (["Shall I compare thee"], "the text in the folder poems")
    assert _retention_text(settings(tmp_path, retention_bytes=0), corpus, BASE, 1024) == (None, None)


def test_curves_are_in_the_units_of_each_runs_tokenizer(tmp_path: Path) -> None:
    blocks = TrainingBlocks(tmp_path)
    blocks.write_counts({"train": 1200}, {"remapped": {"train": 200}, "base": {"train": 400}})
    runs = {name: TrainedModel(tmp_path / name) for name in ("sft", "vanilla_sft")}
    for run in runs.values():
        run.path.mkdir()
        history = {"steps": 10, "tokens": 500, "losses": [[5, 2.0]], "validation": [[10, 1.5]]}
        if run.path.name == "vanilla_sft":
            del history["validation"]  # of a run before there was one
        (run.path / "history.json").write_text(json.dumps(history), encoding="utf-8")
    losses, learning = _curves(blocks, runs)
    assert losses["sft"].bytes_seen == (5 * 50 * 6,)
    assert losses["vanilla_sft"].bytes_seen == (5 * 50 * 3,)
    assert np.isclose(losses["sft"].bits_per_byte[0], 2 / np.log(2) / 6)
    assert list(learning) == ["sft"]
    assert (learning["sft"].tokens_seen, learning["sft"].bytes_seen) == ((500,), (3000,))
