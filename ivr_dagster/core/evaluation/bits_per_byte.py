"""Bits per byte of a causal language model on documents.

Why not loss or perplexity: both are means over tokens, and a tokenizer with longer tokens has fewer and harder ones.
Models with different tokenizers can be compared only on what both had to predict, the same bytes of text. So the
negative log-likelihood of all tokens is summed and divided by the text's UTF-8 bytes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ivr_dagster.core.errors import InputError

if TYPE_CHECKING:
    import torch

Encode = Callable[[list[str]], Sequence[Sequence[int] | NDArray[np.integer[Any]]]]

# numbers in the logits of one batch: 400 MB in float32, 2,000 positions of a vocabulary of 50,000
_LOGITS = 100_000_000
# positions whose log-softmax is taken at once: it needs a float32 copy or two of their logits
_POSITIONS = 256
_TEXTS = 256


@dataclass(frozen=True, eq=False)
class BitsPerByte:
    """Figures by document, in the order of the texts, and their sums.

    Attributes:
        document_bits: float64 `[D]`, the negative log-likelihood of all tokens of a document, in bits.
        document_bytes: int64 `[D]`, UTF-8 bytes of its text.
        document_tokens: int64 `[D]`.
    """

    document_bits: NDArray[np.float64]
    document_bytes: NDArray[np.int64]
    document_tokens: NDArray[np.int64]

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
    batch_tokens: int = 8192,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> BitsPerByte:
    """Score documents with a causal language model.

    A document is scored alone. Its sequence is the end-of-text token, which is the first context and is not scored,
    and then its tokens t₁ … tₙ, every one of which is scored exactly once; no end-of-text token is expected after
    the last. The model reads windows of at most `context` tokens that begin 0, stride, 2·stride … tokens into the
    sequence, and a window scores only what the one before did not: the first scores all it predicts, each later
    one `stride` tokens at the most, each of them with at least `context − stride` tokens before it.

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
        batch_tokens: tokens, padding included, that the model reads at once.
        device: cpu, cuda or mps.
        progress: called after every batch with the tokens scored so far and in all.

    Raises:
        InputError: no text; a context longer than the model's, a stride longer than the context; an id that the
            model has no embedding for.
    """
    import torch

    stride = max(1, context // 2) if stride is None else stride
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    _check_settings(model, context, stride, batch_tokens)
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
    windows = [
        _Window(document, *place)
        for document, ids in enumerate(documents)
        for place in _windows(len(ids) - 1, context, stride, max(1, _LOGITS // vocabulary))
    ]
    # the longest first: what does not fit into memory fails at once
    windows.sort(key=lambda window: (window.start - window.end, window.document, window.start))

    nats = np.zeros(len(documents))
    total, scored = sum(window.new for window in windows), 0
    was_training = model.training
    model.to(device).eval()
    try:
        with torch.inference_mode():
            for batch in _batches(windows, batch_tokens, max(1, _LOGITS // vocabulary)):
                owners = np.repeat([window.document for window in batch], [window.new for window in batch])
                np.add.at(nats, owners, _score(model, documents, batch, eos_id, device).numpy())
                scored += len(owners)
                if progress is not None:
                    progress(scored, total)
    finally:
        model.train(was_training)
    return BitsPerByte(nats / math.log(2), document_bytes, np.array([len(ids) - 1 for ids in documents]))


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
    model: Any, documents: list[NDArray[np.int64]], batch: list[_Window], eos_id: int, device: str
) -> "torch.Tensor":
    """Nats of the scored tokens of a batch, float64 `[Σ new]`, window by window."""
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
    targets: Any = torch.from_numpy(
        np.concatenate([documents[window.document][window.end + 1 - window.new : window.end + 1] for window in batch])
    ).to(device)
    logits = model(
        input_ids=ids.to(device), attention_mask=real.to(device), logits_to_keep=kept.to(device), use_cache=False
    ).logits
    parts = [
        torch.nn.functional.cross_entropy(part.float(), target, reduction="none")
        for part, target in zip(logits.split(_POSITIONS), targets.split(_POSITIONS), strict=True)
    ]
    return torch.cat(parts).cpu().double()
