"""Embeddings read from model folders and written into copies, checked against what transformers loads."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ivr_dagster.core.embedding.extract import (
    Embeddings,
    StoredTensor,
    extract_embeddings,
    read_embeddings,
    read_layout,
    replace_embeddings,
    write_model,
)
from ivr_dagster.core.embedding.initialize import STRATEGIES, initialize_embeddings
from ivr_dagster.core.embedding.reorder import kept_rows_equal, reorder_embeddings
from ivr_dagster.errors import InputError
from ivr_dagster_tests.core.embedding.conftest import KINDS

NAMES = {"tied": {"wte"}, "untied": {"wte", "lm_head"}, "bias": {"wte", "lm_head", "lm_head_bias"}}


def loaded(folder: Path) -> Any:
    """The model in `folder`, without missing or unexpected weights."""
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", local_files_only=True, output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval()


def of_module(model: Any) -> dict[str, torch.Tensor]:
    """The oracle: embeddings of the modules."""
    head, inputs = model.get_output_embeddings(), model.get_input_embeddings()
    tensors = {"wte": inputs.weight, "lm_head": head.weight, "lm_head_bias": head.bias}
    if head.weight is inputs.weight:
        del tensors["lm_head"]
    return {name: rows.detach() for name, rows in tensors.items() if rows is not None}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        rows.dtype == other[name].dtype and torch.equal(rows, other[name]) for name, rows in one.items()
    )


def others(tensors: Embeddings, seed: int = 0) -> Embeddings:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(rows.shape, generator=generator).to(rows.dtype) for name, rows in tensors.items()}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_read_embeddings_equals_transformers_in_the_stored_dtype(
    kind: str, model: Any, saved: Callable[[Any], Path], dtype: torch.dtype
) -> None:
    folder = saved(model.to(dtype))
    tensors = read_embeddings(folder)
    assert tensors.keys() == NAMES[kind.split()[-1]]
    assert {rows.dtype for rows in tensors.values()} == {dtype}
    assert same(tensors, of_module(model))
    assert same(tensors, of_module(loaded(folder)))
    assert read_layout(folder).parameters == sum(rows.numel() for rows in model.parameters())  # tied ones once


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_write_model_changes_only_the_embeddings(
    model: Any, saved: Callable[[Any], Path], target: Path, dtype: torch.dtype
) -> None:
    folder = saved(model.to(dtype))
    tensors, seen = others(read_embeddings(folder)), []
    write_model(folder, tensors, target, progress=lambda *counts: seen.append(counts))
    sizes = [file.stat().st_size for file in sorted(folder.glob("*.safetensors"))]
    assert seen == [(sum(sizes[: n + 1]), sum(sizes)) for n in range(len(sizes))]
    written = loaded(target)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert (written.get_output_embeddings().weight is written.get_input_embeddings().weight) == tied
    assert same(of_module(written), tensors)
    assert same(read_embeddings(target), tensors)
    given = [id(rows) for module in (model.get_input_embeddings(), model.get_output_embeddings())
             for rows in module.parameters()]  # fmt: skip
    embeddings = {name for name, rows in model.named_parameters(remove_duplicate=False) if id(rows) in given}
    before, after = model.state_dict(), written.state_dict()
    assert before.keys() == after.keys()
    assert len(before.keys() - embeddings) > 5  # position embeddings among them
    assert all(torch.equal(before[name], after[name]) for name in before.keys() - embeddings)
    assert {file.name for file in target.iterdir()} == {file.name for file in folder.iterdir()}


def test_write_model_copies_configuration_index_and_header_byte_for_byte(
    model: Any, saved: Callable[[Any], Path], target: Path
) -> None:
    folder = saved(model)
    config = folder / "config.json"
    config.write_text(config.read_text().replace("{", '{\n  "note": "mine",', 1))
    (folder / "generation_config.json").write_text('{"temperature": 0.7,   "do_sample": true, "eos_token_id": 0}')
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    write_model(folder, others(read_embeddings(folder)), target)
    assert {file.name for file in folder.iterdir()} - {file.name for file in target.iterdir()} == {"pytorch_model.bin"}
    for file in target.iterdir():
        if file.suffix == ".json":
            assert file.read_bytes() == (folder / file.name).read_bytes()
        else:
            base, copy = (folder / file.name).read_bytes(), file.read_bytes()
            start = 8 + int.from_bytes(base[:8], "little")
            assert (len(base), base[:start]) == (len(copy), copy[:start])


def test_read_embeddings_returns_copies_and_write_model_keeps_the_base(
    model: Any, saved: Callable[[Any], Path], target: Path
) -> None:
    folder = saved(model)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    tensors = read_embeddings(folder)
    write_model(folder, others(tensors), target)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    for file in folder.iterdir():
        file.write_bytes(b"\0" * file.stat().st_size)
    assert same(tensors, of_module(model))


def test_links_of_the_hub_cache_are_followed(model: Any, saved: Callable[[Any], Path], target: Path) -> None:
    folder, links = saved(model), target.parent / "snapshot"
    links.mkdir()
    for file in folder.iterdir():
        file.chmod(0o444)
        (links / file.name).symlink_to(file)
    tensors = others(read_embeddings(links))
    write_model(links, tensors, target)
    assert not any(file.is_symlink() for file in target.iterdir())
    assert same(of_module(loaded(target)), tensors)
    assert same(read_embeddings(folder), of_module(model))


def stored(model: Any, folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """A folder whose file holds `tensors`, under whatever names."""
    model.config.save_pretrained(folder)
    save_file({name: rows.clone() for name, rows in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_gpt2_as_the_hub_has_it_without_prefix_and_with_masks(
    build: Callable[..., Any], tmp_path: Path, target: Path
) -> None:
    model = build("gpt2 tied")
    held = {name.removeprefix("transformer."): rows for name, rows in model.transformer.state_dict().items()}
    held["h.0.attn.bias"] = torch.ones(1, 1, 16, 16).tril().bool()
    folder = stored(model, tmp_path / "hub", held)
    assert read_layout(folder).stored == {"wte": (StoredTensor(folder / "model.safetensors", "wte.weight"),)}
    assert same(read_embeddings(folder), of_module(model))
    tensors = others(read_embeddings(folder))
    write_model(folder, tensors, target)
    assert same(of_module(loaded(target)), tensors)
    rest = load_file(target / "model.safetensors")
    assert rest.keys() == held.keys()
    assert all(torch.equal(rows, rest[name]) for name, rows in held.items() if name != "wte.weight")


def without(name: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda held: {key: rows for key, rows in held.items() if key != name}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("llama untied", lambda held: {name.removeprefix("model."): rows for name, rows in held.items()}),
        ("gpt2 tied", lambda held: held),  # under both names
        ("llama tied", lambda held: held),
        ("gpt2 tied", without("transformer.wte.weight")),
        ("llama tied", without("model.embed_tokens.weight")),
        ("llama tied", lambda held: held | {"lm_head.weight": held["lm_head.weight"] + 1}),
    ],
    ids=["no prefix", "both names", "both names of llama", "head only", "head only of llama", "different matrices"],
)
def test_any_way_to_store_embeddings_is_read_as_transformers_does(
    kind: str,
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    build: Callable[..., Any],
    tmp_path: Path,
    target: Path,
) -> None:
    model = build(kind)
    folder = stored(model, tmp_path / "base", change(dict(model.state_dict())))
    tensors = read_embeddings(folder)
    assert same(tensors, of_module(loaded(folder)))
    write_model(folder, others(tensors), target)
    assert same(of_module(loaded(target)), others(tensors))


def test_a_loaded_model_returns_and_takes_embeddings_and_keeps_its_tying(kind: str, model: Any) -> None:
    model = model.to(torch.bfloat16)
    tensors = extract_embeddings(model)
    assert tensors.keys() == NAMES[kind.split()[-1]]
    assert same(tensors, of_module(model))
    assert not any(rows.requires_grad for rows in tensors.values())
    is_tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    replace_embeddings(model, others(tensors))
    assert same(of_module(model), others(tensors))
    assert not same(tensors, others(tensors))  # copies
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == is_tied


def fault_of(folder: Path) -> str:
    with pytest.raises(InputError) as error:
        read_layout(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)
    return str(error.value)


@pytest.fixture
def untied(build: Callable[..., Any], tmp_path: Path) -> tuple[Any, Path]:
    model = build("llama untied")
    model.save_pretrained(tmp_path / "untied")
    return model, tmp_path / "untied"


def test_a_missing_untied_head_is_rejected(untied: tuple[Any, Path]) -> None:
    model, folder = untied
    held = {name: rows for name, rows in model.state_dict().items() if name != "lm_head.weight"}
    assert "tensor lm_head.weight, but its safetensors files do not" in fault_of(stored(model, folder, held))


def test_quantized_or_misshapen_embeddings_are_rejected(untied: tuple[Any, Path]) -> None:
    model, folder = untied
    held = dict(model.state_dict())
    packed = held | {"lm_head.weight": torch.zeros(24, 8, dtype=torch.uint8)}
    assert "lm_head.weight is U8 [24, 8], expected floating point [24, 8]" in fault_of(stored(model, folder, packed))
    short = held | {"model.embed_tokens.weight": torch.zeros(20, 8)}
    assert "is F32 [20, 8], expected floating point [24, 8]" in fault_of(stored(model, folder, short))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda t: t | {"wte": t["wte"].half()},
            "model.embed_tokens.weight is torch.float32 [24, 8], got torch.f",
        ),
        (lambda t: t | {"lm_head": t["lm_head"][1:]}, "got torch.float32 [23, 8]"),
        (lambda t: {"wte": t["wte"]}, "got the embeddings wte, the model has lm_head, wte"),
    ],
)
def test_write_model_rejects_embeddings_of_another_model(
    untied: tuple[Any, Path], target: Path, change: Callable[[Embeddings], Embeddings], says: str
) -> None:
    _, folder = untied
    with pytest.raises(InputError) as error:
        write_model(folder, change(read_embeddings(folder)), target)
    assert says in str(error.value)


def kept_logits(model: Any, ids: list[int], kept: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([ids])).logits[..., kept]
    return logits


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10)
@given(data=st.data())
def test_any_remapping_keeps_rows_logits_and_tying(
    kind: str, build: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    vocabulary = data.draw(st.integers(2, 70), label="ids")
    padding = data.draw(st.integers(0, 9), label="padding")
    new = data.draw(st.sets(st.integers(1, vocabulary - 1)), label="new")  # id 0 is kept
    kept = [n for n in range(vocabulary + padding) if n not in new]
    parts = st.lists(st.integers(0, vocabulary - 1), max_size=4)
    constituents = {n: data.draw(parts, label=f"constituents of {n}") for n in sorted(new)}
    ids = data.draw(
        st.lists(st.sampled_from([n for n in kept if n < vocabulary]), min_size=1, max_size=16), label="text"
    )
    strategy = data.draw(st.sampled_from(sorted(STRATEGIES)), label="strategy")
    root = tmp_path_factory.mktemp("any")
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]), label="dtype")
    model = build(kind, data.draw(st.integers(0, 99), label="seed"), vocabulary + padding).to(dtype)
    model.save_pretrained(root / "base")
    (root / "new").mkdir()

    sources = [-1 if n in new else n for n in range(vocabulary)]
    base = read_embeddings(root / "base")
    tensors = initialize_embeddings(
        reorder_embeddings(base, sources), base, constituents, strategy=strategy, vocabulary_size=vocabulary
    )
    write_model(root / "base", tensors, root / "new")
    written = loaded(root / "new")
    assert kept_rows_equal(base, read_embeddings(root / "new"), sources)
    assert same(of_module(written), tensors)
    assert (written.get_output_embeddings().weight is written.get_input_embeddings().weight) == kind.endswith(" tied")
    # both loaded from files: another memory layout would change the order of summation
    assert torch.equal(kept_logits(written, ids, kept), kept_logits(loaded(root / "base"), ids, kept))
    written.save_pretrained(root / "again")
    assert same(read_embeddings(root / "again"), tensors)


MEASURE = """
import sys
from pathlib import Path

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

def grows_by(work):
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = peak()
    result = work()
    return peak() - before, result

from ivr_dagster.core.embedding.extract import read_embeddings, read_layout, write_model
from ivr_dagster.core.model.folder import ModelFolder

folder, target = Path(sys.argv[1]), Path(sys.argv[2])
read_layout(folder)  # imports
reading, tensors = grows_by(lambda: read_embeddings(folder))
writing, _ = grows_by(lambda: write_model(folder, tensors, target))
loading, model = grows_by(lambda: [p.sum() for p in ModelFolder(folder).load().parameters()])
print(reading, writing, loading)
"""


def sparse_model(folder: Path, config: Any, shards: int) -> tuple[int, int]:
    """A model in sparse files of zeros; returns the bytes of its embeddings and of all weights."""
    from transformers import AutoModelForCausalLM

    config.save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    sizes = {name: 2 * rows.numel() for name, rows in model.named_parameters()}
    names, weight_map = sorted(sizes), {}
    for shard in range(shards):
        file = folder / (f"model-{shard + 1}-of-{shards}.safetensors" if shards > 1 else "model.safetensors")
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in names[shard::shards]:
            shape = list(model.get_parameter(name).shape)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end := end + sizes[name]]}
            weight_map[name] = file.name
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with file.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            stream.truncate(8 + len(text) + end)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return sum(size for name, size in sizes.items() if "wte" in name or "embed" in name or "head" in name), sum(
        sizes.values()
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux reports the peak")
@pytest.mark.parametrize(("architecture", "shards"), [("llama", 1), ("llama", 3), ("gpt2", 1)])
def test_memory_is_that_of_the_embeddings_not_of_the_model(architecture: str, shards: int, tmp_path: Path) -> None:
    from transformers import AutoConfig

    if architecture == "gpt2":
        config = AutoConfig.for_model("gpt2", vocab_size=20_000, n_embd=256, n_inner=65_536, n_layer=4, n_head=4)
    else:
        config = AutoConfig.for_model(
            "llama", vocab_size=20_000, hidden_size=256, intermediate_size=65_536, num_hidden_layers=3
        )
    (tmp_path / "target").mkdir()
    embeddings, everything = sparse_model(tmp_path / "base", config, shards)
    assert everything > 10 * embeddings
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "base", tmp_path / "target"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert measured.returncode == 0, measured.stderr
    reading, writing, loading = map(int, measured.stdout.split())
    slack = 16_000_000
    assert reading < 2 * embeddings + slack
    assert writing < 2 * embeddings + slack
    assert loading > everything / 2  # the measurement would have detected a loaded model
