"""Damaged or unsupported models and tokenizers: rejected as early as possible, in one line that names the remedy."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ivr_dagster.core.embedding.extract import read_embeddings, write_model
from ivr_dagster.core.model.files import check_folder
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokenizer.write import write_original_tokenizer
from ivr_dagster.errors import InputError
from ivr_dagster_tests.faults.conftest import AssertRejected, run_cli

ROWS = 300
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
END = "<|endoftext|>"


# how to damage a model folder; the file, the value and the remedy in the message
Case = tuple[Callable[[Path], object], str, str, str]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good model folder. Copy it, never change it."""
    folder = tmp_path_factory.mktemp("models") / "good"
    write_good_model(folder)
    return folder


@pytest.fixture(scope="module")
def initialized(good: Path) -> Path:
    """Artifacts after `ivr init` with the good model."""
    raw = good.parent / "raw"
    raw.mkdir()
    (raw / "few.jsonl").write_text("".join(json.dumps({"text": f"text {n} " * 9}) + "\n" for n in range(40)))
    options = ("--raw-corpora-dir", str(raw), "--model-name", str(good), "--heldout-fraction", "0.2")
    assert run_cli(good.parent / "artifacts", "init", *options) == 0
    return good.parent / "artifacts"


@pytest.fixture
def bad(good: Path, tmp_path: Path) -> Path:
    """A copy of the good model, to be damaged."""
    return Path(shutil.copytree(good, tmp_path / "bad"))


def change_config(folder: Path, **changed: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def write_shards(folder: Path) -> list[Path]:
    """Split the weights into several files."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="8KB")
    return sorted(folder.glob("model-*.safetensors"))


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def byte_level(size: int, *, hole: bool = False) -> Tokenizer:
    """A BPE tokenizer of all bytes, placeholder tokens and, last, an end-of-text token."""
    strings = sorted(pre_tokenizers.ByteLevel.alphabet())
    strings += [f"<{n}>" for n in range(size - 1 - len(strings))]
    vocabulary = {string: n + (hole and n > 7) for n, string in enumerate(strings)}
    tokenizer = create_tokenizer(models.BPE(vocabulary, []), pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def create_tokenizer(model: models.Model, pre_tokenizer: pre_tokenizers.PreTokenizer) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    return tokenizer


def write_good_model(folder: Path) -> None:
    """An untrained GPT-2 of one layer with a byte-level tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    ids = {"bos_token_id": ROWS - 1, "eos_token_id": ROWS - 1}
    GPT2LMHeadModel(GPT2Config(vocab_size=ROWS, n_positions=64, n_embd=16, n_layer=1, n_head=2, **ids)).save_pretrained(
        folder
    )
    write_tokenizer(folder, byte_level(ROWS))


def delete(*names: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def truncate(name: str, size: int) -> Callable[[Path], object]:
    """Keep this many bytes; if negative, drop this many from the end."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def rename(name: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).rename(folder / new)


def use_config(**changed: Any) -> Callable[[Path], None]:
    return lambda folder: change_config(folder, **changed)


def use_tokenizer(tokenizer: Tokenizer) -> Callable[[Path], None]:
    return lambda folder: write_tokenizer(folder, tokenizer)


def in_order(*damages: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for each in damages:
            each(folder)

    return damage


def keep_only_gguf(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    (folder / "model-Q4_K_M.gguf").write_bytes(b"GGUF")


def replace_shard(folder: Path) -> None:
    first, second = write_shards(folder)[:2]
    shutil.copyfile(first, second)


def truncate_shard(folder: Path) -> None:
    truncate(write_shards(folder)[-1].name, -1)(folder)


def index_outside(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / "elsewhere.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"transformer.wte.weight": "../elsewhere.safetensors"}}))


def broken_link(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("/nowhere/model.safetensors")


# rejected when the model is first observed, before any artifact is made
OBSERVED: dict[str, Case] = {
    "weights without config.json": (delete("config.json"), "", "config.json is missing", "pass a model folder"),
    "truncated config.json": (truncate("config.json", 60), "config.json", "invalid JSON (", "Download it again"),
    "list in config.json": (write("config.json", '["gpt2"]'), "config.json", "found a list", "by save_pretrained"),
    "no model_type": (use_config(model_type=None), "config.json", "found model_type None", "by save_pretrained"),
    "negative size": (use_config(n_embd=-16), "config.json", "n_embd is -16", "Download it again"),
    "size in words": (use_config(vocab_size="many"), "config.json", "vocab_size is 'many'", "Download it again"),
    "too many rows": (
        use_config(vocab_size=10**12), "config.json", "vocab_size is 1,000,000,000,000", "of the same model",
    ),
    "too many layers": (use_config(n_layer=10**9), "config.json", "n_layer is 1,000,000,000", "of the same model"),
    "quantized": (
        use_config(quantization_config={"quant_method": "gptq", "bits": 4}),
        "config.json", "quantization_config: gptq", ".dequantize().save_pretrained",
    ),
    "encoder-decoder": (
        use_config(model_type="t5", is_encoder_decoder=True), "config.json", "found t5", "decoder-only",
    ),
    "masked language model": (
        use_config(model_type="modernbert", architectures=["ModernBertForMaskedLM"]),
        "config.json", "found ModernBertForMaskedLM", "decoder-only",
    ),
    "encoder": (
        use_config(model_type="roberta", architectures=["RobertaModel"]),
        "config.json", "found roberta, an encoder", "decoder-only",
    ),
    "pickle": (
        rename(WEIGHTS, "pytorch_model.bin"), "", "found pytorch_model.bin", "save_pretrained(NEW_FOLDER)",
    ),
    "only GGUF": (keep_only_gguf, "", "found model-Q4_K_M.gguf", "gguf_file='model-Q4_K_M.gguf'"),
    "adapter": (
        in_order(
            delete("config.json"), rename(WEIGHTS, "adapter_model.safetensors"), write("adapter_config.json", "{}")
        ),
        "", "found only an adapter", "merge_and_unload",
    ),
    "truncated weights": (truncate(WEIGHTS, -10), WEIGHTS, "damaged: ", "Download it again"),
    "weights of zeros": (write(WEIGHTS, bytes(20_000)), WEIGHTS, "damaged: ", "Download it again"),
    "empty weights": (write(WEIGHTS, b""), WEIGHTS, "damaged: ", "Download it again"),
    "missing shard": (lambda f: write_shards(f)[1].unlink(), INDEX, "model-00002-of-", "Download it again"),
    "shard of other tensors": (replace_shard, INDEX, "which lacks it", "Download both again"),
    "truncated shard": (truncate_shard, "model-", "damaged: ", "Download it again"),
    "index leaves the folder": (index_outside, INDEX, "'../elsewhere.safetensors'", "from a source you trust"),
    "invalid index": (
        in_order(delete(WEIGHTS), write(INDEX, '{"weight_map": 7}')),
        INDEX, "not an index of safetensors files", "Download it again",
    ),
    "missing index": (
        in_order(write_shards, delete(INDEX)), "", "found only model-00001-of-", "Download the index too",
    ),
    "broken link": (broken_link, WEIGHTS, "/nowhere/model.safetensors", "fix the link"),
}  # fmt: skip


@pytest.mark.parametrize("fault", OBSERVED)
def test_invalid_model_is_rejected_when_first_observed(
    fault: str, initialized: Path, bad: Path, assert_rejected: AssertRejected
) -> None:
    damage, file, value, remedy = OBSERVED[fault]
    damage(bad)
    assert_rejected(initialized, ["init", "--model-name", str(bad)], [str(bad / file), value, remedy])


def test_file_instead_of_model_folder_is_rejected(
    initialized: Path, bad: Path, assert_rejected: AssertRejected
) -> None:
    parts = ["model_name", f"{str(bad / WEIGHTS)!r} is a file", "Pass the folder"]
    assert_rejected(initialized, ["init", "--model-name", str(bad / WEIGHTS)], parts)


def tokenizer_with_code(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    settings = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "mine.py").write_text(f"open({str(folder / 'was_run')!r}, 'w')")


def lowercase_tokenizer(folder: Path) -> None:
    tokenizer = byte_level(ROWS)
    tokenizer.normalizer = normalizers.Lowercase()
    write_tokenizer(folder, tokenizer)


def change_rows(rows: int) -> Callable[[Path], None]:
    """Another number of rows, in weights and configuration."""

    def damage(folder: Path) -> None:
        import torch

        change_tensors(folder, lambda tensors: tensors.update({"transformer.wte.weight": torch.randn(rows, 16)}))
        change_config(folder, vocab_size=rows)

    return damage


WORDS: dict[str, int] = {"[UNK]": 0, "a": 1, "▁the": 2}
WORDPIECE = create_tokenizer(models.WordPiece(WORDS, unk_token="[UNK]"), pre_tokenizers.BertPreTokenizer())
UNIGRAM = create_tokenizer(models.Unigram([(w, -1.0) for w in WORDS], 0), pre_tokenizers.Metaspace())
BYTE_FALLBACK = create_tokenizer(models.BPE(WORDS, [], byte_fallback=True), pre_tokenizers.Metaspace())
CHARACTERS = create_tokenizer(models.BPE(WORDS, []), pre_tokenizers.Metaspace())
NO_TOKENIZER = "no tokenizer can be loaded"
# rejected when `ivr init` reads the tokenizer
READ: dict[str, Case] = {
    "no tokenizer": (delete("tokenizer.json", "tokenizer_config.json"), "", NO_TOKENIZER, "tokenizer.json"),
    "truncated tokenizer.json": (
        truncate("tokenizer.json", -100), "tokenizer.json", "(EOF while parsing", "Download it again",
    ),
    "list in tokenizer.json": (
        write("tokenizer.json", "[]"), "tokenizer.json", "tokenizers cannot read this file (", "Download it again",
    ),
    "truncated settings": (
        write("tokenizer_config.json", '{"eos_token": '), "", f"{NO_TOKENIZER} (", "tokenizer_config.json",
    ),
    "remote code": (tokenizer_with_code, "", f"{NO_TOKENIZER} (", "tokenizer.json"),
    "WordPiece": (use_tokenizer(WORDPIECE), "tokenizer.json", "found a WordPiece model", "byte-level BPE"),
    "Unigram": (use_tokenizer(UNIGRAM), "tokenizer.json", "found a Unigram model", "byte-level BPE"),
    "byte fallback": (
        use_tokenizer(BYTE_FALLBACK), "tokenizer.json", "byte fallback (SentencePiece)", "byte-level BPE",
    ),
    "characters": (
        use_tokenizer(CHARACTERS), "tokenizer.json", "found the pre-tokenizer Metaspace", "byte-level BPE",
    ),
    "lowercase": (lowercase_tokenizer, "tokenizer.json", "found Lowercase", "does not change the text"),
    "missing id": (
        use_tokenizer(byte_level(ROWS - 1, hole=True)), "tokenizer.json", "no token with id 8", "Add placeholder",
    ),
    "more tokens than rows": (
        use_tokenizer(byte_level(ROWS + 1)), "", "the tokenizer has 301 tokens, the model 300", "belong",
    ),
    "more rows than padding explains": (
        in_order(use_tokenizer(byte_level(257)), change_rows(514)), "",
        "the tokenizer has 257 tokens, the model 514", "belong together",
    ),
    "missing end-of-text token": (
        in_order(use_tokenizer(byte_level(280)), use_config(eos_token_id=299)), "",
        "eos_token_id is 299", "belong together",
    ),
}  # fmt: skip


def check_error(error: InputError, path: str, value: str, remedy: str) -> None:
    assert str(error.where) == path
    assert value in error.message
    assert remedy in str(error.remedy)
    assert "\n" not in str(error)
    assert len(str(error)) < 1_000


@pytest.mark.parametrize("fault", READ)
def test_invalid_tokenizer_is_rejected_when_read(fault: str, bad: Path, tmp_path: Path) -> None:
    damage, file, value, remedy = READ[fault]
    damage(bad)
    with pytest.raises(InputError) as error:
        write_original_tokenizer(bad, tmp_path / "target")
    check_error(error.value, str(bad / file), value, remedy)
    assert not (bad / "was_run").exists()


@pytest.mark.parametrize("fault", ["WordPiece", "more tokens than rows"])
def test_init_reports_an_invalid_tokenizer_and_changes_nothing(
    fault: str, initialized: Path, bad: Path, assert_rejected: AssertRejected
) -> None:
    damage, file, value, remedy = READ[fault]
    damage(bad)
    # `run --until` does not rebuild the fresh cleaned corpus, `init` would
    arguments = ["run", "--until", "init", "--model-name", str(bad)]
    assert_rejected(initialized, arguments, [str(bad / file), value, remedy])


def model_with_code(folder: Path) -> None:
    classes = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    change_config(folder, model_type="mine", auto_map=classes)
    (folder / "mine.py").write_text(f"open({str(folder / 'was_run')!r}, 'w')")


def set_weights(value: float) -> Callable[[Path], None]:
    def change(tensors: dict[str, Any]) -> None:
        tensors["transformer.wte.weight"][17, 3] = value
        tensors["transformer.wte.weight"][23, 0] = value

    return lambda folder: change_tensors(folder, change)


def use_byte_weights(folder: Path) -> None:
    import torch

    rows = torch.ones(ROWS, 16, dtype=torch.uint8)
    change_tensors(folder, lambda tensors: tensors.update({"transformer.wte.weight": rows}))


# rejected when `ivr align` creates the model's class or reads its rows
ALIGNED: dict[str, Case] = {
    "remote code": (
        model_with_code, "config.json", "transformers knows no such causal language model (", "is never run",
    ),
    "unknown class": (use_config(model_type="gpt9"), "config.json", "gpt9", "whose class is part of transformers"),
    "inconsistent sizes": (use_config(n_head=3), "config.json", "`num_heads`: 3", "Use a model whose class"),
    "another width": (
        use_config(n_embd=32), WEIGHTS, "F32 [300, 16], expected floating point [300, 32]", "match its config",
    ),
    "rows of bytes": (use_byte_weights, WEIGHTS, "U8 [300, 16]", "not quantized"),
    "nan in a row": (set_weights(float("nan")), WEIGHTS, "holds nan in row 17", "Download the model again"),
    "infinity in a row": (set_weights(float("-inf")), WEIGHTS, "holds -inf in row 17", "Download the model again"),
    "no weights": (delete(WEIGHTS), "", "found none", "Pass a folder with weights"),
}  # fmt: skip


@pytest.mark.parametrize("fault", ALIGNED)
def test_invalid_weights_are_rejected_when_first_read(fault: str, bad: Path) -> None:
    damage, file, value, remedy = ALIGNED[fault]
    damage(bad)
    with pytest.raises(InputError) as error:
        read_embeddings(bad)
    check_error(error.value, str(bad / file), value, remedy)
    assert not (bad / "was_run").exists()


@pytest.mark.parametrize("fault", ["remote code", "nan in a row"])
def test_align_reports_invalid_weights_and_changes_nothing(
    fault: str, initialized: Path, bad: Path, assert_rejected: AssertRejected
) -> None:
    damage, file, value, remedy = ALIGNED[fault]
    damage(bad)
    assert_rejected(initialized, ["align", "--model-name", str(bad)], [str(bad / file), value, remedy])
    assert not (bad / "was_run").exists()


def test_missing_tensor_is_rejected(bad: Path) -> None:
    change_tensors(bad, lambda tensors: tensors.pop("transformer.h.0.mlp.c_fc.weight"))
    with pytest.raises(InputError, match=r"lack 1 of the model.s tensors, the first is transformer.h.0.mlp.c_fc.w"):
        ModelFolder(bad).load()


def test_tensors_of_other_sizes_are_reported_in_one_line(bad: Path) -> None:
    change_config(bad, n_inner=24)
    with pytest.raises(InputError) as error:
        ModelFolder(bad).load()
    assert error.value.where == bad / "config.json"
    assert "\n" not in str(error.value)


def test_invalid_json_in_tokenizer_settings_names_the_file(bad: Path) -> None:
    (bad / "tokenizer_config.json").write_text('{"eos_token": ')
    with pytest.raises(InputError) as error:
        TokenizerFolder(bad).end_of_text_id()
    assert error.value.where == bad / "tokenizer_config.json"


def test_configuration_without_a_class_has_no_context_length(bad: Path) -> None:
    change_config(bad, model_type="gpt9")
    with pytest.raises(InputError, match="gpt9"):
        ModelFolder(bad).context()


@pytest.mark.parametrize("tied", [True, False])
def test_sharded_model_with_more_rows_than_tokens_is_accepted(tied: bool, bad: Path, tmp_path: Path) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    padded = ROWS + 20
    made = GPT2Config(vocab_size=padded, n_positions=64, n_embd=16, n_layer=1, n_head=2, tie_word_embeddings=tied)
    made.bos_token_id = made.eos_token_id = 0
    (bad / WEIGHTS).unlink()
    GPT2LMHeadModel(made).save_pretrained(bad, max_shard_size="8KB")
    check_folder(bad)
    write_original_tokenizer(bad, tmp_path / "tokenizer")
    tensors = read_embeddings(bad)
    assert {name: len(rows) for name, rows in tensors.items()} == {"wte": padded} | (
        {} if tied else {"lm_head": padded}
    )
    (tmp_path / "copy").mkdir()
    write_model(bad, {name: rows + 1 for name, rows in tensors.items()}, tmp_path / "copy")
    copy: Any = ModelFolder(tmp_path / "copy").load()
    assert torch.equal(copy.get_input_embeddings().weight, tensors["wte"] + 1)


def test_linked_weights_are_read_and_their_target_is_unchanged(bad: Path, tmp_path: Path) -> None:
    (bad / WEIGHTS).rename(tmp_path / "blob")
    (bad / WEIGHTS).symlink_to(tmp_path / "blob")
    before = (tmp_path / "blob").read_bytes()
    check_folder(bad)
    (tmp_path / "copy").mkdir()
    write_model(bad, {name: rows + 1 for name, rows in read_embeddings(bad).items()}, tmp_path / "copy")
    assert (tmp_path / "blob").read_bytes() == before
    assert not (tmp_path / "copy" / WEIGHTS).is_symlink()


def test_code_beside_a_known_class_is_not_run(bad: Path) -> None:
    model_with_code(bad)
    change_config(bad, model_type="gpt2")
    assert ModelFolder(bad).load().config.model_type == "gpt2"
    assert not (bad / "was_run").exists()


def test_init_needs_only_tokenizer_and_configuration(bad: Path) -> None:
    (bad / WEIGHTS).unlink()
    check_folder(bad)
    (bad / "config.json").unlink()
    check_folder(bad)
