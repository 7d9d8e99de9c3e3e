"""Written tokenizer folders, loaded by AutoTokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokenizer.unigram import Distillation
from ivr_dagster.core.tokenizer.write import (
    CERTIFICATE,
    read_certificate,
    write_certificate,
    write_copy,
    write_original_tokenizer,
    write_tokenizer,
)
from ivr_dagster.core.tokens.byte_level import text_of
from ivr_dagster.errors import InputError
from ivr_dagster.sample import SAMPLE_MODEL

TEXTS = ["It is n't , you see ! <|endoftext|> a  b", "한국어\n\n  e\u0301 \x00", " . ?  do not ' s"]


def load(folder: Path, **settings: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, **settings)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    write_original_tokenizer(SAMPLE_MODEL, folder)
    return folder


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory, original: Path, gpt2_exact_on_odd: Distillation) -> Path:
    folder = tmp_path_factory.mktemp("distilled")
    write_tokenizer(gpt2_exact_on_odd.tokenizer, original, folder)
    return folder


@pytest.fixture(scope="module")
def distilled_loaded(distilled: Path) -> Any:
    return load(distilled)


def test_original_keeps_ids_and_end_of_text_token(original: Path, gpt2: Tokenizer) -> None:
    kept, given = load(original), load(SAMPLE_MODEL)
    for text in TEXTS:
        assert kept(text).input_ids == given(text).input_ids == gpt2.encode(text, add_special_tokens=False).ids
    assert kept.eos_token_id == kept.bos_token_id == 50_256
    assert kept.model_max_length == given.model_max_length == 512


def test_vocab_and_merges_become_one_tokenizer_json(tmp_path: Path, tiny_bpe: Tokenizer) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    model = json.loads(tiny_bpe.to_str())["model"]
    vocabulary = model["vocab"] | {"<|endoftext|>": len(model["vocab"])}
    (source / "vocab.json").write_text(json.dumps(vocabulary))
    (source / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"]))
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    write_original_tokenizer(source, target)
    assert not (target / "vocab.json").exists() and not (target / "merges.txt").exists()
    assert load(target).eos_token == "<|endoftext|>"
    written = Tokenizer.from_file(str(target / "tokenizer.json"))
    for text in TEXTS:
        assert load(target)(text).input_ids == written.encode(text).ids == tiny_bpe.encode(text).ids


def test_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        write_original_tokenizer(tmp_path, tmp_path / "target")
    assert error.value.where == tmp_path
    assert "no tokenizer can be loaded" in str(error.value)


def test_tokenizer_without_a_fast_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    with pytest.raises(InputError, match="no fast form") as error:
        write_original_tokenizer(tmp_path, tmp_path / "target")
    assert error.value.where == tmp_path


def test_written_tokenizer_gives_the_same_ids(
    distilled: Path, distilled_loaded: Any, gpt2_exact_on_odd: Distillation, topics: list[str]
) -> None:
    given_with = gpt2_exact_on_odd.tokenizer
    read = Tokenizer.from_file(str(distilled / "tokenizer.json"))
    for text in [*TEXTS, *topics[:10], *map(text_of, gpt2_exact_on_odd.exceptions)]:
        ids = given_with.encode(text).ids
        assert read.encode(text).ids == ids
        assert distilled_loaded(text).input_ids == ids
    assert distilled_loaded.get_vocab() == given_with.get_vocab()


@given(
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.text(st.characters(categories=["Mn", "Mc", "Me", "Cc", "Cf", "Zs"]))
    | st.text(" .,!?'sntrve\n", max_size=30)
)
@example("\u0301")
@example("a" * 100_000)
@example(" " * 100_000)
@example("\u0301" * 100_000)
@example(("Grüße [0.5]\t한국어 x=(((1;e\u0301 ppp n't .\r\n" * 5_000)[:100_000])
def test_decoding_by_transformers_is_exact(distilled_loaded: Any, text: str) -> None:
    assert distilled_loaded.decode(distilled_loaded(text).input_ids) == text


def test_settings_of_the_tokenizer_are_kept(tmp_path: Path, original: Path, gpt2_distilled: Tokenizer) -> None:
    like = tmp_path / "like"
    loaded = load(original, padding_side="left")
    loaded.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    loaded.save_pretrained(like)
    write_tokenizer(gpt2_distilled, like, tmp_path / "target")
    written = load(tmp_path / "target")
    assert written.eos_token_id == written.bos_token_id == written.unk_token_id == 50_256
    assert written.padding_side == "left"
    assert written.model_max_length == 512
    assert written.chat_template == loaded.chat_template
    assert not written.clean_up_tokenization_spaces


def test_files_of_a_bpe_are_removed(tmp_path: Path, original: Path, gpt2_distilled: Tokenizer) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_text("of the BPE that was here before")
    write_tokenizer(gpt2_distilled, original, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_certificate_is_readable_json(tmp_path: Path) -> None:
    certificate = {"train": {"agreement": 0.99, "divergences": []}, "unreachable_in_base": ["Ġ한"], "exceptions": 3}
    write_certificate(certificate, tmp_path)
    text = (tmp_path / CERTIFICATE).read_text(encoding="utf-8")
    assert CERTIFICATE == "agreement.json"
    assert "Ġ한" in text and text.endswith("}\n")
    assert read_certificate(tmp_path) == json.loads(text) == certificate
    write_certificate({"exceptions": 0}, tmp_path)
    assert read_certificate(tmp_path) == {"exceptions": 0}


def test_missing_certificate_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no certificate") as error:
        read_certificate(tmp_path)
    assert error.value.where == tmp_path / "agreement.json"
    assert "Materialize the tokenizer again" in str(error.value)


@pytest.mark.slow
def test_copy_in_a_model_folder_loads_unchanged(distilled: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    write_copy(TokenizerFolder(distilled), tmp_path)
    copied = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert copied == json.loads((distilled / "tokenizer_config.json").read_text())
    assert copied["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"is_local", "local_files_only"} & copied.keys()
    assert (tmp_path / "tokenizer.json").read_bytes() == (distilled / "tokenizer.json").read_bytes()
    for text in TEXTS:
        assert load(tmp_path)(text).input_ids == load(distilled)(text).input_ids
