"""Bits per byte (BPB) of a causal language model on documents.

Loss and perplexity are averaged over tokens, and longer tokens are fewer and harder to predict. Models with different
tokenizers are therefore comparable only per byte of text: the negative log-likelihood of all tokens is summed and
divided by the number of UTF-8 bytes.

Each document is scored separately, each of its tokens once. The model reads it in windows, each after an end-of-text
token, which is context and not scored; `windows` defines them. No end-of-text token is scored at the end.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ivr_dagster.core.scoring.windows import fitting_context_bytes, iter_windows, window_starts
from ivr_dagster.core.tokenizer.bpe import strings_by_id
from ivr_dagster.core.tokens.byte_level import is_byte_level
from ivr_dagster.core.tokens.sequences import reference_encoder
from ivr_dagster.errors import InputError

if TYPE_CHECKING:
    import torch

Encode = Callable[[list[str]], Sequence[Sequence[int] | NDArray[np.integer[Any]]]]

# maximum elements in the logits of a batch: 400 MB in float32, or 2,000 positions with a vocabulary of 50,000
_MAX_LOGITS = 100_000_000
# positions per log-softmax call, which needs one or two float32 copies of their logits
_POSITIONS = 256
_TEXTS_PER_CALL = 256
# a target that is not scored
IGNORED = -100


def byte_lengths(strings: Sequence[str]) -> NDArray[np.int64]:
    """UTF-8 bytes of text that each token stands for, int64 `[V]`.

    Args:
        strings: byte-level strings by id, see `core.tokenizer.bpe.strings_by_id`. A string outside the byte-level
            alphabet (`<｜end｜>`) counts as plain text.
    """
    return np.array(
        [len(string) if is_byte_level(string) else len(string.encode()) for string in strings], dtype=np.int64
    )


@dataclass(frozen=True, eq=False)
class ScoringTokenizer:
    """The parts of a tokenizer that scoring needs.

    Attributes:
        encode: texts → ids, without special tokens.
        token_bytes: int64 `[≥ ids]`, bytes of every token, see :func:`byte_lengths`.
        eos_id: end-of-text id.
    """

    encode: Encode
    token_bytes: NDArray[np.int64]
    eos_id: int

    @classmethod
    def of(cls, backend: Tokenizer, eos_id: int) -> "ScoringTokenizer":
        """Extract these parts from `backend`."""
        return cls(reference_encoder(backend), byte_lengths(strings_by_id(backend)), eos_id)

    def fitting_context_bytes(self, texts: Sequence[str], context: int) -> int:
        """See :func:`windows.fitting_context_bytes`."""
        encoded = self.encode(list(texts))
        return fitting_context_bytes([self.token_bytes[np.asarray(ids, dtype=np.int64)] for ids in encoded], context)


@dataclass(frozen=True, eq=False)
class BitsPerByte:
    """The score of every token, by document in the order of the texts.

    Attributes:
        document_bytes: int64 `[D]`, UTF-8 bytes of a document's text.
        ids: int64 `[n]` per document, the scored ids.
        losses: float64 `[n]` per document, their negative log-likelihoods in nats.
        document_shortened: int64 `[D]`, tokens with a shortened context, see `windows`.
        vocabulary: V, the model's embedding rows.
    """

    document_bytes: NDArray[np.int64]
    ids: Sequence[NDArray[np.int64]]
    losses: Sequence[NDArray[np.float64]]
    document_shortened: NDArray[np.int64]
    vocabulary: int

    @cached_property
    def document_bits(self) -> NDArray[np.float64]:
        """Negative log-likelihood of each document in bits, float64 `[D]`."""
        return np.array([each.sum() for each in self.losses]) / math.log(2)

    @property
    def document_tokens(self) -> NDArray[np.int64]:
        """Tokens of each document, int64 `[D]`."""
        return np.array([len(each) for each in self.ids], dtype=np.int64)

    @property
    def token_nats(self) -> NDArray[np.float64]:
        """Summed negative log-likelihood by id, in nats, float64 `[V]`."""
        nats = np.zeros(self.vocabulary)
        np.add.at(nats, np.concatenate(self.ids), np.concatenate(self.losses))
        return nats

    @property
    def token_counts(self) -> NDArray[np.int64]:
        """Occurrences by id, int64 `[V]`."""
        return np.bincount(np.concatenate(self.ids), minlength=self.vocabulary)

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
    def shortened(self) -> int:
        return int(self.document_shortened.sum())

    @property
    def bpb(self) -> float:
        """Bits per UTF-8 byte over all documents; long documents weigh more."""
        return self.bits / self.bytes

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.tokens


@dataclass(frozen=True)
class _Window:
    """A window that predicts the tokens `end − scored … end − 1` of a document."""

    document: int
    start: int
    end: int
    scored: int

    @property
    def tokens(self) -> int:
        """Tokens that the model reads: the end-of-text token and tokens `start … end − 2`."""
        return self.end - self.start


def bits_per_byte(
    model: Any,
    tokenizer: ScoringTokenizer,
    texts: Sequence[str],
    *,
    context: int,
    context_bytes: int | None = None,
    stride_bytes: int | None = None,
    batch_tokens: int = 8192,
    device: str = "cpu",
    targets: Sequence[NDArray[np.int64]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> BitsPerByte:
    """Score documents with a causal language model.

    Log-probabilities are float32 whatever the model's dtype, sums are float64. `batch_tokens` changes the result by
    float32 rounding only.

    Args:
        model: a causal LM of transformers; moved to `device`.
        tokenizer: the model's tokenizer.
        texts: the documents.
        context: maximum tokens per forward pass, at most the model's context length.
        context_bytes: maximum bytes of text before a token; by default the most that nearly all tokens can have. Pass
            the same value for all models that are compared.
        stride_bytes: bytes from one window to the next, by default `context_bytes // 2`. A smaller
            stride is slower, but contexts are closer to full length.
        batch_tokens: tokens per batch, including padding.
        device: cpu, cuda or mps.
        targets: int64 `[n]` per document, ids to score in place of its tokens, which remain the context; `IGNORED` has
            the loss 0.
        progress: called after every batch with tokens scored so far and in total.

    Raises:
        InputError: no text, a context or stride out of range, or a token id without an embedding row.
    """
    if context_bytes is None:
        context_bytes = tokenizer.fitting_context_bytes(texts, context)
    stride_bytes = max(1, context_bytes // 2) if stride_bytes is None else stride_bytes
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    _check_windows(model, context, context_bytes, stride_bytes)
    document_bytes = np.array([len(text.encode()) for text in texts], dtype=np.int64)
    if not document_bytes.sum():
        raise InputError(f"the {len(texts)} documents to score are empty", remedy="Hold out some text.")
    documents = _encode(tokenizer, texts)
    _check_ids([*documents, np.array([tokenizer.eos_id])], vocabulary, len(tokenizer.token_bytes))
    max_scored = max(1, _MAX_LOGITS // vocabulary)
    lengths = [tokenizer.token_bytes[ids] for ids in documents]
    windows, shortened = _windows(lengths, context_bytes, stride_bytes, context, max_scored)
    batches = _batches(windows, batch_tokens, max_scored)
    wanted = documents if targets is None else list(targets)
    losses = [np.zeros(len(ids)) for ids in wanted]
    done, total = 0, sum(window.scored for window in windows)
    for window, scored in _iter_losses(model, documents, wanted, batches, tokenizer.eos_id, device):
        losses[window.document][window.end - window.scored : window.end] = scored
        done += len(scored)
        if progress is not None:
            progress(done, total)
    return BitsPerByte(document_bytes, wanted, losses, shortened, vocabulary)


def _check_windows(model: Any, context: int, context_bytes: int, stride_bytes: int) -> None:
    longest = getattr(model.config, "max_position_embeddings", None) or context
    if not 1 <= context <= longest:
        raise InputError(
            f"requested a context of {context} tokens, but the model supports 1 to {longest}",
            where="context",
            remedy=f"Use at most {longest}.",
        )
    if not 1 <= stride_bytes <= context_bytes:
        raise InputError(
            f"requested a stride of {stride_bytes} bytes with a context of {context_bytes} bytes",
            where="stride_bytes",
            remedy=f"Use a stride of 1 to {context_bytes} bytes.",
        )


def _check_ids(documents: list[NDArray[np.int64]], vocabulary: int, tokens: int) -> None:
    largest = max(int(ids.max(initial=0)) for ids in documents)
    if largest >= min(vocabulary, tokens):
        raise InputError(
            f"the text contains token id {largest}, but the model has {vocabulary} embedding rows and the tokenizer"
            f" {tokens} tokens",
            remedy="Use the model and the tokenizer of the same run.",
        )


def _encode(tokenizer: ScoringTokenizer, texts: Sequence[str]) -> list[NDArray[np.int64]]:
    """Each document's ids, int64 `[n]`."""
    return [
        np.asarray(ids, dtype=np.int64)
        for start in range(0, len(texts), _TEXTS_PER_CALL)
        for ids in tokenizer.encode(list(texts[start : start + _TEXTS_PER_CALL]))
    ]


def _windows(
    lengths: Sequence[NDArray[np.int64]], context_bytes: int, stride_bytes: int, context: int, max_scored: int
) -> tuple[list[_Window], NDArray[np.int64]]:
    """Windows of all documents, and each document's number of tokens with a shortened context."""
    windows, shortened = [], np.zeros(len(lengths), dtype=np.int64)
    for document, each in enumerate(lengths):
        starts, count = window_starts(each, context_bytes, stride_bytes, context)
        windows += [_Window(document, *window) for window in iter_windows(starts, max_scored)]
        shortened[document] = count
    # longest first, so that running out of memory happens immediately
    windows.sort(key=lambda window: (-window.tokens, window.document, window.start))
    return windows, shortened


def _batches(windows: list[_Window], batch_tokens: int, max_scored: int) -> Iterator[list[_Window]]:
    """Batch consecutive windows: at most `batch_tokens` tokens, padding included, and `max_scored` scored tokens."""
    batch: list[_Window] = []
    for window in windows:
        is_full = (len(batch) + 1) * (batch or [window])[0].tokens > batch_tokens
        if batch and (is_full or sum(each.scored for each in batch) + window.scored > max_scored):
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _iter_losses(
    model: Any,
    documents: list[NDArray[np.int64]],
    targets: list[NDArray[np.int64]],
    batches: Iterable[list[_Window]],
    eos_id: int,
    device: str,
) -> Iterator[tuple[_Window, NDArray[np.float64]]]:
    """Yield each window with the losses of its scored ids, in nats."""
    import torch

    was_training = model.training
    model.to(device).eval()
    try:
        for batch in batches:
            wanted = np.concatenate([targets[each.document][each.end - each.scored : each.end] for each in batch])
            with torch.inference_mode():
                losses = _score(model, documents, batch, wanted, eos_id, device).numpy()
            yield from zip(batch, np.split(losses, np.cumsum([each.scored for each in batch[:-1]])), strict=True)
    finally:
        model.train(was_training)


def _score(
    model: Any,
    documents: list[NDArray[np.int64]],
    batch: list[_Window],
    targets: NDArray[np.int64],
    eos_id: int,
    device: str,
) -> "torch.Tensor":
    """Negative log-likelihoods of the target ids in nats, float64 `[Σ scored]`, window by window."""
    import torch

    ids = torch.full((len(batch), max(window.tokens for window in batch)), eos_id)
    is_token, is_scored = torch.zeros(ids.shape, dtype=torch.bool), torch.zeros(ids.shape, dtype=torch.bool)
    for row, window in enumerate(batch):
        ids[row, 1 : window.tokens] = torch.from_numpy(documents[window.document][window.start : window.end - 1])
        is_token[row, : window.tokens] = True
        is_scored[row, window.tokens - window.scored : window.tokens] = True
    wanted: Any = torch.from_numpy(targets).to(device)
    logits = model(
        input_ids=ids.to(device),
        attention_mask=is_token.to(device),
        logits_to_keep=is_scored.to(device),  # logits of scored positions only
        use_cache=False,
    ).logits
    losses = [
        torch.nn.functional.cross_entropy(part.float(), target, ignore_index=IGNORED, reduction="none")
        for part, target in zip(logits.split(_POSITIONS), wanted.split(_POSITIONS), strict=True)
    ]
    return torch.cat(losses).cpu().double()
