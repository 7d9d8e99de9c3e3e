import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivr_dagster.core.errors import InputError
from ivr_dagster.core.evaluation import bits_per_byte as module
from ivr_dagster.core.evaluation.bits_per_byte import bits_per_byte

END = 256
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "",
    "단어 하나",
    "x",
    "A second document, a little longer than that.",
]


def encode(texts: list[str]) -> list[list[int]]:
    return [list(text.encode()) for text in texts]


def bits_token_by_token(model: Any, text: str, context: int, stride: int) -> float:
    """The definition, one model call a token: which window scores token i, and what it has before it."""
    import torch

    sequence = [END, *text.encode()]
    total = 0.0
    model.eval()
    for place in range(1, len(sequence)):
        begin = 0 if place <= context else stride * math.ceil((place - context) / stride)
        with torch.no_grad():
            logits = model(torch.tensor([sequence[begin:place]])).logits[0, -1]
        total -= float(logits.double().log_softmax(-1)[sequence[place]]) / math.log(2)
    return total


@pytest.mark.parametrize(("context", "stride"), [(16, None), (16, 3), (7, 7), (5, 1), (1, 1)])
def test_it_is_the_sum_over_single_model_calls(model: Any, context: int, stride: int | None) -> None:
    result = bits_per_byte(model, encode, TEXTS, eos_id=END, context=context, stride=stride)
    wanted = [bits_token_by_token(model, text, context, stride or context // 2) for text in TEXTS]
    assert result.document_bits == pytest.approx(wanted, rel=1e-5)
    assert result.document_bytes.tolist() == [len(text.encode()) for text in TEXTS]
    assert result.bits == pytest.approx(sum(wanted), rel=1e-5)
    assert result.bpb == pytest.approx(sum(wanted) / sum(len(text.encode()) for text in TEXTS), rel=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 20, 64, 100_000])
def test_it_does_not_depend_on_the_batches(model: Any, batch_tokens: int) -> None:
    result = bits_per_byte(model, encode, TEXTS, eos_id=END, context=16, batch_tokens=batch_tokens)
    wanted = bits_per_byte(model, encode, TEXTS, eos_id=END, context=16)
    assert result.document_bits == pytest.approx(wanted.document_bits, rel=1e-5)


@pytest.mark.parametrize("positions", [1, 4, 23])
def test_it_does_not_depend_on_the_room_for_logits(model: Any, positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = bits_per_byte(model, encode, TEXTS, eos_id=END, context=16)
    monkeypatch.setattr(module, "_LOGITS", 300 * positions)
    monkeypatch.setattr(module, "_POSITIONS", 3)
    most, forward = 0, type(model).forward

    def watched(self: Any, *rest: Any, **arguments: Any) -> Any:
        nonlocal most
        output = forward(self, *rest, **arguments)
        most = max(most, output.logits.numel() // 300)
        return output

    monkeypatch.setattr(type(model), "forward", watched)
    result = bits_per_byte(model, encode, TEXTS, eos_id=END, context=16)
    assert result.document_bits == pytest.approx(wanted.document_bits, rel=1e-5)
    assert 0 < most <= positions


def test_documents_are_scored_alone(model: Any) -> None:
    together = bits_per_byte(model, encode, TEXTS, eos_id=END, context=16)
    for number, text in enumerate(TEXTS):
        if text:
            alone = bits_per_byte(model, encode, [text], eos_id=END, context=16)
            assert alone.bits == pytest.approx(together.document_bits[number], rel=1e-5)
    twice = bits_per_byte(model, encode, TEXTS * 2, eos_id=END, context=16)
    assert (twice.bits, twice.bpb) == pytest.approx((2 * together.bits, together.bpb), rel=1e-6)


def test_a_model_that_knows_nothing_needs_the_logarithm_of_its_vocabulary_for_a_token() -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=512, n_positions=8, n_embd=4, n_layer=1, n_head=1))
    torch.nn.init.zeros_(model.lm_head.weight)
    result = bits_per_byte(model, encode, TEXTS, eos_id=END, context=8)
    assert result.bits == pytest.approx(9 * result.tokens)
    assert result.bpb == pytest.approx(9.0)


def test_fewer_tokens_for_the_same_bytes_show_as_bytes_per_token(model: Any) -> None:
    result = bits_per_byte(model, lambda texts: [ids[::2] for ids in encode(texts)], ["abcdef"], eos_id=END, context=8)
    assert (result.tokens, result.bytes, result.bytes_per_token, result.documents) == (3, 6, 2.0, 1)


def test_ids_may_come_as_arrays_and_progress_ends_at_the_number_of_tokens(model: Any) -> None:
    seen: list[tuple[int, int]] = []
    result = bits_per_byte(
        model,
        lambda texts: [np.array(ids, dtype=np.uint16) for ids in encode(texts)],
        TEXTS,
        eos_id=END,
        context=16,
        batch_tokens=32,
        progress=lambda *counts: seen.append(counts),
    )
    assert seen == sorted(seen)
    assert seen[-1] == (result.tokens, result.tokens)
    assert len(seen) > 1


def test_the_model_is_left_in_the_mode_it_came_in(model: Any) -> None:
    for training in (True, False):
        model.train(training)
        bits_per_byte(model, encode, TEXTS, eos_id=END, context=16)
        assert model.training is training


@given(st.integers(0, 60), st.integers(1, 12), st.data())
def test_windows_score_every_token_once_with_context_enough(tokens: int, context: int, data: st.DataObject) -> None:
    stride, most = data.draw(st.integers(1, context)), data.draw(st.integers(1, 20))
    scored: list[int] = []
    for start, end, new in module._windows(tokens, context, stride, most):
        assert start % stride == 0
        assert end - start <= context
        assert 1 <= new <= most
        assert start == 0 or end - new - start >= context - stride
        scored += range(end - new, end)
    assert scored == list(range(tokens))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"context": 17}, "a context of 17 tokens was asked for, the model reads 1 to 16"),
        ({"context": 0}, "a context of 0 tokens"),
        ({"stride": 9}, "a stride of 9 tokens was asked for with a context of 8"),
        ({"stride": 0}, "a stride of 0 tokens"),
        ({"batch_tokens": 0}, "a batch of 0 tokens"),
        ({"texts": ["", ""]}, "the 2 documents to score hold no text"),
        ({"tokenizer_encode": lambda texts: [[300] for _ in texts]}, "the id 300, the model has 300 embedding rows"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(model: Any, arguments: dict[str, Any], message: str) -> None:
    request = {"tokenizer_encode": encode, "texts": TEXTS, "eos_id": END, "context": 8, **arguments}
    with pytest.raises(InputError, match=message):
        bits_per_byte(model, **request)
