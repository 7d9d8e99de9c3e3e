"""A model, a tokenizer and blocks small enough to be trained within a test."""

from pathlib import Path

import pytest

from ivr_dagster_tests.small_models import one_thread  # noqa: F401
from ivr_dagster_tests.small_pipeline import write_training_inputs


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model/` (GPT-2, 2 layers, dropout as usual), `tokenizer/` (bytes) and `blocks/` (50 blocks)."""
    folder = tmp_path_factory.mktemp("tiny")
    write_training_inputs(folder, layers=2, dropout=0.1)
    return folder
