from typing import Any

import numpy as np
import pytest

from ivr_dagster.core.evaluation import continuations as module
from ivr_dagster.core.evaluation.continuations import Continuation, Speed, continue_texts, generation_speed

END = 256
PROMPTS = ["The quick", "", "단어", "far too long for this model's context"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token per byte."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE

    tokenizer = Tokenizer(models.BPE(dict(CHARACTER_TO_BYTE) | {"<|endoftext|>": END}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    return tokenizer


class Scripted:
    """Makes a model write a script, one byte per call."""

    def __init__(self, model: Any, script: bytes) -> None:
        self.model, self.script, self.forward = model, [*script, END], model.forward

    def __enter__(self) -> Any:
        def forward(input_ids: Any, *rest: Any, **arguments: Any) -> Any:
            output = self.forward(input_ids, *rest, **arguments)
            output.logits[:] = -1e9
            output.logits[:, :, self.script.pop(0)] = 0
            return output

        self.model.forward = forward
        return self.model

    def __exit__(self, *_: object) -> None:
        del self.model.forward


def test_continuations_are_deterministic_and_limited_in_bytes(model: Any, tokenizer: Any) -> None:
    first = continue_texts(model, tokenizer, PROMPTS, eos_id=END, max_new_bytes=6)
    assert first == continue_texts(model, tokenizer, PROMPTS, eos_id=END, max_new_bytes=6)
    assert all(len(each.text.encode()) <= 6 for each in first)


def test_a_continuation_stops_at_the_end_of_text_token(model: Any, tokenizer: Any) -> None:
    with Scripted(model, b"abc") as scripted:
        assert continue_texts(scripted, tokenizer, ["x"], eos_id=END, max_new_bytes=9) == [
            Continuation("abc", tuple(b"abc"))
        ]


def test_a_continuation_never_ends_inside_a_character(model: Any, tokenizer: Any) -> None:
    with Scripted(model, "a단어".encode()) as scripted:
        written = continue_texts(scripted, tokenizer, [""], eos_id=END, max_new_bytes=6)
    assert written == [Continuation("a단", tuple("a단어".encode()[:6]))]


def test_the_training_mode_is_restored(model: Any, tokenizer: Any) -> None:
    model.train()
    continue_texts(model, tokenizer, ["x"], eos_id=END, max_new_bytes=1)
    generation_speed(model, tokenizer, ["x"], eos_id=END, new_bytes=1)
    assert model.training
    model.eval()


def test_speed_is_that_of_the_fastest_continuation(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # start and end of each continuation: eight seconds of warm-up, then four, two, eight and four
    clock = [0, 8, 10, 14, 20, 22, 30, 38, 40, 44]
    monkeypatch.setattr(module.time, "perf_counter", iter(clock).__next__)
    with Scripted(model, b"xxxxxx" + b"abcdef" * 4) as scripted:
        speed = generation_speed(scripted, tokenizer, ["", "y"], eos_id=END, new_bytes=6)
    assert speed == Speed(6 / 2, 6 / 2)


def test_bytes_per_second_count_everything_written(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # the first three tokens of every text stand for two bytes each
    monkeypatch.setattr(module, "byte_lengths", lambda _: np.array([1] * 97 + [2] * 3 + [1] * 157))
    monkeypatch.setattr(module.time, "perf_counter", iter([0, 1, 0, 1, 0, 2, 0, 1, 0, 2]).__next__)
    with Scripted(model, b"zzzzzzz" + (b"abcz" + b"zzzzzzz") * 2) as scripted:
        speed = generation_speed(scripted, tokenizer, ["", "y"], eos_id=END, new_bytes=7)
    assert speed == Speed(4.0, 4.0 * 14 / 11)


def test_timing_suppresses_the_end_of_text_token(model: Any, tokenizer: Any) -> None:
    asked = []

    def forward(input_ids: Any, *rest: Any, **arguments: Any) -> Any:
        output = original(input_ids, *rest, **arguments)
        output.logits[:, :, END] = 1e9
        asked.append(len(input_ids[0]))
        return output

    original = model.forward
    model.forward = forward
    try:
        assert continue_texts(model, tokenizer, ["x"], eos_id=END, max_new_bytes=5) == [Continuation("", ())]
        asked.clear()
        assert generation_speed(model, tokenizer, ["x"], eos_id=END, new_bytes=5).bytes > 0
    finally:
        del model.forward
    assert len(asked) >= 2 * 5
