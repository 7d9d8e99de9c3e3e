"""Bits per byte of a causal language model on documents.

Why not loss or perplexity: both are means over tokens, and a tokenizer with longer tokens has fewer and harder ones.
Models with different tokenizers can be compared only on what both had to predict, the same bytes of text. So the
negative log-likelihood of all tokens is summed and divided by the text's UTF-8 bytes.

What a model has read before a token must be comparable, too. A context of as many tokens holds more text where tokens
are longer, which is an advantage of the tokenizer in use and a bias of the measure. So contexts can be given in bytes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ivr_dagster.core.tokens.byte_level import is_byte_level
from ivr_dagster.errors import InputError

if TYPE_CHECKING:
    import torch

Encode = Callable[[list[str]], Sequence[Sequence[int] | NDArray[np.integer[Any]]]]

# numbers in the logits of one batch: 400 MB in float32, 2,000 positions of a vocabulary of 50,000
_LOGITS = 100_000_000
# positions whose log-softmax is taken at once: it needs a float32 copy or two of their logits
_POSITIONS = 256
_TEXTS = 256
# share of tokens for which a context in bytes may be more than the model reads
SPILLED = 0.01


@dataclass(frozen=True, eq=False)
class BitsPerByte:
    """Figures by document, in the order of the texts, and their sums.

    Attributes:
        document_bits: float64 `[D]`, the negative log-likelihood of all tokens of a document, in bits.
        document_bytes: int64 `[D]`, UTF-8 bytes of its text.
        document_tokens: int64 `[D]`.
        token_nats: float64 `[V]`, the negative log-likelihood of all occurrences of a token by its id, in nats.
        token_counts: int64 `[V]`, occurrences by id.
        shortened: how many tokens were read with fewer bytes before them than `context_bytes` grants, because the
            model's context holds no more tokens.
    """

    document_bits: NDArray[np.float64]
    document_bytes: NDArray[np.int64]
    document_tokens: NDArray[np.int64]
    token_nats: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    token_counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    shortened: int = 0

    @property
    def bits(self) -> float:
        return float(self.document_bits.sum())

    @property
    def bytes(self) -> int:
        return int(self.document_bytes.sum())

    @property
    def tokens(self) -> int:
        return int(self.document_tokens.sum())

    @property
    def documents(self) -> int:
        return len(self.document_bytes)

    @property
    def bpb(self) -> float:
        """Bits per UTF-8 byte over all documents; long ones weigh more."""
        return self.bits / self.bytes

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.tokens


def byte_lengths(strings: Sequence[str]) -> NDArray[np.int64]:
    """Bytes of text that each token stands for, int64 `[V]`.

    Args:
        strings: the tokens by id in the byte-level alphabet, as `core.tokenizer.bpe.strings_by_id` gives them. Outside
            the alphabet (`<｜end｜>`) a string is its own text.
    """
    return np.array(
        [len(string) if is_byte_level(string) else len(string.encode()) for string in strings], dtype=np.int64
    )


def context_that_fits(lengths: Sequence[NDArray[np.int64]], context: int, *, spilled: float = SPILLED) -> int:
    """The most bytes of context that a model of `context` tokens can give to nearly all tokens of these documents.

    Args:
        lengths: int64 `[n]` for every document, bytes of its tokens under the tokenizer that needs the most of them.
        context: tokens that the model reads at once.
        spilled: share of all tokens that may have more than `context` tokens in so many bytes before them. Some do in
            any text, where it is dense (tables, numbers), and one such place must not decide the context of all.
    """
    reaches = []
    for each in lengths:
        ends = np.concatenate([[0], np.cumsum(each)])
        # bytes of the `context` tokens before a token, where there are so many
        reaches.append(ends[context : len(each)] - ends[: max(0, len(each) - context)])
    reach = np.sort(np.concatenate(reaches)) if reaches else np.zeros(0, dtype=np.int64)
    rank = int(spilled * sum(len(each) for each in lengths))
    if rank >= len(reach):
        return max(1, *(int(each.sum()) for each in lengths), 1)
    return max(1, int(reach[rank]) - 1)


@dataclass(frozen=True)
class _Window:
    """Tokens `start … end − 1` of a document, of which the last `new` are scored here."""

    document: int
    start: int
    end: int
    new: int


def bits_per_byte(
    model: Any,
    tokenizer_encode: Encode,
    texts: Sequence[str],
    *,
    eos_id: int,
    context: int,
    stride: int | None = None,
    context_bytes: int | None = None,
    stride_bytes: int | None = None,
    token_bytes: NDArray[np.int64] | None = None,
    batch_tokens: int = 8192,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> BitsPerByte:
    """Score documents with a causal language model.

    A document is scored alone. Its sequence is the end-of-text token, which is the first context and is not scored,
    and then its tokens t₁ … tₙ, every one of which is scored exactly once; no end-of-text token is expected after
    the last. The model reads windows of the sequence, of at most `context` tokens, and a window scores only what the
    one before did not.

    *Windows in tokens*, where `context_bytes` is not given, begin 0, stride, 2·stride … tokens into the sequence: the
    first scores all it predicts, each later one `stride` tokens at the most, each of them with at least
    `context − stride` tokens before it.

    *Windows in bytes*, the same text for every tokenizer: C = `context_bytes`, S = `stride_bytes`. A token that begins
    p bytes into the document is read in window k = max(0, ⌈(p − C) / S⌉), which begins with the first token that begins
    at byte k·S or after it; window 0 begins with the end-of-text token. So a token has at most C bytes before it and,
    beyond the document's first C bytes, at least C − S, less the part of a token that k·S may cut off (all of the
    document in window 0; one token in any case, whatever its bytes). Where a window would take more than `context`
    tokens, its later tokens are read from a later beginning, a multiple of `context // 2` tokens further on, with at
    least about half the model's context; the result's `shortened` counts them.

    Log-probabilities are float32 log-softmax whatever the model's dtype, their sum is float64. The result does not
    depend on `batch_tokens` beyond float32 rounding. Logits are computed for scored positions only, 400 MB of them
    at once.

    Args:
        model: a causal LM of transformers; moved to `device`, its weights untouched.
        tokenizer_encode: texts to ids, no special tokens added.
        texts: the documents.
        eos_id: id of the end-of-text token.
        context: tokens the model reads at once, at most what it was made for.
        stride: tokens from one window to the next, `context // 2` by default. Smaller is more exact and slower.
        context_bytes: bytes of text before a token at most; windows are in bytes then, and `stride` is not used.
        stride_bytes: bytes from one window to the next, `context_bytes // 2` by default.
        token_bytes: int64 `[≥ ids]`, bytes of every token, as of :func:`byte_lengths`; needed for windows in bytes.
        batch_tokens: tokens, padding included, that the model reads at once.
        device: cpu, cuda or mps.
        progress: called after every batch with the tokens scored so far and in all.

    Raises:
        InputError: no text; a context longer than the model's, a stride longer than the context; an id that the
            model, or `token_bytes`, has no row for; windows in bytes without `token_bytes`.
    """
    import torch

    stride = max(1, context // 2) if stride is None else stride
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    _check_settings(model, context, stride, batch_tokens)
    if context_bytes is not None:
        stride_bytes = max(1, context_bytes // 2) if stride_bytes is None else stride_bytes
        _check_bytes(context_bytes, stride_bytes, token_bytes)
    document_bytes = np.array([len(text.encode()) for text in texts], dtype=np.int64)
    if not document_bytes.sum():
        raise InputError(f"the {len(texts)} documents to score hold no text", remedy="Keep some text held out")
    documents = _encode(tokenizer_encode, texts, eos_id)
    largest = max(int(ids.max()) for ids in documents)
    if largest >= vocabulary:
        raise InputError(
            f"the tokenizer gives the id {largest}, the model has {vocabulary} embedding rows",
            remedy="Give the model and the tokenizer of the same run",
        )
    if context_bytes is not None and token_bytes is not None and largest >= len(token_bytes):
        raise InputError(
            f"the tokenizer gives the id {largest}, the lengths of {len(token_bytes)} tokens were given",
            where="token_bytes",
            remedy="Give the lengths of this tokenizer's tokens",
        )
    most, shortened = max(1, _LOGITS // vocabulary), 0
    windows: list[_Window] = []
    for document, ids in enumerate(documents):
        if context_bytes is None or stride_bytes is None or token_bytes is None:
            places = _windows(len(ids) - 1, context, stride, most)
        else:
            starts, short = _starts(token_bytes[ids[1:]], context_bytes, stride_bytes, context)
            shortened += short
            places = _windows_from(starts, most)
        windows += [_Window(document, *place) for place in places]
    # the longest first: what does not fit into memory fails at once
    windows.sort(key=lambda window: (window.start - window.end, window.document, window.start))

    nats, token_nats = np.zeros(len(documents)), np.zeros(vocabulary)
    total, scored = sum(window.new for window in windows), 0
    was_training = model.training
    model.to(device).eval()
    try:
        with torch.inference_mode():
            for batch in _batches(windows, batch_tokens, most):
                owners = np.repeat([window.document for window in batch], [window.new for window in batch])
                targets = np.concatenate(
                    [documents[each.document][each.end + 1 - each.new : each.end + 1] for each in batch]
                )
                scores = _score(model, documents, batch, targets, eos_id, device).numpy()
                np.add.at(nats, owners, scores)
                np.add.at(token_nats, targets, scores)
                scored += len(owners)
                if progress is not None:
                    progress(scored, total)
    finally:
        model.train(was_training)
    counts = sum((np.bincount(ids[1:], minlength=vocabulary) for ids in documents), np.zeros(vocabulary, np.int64))
    tokens = np.array([len(ids) - 1 for ids in documents], dtype=np.int64)
    return BitsPerByte(nats / math.log(2), document_bytes, tokens, token_nats, counts, shortened)


def _check_settings(model: Any, context: int, stride: int, batch_tokens: int) -> None:
    longest = getattr(model.config, "max_position_embeddings", None) or context
    if not 1 <= context <= longest:
        raise InputError(
            f"a context of {context} tokens was asked for, the model reads 1 to {longest}",
            where="context",
            remedy=f"Take {longest} or less",
        )
    if not 1 <= stride <= context:
        raise InputError(
            f"a stride of {stride} tokens was asked for with a context of {context}",
            where="stride",
            remedy="Take 1 up to the context; a longer one would leave tokens out",
        )
    if batch_tokens < 1:
        raise InputError(f"a batch of {batch_tokens} tokens holds nothing", where="batch_tokens", remedy="Take 8192")


def _check_bytes(context_bytes: int, stride_bytes: int, token_bytes: NDArray[np.int64] | None) -> None:
    if token_bytes is None:
        raise InputError(
            f"windows of {context_bytes} bytes were asked for without the tokens' lengths",
            where="token_bytes",
            remedy="Give byte_lengths(strings_by_id(tokenizer))",
        )
    if context_bytes < 1:
        raise InputError(f"a context of {context_bytes} bytes holds nothing", where="context_bytes", remedy="Take 2048")
    if not 1 <= stride_bytes <= context_bytes:
        raise InputError(
            f"a stride of {stride_bytes} bytes was asked for with a context of {context_bytes}",
            where="stride_bytes",
            remedy="Take 1 up to the context; a longer one would leave tokens without it",
        )


def _encode(tokenizer_encode: Encode, texts: Sequence[str], eos_id: int) -> list[NDArray[np.int64]]:
    """Every document's sequence: the end-of-text id, then its ids; int64 `[1 + n]`."""
    return [
        np.concatenate([[eos_id], np.asarray(ids, dtype=np.int64)])
        for start in range(0, len(texts), _TEXTS)
        for ids in tokenizer_encode(list(texts[start : start + _TEXTS]))
    ]


def _windows(tokens: int, context: int, stride: int, most: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, new) of a document's windows; one that would score more than `most` tokens is read in parts."""
    scored = 0
    while scored < tokens:
        start = 0 if scored < context else ((scored - context) // stride + 1) * stride
        end = min(tokens, start + context, scored + most)
        yield start, end, end - scored
        scored = end


def _starts(
    lengths: NDArray[np.int64], context_bytes: int, stride_bytes: int, context: int
) -> tuple[NDArray[np.int64], int]:
    """Where in the sequence the window of each token begins, int64 `[n]`, and how many begin later than bytes ask for.

    Args:
        lengths: int64 `[n]`, bytes of a document's tokens. Token i is place i + 1 of the sequence.
        context_bytes: C.
        stride_bytes: S.
        context: places that the model reads at once.
    """
    places = np.arange(len(lengths))
    begins = np.cumsum(lengths) - lengths
    numbers = np.maximum(0, -((context_bytes - begins) // stride_bytes))
    starts = np.where(numbers == 0, 0, np.searchsorted(begins, numbers * stride_bytes) + 1)
    starts = np.minimum(starts, places)
    # the model reads starts … places to predict the token behind them
    over, hop = places + 1 - starts - context, max(1, context // 2)
    later = np.where(over > 0, -(-over // hop) * hop, 0)
    return starts + later, int((later > 0).sum())


def _windows_from(starts: NDArray[np.int64], most: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, new) of windows, each for consecutive tokens of one start, `most` at the most."""
    first = 0
    for end in [*(np.flatnonzero(np.diff(starts)) + 1).tolist(), len(starts)]:
        for begin in range(first, end, most):
            stop = min(end, begin + most)
            yield int(starts[begin]), stop, stop - begin
        first = end


def _batches(windows: list[_Window], batch_tokens: int, most: int) -> Iterator[list[_Window]]:
    """Consecutive windows that together have at most `batch_tokens` places and `most` scored tokens."""
    batch: list[_Window] = []
    for window in windows:
        longest = (batch or [window])[0]
        full = (len(batch) + 1) * (longest.end - longest.start) > batch_tokens
        if batch and (full or sum(each.new for each in batch) + window.new > most):
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _score(
    model: Any,
    documents: list[NDArray[np.int64]],
    batch: list[_Window],
    scored: NDArray[np.int64],
    eos_id: int,
    device: str,
) -> "torch.Tensor":
    """Nats of the scored tokens of a batch, whose ids are `scored`, float64 `[Σ new]`, window by window."""
    import torch

    longest = max(window.end - window.start for window in batch)
    ids = torch.full((len(batch), longest), eos_id)
    real, kept = torch.zeros(ids.shape, dtype=torch.bool), torch.zeros(ids.shape, dtype=torch.bool)
    for row, window in enumerate(batch):
        length = window.end - window.start
        ids[row, :length] = torch.from_numpy(documents[window.document][window.start : window.end])
        real[row, :length] = True
        kept[row, length - window.new : length] = True
    # the document's own sequence is one place ahead of its tokens: what place i predicts is the sequence's i + 1
    targets: Any = torch.from_numpy(scored).to(device)
    logits = model(
        input_ids=ids.to(device), attention_mask=real.to(device), logits_to_keep=kept.to(device), use_cache=False
    ).logits
    parts = [
        torch.nn.functional.cross_entropy(part.float(), target, reduction="none")
        for part, target in zip(logits.split(_POSITIONS), targets.split(_POSITIONS), strict=True)
    ]
    return torch.cat(parts).cpu().double()
