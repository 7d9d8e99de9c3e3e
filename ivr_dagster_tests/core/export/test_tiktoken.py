"""tiktoken files: ranks in merge order, ids beside them, and an honest comparison."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from ivr_dagster.core.export.probes import probe_texts
from ivr_dagster.core.export.tiktoken import load_exported, rank_tokens, write_tiktoken
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE
from ivr_dagster.errors import InputError
from ivr_dagster_tests.core.export.conftest import ExportedModel


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
def test_ids_equal_those_of_the_bpe_form(
    kind: str, random_model: ExportedModel, lines: list[str], tmp_path: Path
) -> None:
    tokenizer = TokenizerFolder(random_model(kind).path).bpe_form()
    texts = [*lines, *probe_texts(tokenizer), "a<|endoftext|>b"]
    found = write_tiktoken(tokenizer, tmp_path, texts, name="name")
    assert (found.differing, found.agreement, found.texts) == (0, 1.0, len(texts))
    assert found.tokens == len(rank_tokens(tokenizer))
    about = json.loads((tmp_path / "encoding.json").read_text())
    assert about["ids"] != sorted(about["ids"])  # reassigned ids: ranks are not ids
    assert about["compared"] == {"texts": len(texts), "differing": 0, "examples": []}
    assert f"All {len(texts):,} texts" in (tmp_path / "README.md").read_text()


def test_loader_in_the_readme_works(random_model: ExportedModel, tmp_path: Path) -> None:
    tokenizer = TokenizerFolder(random_model("gpt2").path).bpe_form()
    write_tiktoken(tokenizer, tmp_path, ["text"], name="name")
    code = (tmp_path / "README.md").read_text().split("```python\n")[1].split("```")[0]
    namespace: dict[str, Callable[[Path], object]] = {}
    exec(code, namespace)  # noqa: S102 (what a reader would do)
    loaded: object = namespace["Tokenizer"](tmp_path)
    text = "It's 12:30 — 안녕 🙂<|endoftext|>"
    ids = loaded.encode(text)  # type: ignore[attr-defined]
    assert ids == tokenizer.encode(text).ids
    assert loaded.decode(ids) == text  # type: ignore[attr-defined]


def test_pair_that_is_no_merge_is_counted_and_shown(tmp_path: Path) -> None:
    # "xy" + "z" is a merge, "x" + "yz" is none: tokenizers merges "yz" first and stops, tiktoken sees only results
    merges = [("y", "z"), ("x", "y"), ("xy", "z")]
    strings = [*CHARACTER_TO_BYTE, *map("".join, merges)]
    tokenizer = Tokenizer(models.BPE({string: i for i, string in enumerate(strings)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert tokenizer.encode("xyz").tokens == ["x", "yz"]
    found = write_tiktoken(tokenizer, tmp_path, ["hello", "xyz"], name="name")
    assert (found.differing, found.agreement) == (1, 0.5)
    (example,) = json.loads((tmp_path / "encoding.json").read_text())["compared"]["examples"]
    assert example == {"text": "xyz", "tiktoken": [strings.index("xyz")], "tokenizer": tokenizer.encode("xyz").ids}
    assert "1 of 2 texts" in (tmp_path / "README.md").read_text()
    assert load_exported(tmp_path).decode(example["tiktoken"]) == "xyz"


def test_pre_tokenizer_without_one_pattern_is_refused(tiny_bpe: Tokenizer, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(tiny_bpe.to_str())
    parts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in (r"\d", r"\w+")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    with pytest.raises(InputError, match=r"one regular expression.*--formats huggingface,gguf"):
        write_tiktoken(tokenizer, tmp_path, [], name="name")
