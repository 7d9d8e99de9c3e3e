"""The training script of the sample model: it learns, resumes, and its sampled softmax approximates the full one."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.train_sample_model import (
    END_OF_TEXT,
    TrainingSettings,
    bits_per_byte,
    encode_blocks,
    main,
    new_model,
    read_training_texts,
    train,
    training_loss,
)
from ivr_dagster.sample import SAMPLE_MODEL

TINY = TrainingSettings(steps=6, batch=2, block=16, width=8, layers=1, heads=2, sampled_tokens=64)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lib")
    for number in range(6):
        lines = (f"def function_{i}(value):\n    return value + {i * number}\n" for i in range(40))
        (folder / f"module_{number}.py").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(SAMPLE_MODEL / "tokenizer.json"))


def test_a_few_steps_lower_the_loss_and_write_a_loadable_folder(source: Path, tmp_path: Path) -> None:
    tiny = "--steps 15 --sampled-tokens 256 --learning-rate 0.02 --batch 2 --block 64 --width 16 --layers 1 --heads 2"
    result = main(["--output", str(tmp_path / "model"), "--source", str(source), *tiny.split()])
    assert result.last_loss < result.first_loss
    assert result.tokens == 15 * 2 * 64
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", local_files_only=True)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "model", local_files_only=True)
    assert model.config.n_positions == loaded.model_max_length == 64
    assert "bits per byte" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]  # no checkpoint or partial folder


def test_interrupted_training_resumes_to_the_same_weights(
    source: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, _ = read_training_texts(source)
    blocks = encode_blocks(tokenizer, [file.text for file in training], TINY.block, TINY.seed)
    straight = new_model(TINY)
    train(straight, blocks, TINY)

    monkeypatch.setattr("benchmarks.train_sample_model.CHECKPOINT_SECONDS", 0.0)
    calls = 0

    def interrupted(*arguments: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return training_loss(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.train_sample_model.training_loss", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(new_model(TINY), blocks, TINY, tmp_path / "checkpoint.pt")
    resumed = new_model(TINY)
    train(resumed, blocks, TINY, tmp_path / "checkpoint.pt")
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))
    assert not (tmp_path / "checkpoint.pt").exists()


def test_loss_over_the_whole_vocabulary_equals_cross_entropy() -> None:
    model = new_model(TINY)
    ids = torch.randint(0, END_OF_TEXT, (2, TINY.block + 1), generator=torch.Generator().manual_seed(1))
    expected = F.cross_entropy(model(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten())
    assert training_loss(model, ids, 0, torch.Generator()).item() == pytest.approx(expected.item(), rel=1e-5)


def test_sampled_loss_approximates_the_full_loss() -> None:
    model = new_model(TINY)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # at initialization any sample gives the same loss
    ids = torch.randint(0, END_OF_TEXT, (2, TINY.block + 1), generator=torch.Generator().manual_seed(1))
    whole = training_loss(model, ids, 0, torch.Generator()).item()
    sampled = [training_loss(model, ids, 2048, torch.Generator().manual_seed(i)).item() for i in range(8)]
    assert sum(sampled) / len(sampled) == pytest.approx(whole, rel=0.01)


def test_bits_per_byte_of_a_uniform_model_is_the_log_of_the_vocabulary_size(tokenizer: Tokenizer) -> None:
    model = new_model(TINY)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    text = "def f(x):\n    return '값'\n" * 3  # longer than one window of 16 tokens
    tokens = len(tokenizer.encode(text).ids)
    uniform = torch.log2(torch.tensor(END_OF_TEXT + 1.0)).item()
    assert bits_per_byte(model, tokenizer, [text]) == pytest.approx(tokens * uniform / len(text.encode()), rel=1e-4)


def test_blocks_separate_files_by_end_of_text_and_overlap_by_their_last_target(tokenizer: Tokenizer) -> None:
    texts = ["a b c d", "e f g h"]
    blocks = encode_blocks(tokenizer, texts, 3, seed=0).tolist()
    stream = [*blocks[0], *blocks[1][1:], *blocks[2][1:]]
    first, second = ([END_OF_TEXT, *tokenizer.encode(text).ids] for text in texts)
    assert [row[0] for row in blocks[1:]] == [row[-1] for row in blocks[:-1]]
    assert stream in ([*first, *second], [*second, *first])
