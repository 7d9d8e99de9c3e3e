"""Tokenizers in the terms of llama.cpp."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers, processors

from ivr_dagster.core.export.llama_cpp import (
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    check_merge_scope,
    describe_tokenizer,
    pre_tokenizer_name,
)
from ivr_dagster.core.tokenizer.folder import BPE_TOKENIZER, TokenizerFolder
from ivr_dagster.errors import InputError
from ivr_dagster_tests.core.export.conftest import ExportedModel
from ivr_dagster_tests.exported_models import LLAMA3_PATTERN, QWEN2_PATTERN
from ivr_dagster_tests.small_pipeline import END


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def in_folder(tokenizer: Tokenizer, folder: Path, **model: object) -> TokenizerFolder:
    specification = json.loads(tokenizer.to_str())
    specification["model"] |= model
    (folder / "tokenizer.json").write_text(json.dumps(specification))
    return TokenizerFolder(folder)


@pytest.mark.parametrize(
    ("pre_tokenizer", "ignore_merges", "name"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), False, "gpt-2"),
        (
            pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            ),
            False,
            "smollm",
        ),
        (split(LLAMA3_PATTERN), True, "llama-bpe"),
        (split(LLAMA3_PATTERN), False, "smaug-bpe"),
        (split(QWEN2_PATTERN), False, "qwen2"),
        (split(QWEN2_PATTERN), True, "qwen2"),  # every token can be merged, so ids are the same
    ],
)
def test_pre_tokenizer_is_recognized_by_its_patterns(
    pre_tokenizer: pre_tokenizers.PreTokenizer, ignore_merges: bool, name: str, tiny_bpe: Tokenizer, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.from_str(tiny_bpe.to_str())
    tokenizer.pre_tokenizer = pre_tokenizer
    assert pre_tokenizer_name(in_folder(tokenizer, tmp_path, ignore_merges=ignore_merges)) == name


def test_patterns_with_line_breaks_as_characters_are_recognized(tiny_bpe: Tokenizer, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(tiny_bpe.to_str())
    tokenizer.pre_tokenizer = split(QWEN2_PATTERN.replace(r"\r", "\r").replace(r"\n", "\n"))
    assert pre_tokenizer_name(in_folder(tokenizer, tmp_path)) == "qwen2"


def test_unknown_pre_tokenizer_is_refused_with_its_pattern(tiny_bpe: Tokenizer, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(tiny_bpe.to_str())
    tokenizer.pre_tokenizer = split(r"\w+|\W")
    with pytest.raises(InputError, match=r"no name for the pre-tokenizer \\w\+\|\\W.*--formats huggingface,tiktoken"):
        pre_tokenizer_name(in_folder(tokenizer, tmp_path))


def test_token_that_depends_on_ignore_merges_is_refused(tiny_bpe: Tokenizer, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(tiny_bpe.to_str())
    tokenizer.pre_tokenizer = split(QWEN2_PATTERN)
    specification = json.loads(tokenizer.to_str())
    merges = specification["model"]["merges"]
    last = "".join(merges[-1])
    folder = in_folder(tokenizer, tmp_path, ignore_merges=True, merges=merges[:-1])
    with pytest.raises(InputError, match=f"qwen2.*{last}"):
        pre_tokenizer_name(folder)


def test_new_tokens_across_pretokens_are_refused_naming_the_option(tiny_bpe: Tokenizer, tmp_path: Path) -> None:
    across = Tokenizer.from_str(tiny_bpe.to_str())
    across.pre_tokenizer = split(r" of the(?!\w)|\w+|\W")
    tiny_bpe.save(str(tmp_path / "base_tokenizer.json"))
    with pytest.raises(InputError, match="--merge-scope within"):
        check_merge_scope(in_folder(across, tmp_path))


def test_description_has_types_special_ids_and_padding(random_model: ExportedModel) -> None:
    model = random_model("qwen2")
    file = model.path / BPE_TOKENIZER
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.add_tokens([AddedToken("<keep>", special=False)])
    end = tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, end)])
    tokenizer.save(str(file))
    (model.path / "chat_template.jinja").write_text("{{ messages }}")
    size = tokenizer.get_vocab_size()

    found = describe_tokenizer(TokenizerFolder(model.path), size + 3, "qwen2")

    assert found.tokens[:size] == tuple(tokenizer.id_to_token(i) for i in range(size))
    assert found.tokens[size:] == tuple(f"[PAD{i}]" for i in range(size, size + 3))
    assert [found.types[i] for i in (0, end, tokenizer.token_to_id("<keep>"), size)] == [
        *(NORMAL, CONTROL, USER_DEFINED, UNUSED)
    ]
    assert found.special_ids["eos"] == found.special_ids["bos"] == end
    assert (found.add_bos, found.add_eos) == (True, False)
    assert found.metadata()["tokenizer.chat_template"] == "{{ messages }}"
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    assert found.merges == tuple(f"{left} {right}" for left, right in merges)


def test_more_tokens_than_rows_are_refused(
    base_tokenizer: Callable[[str], Tokenizer], random_model: ExportedModel
) -> None:
    size = base_tokenizer("gpt2").get_vocab_size()
    with pytest.raises(InputError, match=f"{size:,} tokens, the model {size - 1:,}"):
        describe_tokenizer(TokenizerFolder(random_model("gpt2").path), size - 1, "gpt-2")
