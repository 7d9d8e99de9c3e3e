"""Handles of tokenizer and model folders, without loading a model."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from ivr_dagster.core.model.folder import InitializationCompute, ModelFolder
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.errors import InputError


def save_tokenizer(folder: Path, tokenizer: Tokenizer, **settings: str) -> TokenizerFolder:
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings).save_pretrained(folder)
    return TokenizerFolder(folder)


def test_end_of_text_id_is_that_of_the_eos_token(tiny_bpe: Tokenizer, tmp_path: Path) -> None:
    assert save_tokenizer(tmp_path, tiny_bpe, eos_token="<|endoftext|>").end_of_text_id() == 556


def test_end_of_text_id_names_a_tokenizer_without_one(tiny_bpe: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no end-of-text token") as error:
        save_tokenizer(tmp_path, tiny_bpe).end_of_text_id()
    assert error.value.where == tmp_path


@pytest.mark.parametrize(
    ("config", "context", "sequence"),
    [
        ({"model_type": "gpt2", "n_positions": 48}, 48, 48),
        ({"model_type": "gpt2", "n_positions": 4096}, 4096, 1024),
        ({"model_type": "bloom"}, None, 1024),
    ],
)
def test_context_and_sequence_length_come_from_the_configuration(
    config: dict[str, object], context: int | None, sequence: int, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert (ModelFolder(tmp_path).context(), ModelFolder(tmp_path).sequence_tokens()) == (context, sequence)


def test_initialization_compute_is_read_as_written_and_zero_where_missing(tmp_path: Path) -> None:
    assert ModelFolder(tmp_path).initialization_compute().training_tokens == 0
    InitializationCompute(300, 600, 1200).write(tmp_path)
    # one forward pass is a third of a training step, a frozen model's forward and backward pass two thirds
    assert ModelFolder(tmp_path).initialization_compute().training_tokens == pytest.approx(100 + 400 + 400)
