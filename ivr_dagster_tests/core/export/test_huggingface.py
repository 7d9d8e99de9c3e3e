"""The exported model folder, as transformers loads it."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from ivr_dagster.core.export.huggingface import plain_card, with_unicode_digits, write_huggingface
from ivr_dagster.core.tokenizer.folder import BPE_TOKENIZER, TokenizerFolder
from ivr_dagster.errors import InputError
from ivr_dagster_tests.core.export.conftest import ExportedModel


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
def test_auto_classes_load_the_model_with_the_bpe_tokenizer(
    kind: str, random_model: ExportedModel, lines: list[str], tmp_path: Path
) -> None:
    model = random_model(kind)
    (model.path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert write_huggingface(model, "the card", tmp_path, lines) > len(lines)

    names = {"README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors"}
    names |= {"tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in tmp_path.iterdir()} == names
    assert (tmp_path / "README.md").read_text() == "the card"
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    expected = TokenizerFolder(model.path).bpe_form()
    assert tokenizer(lines)["input_ids"] == [each.ids for each in expected.encode_batch_fast(lines)]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "Hi"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    original = model.load().state_dict()
    assert all((original[name] == values).all() for name, values in loaded.state_dict().items())


def test_model_without_a_bpe_form_is_refused(
    gpt2_distilled: Tokenizer, random_model: ExportedModel, tmp_path: Path
) -> None:
    model = random_model("gpt2")
    (model.path / BPE_TOKENIZER).unlink()
    gpt2_distilled.save(str(model.path / "tokenizer.json"))
    with pytest.raises(InputError, match=f"found a Unigram model.*{BPE_TOKENIZER}"):
        write_huggingface(model, "", tmp_path)


def test_digits_are_split_by_a_pattern_that_javascript_understands(tiny_bpe: Tokenizer, lines: list[str]) -> None:
    tokenizer = Tokenizer.from_str(tiny_bpe.to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    portable = with_unicode_digits(tokenizer)
    assert '"Digits"' not in portable.to_str()
    texts = [*lines, "½Ⅷ٣ 12"]
    assert [each.ids for each in portable.encode_batch_fast(texts)] == [
        each.ids for each in tokenizer.encode_batch_fast(texts)
    ]


def test_plain_card_names_the_architecture_and_says_that_nothing_was_measured() -> None:
    card = plain_card("qwen2", "Base")
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "- qwen2\n" in card and "# Base, adapted" in card and "not evaluated" in card
