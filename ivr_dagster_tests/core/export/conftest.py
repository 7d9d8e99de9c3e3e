"""Random models of each architecture whose tokenizers had some ids reassigned."""

from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from tokenizers import Tokenizer

from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster_tests.exported_models import (
    add_bpe_form,
    lines_of_five_kinds,
    reassign_leaves,
    trained_tokenizer,
    write_random_model,
)

ExportedModel = Callable[..., ModelFolder]


@pytest.fixture(scope="session")
def lines() -> list[str]:
    """See :func:`lines_of_five_kinds`."""
    return lines_of_five_kinds()


@pytest.fixture(scope="session")
def base_tokenizer(lines: list[str]) -> Callable[[str], Tokenizer]:
    """The base tokenizer of a kind of model."""
    texts = [*lines, *(text for _, text in sorted(topics.items())[:20])]
    made: dict[str, Tokenizer] = {}

    def tokenizer(kind: str) -> Tokenizer:
        if kind not in made:
            made[kind] = trained_tokenizer(kind, texts)
        return made[kind]

    return tokenizer


@pytest.fixture(scope="session")
def random_model(
    lines: list[str], base_tokenizer: Callable[[str], Tokenizer], tmp_path_factory: pytest.TempPathFactory
) -> ExportedModel:
    """`random_model(kind, **config)` writes a model folder with a remapped tokenizer."""

    def write(kind: str, **changed: Any) -> ModelFolder:
        folder: Path = tmp_path_factory.mktemp(kind)
        base = base_tokenizer(kind)
        write_random_model(folder, kind, base, **changed)
        add_bpe_form(folder, base, reassign_leaves(base, lines, 100))
        return ModelFolder(folder)

    return write
