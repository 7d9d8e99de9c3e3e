import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.training.folders import TrainedModel
from ivr_dagster.core.training.warm_start import WarmStartImpossible, changed_ids, choose_start, write_warm_start

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


def test_unchanged_vocabulary_has_no_changed_ids(tmp_path: Path) -> None:
    before, now = written(tmp_path / "before"), written(tmp_path / "now", seed=1)
    assert changed_ids(before, TokenizerFolder(now), new=10) == []


def test_rows_of_changed_ids_are_initialized_and_all_other_weights_fine_tuned(tmp_path: Path) -> None:
    before, now = written(tmp_path / "before"), written(tmp_path / "now", seed=1, changed={5: "neu", 7: "new"})
    changed = changed_ids(before, TokenizerFolder(now), new=10)
    assert changed == [5, 7]
    target = tmp_path / "start"
    target.mkdir()
    write_warm_start(before, now, changed, target)
    fine_tuned, initial, start = (
        dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters()) for folder in (before, now, target)
    )
    rows: Any = start.pop("transformer.wte.weight")
    kept = [i for i in range(V) if i not in changed]
    assert torch.equal(rows[kept], fine_tuned["transformer.wte.weight"][kept])
    assert torch.equal(rows[[5, 7]], initial["transformer.wte.weight"][[5, 7]])
    assert all(torch.equal(value, fine_tuned[name]) for name, value in start.items())
    assert AutoTokenizer.from_pretrained(target).convert_ids_to_tokens(5) == "neu"


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ({"changed": {i: f"other{i}" for i in range(5, 9)}}, "4 of its ids changed their string"),
        ({"size": V - 1}, "its vocabulary has 29 tokens, the current one 30"),
        (None, "no fine-tuned model"),
    ],
)
def test_different_vocabulary_prevents_a_warm_start(
    tmp_path: Path, before: dict[str, Any] | None, message: str
) -> None:
    if before is not None:
        written(tmp_path / "before", **before)
    with pytest.raises(WarmStartImpossible, match=message):
        changed_ids(tmp_path / "before", TokenizerFolder(written(tmp_path / "now")), new=10)


def test_different_architecture_prevents_a_warm_start(tmp_path: Path) -> None:
    before, now = written(tmp_path / "before", width=16), written(tmp_path / "now")
    (tmp_path / "start").mkdir()
    with pytest.raises(WarmStartImpossible, match="another architecture"):
        write_warm_start(before, now, [], tmp_path / "start")


class TestChooseStart:
    @pytest.fixture
    def initialized(self, tmp_path: Path) -> ModelFolder:
        return ModelFolder(written(tmp_path / "initialized", seed=1, changed={5: "neu"}))

    @pytest.fixture
    def trained(self, tmp_path: Path) -> TrainedModel:
        (tmp_path / "sft_checkpoint").mkdir()
        return TrainedModel(tmp_path / "sft_checkpoint")

    def choose(
        self, trained: TrainedModel, initialized: ModelFolder, *, inputs: str, warm: bool = True, origin: str = "base"
    ) -> str:
        tokenizer = TokenizerFolder(initialized.path)
        model, _ = choose_start(trained, initialized, tokenizer, 10, warm=warm, inputs=inputs, origin=origin)
        return model.path.name

    def finish(self, trained: TrainedModel) -> None:
        shutil.rmtree(trained.final_model.path, ignore_errors=True)
        written(trained.final_model.path, seed=2)

    def test_repeated_run_starts_from_the_same_model(self, trained: TrainedModel, initialized: ModelFolder) -> None:
        for inputs, expected in (("first", "initialized"), ("second", "warm_start")):
            for _ in range(2):
                assert self.choose(trained, initialized, inputs=inputs) == expected
                self.finish(trained)

    def test_warm_start_uses_a_model_from_before_it_was_requested(
        self, trained: TrainedModel, initialized: ModelFolder
    ) -> None:
        self.choose(trained, initialized, inputs="first", warm=False)
        self.finish(trained)
        assert self.choose(trained, initialized, inputs="second") == "warm_start"

    def test_other_base_model_or_held_out_text_prevents_a_warm_start(
        self, trained: TrainedModel, initialized: ModelFolder
    ) -> None:
        self.choose(trained, initialized, inputs="first", warm=False)
        self.finish(trained)
        assert self.choose(trained, initialized, inputs="second", origin="other") == "initialized"
        assert not (trained.path / "warm_start").exists()
