from typing import Any

import numpy as np
import pytest

from ivr_dagster.core.evaluation import continuations as module
from ivr_dagster.core.evaluation.continuations import Continuation, Speed, continue_texts, generation_speed
from ivr_dagster.errors import InputError

END = 256
PROMPTS = ["The quick", "", "단어", "far too long for this model's context"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE

    tokenizer = Tokenizer(models.BPE(dict(CHARACTER_TO_BYTE) | {"<|endoftext|>": END}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


class Scripted:
    """Makes a model write what it is told, by the place in the sequence."""

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


def test_the_likeliest_continuations_are_always_the_same(model: Any, tokenizer: Any) -> None:
    first = continue_texts(model, tokenizer, PROMPTS, max_new_bytes=6, seed=1)
    assert first == continue_texts(model, tokenizer, PROMPTS, max_new_bytes=6, seed=2)
    assert all(len(each.text.encode()) <= 6 for each in first)


def test_sampled_continuations_depend_on_the_seed_alone(model: Any, tokenizer: Any) -> None:
    import torch

    def sampled(prompts: list[str], seed: int) -> list[str]:
        written = continue_texts(model, tokenizer, prompts, max_new_bytes=8, seed=seed, temperature=1.0)
        return [each.text for each in written]

    state = torch.random.get_rng_state()
    first = sampled(PROMPTS, 1)
    assert sampled(PROMPTS[::-1], 1) == first[::-1]
    assert sampled(PROMPTS, 2) != first
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_continuation_ends_with_the_end_of_text_token(model: Any, tokenizer: Any) -> None:
    with Scripted(model, b"abc") as scripted:
        assert continue_texts(scripted, tokenizer, ["x"], max_new_bytes=9) == [Continuation("abc", tuple(b"abc"))]


def test_a_continuation_never_ends_inside_a_character(model: Any, tokenizer: Any) -> None:
    with Scripted(model, "a단어".encode()) as scripted:
        written = continue_texts(scripted, tokenizer, [""], max_new_bytes=6)
    assert written == [Continuation("a단", tuple("a단어".encode()[:6]))]


def test_a_model_trains_on_as_before(model: Any, tokenizer: Any) -> None:
    model.train()
    continue_texts(model, tokenizer, ["x"], max_new_bytes=1)
    generation_speed(model, tokenizer, ["x"], new_bytes=1)
    assert model.training
    model.eval()


def test_speed_is_that_of_the_fastest_text(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # when each continuation begins and ends: eight seconds to warm up, then four, two, eight and four
    clock = [0, 8, 10, 14, 20, 22, 30, 38, 40, 44]
    monkeypatch.setattr(module.time, "perf_counter", iter(clock).__next__)
    with Scripted(model, b"xxxxxx" + b"abcdef" * 4) as scripted:
        speed = generation_speed(scripted, tokenizer, ["", "y"], new_bytes=6, rounds=2)
    assert speed == Speed(6 / 2, 6 / 2)


def test_bytes_a_second_are_those_of_all_that_was_written(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the first three tokens stand for two bytes each, in every text
    monkeypatch.setattr(module, "byte_lengths", lambda _: np.array([1] * 97 + [2] * 3 + [1] * 157))
    monkeypatch.setattr(module.time, "perf_counter", iter([0, 1, 0, 1, 0, 2]).__next__)
    with Scripted(model, b"zzzzzzz" + b"abcz" + b"zzzzzzz") as scripted:
        speed = generation_speed(scripted, tokenizer, ["", "y"], new_bytes=7, rounds=1)
    assert speed == Speed(4.0, 4.0 * 14 / 11)


def test_the_end_of_a_text_does_not_end_what_is_timed(model: Any, tokenizer: Any) -> None:
    asked = []

    def forward(input_ids: Any, *rest: Any, **arguments: Any) -> Any:
        output = original(input_ids, *rest, **arguments)
        output.logits[:, :, END] = 1e9
        asked.append(len(input_ids[0]))
        return output

    original = model.forward
    model.forward = forward
    try:
        assert continue_texts(model, tokenizer, ["x"], max_new_bytes=5) == [Continuation("", ())]
        asked.clear()
        assert generation_speed(model, tokenizer, ["x"], new_bytes=5).bytes > 0
    finally:
        del model.forward
    assert len(asked) >= 2 * 5


def test_a_request_that_cannot_be_met_is_refused(model: Any, tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"0 bytes at temperature 0\.0 were asked for"):
        continue_texts(model, tokenizer, ["x"], max_new_bytes=0)
    with pytest.raises(InputError, match=r"5 bytes at temperature -1 were asked for"):
        continue_texts(model, tokenizer, ["x"], max_new_bytes=5, temperature=-1)
    with pytest.raises(InputError, match="no prompt"):
        generation_speed(model, tokenizer, [], new_bytes=5)
    from transformers import PreTrainedTokenizerFast

    endless = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(InputError, match="the tokenizer names no end-of-text token"):
        continue_texts(model, endless, ["x"], max_new_bytes=5)
