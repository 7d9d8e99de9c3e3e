"""Which text is trained on, which is validated on, and what is mixed in."""

import json
from pathlib import Path
from typing import Any

import pytest

from ivr_dagster.assets.training import _divided, _general_texts
from ivr_dagster.core.corpus.cleaned import CleanedCorpus, write_cleaned_corpus
from ivr_dagster.resources.settings import SettingsResource

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> CleanedCorpus:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "raw").mkdir()
    texts = [f"{one}{two} " * 30 for one in LETTERS for two in LETTERS[:10]]
    (folder / "raw" / "all.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    write_cleaned_corpus(folder / "raw", folder / "cleaned")
    return CleanedCorpus(folder / "cleaned")


def settings(folder: Path, **given: Any) -> SettingsResource:
    return SettingsResource(artifacts_dir=str(folder), **given)


def always(_: list[str]) -> bool:
    return True


def test_validation_takes_a_twentieth_at_most_and_shares_no_document_with_training(
    corpus: CleanedCorpus, tmp_path: Path
) -> None:
    everything = {i for i, _ in corpus.documents("train")}
    train, validation, size, kept = _divided(settings(tmp_path), corpus, everything, always)
    assert train | validation == everything and not train & validation
    assert 0 < kept <= 0.05 * (size + kept)


def test_validation_stays_the_same_whatever_part_is_trained_on(corpus: CleanedCorpus, tmp_path: Path) -> None:
    everything = {i for i, _ in corpus.documents("train")}
    asked = {"validation_bytes": 200}
    _, all_of_it, _, _ = _divided(settings(tmp_path, **asked), corpus, everything, always)
    train, part, size, _ = _divided(settings(tmp_path, train_bytes=5_000, **asked), corpus, everything, always)
    assert part == all_of_it and not train & part
    assert size <= 5_000


@pytest.mark.parametrize(
    ("given", "enough"), [({"validation_bytes": 0}, True), ({}, False), ({"train_bytes": 300}, True)]
)
def test_too_little_text_is_all_trained_on(
    given: dict[str, int], enough: bool, corpus: CleanedCorpus, tmp_path: Path
) -> None:
    everything = {i for i, _ in corpus.documents("train")}
    _, validation, _, kept = _divided(settings(tmp_path, **given), corpus, everything, lambda _: enough)
    assert (validation, kept) == (set(), 0)


def test_general_text_has_its_share_and_holds_no_document_of_the_corpus(corpus: CleanedCorpus, tmp_path: Path) -> None:
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
