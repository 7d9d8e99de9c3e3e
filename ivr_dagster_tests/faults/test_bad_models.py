"""Models and tokenizers of no use: refused by `ivr` as early as can be, in one line that says how to mend it."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ivr_dagster.cli.app import main
from ivr_dagster.core.embedding.extract import read_embeddings, write_model
from ivr_dagster.core.model.files import check_folder
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokenizer.write import write_original_tokenizer
from ivr_dagster.errors import InputError

ROWS = 300
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
END = "<|endoftext|>"


@dataclass(frozen=True)
class Begun:
    """A folder in which `ivr init` went well, with a good model."""

    artifacts: Path
    model: Path

    def ivr(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], str]:
        """Exit code, lines on standard error and standard output of `ivr --artifacts-dir … ARGUMENTS`."""
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["ivr", "--artifacts-dir", str(self.artifacts), *arguments])
            for name in [name for name in os.environ if name.startswith(("IVR_", "DAGSTER_HOME"))]:
                patch.delenv(name)
            patch.setenv("HF_HUB_OFFLINE", "1")
            with pytest.raises(SystemExit) as ended:
                main()
            os.environ.pop("DAGSTER_HOME", None)
        said = capsys.readouterr()
        return int(str(ended.value.code)), said.err.splitlines(), said.out

    def state(self) -> dict[str, bytes]:
        """Settings and artifacts by file, without what is remembered of runs, of input and of who is at work."""
        files = (file for file in self.artifacts.rglob("*") if file.is_file())
        ignored = {".dagster", ".shards", ".ivr.lock", ".ivr.lock.holder"}
        return {str(file): file.read_bytes() for file in files if not ignored & {*file.parts}}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Begun]:
    root = tmp_path_factory.mktemp("begun")
    write_model_of_bytes(root / "good")
    (root / "raw").mkdir()
    (root / "raw" / "few.jsonl").write_text("".join(json.dumps({"text": f"text {n} " * 9}) + "\n" for n in range(40)))
    yield Begun(root / "artifacts", root / "good")


@pytest.fixture
def init(begun: Begun, capsys: pytest.CaptureFixture[str]) -> Begun:
    if not begun.artifacts.exists():
        given = ("--raw-corpora-dir", str(begun.artifacts.parent / "raw"), "--model-name", str(begun.model))
        code, said, _ = begun.ivr(capsys, "init", *given, "--heldout-fraction", "0.2")
        assert code == 0, said
    return begun


@pytest.fixture
def bad(begun: Begun, tmp_path: Path) -> Path:
    """A copy of the good model, to be spoilt."""
    return Path(shutil.copytree(begun.model, tmp_path / "bad"))


def config(folder: Path, **changed: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def stored(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Other tensors in the weights' file."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def in_shards(folder: Path) -> list[Path]:
    """The model's weights in several files."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="8KB")
    return sorted(folder.glob("model-*.safetensors"))


def tokenizer(folder: Path, made: Tokenizer) -> None:
    """Another tokenizer, of the class that takes it as it is."""
    made.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def byte_level(size: int, *, hole: bool = False) -> Tokenizer:
    """A BPE of the bytes, of placeholders behind them, and of an end-of-text token, last."""
    strings = sorted(pre_tokenizers.ByteLevel.alphabet())
    strings += [f"<{n}>" for n in range(size - 1 - len(strings))]
    made = Tokenizer(models.BPE({string: n + (hole and n > 7) for n, string in enumerate(strings)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([AddedToken(END, special=True)])
    return made


def of_words(model: models.Model, pre_tokenizer: pre_tokenizers.PreTokenizer) -> Tokenizer:
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizer
    made.add_special_tokens([AddedToken(END, special=True)])
    return made


def write_model_of_bytes(folder: Path) -> None:
    """A GPT-2 of one layer, untrained, of the bytes' tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    made = GPT2Config(vocab_size=ROWS, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    made.bos_token_id = made.eos_token_id = ROWS - 1
    GPT2LMHeadModel(made).save_pretrained(folder)
    tokenizer(folder, byte_level(ROWS))


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def config_cut_short(folder: Path) -> None:
    (folder / "config.json").write_text((folder / "config.json").read_text()[:60])


def config_of_a_list(folder: Path) -> None:
    (folder / "config.json").write_text('["gpt2"]')


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def gguf_alone(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    (folder / "model-Q4_K_M.gguf").write_bytes(b"GGUF")


def adapter_alone(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / WEIGHTS).rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")


def weights_cut_short(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-10])


def weights_of_zeros(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(bytes((folder / WEIGHTS).stat().st_size))


def weights_empty(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


def without_a_shard(folder: Path) -> None:
    in_shards(folder)[1].unlink()


def shard_of_another(folder: Path) -> None:
    first, second = in_shards(folder)[:2]
    shutil.copyfile(first, second)


def shard_cut_short(folder: Path) -> None:
    shard = in_shards(folder)[-1]
    shard.write_bytes(shard.read_bytes()[:-1])


def index_leading_out(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / "elsewhere.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"transformer.wte.weight": "../elsewhere.safetensors"}}))


def index_of_nothing(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text('{"weight_map": 7}')


def without_an_index(folder: Path) -> None:
    in_shards(folder)
    (folder / INDEX).unlink()


def link_to_nothing(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("/nowhere/model.safetensors")


# what `ivr init` refuses when it looks at the model, before anything is made: how it is spoilt; the file at fault; the
# offending value; the remedy
LOOKED_AT: dict[str, tuple[Callable[[Path], None], str, str, str]] = {
    "weights without config.json": (without_config, "", "config.json is missing", "pass a model folder"),
    "config.json cut short": (config_cut_short, "config.json", "invalid JSON (", "Download it again"),
    "config.json of a list": (config_of_a_list, "config.json", "found a list", "by save_pretrained"),
    "no model_type": (
        lambda f: config(f, model_type=None), "config.json", "found model_type None", "by save_pretrained",
    ),
    "a size below nothing": (lambda f: config(f, n_embd=-16), "config.json", "n_embd is -16", "Download it again"),
    "a size in words": (
        lambda f: config(f, vocab_size="many"), "config.json", "vocab_size is 'many'", "Download it again",
    ),
    "rows that no matrix has": (
        lambda f: config(f, vocab_size=10**12), "config.json", "vocab_size is 1,000,000,000,000", "of the same model",
    ),
    "layers without end": (
        lambda f: config(f, n_layer=10**9), "config.json", "n_layer is 1,000,000,000", "of the same model",
    ),
    "quantized": (
        lambda f: config(f, quantization_config={"quant_method": "gptq", "bits": 4}),
        "config.json", "quantization_config: gptq", ".dequantize().save_pretrained",
    ),
    "an encoder with a decoder": (
        lambda f: config(f, model_type="t5", is_encoder_decoder=True), "config.json", "found t5", "decoder-only",
    ),
    "a head for masked tokens": (
        lambda f: config(f, model_type="modernbert", architectures=["ModernBertForMaskedLM"]),
        "config.json", "found ModernBertForMaskedLM", "decoder-only",
    ),
    "an encoder without a head": (
        lambda f: config(f, model_type="roberta", architectures=["RobertaModel"]),
        "config.json", "found roberta, an encoder", "decoder-only",
    ),
    "a pickle": (pickled, "", "found pytorch_model.bin", "save_pretrained(NEW_FOLDER)"),
    "GGUF alone": (gguf_alone, "", "found model-Q4_K_M.gguf", "gguf_file='model-Q4_K_M.gguf'"),
    "an adapter": (adapter_alone, "", "found only an adapter", "merge_and_unload"),
    "weights cut short": (weights_cut_short, WEIGHTS, "damaged: ", "Download it again"),
    "weights of zeros": (weights_of_zeros, WEIGHTS, "damaged: ", "Download it again"),
    "weights that are empty": (weights_empty, WEIGHTS, "damaged: ", "Download it again"),
    "a shard that is gone": (without_a_shard, INDEX, "model-00002-of-", "Download it again"),
    "a shard of other tensors": (shard_of_another, INDEX, "which lacks it", "Download both again"),
    "a shard cut short": (shard_cut_short, "model-", "damaged: ", "Download it again"),
    "an index that leads out": (index_leading_out, INDEX, "'../elsewhere.safetensors'", "from a source you trust"),
    "an index of nothing": (index_of_nothing, INDEX, "not an index of safetensors files", "Download it again"),
    "shards without an index": (without_an_index, "", "found only model-00001-of-", "Download the index too"),
    "a link to nothing": (link_to_nothing, WEIGHTS, "/nowhere/model.safetensors", "fix the link"),
}  # fmt: skip


def check_told(said: list[str], place: str, value: str, remedy: str) -> None:
    assert len(said) == 1, said
    assert said[0].startswith("ivr: ")
    for part in (place, value, remedy):
        assert part in said[0]
    assert "Traceback" not in said[0]
    assert len(said[0]) < 1_000


@pytest.mark.parametrize("fault", LOOKED_AT)
def test_invalid_model_is_refused_when_first_observed(
    fault: str, init: Begun, bad: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, file, value, remedy = LOOKED_AT[fault]
    spoil(bad)
    before = init.state()
    code, said, out = init.ivr(capsys, "init", "--model-name", str(bad))
    assert (code, out) == (2, "")
    check_told(said, str(bad / file), value, remedy)
    assert init.state() == before


def test_file_in_place_of_a_model_folder_is_refused(init: Begun, bad: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = init.ivr(capsys, "init", "--model-name", str(bad / WEIGHTS))
    assert code == 2
    check_told(said, "model_name", f"{str(bad / WEIGHTS)!r} is a file", "Pass the folder")


def no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def tokenizer_cut_short(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes()[:-100])


def tokenizer_of_a_list(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("[]")


def settings_cut_short(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"eos_token": ')


def tokenizer_with_code(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    settings = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "mine.py").write_text(f"open({str(folder / 'was_run')!r}, 'w')")


def lowercased(folder: Path) -> None:
    made = byte_level(ROWS)
    made.normalizer = normalizers.Lowercase()
    tokenizer(folder, made)


WORDS: dict[str, int] = {"[UNK]": 0, "a": 1, "▁the": 2}
# what `ivr init` refuses when it reads the tokenizer
READ: dict[str, tuple[Callable[[Path], None], str, str, str]] = {
    "no tokenizer": (no_tokenizer, "", "no tokenizer can be loaded", "tokenizer.json"),
    "tokenizer.json cut short": (tokenizer_cut_short, "tokenizer.json", "(EOF while parsing", "Fetch it anew"),
    "tokenizer.json of a list": (tokenizer_of_a_list, "tokenizer.json", "can read (", "Fetch it anew"),
    "settings cut short": (settings_cut_short, "", "no tokenizer can be loaded (", "tokenizer_config.json"),
    "code of its own": (tokenizer_with_code, "", "no tokenizer can be loaded (", "tokenizer.json"),
    "WordPiece": (
        lambda f: tokenizer(f, of_words(models.WordPiece(WORDS, unk_token="[UNK]"), pre_tokenizers.BertPreTokenizer())),
        "tokenizer.json", "found a WordPiece model", "byte-level BPE",
    ),
    "Unigram": (
        lambda f: tokenizer(f, of_words(models.Unigram([(w, -1.0) for w in WORDS], 0), pre_tokenizers.Metaspace())),
        "tokenizer.json", "found a Unigram model", "byte-level BPE",
    ),
    "bytes as a last resort": (
        lambda f: tokenizer(f, of_words(models.BPE(WORDS, [], byte_fallback=True), pre_tokenizers.Metaspace())),
        "tokenizer.json", "byte fallback (SentencePiece)", "byte-level BPE",
    ),
    "characters": (
        lambda f: tokenizer(f, of_words(models.BPE(WORDS, []), pre_tokenizers.Metaspace())),
        "tokenizer.json", "found the pre-tokenizer Metaspace", "byte-level BPE",
    ),
    "lower case": (lowercased, "tokenizer.json", "found the normalizer Lowercase", "leaves the text unchanged"),
    "a hole": (lambda f: tokenizer(f, byte_level(ROWS - 1, hole=True)), "tokenizer.json", "the first at 8", "Add"),
    "more tokens than rows": (
        lambda f: tokenizer(f, byte_level(ROWS + 1)), "", "the tokenizer has 301 tokens, the model 300", "belong",
    ),
    "rows that no padding explains": (
        lambda f: (tokenizer(f, byte_level(257)), stretch(f, 514)), "",
        "the tokenizer has 257 tokens, the model 514", "belong together",
    ),
    "an end-of-text token that it has not": (
        lambda f: (tokenizer(f, byte_level(280)), config(f, eos_token_id=299)), "",
        "eos_token_id is 299", "belong together",
    ),
}  # fmt: skip


def stretch(folder: Path, rows: int) -> None:
    """Another number of rows, in weights and configuration."""
    import torch

    def more(tensors: dict[str, Any]) -> None:
        tensors["transformer.wte.weight"] = torch.randn(rows, 16)

    stored(folder, more)
    config(folder, vocab_size=rows)


def check_error(error: InputError, place: str, value: str, remedy: str) -> None:
    assert str(error.where) == place or (place.endswith("-") and str(error.where).startswith(place))
    assert value in error.message
    assert remedy in str(error.remedy)
    assert "\n" not in str(error)
    assert len(str(error)) < 1_000


@pytest.mark.parametrize("fault", READ)
def test_invalid_tokenizer_is_refused_when_read(fault: str, bad: Path, tmp_path: Path) -> None:
    spoil, file, value, remedy = READ[fault]
    spoil(bad)
    with pytest.raises(InputError) as error:
        write_original_tokenizer(bad, tmp_path / "target")
    check_error(error.value, str(bad / file), value, remedy)
    assert not (bad / "was_run").exists()


@pytest.mark.parametrize("fault", ["WordPiece", "more tokens than rows"])
def test_init_reports_an_invalid_tokenizer_and_changes_nothing(
    fault: str, init: Begun, bad: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, file, value, remedy = READ[fault]
    spoil(bad)
    before = init.state()
    # without what makes the cleaned corpus again, which a stage that is named does
    code, said, _ = init.ivr(capsys, "run", "--until", "init", "--model-name", str(bad))
    assert code == 2
    check_told(said, str(bad / file), value, remedy)
    assert init.state() == before


def with_code(folder: Path) -> None:
    config(folder, model_type="mine", auto_map={"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"})
    (folder / "mine.py").write_text(f"open({str(folder / 'was_run')!r}, 'w')")


def a_row(value: float) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        def put(tensors: dict[str, Any]) -> None:
            tensors["transformer.wte.weight"][17, 3] = value
            tensors["transformer.wte.weight"][23, 0] = value

        stored(folder, put)

    return spoil


def in_bytes(folder: Path) -> None:
    import torch

    stored(folder, lambda tensors: tensors.update({"transformer.wte.weight": torch.ones(ROWS, 16, dtype=torch.uint8)}))


# what shows only when its class is asked, or its rows are read
ALIGNED: dict[str, tuple[Callable[[Path], None], str, str, str]] = {
    "code of its own": (with_code, "config.json", "transformers knows no such causal language model (", "is never run"),
    "a class there is not": (
        lambda f: config(f, model_type="gpt9"), "config.json", "gpt9", "whose class is part of transformers",
    ),
    "sizes that do not go together": (
        lambda f: config(f, n_head=3), "config.json", "`num_heads`: 3", "Use a model whose class",
    ),
    "a width that the rows have not": (
        lambda f: config(f, n_embd=32), WEIGHTS, "F32 [300, 16], expected floating point [300, 32]", "match its config",
    ),
    "rows of bytes": (in_bytes, WEIGHTS, "U8 [300, 16]", "not quantized"),
    "a row that is no number": (a_row(float("nan")), WEIGHTS, "holds nan in row 17", "Download the model again"),
    "a row without end": (a_row(float("-inf")), WEIGHTS, "holds -inf in row 17", "Download the model again"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "", "found none", "Pass a folder with weights"),
}  # fmt: skip


@pytest.mark.parametrize("fault", ALIGNED)
def test_invalid_weights_are_refused_when_first_read(fault: str, bad: Path) -> None:
    spoil, file, value, remedy = ALIGNED[fault]
    spoil(bad)
    with pytest.raises(InputError) as error:
        read_embeddings(bad)
    check_error(error.value, str(bad / file), value, remedy)
    assert not (bad / "was_run").exists()


@pytest.mark.parametrize("fault", ["code of its own", "a row that is no number"])
def test_align_reports_invalid_weights_and_changes_nothing(
    fault: str, init: Begun, bad: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, file, value, remedy = ALIGNED[fault]
    spoil(bad)
    before = init.state()
    code, said, _ = init.ivr(capsys, "align", "--model-name", str(bad))
    assert code == 2
    check_told(said, str(bad / file), value, remedy)
    assert init.state() == before
    assert not (bad / "was_run").exists()


def test_missing_tensor_is_refused(bad: Path) -> None:
    stored(bad, lambda tensors: tensors.pop("transformer.h.0.mlp.c_fc.weight"))
    with pytest.raises(InputError, match=r"lack 1 of the model.s tensors, the first is transformer.h.0.mlp.c_fc.w"):
        ModelFolder(bad).load()


def test_tensors_of_other_sizes_are_reported_in_one_line(bad: Path) -> None:
    config(bad, n_inner=24)
    with pytest.raises(InputError) as error:
        ModelFolder(bad).load()
    assert error.value.where == bad / "config.json"
    assert "\n" not in str(error.value)


def test_invalid_json_in_tokenizer_settings_names_the_file(bad: Path) -> None:
    settings_cut_short(bad)
    with pytest.raises(InputError) as error:
        TokenizerFolder(bad).end_of_text_id()
    assert error.value.where == bad / "tokenizer_config.json"


def test_configuration_without_a_class_has_no_context_length(bad: Path) -> None:
    config(bad, model_type="gpt9")
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
    with_code(bad)
    config(bad, model_type="gpt2")
    assert ModelFolder(bad).load().config.model_type == "gpt2"
    assert not (bad / "was_run").exists()


def test_init_needs_only_tokenizer_and_configuration(bad: Path) -> None:
    (bad / WEIGHTS).unlink()
    check_folder(bad)
    (bad / "config.json").unlink()
    check_folder(bad)
