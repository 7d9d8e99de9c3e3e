"""What handles of folders tell without loading a model."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.errors import InputError


def tokenizer_in(folder: Path, tokenizer: Tokenizer, **settings: str) -> TokenizerFolder:
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings).save_pretrained(folder)
    return TokenizerFolder(folder)


def test_a_tokenizer_tells_the_id_that_stands_between_documents(tiny_bpe: Tokenizer, tmp_path: Path) -> None:
    assert tokenizer_in(tmp_path, tiny_bpe, eos_token="<|endoftext|>").end_of_text_id() == 556


def test_a_tokenizer_without_one_is_refused_by_its_place(tiny_bpe: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no end-of-text token") as error:
        tokenizer_in(tmp_path, tiny_bpe).end_of_text_id()
    assert error.value.where == tmp_path


@pytest.mark.parametrize(
    ("config", "context"), [({"model_type": "gpt2", "n_positions": 48}, 48), ({"model_type": "bloom"}, None)]
)
def test_a_model_tells_its_context_where_its_configuration_does(
    config: dict[str, object], context: int | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ModelFolder(tmp_path).context() == context
    assert ModelFolder(tmp_path).tokens_at_once() == (context or 1024)


def test_a_long_context_is_not_used_whole(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_positions": 4096}))
    assert ModelFolder(tmp_path).tokens_at_once() == 1024
