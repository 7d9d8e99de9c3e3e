from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from ivr_dagster.core.training.warm_start import look_at, write_warm_start

V = 30


def written(
    folder: Path, *, changed: dict[int, str] | None = None, seed: int = 0, width: int = 8, size: int = V
) -> Path:
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=size, n_positions=16, n_embd=width, n_layer=1, n_head=2, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    strings = {i: f"t{i}" for i in range(size)} | (changed or {})
    tokenizer = Tokenizer(models.WordLevel({string: i for i, string in strings.items()}, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="t0").save_pretrained(folder)
    return folder


def test_a_model_of_the_same_vocabulary_is_gone_on_from_whole(tmp_path: Path) -> None:
    seen = look_at(written(tmp_path / "before"), written(tmp_path / "now", seed=1), new=10)
    assert (seen.changed, seen.obstacle) == ((), "")


def test_rows_of_changed_ids_are_the_initialized_ones_and_all_else_the_fine_tuned(tmp_path: Path) -> None:
    before, now = written(tmp_path / "before"), written(tmp_path / "now", seed=1, changed={5: "neu", 7: "new"})
    seen = look_at(before, now, new=10)
    assert (seen.changed, seen.obstacle) == ((5, 7), "")
    target = tmp_path / "start"
    target.mkdir()
    assert write_warm_start(before, now, seen.changed, target) == ""
    fine_tuned, initial, start = (
        dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters()) for folder in (before, now, target)
    )
    rows: Any = start.pop("transformer.wte.weight")
    kept = [i for i in range(V) if i not in seen.changed]
    assert torch.equal(rows[kept], fine_tuned["transformer.wte.weight"][kept])
    assert torch.equal(rows[[5, 7]], initial["transformer.wte.weight"][[5, 7]])
    assert all(torch.equal(value, fine_tuned[name]) for name, value in start.items())
    assert AutoTokenizer.from_pretrained(target).convert_ids_to_tokens(5) == "neu"


@pytest.mark.parametrize(
    ("before", "obstacle"),
    [
        ({"changed": {i: f"other{i}" for i in range(5, 9)}}, "4 of its ids stand for other strings now"),
        ({"size": V - 1}, "its vocabulary has 29 tokens, the new one 30"),
    ],
)
def test_a_vocabulary_too_different_is_no_start(tmp_path: Path, before: dict[str, Any], obstacle: str) -> None:
    assert look_at(written(tmp_path / "before", **before), written(tmp_path / "now"), new=10).obstacle == obstacle


def test_where_nothing_was_trained_there_is_no_start(tmp_path: Path) -> None:
    assert look_at(tmp_path / "nothing", written(tmp_path / "now"), new=10).obstacle


def test_another_architecture_is_no_start(tmp_path: Path) -> None:
    before, now = written(tmp_path / "before", width=16), written(tmp_path / "now")
    target = tmp_path / "start"
    target.mkdir()
    assert "another architecture" in write_warm_start(before, now, (), target)
