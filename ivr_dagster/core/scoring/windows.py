"""Context windows in bytes: which part of a document a model reads to predict each token.

A context of n tokens holds more text if tokens are longer, which would favor one tokenizer. So contexts are given in
bytes, the same text for every tokenizer. With C = `context_bytes` and S = `stride_bytes`, a token that begins p bytes
into the document is read in window k = max(0, ⌈(p − C) / S⌉), which starts at the first token that begins at byte k·S
or later. So a token has at most C bytes of context and, beyond the first C bytes of the document, at least C − S, minus
the part of a token that k·S may cut off.

The model reads an end-of-text token before every window, because attention needs a first token that it knows well
(Xiao et al. 2023, attention sinks). A new token in that place can spoil the whole window, which says nothing about a
model that reads documents from their beginning.

If a window has more tokens than the model reads at once (`context`), its later tokens are read from a later start, a
multiple of `context // 2` tokens further on. Such tokens are counted as shortened.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

# share of tokens that may have a shortened context
SHORTENED = 0.01


def fitting_context_bytes(lengths: Sequence[NDArray[np.int64]], context: int, *, shortened: float = SHORTENED) -> int:
    """The largest context in bytes that a model of `context` tokens can give to nearly all tokens of these documents.

    Args:
        lengths: per document, int64 `[n]`, bytes of its tokens under the tokenizer with the most tokens.
        context: tokens that the model reads at once.
        shortened: share of tokens that may have a shorter context. Dense text (tables, numbers) exists in most
            corpora, and one such place must not decide the context of all.
    """
    spans = []
    for each in lengths:
        ends = np.concatenate([[0], np.cumsum(each)])
        # bytes of the `context` tokens before each token that has that many
        spans.append(ends[context : len(each)] - ends[: max(0, len(each) - context)])
    span = np.sort(np.concatenate(spans)) if spans else np.zeros(0, dtype=np.int64)
    rank = int(shortened * sum(len(each) for each in lengths))
    if rank >= len(span):
        return max(1, *(int(each.sum()) for each in lengths), 1)
    return max(1, int(span[rank]) - 1)


def window_starts(
    lengths: NDArray[np.int64], context_bytes: int, stride_bytes: int, context: int
) -> tuple[NDArray[np.int64], int]:
    """The first token of each token's window, int64 `[n]`, and how many tokens have a shortened context.

    Args:
        lengths: int64 `[n]`, bytes of a document's tokens.
        context_bytes: C.
        stride_bytes: S.
        context: tokens that the model reads at once, with the end-of-text token.
    """
    indices = np.arange(len(lengths))
    begins = np.cumsum(lengths) - lengths
    windows = np.maximum(0, -((context_bytes - begins) // stride_bytes))
    starts = np.minimum(np.searchsorted(begins, windows * stride_bytes), indices)
    # token i is predicted from the end-of-text token and tokens start … i − 1
    excess, hop = indices + 1 - starts - context, max(1, context // 2)
    shift = np.where(excess > 0, -(-excess // hop) * hop, 0)
    return starts + shift, int((shift > 0).sum())


def iter_windows(starts: NDArray[np.int64], max_scored: int) -> Iterator[tuple[int, int, int]]:
    """Windows as (start, end, scored): consecutive tokens with one start, at most `max_scored` per window.

    The model reads the end-of-text token and tokens `start … end − 2`, and predicts tokens `end − scored … end − 1`.
    """
    first = 0
    for end in [*(np.flatnonzero(np.diff(starts)) + 1).tolist(), len(starts)]:
        for begin in range(first, end, max_scored):
            stop = min(end, begin + max_scored)
            yield int(starts[begin]), stop, stop - begin
        first = end
