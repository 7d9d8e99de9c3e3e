"""Which out-of-domain text forgetting is measured on."""

import json
from pathlib import Path

import pytest

from ivr_dagster.assets import evaluation
from ivr_dagster.assets.evaluation import out_of_domain_text
from ivr_dagster.core.corpus.cleaned import CleanedCorpus, write_cleaned_corpus
from ivr_dagster.sample.other_text import HELDOUT_CODE
from ivr_dagster.settings.groups import CorpusSettings
from ivr_dagster_tests.small_pipeline import project_settings

DOCUMENTATION = [f"Documentation, page {number}, that comes with every Python." for number in range(20)]


@pytest.fixture
def corpus(tmp_path: Path) -> CleanedCorpus:
    """A corpus of the first ten pages."""
    (tmp_path / "raw").mkdir()
    lines = [json.dumps({"text": text}) for text in DOCUMENTATION[:10]]
    (tmp_path / "raw" / "pages.jsonl").write_text("\n".join(lines), encoding="utf-8")
    write_cleaned_corpus(tmp_path / "raw", tmp_path / "cleaned", CorpusSettings(heldout_fraction=0.5))
    return CleanedCorpus(tmp_path / "cleaned")


@pytest.fixture(autouse=True)
def shipped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The text that comes with Python, shortened."""
    pages = list(DOCUMENTATION)
    monkeypatch.setattr(evaluation, "english_documentation", lambda: iter(pages))
    monkeypatch.setattr(evaluation, "heldout_code", lambda: iter(["import this\n"]))
    return pages


def test_default_text_is_documentation_without_the_corpus(
    tmp_path: Path, corpus: CleanedCorpus, shipped: list[str]
) -> None:
    text = out_of_domain_text(project_settings(tmp_path), corpus)
    assert text is not None
    assert (sorted(text.texts), text.skipped) == (sorted(DOCUMENTATION[10:]), "")
    del shipped[10:]
    text = out_of_domain_text(project_settings(tmp_path), corpus)
    assert text is not None
    assert not text.texts
    assert "the corpus contains all of" in text.skipped
    assert "--retention-corpora-dir" in text.skipped


def test_the_sample_model_is_measured_on_code(tmp_path: Path, corpus: CleanedCorpus) -> None:
    text = out_of_domain_text(project_settings(tmp_path, model_name="sample"), corpus)
    assert text is not None
    assert (text.texts, text.source) == (["import this\n"], HELDOUT_CODE)


def test_a_configured_folder_takes_precedence_and_zero_bytes_skip_it(tmp_path: Path, corpus: CleanedCorpus) -> None:
    (tmp_path / "poems").mkdir()
    (tmp_path / "poems" / "one.txt").write_text("Shall I compare thee", encoding="utf-8")
    changed = project_settings(tmp_path, retention_corpora_dir=str(tmp_path / "poems"), model_name="sample")
    text = out_of_domain_text(changed, corpus)
    assert text is not None
    assert (text.texts, text.source) == (["Shall I compare thee"], "the folder poems")
    assert out_of_domain_text(project_settings(tmp_path, retention_bytes=0), corpus) is None
