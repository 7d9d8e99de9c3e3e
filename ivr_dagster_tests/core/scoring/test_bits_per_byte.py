"""Bits per byte, checked against one model call per token."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivr_dagster.core.scoring import bits_per_byte as module
from ivr_dagster.core.scoring.bits_per_byte import BitsPerByte, ScoringTokenizer, bits_per_byte, byte_lengths
from ivr_dagster.core.scoring.windows import fitting_context_bytes, iter_windows, window_starts
from ivr_dagster.core.tokens.byte_level import string_of
from ivr_dagster.errors import InputError

END = 256
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "",
    "단어 하나",
    "x",
    "A second document, a little longer than that.",
]


# tokens of one to four bytes, so that windows may begin inside one: ids up to 255 are bytes, 260 + n are pieces
PIECES = [b"The ", b"qu", b"ick", b" br", b"ow", "단".encode(), b"er ", b" th", b"on"]
LENGTHS = np.array([1] * 256 + [0, 9, 9, 9] + [len(piece) for piece in PIECES] + [1] * 30)


def encode(texts: list[str]) -> list[list[int]]:
    return [list(_pieces(text.encode())) for text in texts]


def _pieces(rest: bytes) -> Iterator[int]:
    while rest:
        token = next((260 + n for n, piece in enumerate(PIECES) if rest.startswith(piece)), rest[0])
        yield token
        rest = rest[LENGTHS[token] :]


TOKENIZER = ScoringTokenizer(encode, LENGTHS, END)


def score(model: Any, texts: list[str] = TEXTS, **options: Any) -> BitsPerByte:
    return bits_per_byte(model, TOKENIZER, texts, **{"context": 16, "context_bytes": 12, **options})


def window_start(begins: list[int], number: int, context_bytes: int, stride_bytes: int, context: int) -> int:
    """The definition in `windows` for one token."""
    window = max(0, math.ceil((begins[number] - context_bytes) / stride_bytes))
    start = min(number, next((n for n, at in enumerate(begins) if at >= window * stride_bytes), len(begins)))
    while number + 1 - start > context:
        start += max(1, context // 2)
    return start


def nats_by_single_calls(
    model: Any, text: str, context_bytes: int, stride_bytes: int, context: int
) -> tuple[list[float], int]:
    """The definition, one model call per token, and how many tokens have a shortened context."""
    import torch

    ids = encode([text])[0]
    begins = [int(LENGTHS[ids[:n]].sum()) for n in range(len(ids))]
    nats, shortened = [], 0
    model.eval()
    for number, token in enumerate(ids):
        start = window_start(begins, number, context_bytes, stride_bytes, context)
        shortened += start != window_start(begins, number, context_bytes, stride_bytes, 10_000)
        with torch.no_grad():
            logits = model(torch.tensor([[END, *ids[start:number]]])).logits[0, -1]
        nats.append(-float(logits.double().log_softmax(-1)[token]))
    return nats, shortened


@pytest.mark.parametrize(("context_bytes", "stride_bytes"), [(12, None), (12, 1), (9, 9), (1, 1), (30, 10), (500, 3)])
def test_score_is_the_sum_over_single_model_calls(model: Any, context_bytes: int, stride_bytes: int | None) -> None:
    result = score(model, context_bytes=context_bytes, stride_bytes=stride_bytes, batch_tokens=50)
    expected = [
        nats_by_single_calls(model, text, context_bytes, stride_bytes or max(1, context_bytes // 2), 16)
        for text in TEXTS
    ]
    bits = [sum(nats) / math.log(2) for nats, _ in expected]
    assert result.document_bits == pytest.approx(bits, rel=1e-5)
    assert result.document_bytes.tolist() == [len(text.encode()) for text in TEXTS]
    assert result.document_tokens.tolist() == [len(ids) for ids in encode(TEXTS)]
    assert result.bpb == pytest.approx(sum(bits) / sum(len(text.encode()) for text in TEXTS), rel=1e-5)
    assert result.shortened == sum(shortened for _, shortened in expected)
    assert (result.shortened > 0) == (context_bytes >= 30)
    by_id, counts = np.zeros(300), np.zeros(300, dtype=np.int64)
    for (nats, _), ids in zip(expected, encode(TEXTS), strict=True):
        for token, value in zip(ids, nats, strict=True):
            by_id[token] += value
            counts[token] += 1
    assert result.token_nats == pytest.approx(by_id, rel=1e-5)
    assert result.token_counts.tolist() == counts.tolist()
    assert counts[260:269].sum() > 5


@pytest.mark.parametrize("batch_tokens", [1, 20, 64, 100_000])
def test_score_does_not_depend_on_the_batch_size(model: Any, batch_tokens: int) -> None:
    result = score(model, batch_tokens=batch_tokens)
    assert result.document_bits == pytest.approx(score(model).document_bits, rel=1e-5)


@pytest.mark.parametrize("positions", [1, 4, 23])
def test_logits_stay_within_their_memory_limit(model: Any, positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = score(model)
    monkeypatch.setattr(module, "_MAX_LOGITS", 300 * positions)
    monkeypatch.setattr(module, "_POSITIONS", 3)
    most, forward = 0, type(model).forward

    def watched(self: Any, *rest: Any, **arguments: Any) -> Any:
        nonlocal most
        output = forward(self, *rest, **arguments)
        most = max(most, output.logits.numel() // 300)
        return output

    monkeypatch.setattr(type(model), "forward", watched)
    assert score(model).document_bits == pytest.approx(expected.document_bits, rel=1e-5)
    assert 0 < most <= positions


def test_a_uniform_model_needs_the_logarithm_of_its_vocabulary_per_token() -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=512, n_positions=16, n_embd=4, n_layer=1, n_head=1))
    torch.nn.init.zeros_(model.lm_head.weight)
    result = score(model)
    assert result.bits == pytest.approx(9 * result.tokens)
    assert result.bpb == pytest.approx(9 / result.bytes_per_token)


def test_progress_ends_at_the_number_of_tokens_and_the_mode_is_restored(model: Any) -> None:
    for training in (True, False):
        model.train(training)
        seen: list[tuple[int, int]] = []
        result = score(model, batch_tokens=32, progress=lambda *counts, seen=seen: seen.append(counts))
        assert model.training is training
        assert seen == sorted(seen)
        assert seen[-1] == (result.tokens, result.tokens)
        assert len(seen) > 1


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 40), st.integers(1, 12), st.data())
def test_windows_score_every_token_once_with_the_defined_context(
    lengths: list[int], context_bytes: int, context: int, data: st.DataObject
) -> None:
    stride, most = data.draw(st.integers(1, context_bytes)), data.draw(st.integers(1, 20))
    begins = [sum(lengths[:n]) for n in range(len(lengths))]
    starts, shortened = window_starts(np.array(lengths, dtype=np.int64), context_bytes, stride, context)
    unlimited, none = window_starts(np.array(lengths, dtype=np.int64), context_bytes, stride, 10_000)
    assert (none, shortened) == (0, int((starts != unlimited).sum()))
    for number, (start, wide) in enumerate(zip(starts.tolist(), unlimited.tolist(), strict=True)):
        assert wide <= start <= number
        assert number + 1 - start <= context
        assert start == wide or number + 1 - start > context - max(1, context // 2)
        before = begins[number] - begins[wide]
        assert before <= context_bytes
        assert wide == 0 or before > context_bytes - stride - 9
    scored: list[int] = []
    for start, end, new in iter_windows(starts, most):
        assert 1 <= new <= most
        assert set(starts[end - new : end].tolist()) == {start}
        scored += range(end - new, end)
    assert scored == list(range(len(lengths)))


@given(
    st.lists(st.lists(st.integers(1, 9), max_size=80), min_size=1, max_size=4),
    st.integers(1, 20),
    st.sampled_from([0.0, 0.01, 0.1]),
)
def test_fitting_context_is_the_longest_that_shortens_few_contexts(
    documents: list[list[int]], context: int, shortened: float
) -> None:
    lengths = [np.array(each, dtype=np.int64) for each in documents]
    fitting = fitting_context_bytes(lengths, context, shortened=shortened)
    short = sum(window_starts(each, fitting, max(1, fitting // 2), context)[1] for each in lengths)
    assert short <= shortened * sum(map(len, documents)) or fitting == 1
    # two more bytes would shorten too many contexts, unless no document is longer
    longer = fitting + 2
    spill = sum(int(each[n - context : n].sum()) < longer for each in lengths for n in range(context, len(each)))
    assert spill > shortened * sum(map(len, documents)) or fitting >= max(1, *(int(each.sum()) for each in lengths), 1)


def test_byte_lengths_are_those_of_the_tokens_text() -> None:
    strings = [string_of(" the"), string_of("단어"), "<|endoftext|>", "<｜end｜>"]
    assert byte_lengths(strings).tolist() == [4, 6, 13, len("<｜end｜>".encode())]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"context": 17}, "requested a context of 17 tokens, but the model supports 1 to 16"),
        ({"context": 0}, "a context of 0 tokens"),
        ({"context_bytes": 4, "stride_bytes": 5}, "a stride of 5 bytes with a context of 4 bytes"),
        ({"texts": ["", ""]}, "the 2 documents to score are empty"),
        (
            {"tokenizer": ScoringTokenizer(lambda texts: [[300] for _ in texts], LENGTHS, END)},
            "token id 300, but the mod",
        ),
        ({"tokenizer": ScoringTokenizer(encode, LENGTHS[:50], END)}, r"token id \d+, .* the tokenizer 50 tokens"),
    ],
)
def test_an_invalid_request_is_rejected(model: Any, arguments: dict[str, Any], message: str) -> None:
    request = {"tokenizer": TOKENIZER, "texts": TEXTS, "context": 8, "context_bytes": 12, **arguments}
    with pytest.raises(InputError, match=message):
        bits_per_byte(model, **request)
