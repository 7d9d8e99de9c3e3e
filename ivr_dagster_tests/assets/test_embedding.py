"""Which text rows are fitted to."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from ivr_dagster.assets.embedding import _Text
from ivr_dagster.assets.training import _divided
from ivr_dagster.core.corpus.cleaned import CleanedCorpus, write_cleaned_corpus
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.sample import SAMPLE_MODEL
from ivr_dagster_tests.small_pipeline import project_settings


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> CleanedCorpus:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "raw").mkdir()
    texts = [f"document {number} " * 20 for number in range(300)]
    (folder / "raw" / "all.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    write_cleaned_corpus(folder / "raw", folder / "cleaned")
    return CleanedCorpus(folder / "cleaned")


@pytest.mark.parametrize("given", [{}, {"max_texts": 100}, {"train_bytes": 20_000}, {"validation_bytes": 0}])
def test_it_is_without_the_documents_that_training_validates_on(
    corpus: CleanedCorpus, tmp_path: Path, given: dict[str, Any]
) -> None:
    settings = project_settings(tmp_path, **given)
    encoded = {i for i, _ in islice(corpus.documents("train"), settings.corpus.max_texts or None)}
    _, validation, _, _ = _divided(settings, corpus, encoded, lambda _: True)
    text = _Text(settings, corpus, TokenizerFolder(SAMPLE_MODEL))
    of_validation = {each for i, each in corpus.documents("train") if i in validation}
    fitted, size = text.to_fit(0)
    assert set(fitted) == {each for i, each in corpus.documents("train") if i in encoded} - of_validation
    assert size == sum(len(each.encode()) for each in fitted)
    assert set(text.to_measure()) == of_validation
    assert bool(of_validation) == (settings.training.validation_bytes > 0)
