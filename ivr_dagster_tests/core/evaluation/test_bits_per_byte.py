import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivr_dagster.core.evaluation import bits_per_byte as module
from ivr_dagster.core.evaluation.bits_per_byte import bits_per_byte, byte_lengths, context_that_fits
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


# tokens of one to four bytes, so that windows may begin inside one: ids up to 255 are bytes, 260 + n are these
PIECES = [b"The ", b"qu", b"ick", b" br", b"ow", "단".encode(), b"er ", b" th", b"on"]
LENGTHS = np.array([1] * 256 + [0, 9, 9, 9] + [len(piece) for piece in PIECES] + [1] * 30)


def encode_pieces(texts: list[str]) -> list[list[int]]:
    return [list(_pieces(text.encode())) for text in texts]


def _pieces(rest: bytes) -> Iterator[int]:
    while rest:
        token = next((260 + n for n, piece in enumerate(PIECES) if rest.startswith(piece)), rest[0])
        yield token
        rest = rest[LENGTHS[token] :]


def place_of_window(begins: list[int], number: int, context_bytes: int, stride_bytes: int, context: int) -> int:
    """The docstring's definition for one token: the place where its window begins."""
    begin = begins[number]
    window = max(0, math.ceil((begin - context_bytes) / stride_bytes))
    start = 0
    if window:
        first = next((n for n, at in enumerate(begins) if at >= window * stride_bytes), len(begins))
        start = min(first + 1, number)
    while number + 1 - start > context:
        start += max(1, context // 2)
    return start


def nats_with_cut_contexts(
    model: Any, text: str, context_bytes: int, stride_bytes: int, context: int
) -> tuple[list[float], int]:
    """The definition, one model call a token, and how many tokens were read from later on than bytes ask for."""
    import torch

    ids = encode_pieces([text])[0]
    sequence, begins = [END, *ids], [int(LENGTHS[ids[:n]].sum()) for n in range(len(ids))]
    nats, short = [], 0
    model.eval()
    for number, token in enumerate(ids):
        start = place_of_window(begins, number, context_bytes, stride_bytes, context)
        short += start != place_of_window(begins, number, context_bytes, stride_bytes, 10_000)
        with torch.no_grad():
            logits = model(torch.tensor([sequence[start : number + 1]])).logits[0, -1]
        nats.append(-float(logits.double().log_softmax(-1)[token]))
    return nats, short


@pytest.mark.parametrize(("context_bytes", "stride_bytes"), [(12, None), (12, 1), (9, 9), (1, 1), (30, 10), (500, 3)])
def test_windows_in_bytes_are_the_sum_over_single_model_calls_with_cut_contexts(
    model: Any, context_bytes: int, stride_bytes: int | None
) -> None:
    result = bits_per_byte(
        model,
        encode_pieces,
        TEXTS,
        eos_id=END,
        context=16,
        context_bytes=context_bytes,
        stride_bytes=stride_bytes,
        token_bytes=LENGTHS,
        batch_tokens=50,
    )
    wanted = [
        nats_with_cut_contexts(model, text, context_bytes, stride_bytes or context_bytes // 2, 16) for text in TEXTS
    ]
    assert result.document_bits == pytest.approx([sum(nats) / math.log(2) for nats, _ in wanted], rel=1e-5)
    assert result.shortened == sum(short for _, short in wanted)
    assert (result.shortened > 0) == (context_bytes >= 30)
    assert result.bytes == sum(len(text.encode()) for text in TEXTS)
    by_id, counts = np.zeros(300), np.zeros(300, dtype=np.int64)
    for (nats, _), ids in zip(wanted, encode_pieces(TEXTS), strict=True):
        for token, value in zip(ids, nats, strict=True):
            by_id[token] += value
            counts[token] += 1
    assert result.token_nats == pytest.approx(by_id, rel=1e-5)
    assert result.token_counts.tolist() == counts.tolist()
    assert counts[260:269].sum() > 5


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 40), st.integers(1, 12), st.data())
def test_windows_in_bytes_score_every_token_once_with_the_promised_context(
    lengths: list[int], context_bytes: int, context: int, data: st.DataObject
) -> None:
    stride, most = data.draw(st.integers(1, context_bytes)), data.draw(st.integers(1, 20))
    begins = [sum(lengths[:n]) for n in range(len(lengths))]
    starts, shortened = module._starts(np.array(lengths, dtype=np.int64), context_bytes, stride, context)
    unlimited, none = module._starts(np.array(lengths, dtype=np.int64), context_bytes, stride, 10_000)
    assert (none, shortened) == (0, int((starts != unlimited).sum()))
    for number, (start, wide) in enumerate(zip(starts.tolist(), unlimited.tolist(), strict=True)):
        assert wide <= start <= number
        assert number + 1 - start <= context
        assert start == wide or number + 1 - start > context - max(1, context // 2)
        before = begins[number] - (begins[wide - 1] if wide else 0)
        if wide == number:  # one token in any case
            continue
        assert before <= context_bytes
        assert wide == 0 or before > context_bytes - stride - 9
    scored: list[int] = []
    for start, end, new in module._windows_from(starts, most):
        assert 1 <= new <= most
        assert set(starts[end - new : end].tolist()) == {start}
        scored += range(end - new, end)
    assert scored == list(range(len(lengths)))


def test_the_same_text_has_the_same_windows_whatever_the_tokenizer(model: Any) -> None:
    """The beginnings of windows differ by the tokens that the beginning falls into, no more."""
    text = TEXTS[0].encode()
    for lengths in ([1] * len(text), [4] * (len(text) // 4)):
        starts, _ = module._starts(np.array(lengths, dtype=np.int64), 16, 8, 1000)
        begins = np.cumsum(lengths) - lengths
        for begin, start in zip(begins.tolist(), starts.tolist(), strict=True):
            assert (begins[start - 1] if start else 0) == max(0, 8 * math.ceil((begin - 16) / 8))


@given(
    st.lists(st.lists(st.integers(1, 9), max_size=80), min_size=1, max_size=4),
    st.integers(1, 20),
    st.sampled_from([0.0, 0.01, 0.1]),
)
def test_a_context_that_fits_spills_over_for_the_share_of_tokens_allowed(
    documents: list[list[int]], context: int, spilled: float
) -> None:
    lengths = [np.array(each, dtype=np.int64) for each in documents]
    fitting = context_that_fits(lengths, context, spilled=spilled)
    short = sum(module._starts(each, fitting, max(1, fitting // 2), context)[1] for each in lengths)
    # one token is read before another in any case, also where it has more bytes than the context
    assert short <= spilled * sum(map(len, documents)) or fitting < 9
    # and it is the longest: a byte and a token more would be too much, or no document is longer
    longer = fitting + 2
    spill = sum(int(each[n - context : n].sum()) < longer for each in lengths for n in range(context, len(each)))
    assert spill > spilled * sum(map(len, documents)) or fitting >= max(1, *(int(each.sum()) for each in lengths), 1)


def test_the_bytes_of_a_token_are_those_of_its_text() -> None:
    strings = [string_of(" the"), string_of("단어"), "<|endoftext|>", "<｜end｜>"]
    assert byte_lengths(strings).tolist() == [4, 6, 13, len("<｜end｜>".encode())]


def test_losses_by_token_add_up_to_the_documents(model: Any) -> None:
    result = bits_per_byte(model, encode, TEXTS, eos_id=END, context=8)
    assert result.token_nats.shape == result.token_counts.shape == (300,)
    assert result.token_nats.sum() / math.log(2) == pytest.approx(result.bits)
    assert result.token_counts.sum() == result.tokens
    assert (result.token_counts[END], result.shortened) == (0, 0)


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
        ({"context_bytes": 40}, "windows of 40 bytes were asked for without the tokens' lengths"),
        ({"context_bytes": 0, "token_bytes": LENGTHS}, "a context of 0 bytes"),
        ({"context_bytes": 4, "stride_bytes": 5, "token_bytes": LENGTHS}, "a stride of 5 bytes .* a context of 4"),
        ({"context_bytes": 4, "token_bytes": LENGTHS[:50]}, r"the id \d+, the lengths of 50 tokens were given"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(model: Any, arguments: dict[str, Any], message: str) -> None:
    request = {"tokenizer_encode": encode, "texts": TEXTS, "eos_id": END, "context": 8, **arguments}
    with pytest.raises(InputError, match=message):
        bits_per_byte(model, **request)
