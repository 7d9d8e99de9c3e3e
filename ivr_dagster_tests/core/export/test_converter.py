"""llama.cpp's converter, played by a script that writes the folder it receives with our own writer."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer

from ivr_dagster.core.export.converter import convert_with
from ivr_dagster.core.export.gguf import read_gguf_source, write_gguf
from ivr_dagster.core.tokenizer.folder import BASE_TOKENIZER
from ivr_dagster.errors import InputError
from ivr_dagster_tests.core.export.conftest import ExportedModel

CONVERTER = """
import sys
from pathlib import Path
from tokenizers import Tokenizer
from ivr_dagster.core.export.gguf import read_gguf_source, write_gguf
from ivr_dagster.core.model.folder import ModelFolder

folder, _, file, _, kind = sys.argv[1:]
if Tokenizer.from_file(folder + "/tokenizer.json").get_vocab() != Tokenizer.from_file({base!r}).get_vocab():
    sys.exit("BPE pre-tokenizer was not recognized")
source = read_gguf_source(ModelFolder(Path(folder)))
write_gguf(source, Path(file), kind, name=Path(folder).name, progress=lambda done, total: None)
"""


@pytest.mark.slow
def test_converted_file_equals_ours_in_tensors_and_tokenizer(random_model: ExportedModel, tmp_path: Path) -> None:
    model = random_model("llama")
    script, file, ours = tmp_path / "convert_hf_to_gguf.py", tmp_path / "a.gguf", tmp_path / "b.gguf"
    script.write_text(CONVERTER.format(base=str(model.path / BASE_TOKENIZER)))
    assert convert_with(script, model, file, "f16", name="Name").pre == "llama-bpe"
    write_gguf(read_gguf_source(model), ours, "f16", name="Name", progress=lambda done, total: None)
    found, expected = gguf.GGUFReader(file), gguf.GGUFReader(ours)
    assert {name: field.contents() for name, field in found.fields.items() if not name.startswith("GGUF.")} == {
        name: field.contents() for name, field in expected.fields.items() if not name.startswith("GGUF.")
    }
    for one, other in zip(found.tensors, expected.tensors, strict=True):
        assert (one.name, one.tensor_type) == (other.name, other.tensor_type)
        assert np.array_equal(one.data, other.data)
    assert {each.name for each in tmp_path.iterdir()} == {script.name, file.name, ours.name}


def test_failure_of_the_converter_is_shown(random_model: ExportedModel, tmp_path: Path) -> None:
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text("import sys; sys.exit('Model FooForCausalLM is not supported')")
    with pytest.raises(InputError, match="exit code 1: Model FooForCausalLM is not supported"):
        convert_with(script, random_model("gpt2"), tmp_path / "a.gguf", "f16", name="Name")


def test_missing_converter_is_named(random_model: ExportedModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--gguf-converter .*nowhere\.py: the converter does not exist"):
        convert_with(tmp_path / "nowhere.py", random_model("gpt2"), tmp_path / "a.gguf", "f16", name="Name")


def test_converter_gets_no_tokenizer_with_phrases(
    random_model: ExportedModel, tiny_bpe: Tokenizer, tmp_path: Path
) -> None:
    model = random_model("llama")
    tiny_bpe.save(str(model.path / BASE_TOKENIZER))  # splits text in another way
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text("raise SystemExit('must not run')")
    with pytest.raises(InputError, match="--merge-scope within"):
        convert_with(script, model, tmp_path / "a.gguf", "f16", name="Name")
