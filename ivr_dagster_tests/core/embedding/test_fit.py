"""Which documents new rows are fitted to."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from ivr_dagster.core.corpus.cleaned import CleanedCorpus, write_cleaned_corpus
from ivr_dagster.core.corpus.subset import document_sizes, split_validation
from ivr_dagster.core.embedding.fit import read_texts
from ivr_dagster.core.training.documents import split_train_documents
from ivr_dagster_tests.small_pipeline import project_settings


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> CleanedCorpus:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "raw").mkdir()
    texts = [f"document {number} " * 20 for number in range(300)]
    (folder / "raw" / "all.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    write_cleaned_corpus(folder / "raw", folder / "cleaned")
    return CleanedCorpus(folder / "cleaned")


@pytest.mark.parametrize("changed", [{}, {"max_texts": 100}, {"train_bytes": 20_000}, {"validation_bytes": 0}])
def test_rows_are_fitted_without_the_documents_that_training_validates_on(
    corpus: CleanedCorpus, tmp_path: Path, changed: dict[str, Any]
) -> None:
    settings = project_settings(tmp_path, **changed)
    encoded = {i for i, _ in islice(corpus.documents("train"), settings.corpus.max_texts or None)}
    validation = split_train_documents(corpus, encoded, settings.training).validation
    sizes = document_sizes(islice(corpus.documents("train"), settings.corpus.max_texts or None))
    sizes, found = split_validation(sizes, settings.training.validation_bytes, settings.training.train_bytes)
    assert found.keys() == validation
    assert bool(validation) == (settings.training.validation_bytes > 0)
    texts, size = read_texts(corpus, sizes, 0)
    assert set(texts) == {text for i, text in corpus.documents("train") if i in encoded - validation}
    assert size == sum(len(text.encode()) for text in texts)
